"""The pool, on real sockets: what is used again, what never is, and how a new connection is made."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import contextmanager
from dataclasses import replace

import pytest

from proxy.errors import UpstreamClosed, UpstreamConnectFailed
from proxy.relay.pool import EXPIRY_S, IDLE_S, Pool, tls_context
from proxy.relay.resolver import FAILED_S, FRESH_S, NAMES_MAX, Resolver
from proxy.relay.upstream import State
from proxy.relay.upstream_tls import READ_BYTES_MAX
from proxy.routing.table import Mirror
from tests.fakes.certificate import make_certificate
from tests.fakes.recorder import Recorder, acquire, ask, send
from tests.fakes.upstream_server import Close, Cut, Pause, UpstreamServer, chunked, head, stream, whole
from tests.waiting import DEADLINE_S, until

HELLO = whole(b"hello")
EVIL = whole(b"EVIL")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def server():
    with UpstreamServer() as running:
        running.script("/", [HELLO])
        yield running


@pytest.fixture
def mirror(server):
    return Mirror("openai", "direct", "http", "127.0.0.1", server.port, "", None)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def pool(clock):
    pool = Pool(asyncio.get_running_loop(), clock=clock)
    yield pool
    pool.close()
    assert (pool.open, pool.idle) == (0, 0)


# -- what is used again ------------------------------------------------------------------------------


async def test_the_connection_parked_last_is_taken_first(pool, mirror, server):
    first, second = [await acquire(pool, mirror) for _ in range(2)]
    assert first is not second
    for connection in (first, second):
        sink = Recorder()
        send(connection, sink, "/")
        await sink.end()
        connection.release()
    assert pool.idle == 2
    assert await acquire(pool, mirror) is second
    assert await acquire(pool, mirror) is first
    assert (pool.idle, pool.open, first.has_served) == (0, 2, True)


async def test_connections_of_one_mirror_do_not_serve_another(pool, mirror):
    await ask(pool, mirror)
    with UpstreamServer() as other:
        other.script("/", [whole(b"other")])
        sink = await ask(pool, replace(mirror, port=other.port))
    assert await sink.end() == b"other"
    assert pool.stats.opened == 2


async def test_mirrors_that_lead_to_the_same_place_share_connections(pool, mirror):
    await ask(pool, mirror)
    await ask(pool, replace(mirror, upstream="spare", name="b", base_path="/v2"))
    assert pool.stats.opened == 1


async def test_a_fresh_connection_is_not_an_idle_one(pool, mirror):
    await ask(pool, mirror)
    connection = await acquire(pool, mirror, fresh=True)
    assert not connection.has_served
    sink = Recorder()
    send(connection, sink, "/")
    await sink.end()
    connection.release()
    assert pool.idle == 2


async def test_without_reuse_a_connection_serves_once(pool, mirror):
    await ask(pool, mirror)
    connection = await acquire(pool, mirror, reuse=False)
    assert not connection.has_served
    sink = Recorder()
    send(connection, sink, "/")
    await sink.end()
    connection.release()
    assert connection.state is State.CLOSED
    assert (pool.idle, pool.open) == (1, 1)


@pytest.mark.parametrize(
    "answer",
    [
        [whole(b"hello", 200, "connection: close")],
        [b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello"],
        [head(200) + b"hello", Close()],
        [HELLO + b"!"],
    ],
)
async def test_some_answers_end_their_connection(pool, mirror, server, answer):
    server.script("/", answer)
    assert await (await ask(pool, mirror)).end() == b"hello"
    assert (pool.idle, pool.open) == (0, 0)


async def test_an_unfinished_exchange_is_not_given_back(pool, mirror, server):
    server.script("/", [HELLO[:-1], Pause()])
    connection = await acquire(pool, mirror)
    sink = Recorder()
    send(connection, sink, "/")
    await until(lambda: sink.content)
    connection.release()
    assert (pool.idle, pool.open) == (0, 0)


async def test_a_dead_idle_connection_removes_itself(pool, mirror, server):
    await ask(pool, mirror)
    assert pool.idle == 1
    server.close_connections()
    await until(lambda: pool.idle == 0)
    assert pool.open == 0
    assert await (await ask(pool, mirror)).end() == b"hello"


async def test_a_byte_on_an_idle_connection_closes_it(pool, mirror, server):
    await ask(pool, mirror)
    server.push(EVIL)
    await until(lambda: pool.idle == 0)
    assert pool.stats.poisoned == 1


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_ten_thousand_requests_never_get_a_foreign_byte(pool, mirror, server):
    """The upstream misbehaves behind four of five answers, in each way that a pool can still notice."""
    server.script("*", [lambda request: whole(request.target.encode()) + excess(request.target)])

    def excess(target: str) -> bytes:
        return EVIL if int(target[1:]) % 5 == 0 else b""

    for number in range(10_000):
        sink = await ask(pool, mirror, f"/{number}")
        assert await sink.end() == f"/{number}".encode()
        if number % 5 == 1:
            server.push(EVIL)  # the loop has not looked: only the descriptor knows
        elif number % 50 == 2:
            server.push(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n")
            await until(lambda: pool.idle == 0)
        elif number % 50 == 3:
            server.close_connections(Cut())
            await until(lambda: pool.idle == 0)
    assert pool.stats.unclean >= 2_000
    assert pool.stats.poisoned >= 200
    assert len(server.requests) == 10_000


# -- how long it is kept -----------------------------------------------------------------------------


async def test_an_idle_connection_is_not_used_when_it_may_be_gone(pool, mirror, server, clock):
    await ask(pool, mirror)
    clock.now += IDLE_S - 1
    await ask(pool, mirror)
    assert server.accepted == 1
    clock.now += IDLE_S
    await ask(pool, mirror)
    assert server.accepted == 2
    assert pool.stats.expired == 1


async def test_a_server_that_says_how_long_it_waits_is_believed(pool, mirror, server, clock):
    server.script("/", [whole(b"hello", 200, "keep-alive: timeout=5")])
    await ask(pool, mirror)
    clock.now += 3
    await ask(pool, mirror)
    assert server.accepted == 1
    clock.now += 4
    await ask(pool, mirror)
    assert server.accepted == 2


async def test_idle_connections_are_closed_in_time(mirror, server, clock):
    loop = asyncio.get_running_loop()
    pool = Pool(loop, clock=clock)
    await ask(pool, mirror)
    clock.now += IDLE_S
    assert pool.idle == 1
    pool.expire()
    assert (pool.idle, pool.open) == (0, 0)
    assert EXPIRY_S < IDLE_S


async def test_idle_connections_are_not_kept_without_bound(mirror, server):
    pool = Pool(asyncio.get_running_loop(), idle_max=2)
    connections = [await acquire(pool, mirror) for _ in range(3)]
    for connection in connections:
        sink = Recorder()
        send(connection, sink, "/")
        await sink.end()
        connection.release()
    assert (pool.idle, pool.open) == (2, 2)
    pool.close()


async def test_closing_the_pool_closes_everything(mirror, server):
    server.script("/slow", [Pause()])
    pool = Pool(asyncio.get_running_loop())
    await ask(pool, mirror)
    running = await acquire(pool, mirror, fresh=True)
    sink = Recorder()
    send(running, sink, "/slow")
    pool.close()
    assert (pool.idle, pool.open) == (0, 0)
    await until(lambda: server.open_connections == 0)
    assert not sink.ended.done()
    with pytest.raises(UpstreamConnectFailed):
        await acquire(pool, mirror)


# -- how a connection is made ------------------------------------------------------------------------


@contextmanager
def black_hole():
    """A port that answers no SYN: a listener whose backlog is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        filling = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            filling.append(client)
        yield port
        for client in filling:
            client.close()


def addresses(*ports: int):
    """A getaddrinfo that knows one name, at these ports of 127.0.0.1."""
    asked = []

    async def getaddrinfo(host, port, **_):
        asked.append(host)
        await asyncio.sleep(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

    return getaddrinfo, asked


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_nobody_listening_is_told_at_once(pool, mirror):
    with pytest.raises(UpstreamConnectFailed) as failed:
        await acquire(pool, replace(mirror, port=unused_port()), DEADLINE_S)
    assert failed.value.status == 502
    assert "127.0.0.1" not in failed.value.message
    assert (pool.open, pool.stats.connect_failed) == (0, 1)


async def test_a_host_that_does_not_answer_costs_the_time_limit(pool, mirror):
    with black_hole() as port:
        started = asyncio.get_running_loop().time()
        with pytest.raises(UpstreamConnectFailed):
            await acquire(pool, replace(mirror, port=port), 0.1)
        assert 0.05 < asyncio.get_running_loop().time() - started < 1.0
    assert pool.open == 0


async def test_an_address_that_does_not_answer_is_overtaken_by_the_next(mirror, server):
    with black_hole() as port:
        getaddrinfo, _ = addresses(port, server.port)
        pool = Pool(asyncio.get_running_loop(), getaddrinfo=getaddrinfo)
        sink = await ask(pool, replace(mirror, host="two-addresses.example"))
        assert await sink.end() == b"hello"
        pool.close()


async def test_an_address_that_refuses_is_followed_by_the_next(mirror, server):
    getaddrinfo, asked = addresses(unused_port(), server.port)
    pool = Pool(asyncio.get_running_loop(), getaddrinfo=getaddrinfo)
    for _ in range(3):
        connection = await acquire(pool, replace(mirror, host="two-addresses.example"), reuse=False)
        connection.abort()
    assert len(asked) == 1
    pool.close()


async def test_addresses_of_which_none_answers_are_asked_for_again(mirror):
    getaddrinfo, asked = addresses(unused_port())
    pool = Pool(asyncio.get_running_loop(), getaddrinfo=getaddrinfo)
    for _ in range(2):
        with pytest.raises(UpstreamConnectFailed):
            await acquire(pool, replace(mirror, host="moved.example"), DEADLINE_S)
    assert len(asked) == 2


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".example", "\udcff.example", ""])
async def test_a_name_that_leads_nowhere_is_a_failure_to_connect(pool, mirror, host):
    with pytest.raises(UpstreamConnectFailed):
        await acquire(pool, replace(mirror, host=host), DEADLINE_S)
    assert pool.open == 0


async def test_a_name_is_looked_up(pool, mirror):
    assert await (await ask(pool, replace(mirror, host="localhost"))).end() == b"hello"


async def test_a_server_that_speaks_first_is_no_upstream(mirror):
    connected = asyncio.Event()

    async def banner(_, writer):
        await connected.wait()
        writer.write(b"220 ready\r\n")

    speaker = await asyncio.start_server(banner, "127.0.0.1", 0)
    pool = Pool(asyncio.get_running_loop())
    connection = await acquire(pool, replace(mirror, port=speaker.sockets[0].getsockname()[1]), DEADLINE_S)
    connected.set()
    await until(lambda: connection.state is State.CLOSED)
    assert pool.open == 0
    speaker.close()


async def test_there_may_be_a_cap_on_connections(mirror, server):
    pool = Pool(asyncio.get_running_loop(), connections_max=2)
    first, _ = [await acquire(pool, mirror) for _ in range(2)]
    with pytest.raises(UpstreamConnectFailed):
        await acquire(pool, mirror)
    first.abort()
    await acquire(pool, mirror)
    pool.close()


async def test_a_cancelled_connect_leaves_nothing(pool, mirror):
    with black_hole() as port:
        connecting = asyncio.ensure_future(acquire(pool, replace(mirror, port=port), DEADLINE_S))
        await until(lambda: pool.open == 1)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
    assert pool.open == 0


# -- names -------------------------------------------------------------------------------------------


async def test_a_name_is_asked_for_once_and_again_when_it_is_old(clock):
    getaddrinfo, asked = addresses(1)
    resolver = Resolver(asyncio.get_running_loop(), clock, getaddrinfo)
    await asyncio.gather(*[resolver.addresses("a.example", 1) for _ in range(20)])
    assert len(asked) == 1
    clock.now += FRESH_S - 1
    await resolver.addresses("a.example", 1)
    assert len(asked) == 1
    clock.now += 1
    await resolver.addresses("a.example", 1)
    assert len(asked) == 2


async def test_a_failed_look_up_is_remembered_for_a_moment(clock):
    asked = []

    async def getaddrinfo(host, port, **_):
        asked.append(host)
        await asyncio.sleep(0)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    resolver = Resolver(asyncio.get_running_loop(), clock, getaddrinfo)
    failures = await asyncio.gather(
        *[resolver.addresses("a.example", 1) for _ in range(20)], return_exceptions=True
    )
    assert all(isinstance(failure, OSError) for failure in failures)
    assert len(asked) == 1
    clock.now += FAILED_S
    with pytest.raises(OSError, match="unknown"):
        await resolver.addresses("a.example", 1)
    assert len(asked) == 2


async def test_a_cancelled_look_up_is_taken_over_by_who_waits_for_it(clock):
    answer = asyncio.get_running_loop().create_future()
    asked = []

    async def getaddrinfo(host, port, **_):
        asked.append(host)
        return await asyncio.shield(answer)

    resolver = Resolver(asyncio.get_running_loop(), clock, getaddrinfo)
    first, second = [asyncio.ensure_future(resolver.addresses("a.example", 1)) for _ in range(2)]
    await until(lambda: asked)
    first.cancel()
    await until(lambda: len(asked) == 2)
    answer.set_result(["somewhere"])
    assert await second == ["somewhere"]
    assert first.cancelled()


async def test_the_memory_for_names_is_bounded(clock):
    getaddrinfo, asked = addresses(1)
    resolver = Resolver(asyncio.get_running_loop(), clock, getaddrinfo)
    for number in range(NAMES_MAX + 1):
        await resolver.addresses(f"{number}.example", 1)
    await resolver.addresses(f"{NAMES_MAX}.example", 1)
    assert len(asked) == NAMES_MAX + 1
    await resolver.addresses("0.example", 1)
    assert len(asked) == NAMES_MAX + 2


# -- TLS ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_server(certificate):
    with UpstreamServer(certificate.server_context()) as running:
        running.script("/", [HELLO])
        yield running


@pytest.fixture
def tls_mirror(tls_server):
    return Mirror("openai", "direct", "https", "127.0.0.1", tls_server.port, "", None)


@pytest.fixture
async def tls_pool(certificate):
    pool = Pool(asyncio.get_running_loop(), ssl_context=tls_context(str(certificate.certificate)))
    yield pool
    pool.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_answers_come_over_tls(certificate, tls_server, tls_mirror, version):
    context = tls_context(str(certificate.certificate))
    context.minimum_version = context.maximum_version = version
    pool = Pool(asyncio.get_running_loop(), ssl_context=context)
    body = bytes(range(256)) * 4_000
    tls_server.script("/length", [whole(body)])
    tls_server.script("/stream", stream(body, range(0, len(body), 9_999)))
    tls_server.script("/chunked", [chunked([b"hel", b"lo"])])
    for _ in range(5):
        assert await (await ask(pool, tls_mirror, "/length")).end() == body
        assert await (await ask(pool, tls_mirror, "/stream")).end() == body
        assert await (await ask(pool, tls_mirror, "/chunked")).end() == b"hello"
        await until(lambda: pool.idle == 1)
    assert tls_server.accepted == 1
    pool.close()
    await until(lambda: tls_server.open_connections == 0)


async def test_a_server_is_offered_http_1_1_only(certificate):
    context = certificate.server_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with UpstreamServer(context) as server:
        server.script("/", [HELLO])
        pool = Pool(asyncio.get_running_loop(), ssl_context=tls_context(str(certificate.certificate)))
        mirror = Mirror("openai", "direct", "https", "127.0.0.1", server.port, "", None)
        assert await (await ask(pool, mirror)).end() == b"hello"
        pool.close()


async def test_a_certificate_that_nobody_vouches_for_is_refused(tls_server, tls_mirror):
    pool = Pool(asyncio.get_running_loop(), ssl_context=tls_context())
    with pytest.raises(UpstreamConnectFailed) as failed:
        await acquire(pool, tls_mirror)
    assert isinstance(failed.value.__cause__, ssl.SSLCertVerificationError)
    assert pool.open == 0
    assert tls_server.requests == []


async def test_a_certificate_for_another_name_is_refused(tmp_path):
    other = make_certificate(tmp_path, "DNS:other.example")
    with UpstreamServer(other.server_context()) as server:
        pool = Pool(asyncio.get_running_loop(), ssl_context=tls_context(str(other.certificate)))
        with pytest.raises(UpstreamConnectFailed):
            await acquire(pool, Mirror("a", "b", "https", "127.0.0.1", server.port, "", None), DEADLINE_S)
        assert pool.open == 0


async def test_a_server_without_tls_is_no_fallback(tls_pool):
    async def answer(_, writer):
        writer.write(HELLO)

    plain = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = plain.sockets[0].getsockname()[1]
    with pytest.raises(UpstreamConnectFailed) as failed:
        await acquire(tls_pool, Mirror("a", "b", "https", "127.0.0.1", port, "", None), DEADLINE_S)
    assert isinstance(failed.value.__cause__, ssl.SSLError)
    assert tls_pool.open == 0
    plain.close()


async def test_a_handshake_that_never_ends_costs_the_time_limit(tls_pool):
    left = asyncio.Event()

    async def say_nothing(reader, writer):
        await reader.read()
        left.set()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    with pytest.raises(UpstreamConnectFailed):
        await acquire(tls_pool, Mirror("a", "b", "https", "127.0.0.1", port, "", None), 0.1)
    assert tls_pool.open == 0
    await until(left.is_set)
    silent.close()


async def test_without_a_context_there_is_no_tls(pool, tls_mirror):
    with pytest.raises(UpstreamConnectFailed):
        await acquire(pool, tls_mirror)


async def test_a_body_without_length_is_complete_behind_a_close_notify(tls_pool, tls_mirror, tls_server):
    tls_server.script("/", [head(200) + b"hello", Close()])
    assert await (await ask(tls_pool, tls_mirror)).end() == b"hello"


# asyncio's own TLS tells of a cut as of an end; a worker always runs on uvloop.
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_body_without_length_is_cut_when_tls_is(tls_pool, tls_mirror, tls_server):
    tls_server.script("/", [head(200) + b"hello", Cut()])
    sink = await ask(tls_pool, tls_mirror)
    assert isinstance(await sink.loss(), UpstreamClosed)
    assert sink.content == b"hello"


async def test_bytes_on_an_idle_tls_connection_never_reach_the_next_request(tls_pool, tls_mirror, tls_server):
    for wait in (True, False) * 20:
        assert await (await ask(tls_pool, tls_mirror)).end() == b"hello"
        tls_server.push(EVIL)
        if wait:
            await until(lambda: tls_pool.idle == 0)
    assert tls_server.accepted == 40


async def test_bytes_that_wait_inside_of_tls_never_reach_the_next_request(tls_pool, tls_mirror, tls_server):
    """The last read fills the buffer to its end: what follows is in memory, where no poll can see it."""
    paused, sent = Pause(), Pause()
    rest = bytes(READ_BYTES_MAX)
    first = head(200, f"content-length: {1 + len(rest)}") + b"!"
    tls_server.script("/full", [first, paused, rest + EVIL, sent])
    connection = await acquire(tls_pool, tls_mirror)

    idle_at_release = []

    def on_content(sink):
        if sink.reads == 1:
            connection.pause_reading()
        if sink.ended.done():
            connection.release()
            idle_at_release.append(tls_pool.idle)

    sink = Recorder(on_content)
    send(connection, sink, "/full")
    await until(lambda: sink.reads == 1)
    paused.end()
    await until(sent.reached.is_set)
    await until(lambda: not connection.has_unread_bytes())
    connection.resume_reading()
    assert await sink.end() == b"!" + rest
    assert sink.reads == 2, "or this test shows nothing"
    assert idle_at_release == [0], "not before the loop has looked for what is waiting"
    assert await (await ask(tls_pool, tls_mirror)).end() == b"hello"
    assert tls_server.accepted == 2
    sent.end()
