"""A stranger's URL makes the station connect to public addresses only, whatever it looks like."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver

from proxy.jobs.guarded import UNREACHED, GuardedSession
from proxy.routing.foreign import is_open, networks

LOOPBACK = networks(["127.0.0.0/8"])


class Names(AbstractResolver):
    """Each name leads where the test says, each time somewhere else; others to public documentation."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers

    async def resolve(self, host, port=0, family=socket.AF_UNSPEC):
        turns = self.answers[host.partition(".")[0]]
        now = turns.pop(0) if len(turns) > 1 else turns[0]
        return [
            {
                "hostname": host, "host": address, "port": port, "proto": 0, "flags": socket.AI_NUMERICHOST,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
            }
            for address in now
        ]  # fmt: skip

    async def close(self) -> None:
        pass


@pytest.fixture
async def connected(monkeypatch):
    """Every address that the loop is told to connect to."""
    loop, addresses = asyncio.get_running_loop(), []
    connect = loop.sock_connect

    async def sock_connect(sock, address):
        addresses.append(address[0])
        if is_open(ip_address(address[0])):
            raise ConnectionRefusedError("tests reach no public address")
        await connect(sock, address)

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    return addresses


@pytest.fixture
async def trap(aiohttp_server):
    """A server on loopback that answers everything, and redirects where it is told to."""
    app, asked = web.Application(), []

    async def answer(request):
        asked.append(request)
        if "to" in request.query:
            raise web.HTTPTemporaryRedirect(request.query["to"])
        return web.Response(body=b"x" * int(request.query.get("size", 2)))

    app.router.add_route("*", "/{rest:.*}", answer)
    server = await aiohttp_server(app)
    server.asked = asked
    return server


HOSTILE = [
    "http://127.0.0.1:{port}/", "http://127.1:{port}/", "http://127.0.1:{port}/", "http://0:{port}/",
    "http://0.0.0.0:{port}/", "http://2130706433:{port}/", "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/", "http://0177.0.0.1:{port}/", "http://017700000001:{port}/",
    "http://127.0.0.1.:{port}/", "http://localhost:{port}/", "http://LOCALHOST.:{port}/",
    "http://foo.localhost:{port}/", "http://[::1]:{port}/", "http://[::]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]:{port}/", "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/", "http://[2002:7f00:1::]:{port}/", "http://[fe80::1]:{port}/",
    "http://[fe80::1%25lo]:{port}/", "http://[fd00::1]:{port}/", "http://[ff02::1]:{port}/",
    "http://169.254.169.254/latest/meta-data/", "http://100.100.100.200/", "http://10.0.0.1:{port}/",
    "http://172.16.0.1:{port}/", "http://192.168.0.1:{port}/", "http://100.64.0.1:{port}/",
    "http://224.0.0.1:{port}/", "http://255.255.255.255:{port}/", "http://198.18.0.1:{port}/",
    "http://user:secret@127.0.0.1:{port}/", "http://hooks.example.com@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@hooks.example.com/", "http://127.0.0.1:{port}#@hooks.example.com/",
    "http://①②⑦.⓪.⓪.①:{port}/", "http://127。0。0。1:{port}/", "http://%31%32%37.0.0.1:{port}/",
    "file:///etc/passwd", "gopher://127.0.0.1:{port}/", "unix:///tmp/s", "data:text/plain,x",
    "http://private.example:{port}/", "http://mapped.example:{port}/", "http://metadata.example/",
    "http://unique.example:{port}/", "http://scoped.example:{port}/", "http://nat64.example:{port}/",
]  # fmt: skip
NAMES = {
    "private": [["127.0.0.1", "::1"]], "mapped": [["::ffff:127.0.0.1"]], "metadata": [["169.254.169.254"]],
    "unique": [["fd00::1", "10.0.0.1"]], "scoped": [["fe80::1"]], "nat64": [["64:ff9b::a00:1"]],
    "localhost": [["127.0.0.1"]], "foo": [["127.0.0.1"]], "LOCALHOST": [["127.0.0.1"]],
}  # fmt: skip


def test_there_are_more_than_forty_hostile_targets():
    assert len(set(HOSTILE)) >= 40


@pytest.mark.parametrize("url", HOSTILE)
async def test_nothing_that_is_not_public_is_connected_to(url, connected, trap):
    guarded = GuardedSession(lambda: (), total_s=5, resolver=Names(**NAMES))
    try:
        with pytest.raises(UNREACHED):
            await guarded.fetch("POST", url.format(port=trap.port), most_bytes=100, data=b"{}")
    finally:
        await guarded.close()
    assert connected == []
    assert trap.asked == []


@pytest.mark.parametrize(
    "written",
    ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "localhost", "::ffff:127.0.0.1"],
)
async def test_what_a_look_at_the_url_might_let_through_ends_at_its_address(written, connected, trap):
    """The check of what is written is for the customer's sake; safety does not rest on it."""
    guarded = GuardedSession(lambda: (), total_s=5)
    host = f"[{written}]" if ":" in written else written
    try:
        with pytest.raises(UNREACHED):
            await guarded._session.get(f"http://{host}:{trap.port}/")
    finally:
        await guarded.close()
    assert connected == []


async def test_a_name_that_leads_elsewhere_a_moment_later_gains_nothing(connected, trap):
    names = Names(rebinding=[["8.8.8.8"], ["127.0.0.1"], ["8.8.4.4", "127.0.0.1"]])
    guarded = GuardedSession(lambda: (), total_s=5, resolver=names)
    guarded._session.connector._use_dns_cache = False  # each try asks again
    try:
        for _ in range(3):
            with pytest.raises(UNREACHED):
                await guarded.fetch("GET", f"http://rebinding.example:{trap.port}/", most_bytes=100)
    finally:
        await guarded.close()
    assert set(connected) == {"8.8.8.8", "8.8.4.4"}
    assert trap.asked == []


@pytest.fixture
async def allowed(trap):
    guarded = GuardedSession(lambda: LOOPBACK, total_s=5, resolver=Names(here=[["127.0.0.1"]]))
    yield guarded
    await guarded.close()


async def test_what_the_operator_allows_is_reached(allowed, trap):
    reply = await allowed.fetch("POST", f"http://127.0.0.1:{trap.port}/hook?size=3", most_bytes=100)
    assert (reply.status, reply.body, reply.is_whole) == (200, b"xxx", True)
    reply = await allowed.fetch("POST", f"http://here.example:{trap.port}/hook", most_bytes=100)
    assert reply.status == 200


async def test_a_redirect_is_an_answer_and_not_followed(allowed, trap):
    url = f"http://127.0.0.1:{trap.port}/?to=http://127.0.0.1:{trap.port}/other"
    reply = await allowed.fetch("POST", url, most_bytes=100)
    assert reply.status == 307
    assert len(trap.asked) == 1


async def test_nothing_of_the_environment_goes_along(allowed, trap, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login operator password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    reply = await allowed.fetch("GET", f"http://127.0.0.1:{trap.port}/", most_bytes=100)
    assert reply.status == 200
    assert "Authorization" not in trap.asked[0].headers


async def test_a_long_answer_is_not_read_to_its_end(allowed, trap):
    url = f"http://127.0.0.1:{trap.port}/?size=10000000"
    reply = await allowed.fetch("GET", url, most_bytes=1000)
    assert len(reply.body) == 1000
    assert not reply.is_whole
