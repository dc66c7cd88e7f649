"""One connection to an upstream, on real sockets: what comes out of it, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import sys

import pytest
import uvloop

from proxy.errors import Retry, UpstreamClosed, UpstreamGarbage, UpstreamStale
from proxy.http1.body import ChunkedWalker
from proxy.relay.pool import Pool
from proxy.relay.upstream import INTERIM_ANSWERS_MAX, State, UpstreamConnection
from proxy.routing.table import Mirror
from tests.fakes.recorder import Recorder, acquire, ask, send
from tests.fakes.upstream_server import (
    EXCESS,
    GARBAGE,
    GARBAGE_LATER,
    Close,
    HalfClose,
    Pause,
    Repeat,
    Reset,
    UpstreamServer,
    chunk,
    chunked,
    chunked_head,
    drip,
    head,
    stream,
    unchunked,
    whole,
)
from tests.waiting import until

HELLO = whole(b"hello")


@pytest.fixture
def server():
    with UpstreamServer() as running:
        yield running


@pytest.fixture
def mirror(server):
    return Mirror("openai", "direct", "http", "127.0.0.1", server.port, "", None)


@pytest.fixture
async def pool():
    pool = Pool(asyncio.get_running_loop())
    yield pool
    pool.close()


# -- answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        [HELLO],
        [chunked([b"he", b"l", b"lo"])],
        stream(b"hello", [1, 2, 3, 4]),
        [head(200) + b"hel", b"lo", Close()],
        [b"HTTP/1.0 200 OK\r\n\r\nhello", Close()],
        drip(HELLO, 0.0),
        drip(chunked([b"hel", b"lo"]), 0.0),
    ],
)
async def test_an_answer_is_its_content_and_ends_once(server, pool, mirror, answer):
    server.script("/", answer)
    sink = await ask(pool, mirror)
    assert await sink.end() == b"hello"
    assert [h.status for h in sink.heads] == [200]
    (request,) = server.requests
    assert (request.method, request.target, request.body) == ("POST", "/", b"{}")


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", [head(200, "content-length: 5")]),
        ("HEAD", [head(200, "transfer-encoding: chunked")]),
        ("POST", [head(204)]),
        ("POST", [head(204, "content-length: 5")]),
        ("POST", [head(304, "transfer-encoding: chunked")]),
        ("POST", [head(200, "content-length: 0")]),
    ],
)
async def test_some_answers_have_no_body_and_keep_the_connection(server, pool, mirror, method, answer):
    server.script("/", answer)
    for _ in range(2):
        sink = await ask(pool, mirror, method=method)
        assert await sink.end() == b""
    assert server.accepted == 1


async def test_a_body_behind_a_204_is_nobodys(server, pool, mirror):
    server.script("/", [head(204) + b"EVIL"])
    server.script("/next", [HELLO])
    assert await (await ask(pool, mirror)).end() == b""
    assert await (await ask(pool, mirror, "/next")).end() == b"hello"
    assert server.accepted == 2


async def test_interim_answers_are_swallowed(server, pool, mirror):
    server.script("/", [head(100) + head(103, "link: </x>"), *[head(102)] * (INTERIM_ANSWERS_MAX - 2), HELLO])
    sink = await ask(pool, mirror)
    assert await sink.end() == b"hello"
    assert len(sink.heads) == 1


async def test_a_flood_of_interim_answers_is_not(server, pool, mirror):
    server.script("/", [head(103)] * (INTERIM_ANSWERS_MAX + 1) + [HELLO])
    sink = await ask(pool, mirror)
    assert isinstance(await sink.loss(), UpstreamGarbage)


async def test_a_large_answer_comes_whole(server, pool, mirror):
    body = bytes(range(256)) * 40_000
    server.script("/length", [whole(body)])
    server.script("/chunked", stream(body, range(0, len(body), 70_001)))
    for path in ("/length", "/chunked", "/length"):
        assert await (await ask(pool, mirror, path)).end() == body
    assert server.accepted == 1


# -- what is no answer -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", GARBAGE)
async def test_garbage_is_no_answer_and_nobody_is_told_of_a_head(server, pool, mirror, mode):
    server.script("/", GARBAGE[mode])
    sink = await ask(pool, mirror)
    error = await sink.loss()
    assert isinstance(error, UpstreamGarbage)
    assert error.status == 502
    assert sink.heads == []
    assert (pool.open, pool.idle) == (0, 0)
    await until(lambda: server.open_connections == 0)


@pytest.mark.parametrize("mode", GARBAGE_LATER)
async def test_an_answer_that_breaks_is_never_complete(server, pool, mirror, mode):
    server.script("/", GARBAGE_LATER[mode])
    sink = await ask(pool, mirror)
    assert isinstance(await sink.loss(), UpstreamGarbage | UpstreamClosed)
    assert sink.content == b"hello"
    assert (pool.open, pool.idle) == (0, 0)
    await until(lambda: server.open_connections == 0)


@pytest.mark.parametrize("mode", EXCESS)
async def test_bytes_behind_an_answer_never_reach_the_next_request(server, pool, mirror, mode):
    server.script("/", EXCESS[mode])
    server.script("/next", [whole(b"mine")])
    for _ in range(3):
        assert await (await ask(pool, mirror)).end() == b"hello"
        await until(lambda: pool.idle == 0)
        assert await (await ask(pool, mirror, "/next")).end() == b"mine"


async def test_bytes_before_the_request_is_sent_lose_the_connection(server, pool, mirror):
    server.script("/", [HELLO])
    await ask(pool, mirror)
    connection = await acquire(pool, mirror)
    server.push(whole(b"EVIL"))
    await until(lambda: connection.state is State.CLOSED)
    sink = Recorder()
    send(connection, sink, "/")
    error = await sink.loss()
    assert isinstance(error, UpstreamStale)
    assert error.retry is Retry.REPLAY
    assert pool.stats.poisoned == 1
    assert len(server.requests) == 1


async def test_after_abort_a_connection_that_was_lost_earlier_tells_nothing(server, pool, mirror):
    connection = await acquire(pool, mirror)
    await until(lambda: server.open_connections)
    server.close_connections()
    await until(lambda: connection.state is State.CLOSED)
    sink = Recorder()
    connection.start(sink, "POST")
    connection.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not sink.ended.done()


async def test_an_answer_before_the_request_was_written_is_none(server, pool, mirror):
    server.script("/", [HELLO])
    await ask(pool, mirror)
    connection = await acquire(pool, mirror)
    sink = Recorder()
    connection.start(sink, "POST")
    server.push(whole(b"EVIL"))
    assert isinstance(await sink.loss(), UpstreamStale)
    assert sink.heads == []
    assert pool.stats.poisoned == 1


# -- lost connections --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [Close(), Reset()])
async def test_a_used_connection_that_closes_without_a_byte_is_stale(server, pool, mirror, how):
    server.script("/", [HELLO])
    server.script("/late", [how])
    await ask(pool, mirror)
    sink = await ask(pool, mirror, "/late")
    assert isinstance(await sink.loss(), UpstreamStale)
    assert server.accepted == 1


@pytest.mark.parametrize("how", [Close(), Reset()])
async def test_a_fresh_connection_that_closes_without_a_byte_is_never_replayed(server, pool, mirror, how):
    server.script("/", [how])
    error = await (await ask(pool, mirror)).loss()
    assert isinstance(error, UpstreamClosed)
    assert error.retry is not Retry.REPLAY


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 200 OK\r\ncontent-le", head(100)])
async def test_a_used_connection_that_closes_behind_a_byte_is_never_replayed(server, pool, mirror, begun):
    server.script("/", [HELLO])
    server.script("/late", [begun, Close()])
    await ask(pool, mirror)
    error = await (await ask(pool, mirror, "/late")).loss()
    assert isinstance(error, UpstreamClosed)


async def test_a_late_408_of_an_idle_connection_is_stale(server, pool, mirror):
    late = whole(b"too late", 408, "connection: close")
    server.script("/", [HELLO])
    server.script("/late", [late, Close()])
    fresh = await ask(pool, mirror, "/late")
    assert await fresh.end() == b"too late", "an answer on a fresh connection is one"
    await ask(pool, mirror)
    assert isinstance(await (await ask(pool, mirror, "/late")).loss(), UpstreamStale)


async def test_every_cut_of_an_answer_is_noticed(server, pool, mirror):
    for answer in (HELLO, chunked([b"hel", b"lo"])):
        for length in range(1, len(answer)):
            server.script("/", [answer[:length], Close()])
            sink = await ask(pool, mirror)
            assert isinstance(await sink.loss(), UpstreamClosed)
            assert b"hello".startswith(sink.content)


# -- the user's side ---------------------------------------------------------------------------------


async def test_after_abort_the_upstream_is_left_and_nothing_is_told(server, pool, mirror):
    pause = Pause()
    server.script("/", [chunked_head() + chunk(b"hello"), pause, chunk(b"world") + chunk(b"")])
    sink = Recorder()
    connection = await acquire(pool, mirror)
    send(connection, sink, "/")
    await until(lambda: sink.content)
    connection.abort()
    await until(lambda: server.open_connections == 0)
    pause.end()
    assert not sink.ended.done()
    assert sink.content == b"hello"
    assert pool.open == 0
    connection.write((b"ignored",))
    connection.pause_reading()
    connection.resume_reading()
    connection.release()
    connection.abort()
    assert pool.open == 0


@pytest.mark.parametrize("when", ["on_head", "on_content"])
async def test_an_answer_may_be_left_from_within_a_callback(server, pool, mirror, when):
    server.script("/", [chunked_head() + chunk(b"hello") + b"zz\r\n"])
    connection = await acquire(pool, mirror)
    told = []

    class Leaver(Recorder):
        def on_head(self, head, whole):
            super().on_head(head, whole)
            self.told("on_head")

        def on_content(self, pieces, done):
            super().on_content(pieces, done)
            self.told("on_content")

        def told(self, what):
            told.append(what)
            if what == when:
                connection.abort()

    sink = Leaver()
    send(connection, sink, "/")
    await until(lambda: when in told)
    await until(lambda: server.open_connections == 0)
    assert told[-1] == when
    assert not sink.ended.done()


async def test_a_half_closed_upstream_is_gone_although_it_reads_no_more(server, pool, mirror):
    server.script("/", [HalfClose(), Pause()], at_head=True)
    sink = Recorder()
    connection = await acquire(pool, mirror)
    connection.start(sink, "POST")
    connection.write([b"POST / HTTP/1.1\r\ncontent-length: 64000000\r\n\r\n", bytes(64_000_000)])
    assert isinstance(await sink.loss(), UpstreamClosed)


async def test_tiny_chunks_are_read_in_bites_and_others_have_their_turn(server, pool, mirror):
    server.script("/", [chunked_head() + b"1\r\nx\r\n" * 100_000 + chunk(b"")])
    server.script("/next", [HELLO])
    connection = await acquire(pool, mirror)
    turns_at_read = []
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        if not sink.ended.done():
            asyncio.get_running_loop().call_soon(count)

    sink = Recorder(lambda _: turns_at_read.append(turns))
    send(connection, sink, "/")
    await until(lambda: sink.reads)
    count()
    assert await sink.end() == b"x" * 100_000
    assert sink.reads > 10
    assert len(set(turns_at_read)) > sink.reads - 3
    assert sink.pieces_max < 1000
    connection.release()
    await until(lambda: pool.idle == 1)
    assert await (await ask(pool, mirror, "/next")).end() == b"hello"
    assert server.accepted == 1


async def test_a_flood_of_small_chunks_stops_where_its_client_does(server, pool, mirror):
    server.script("/", [chunked_head() + b"1\r\nx\r\n" * 100_000 + chunk(b"")])
    connection = await acquire(pool, mirror)
    read_at_pause = []

    def pause_now_and_then(sink: Recorder) -> None:
        if sink.reads in (1, 3, 4, 9) and not sink.ended.done():
            connection.pause_reading()
            read_at_pause.append(len(sink.content))

    sink = Recorder(pause_now_and_then)
    send(connection, sink, "/")
    for pauses in range(1, 5):
        await until(lambda: len(read_at_pause) == pauses)  # noqa: B023 - awaited here
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(sink.content) == read_at_pause[-1], "not a byte more"
        connection.resume_reading()
    assert await sink.end() == b"x" * 100_000


async def test_bytes_behind_a_flood_of_small_chunks_never_reach_the_next_request(server, pool, mirror):
    server.script("/", [chunked_head() + b"1\r\nx\r\n" * 10_000 + chunk(b"") + whole(b"EVIL") * 2_000])
    server.script("/next", [HELLO])
    assert await (await ask(pool, mirror)).end() == b"x" * 10_000
    await until(lambda: pool.idle == 0)
    assert await (await ask(pool, mirror, "/next")).end() == b"hello"
    assert server.accepted == 2


async def test_a_paused_answer_waits_at_the_upstream(server, pool, mirror):
    server.script("/", [chunked_head(), Repeat(chunk(bytes(65_536)), 300), chunk(b"")])
    connection = await acquire(pool, mirror)
    sink = Recorder(lambda sink: connection.pause_reading() if sink.reads == 1 else None)
    send(connection, sink, "/")
    await until(lambda: sink.reads == 1)
    await asyncio.sleep(0.05)  # long enough for hundreds of reads
    assert sink.reads == 1
    connection.resume_reading()
    assert len(await sink.end()) == 300 * 65_536
    connection.release()
    assert pool.idle == 1


async def test_a_connection_that_is_paused_at_the_end_can_be_used_again(server, pool, mirror):
    server.script("/", [HELLO])
    for _ in range(3):
        connection = await acquire(pool, mirror)
        sink = Recorder(lambda _, connection=connection: connection.pause_reading())
        send(connection, sink, "/")
        assert await sink.end() == b"hello"
        connection.release()
        assert pool.idle == 0, "not before the loop has looked for what is waiting"
        await until(lambda: pool.idle == 1)
    assert server.accepted == 1


async def test_bytes_behind_a_paused_end_close_the_connection(server, pool, mirror):
    server.script("/", [HELLO])
    connection = await acquire(pool, mirror)
    sink = Recorder(lambda _: connection.pause_reading())
    send(connection, sink, "/")
    await sink.end()
    server.push(whole(b"EVIL"))
    connection.release()
    assert await (await ask(pool, mirror)).end() == b"hello"
    assert server.accepted == 2


async def test_a_slow_upstream_pauses_the_upload(server, pool, mirror):
    if sys.version_info >= (3, 12) and not isinstance(asyncio.get_running_loop(), uvloop.Loop):
        pytest.skip("from Python 3.12 on asyncio's writelines() pauses nobody; the relay runs on uvloop")
    server.script("/", [HELLO])
    sink = Recorder()
    connection = await acquire(pool, mirror)
    connection.start(sink, "POST")
    body = bytes(16_000_000)
    connection.write([b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body), body])
    assert not connection.writable
    assert await sink.end() == b"hello"
    assert sink.upload == ["pause", "resume"]
    assert connection.writable
    assert server.requests[0].body == body


async def test_an_answer_before_its_request_has_ended_closes_the_connection(server, pool, mirror):
    server.script("/", [whole(b"too large", 413)], at_head=True)
    sink = Recorder()
    connection = await acquire(pool, mirror)
    connection.start(sink, "POST")
    connection.write([b"POST / HTTP/1.1\r\ncontent-length: 64000000\r\n\r\n", bytes(64_000_000)])
    assert await sink.end() == b"too large"
    connection.release()
    assert (pool.open, pool.idle) == (0, 0)


async def test_a_lost_connection_is_freed_at_once_and_not_by_the_garbage_collector(server, pool, mirror):
    """A worker collects rarely, and a cycle would hold a read of up to 256 KiB."""
    server.script("/frame", [chunked_head() + chunk(b"hello") + b"zz\r\n", Pause()])
    server.script("/head", [b"no HTTP\r\n", Pause()])
    server.script("/reset", [chunked_head() + b"5\r\nhe", Pause(0.01), Reset()])

    def alive() -> int:
        return sum(type(thing) in (UpstreamConnection, ChunkedWalker) for thing in gc.get_objects())

    gc.collect()
    before = alive()
    gc.disable()
    try:
        for path in ("/frame", "/head", "/reset"):
            sink = await ask(pool, mirror, path)
            assert sink.ended.exception() is not None  # not raised: a traceback holds what it went through
            del sink
        await until(lambda: alive() == before)
    finally:
        gc.enable()


async def test_silence_can_be_told_from_activity(server, mirror):
    now = [100.0]
    pool = Pool(asyncio.get_running_loop(), clock=lambda: now[0])
    pause = Pause()
    server.script("/", [chunked_head() + chunk(b"a"), pause, chunk(b"b") + chunk(b"")])
    connection = await acquire(pool, mirror)
    now[0] = 101.0
    sink = Recorder()
    send(connection, sink, "/")
    assert (connection.last_activity, connection.state) == (100.0, State.HEAD)
    now[0] = 102.0
    await until(lambda: sink.content)
    assert (connection.last_activity, connection.state) == (102.0, State.BODY)
    now[0] = 103.0
    pause.end()
    assert await sink.end() == b"ab"
    assert (connection.last_activity, connection.state) == (103.0, State.COMPLETE)
    pool.close()


# -- whole chunks ------------------------------------------------------------------------------------


async def test_whole_chunks_take_the_lane_and_all_else_goes_to_the_sink(server, pool, mirror):
    server.script("/", [Pause()])  # what is received is told by hand: so it is cut
    reads = [chunk(b"one"), chunk(b"two"), b"4;a=b\r\nfour\r\n", chunk(chunk(b"five")), chunk(b"six")]
    body = b"".join(reads)
    for cut in range(len(body)):
        connection = await acquire(pool, mirror, fresh=True)
        told, taken = bytearray(), []

        def take(
            data: bytes,
            connection: UpstreamConnection = connection,
            told: bytearray = told,
            taken: list[bytes] = taken,
        ) -> None:
            if connection.has_lane and data in (reads[0], reads[3], reads[4]):
                told.extend(unchunked(data))
                taken.append(data)
            else:
                connection.receive(data)

        def on_content(sink: Recorder, told: bytearray = told) -> None:
            told.extend(sink.content)
            sink.content.clear()

        sink = Recorder(on_content)
        send(connection, sink, "/")
        connection.data_received(chunked_head())
        for read in (body[:cut], body[cut:], *reads, *reads):
            if read:
                connection.data_received(read)
            connection.open_lane(take)  # at any time: also where a chunk has only begun
        connection.data_received(chunk(b""))
        assert await sink.end() == b""
        assert bytes(told) == (b"onetwofour" + chunk(b"five") + b"six") * 3
        assert taken[-6:] == [reads[0], reads[3], reads[4]] * 2
        assert len(taken) <= 8
        connection.abort()


async def test_a_lane_ends_with_its_answer(server, pool, mirror):
    """What the loop calls is the connection's own again before the next exchange."""
    pieces = [b"data: %d\n\n" % number for number in range(5)]
    server.script("/", stream(b"".join(pieces), range(0, 50, 9), gap_s=0.02))
    taken: list[bytes] = []
    for _ in range(2):
        connection = await acquire(pool, mirror)

        def take(data: bytes, connection: UpstreamConnection = connection) -> None:
            taken.append(data)
            connection.receive(data)

        sink = Recorder(lambda sink, take=take, connection=connection: connection.open_lane(take))
        send(connection, sink, "/")
        assert await sink.end() == b"".join(pieces)
        assert taken, "the loop called it"
        connection.release()
        taken.clear()
        again = Recorder()
        assert await acquire(pool, mirror) is connection
        send(connection, again, "/")
        assert await again.end() == b"".join(pieces)
        assert not taken
        connection.release()
