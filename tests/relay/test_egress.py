"""Mirrors that are reached through a proxy: which one is asked for what, and what comes of its refusals."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from proxy.errors import UpstreamConnectFailed
from proxy.relay.pool import Pool, tls_context
from proxy.routing.table import Egress, Mirror
from tests.fakes.certificate import make_certificate
from tests.fakes.egress_proxy import EgressProxy
from tests.fakes.recorder import acquire, ask
from tests.fakes.upstream_server import UpstreamServer, whole
from tests.waiting import DEADLINE_S, until

HELLO = whole(b"hello")
SCHEMES = pytest.mark.parametrize("scheme", ["http", "socks5"])


@pytest.fixture
def server():
    with UpstreamServer() as running:
        running.script("/", [HELLO])
        yield running


@pytest.fixture
async def pool():
    pool = Pool(asyncio.get_running_loop())
    yield pool
    pool.close()
    assert pool.open == 0


def mirror(scheme: str, proxy: EgressProxy, login: str = "") -> Mirror:
    """Of a host that only the proxy can find."""
    user, _, password = login.partition(":")
    via = Egress(scheme, "127.0.0.1", proxy.port, user, password)
    return Mirror("openai", "direct", "http", "api.vendor.test", 80, "", None, via)


@SCHEMES
@pytest.mark.parametrize("login", ["", "ada:se cret"])
async def test_the_proxy_is_asked_for_the_host_by_name_and_once_per_connection(pool, server, scheme, login):
    async with EgressProxy(server.port, login=login) as proxy:
        where = mirror(scheme, proxy, login)
        for _ in range(3):
            assert await (await ask(pool, where)).end() == b"hello"
        assert proxy.asked == ["api.vendor.test:80"]
        assert pool.stats.opened == 1


@SCHEMES
async def test_tls_goes_through_the_proxy_to_the_mirror(scheme, tmp_path):
    certificate = make_certificate(tmp_path, "DNS:api.vendor.test")
    with UpstreamServer(certificate.server_context()) as server:
        server.script("/", [HELLO])
        pool = Pool(asyncio.get_running_loop(), ssl_context=tls_context(str(certificate.certificate)))
        async with EgressProxy(server.port) as proxy:
            where = replace(mirror(scheme, proxy), scheme="https", port=443)
            assert await (await ask(pool, where)).end() == b"hello"
            assert proxy.asked == ["api.vendor.test:443"]
            pool.close()


async def test_connections_of_different_ways_are_never_exchanged(pool, server):
    async with EgressProxy(server.port) as one, EgressProxy(server.port) as other:
        for proxy in (one, other):
            assert await (await ask(pool, mirror("http", proxy))).end() == b"hello"
        assert pool.stats.opened == 2


@SCHEMES
async def test_a_wrong_password_is_a_failed_connection_that_tells_no_password(pool, server, scheme):
    async with EgressProxy(server.port, login="ada:secret") as proxy:
        with pytest.raises(UpstreamConnectFailed) as failed:
            await acquire(pool, mirror(scheme, proxy, "ada:wrong"), DEADLINE_S)
        assert "proxy refuses" in failed.value.detail
        assert "wrong" not in failed.value.detail
        assert proxy.asked in ([], ["api.vendor.test:80"])


@pytest.mark.parametrize(
    ("scheme", "answer", "why"),
    [
        ("http", b"HTTP/1.1 403 Forbidden\r\n\r\n", "status 403"),
        ("http", b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "before the request"),
        ("http", b"220 mail.example ESMTP\r\n\r\n", "no HTTP"),
        ("http", b"x" * 20_000, "does not end"),
        ("socks5", b"\5\5\0\1\0\0\0\0\0\0", "connection refused"),
        ("socks5", b"\4\0\0\1\0\0\0\0\0\0", "refuses"),
    ],
)
async def test_what_a_proxy_says_instead_is_a_failed_connection(pool, server, scheme, answer, why):
    async with EgressProxy(server.port, answer=answer) as proxy:
        with pytest.raises(UpstreamConnectFailed) as failed:
            await acquire(pool, mirror(scheme, proxy), DEADLINE_S)
        assert why in failed.value.detail


@SCHEMES
async def test_a_proxy_that_says_nothing_is_given_up_in_time(pool, server, scheme):
    async with EgressProxy(server.port, answer=b"") as proxy:
        with pytest.raises(UpstreamConnectFailed):
            await acquire(pool, mirror(scheme, proxy), 0.05)
        await until(lambda: pool.open == 0)
