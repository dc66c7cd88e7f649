"""The client's connection: its limits in time, one request after the other.

Time limits are tried by telling a connection what time it is. Whole requests are tried against a real
station in tests/system.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from time import monotonic

import pytest

from proxy.relay import ingress
from proxy.relay.exchange import Exchange
from tests.fakes.front import GET, OK, Open, ended, never, read_body, refuse, say_ok
from tests.waiting import DEADLINE_S, until

# -- limits in time --------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost: a\r\n"], ids=["nothing", "half a head"])
async def test_a_head_has_ten_seconds(open_front: Open, sent: bytes) -> None:
    front = await open_front(say_ok)
    reader, _ = await front.connect(sent)
    if sent:
        await until(lambda: front.connection.first_byte)
    front.later(9.5)
    assert front.ingress.connections
    front.later(10.5)
    assert await ended(reader) == b""


async def test_a_head_that_drips_has_no_more_time(open_front: Open) -> None:
    front = await open_front(say_ok)
    reader, writer = await front.connect(GET[:1])
    await until(lambda: front.connection.first_byte)
    since = front.connection.since
    writer.write(GET[1:2])
    await asyncio.sleep(0)
    assert front.connection.since == since
    front.later(10.5)
    assert await ended(reader) == b""


async def test_a_next_request_has_75_seconds_and_its_head_ten(open_front: Open) -> None:
    front = await open_front(say_ok)
    reader, writer = await front.connect(GET)
    assert await reader.readexactly(len(OK)) == OK
    await until(lambda: front.connection.phase == ingress.KEEPALIVE)
    front.later(74.0)
    writer.write(GET)
    assert await reader.readexactly(len(OK)) == OK
    await until(lambda: front.connection.phase == ingress.KEEPALIVE)
    writer.write(GET[:5])
    await until(lambda: front.connection.phase == ingress.HEAD)
    front.later(10.5)
    assert await ended(reader) == b""


async def test_a_silent_keep_alive_connection_is_closed(open_front: Open) -> None:
    front = await open_front(say_ok)
    reader, _ = await front.connect(GET)
    await reader.readexactly(len(OK))
    await until(lambda: front.connection.phase == ingress.KEEPALIVE)
    front.later(75.5)
    assert await ended(reader) == b""


async def test_a_body_that_stands_still_is_told_so_after_30_seconds(open_front: Open) -> None:
    front = await open_front(read_body)
    reader, writer = await front.connect(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf")
    await until(lambda: front.connection.phase == ingress.BODY)
    front.later(29.0)
    front.later(30.5)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    writer.write_eof()
    assert b"request_timeout" in await ended(reader)


async def test_a_body_that_moves_has_time(open_front: Open) -> None:
    front = await open_front(read_body)
    reader, writer = await front.connect(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf")
    await until(lambda: front.connection.phase == ingress.BODY)
    front.connection.since -= 29.0
    writer.write(b"h")
    await until(lambda: front.connection.since > monotonic() - 5)
    front.later(20.0)
    writer.write(b"alf.")
    assert await asyncio.wait_for(reader.readexactly(len(OK)), DEADLINE_S) == OK


async def test_an_answer_may_take_as_long_as_it_takes(open_front: Open) -> None:
    front = await open_front(never)
    await front.connect(GET)
    await until(lambda: front.connection.phase == ingress.BUSY)
    front.later(100_000)
    assert not front.connection.is_gone


@pytest.mark.parametrize("ends_itself", [False, True], ids=["while it is served", "after its answer"])
async def test_a_client_that_does_not_read_is_cut_after_60_seconds(
    open_front: Open, ends_itself: bool
) -> None:
    left = asyncio.Event()

    async def flood(x: Exchange) -> None:
        x.client.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + bytes(16 << 20))
        x.keep_alive = False
        try:
            if not ends_itself:
                await never(x)
        finally:
            left.set()

    front = await open_front(flood)
    await front.connect(GET)
    await until(lambda: front.connection.is_paused)
    front.later(59.0)
    assert front.ingress.connections
    front.later(60.5)
    await until(lambda: not front.ingress.connections)
    await asyncio.wait_for(left.wait(), DEADLINE_S)


async def test_the_sweep_looks_at_every_connection_within_a_second(open_front: Open) -> None:
    front = await open_front(say_ok)
    reader, _ = await front.connect()
    front.connection.since -= 60.0
    front.ingress.sweeper.start()
    try:
        assert await asyncio.wait_for(ended(reader), 1.5) == b""
    finally:
        front.ingress.sweeper.stop()


async def test_more_connections_than_the_cap_are_closed_at_once(open_front: Open) -> None:
    front = await open_front(say_ok, connections_max=2)
    await front.connect()
    await front.connect()
    reader, _ = await asyncio.open_connection("127.0.0.1", front.port)
    assert await ended(reader) == b""
    assert len(front.ingress.connections) == 2


# -- clients that leave ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
async def test_a_call_is_cancelled_when_its_client_leaves(open_front: Open, how: str) -> None:
    """A half-close counts as leaving, as with nginx: nobody can tell it from a client that is gone."""
    cancelled = asyncio.Event()

    async def wait(x: Exchange) -> None:
        try:
            await never(x)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    front = await open_front(wait)
    _, writer = await front.connect(GET)
    await until(lambda: front.connection.phase == ingress.BUSY)
    if how == "half-close":
        writer.write_eof()
    elif how == "rst":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
    await asyncio.wait_for(cancelled.wait(), DEADLINE_S)
    await until(lambda: not front.ingress.connections)


async def test_a_pipelining_client_that_leaves_is_noticed(open_front: Open) -> None:
    """Its connection is not read while so much waits: only the kernel knows."""
    front = await open_front(never)
    _, writer = await front.connect(GET * 4000)
    await until(lambda: not front.connection._is_reading)
    writer.close()
    await writer.wait_closed()
    front.later(1.0)
    await until(lambda: not front.ingress.connections)


# -- one request after the other -------------------------------------------------------------------


async def test_pipelined_requests_are_served_one_at_a_time_and_in_order(open_front: Open) -> None:
    running: list[str] = []

    async def slowly(x: Exchange) -> None:
        running.append(x.head.target)
        assert len(running) == 1
        await asyncio.sleep(0)
        running.remove(x.head.target)
        x.client.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + x.head.target[1:].encode())

    front = await open_front(slowly)
    requests = b"".join(b"GET /%02d HTTP/1.1\r\nhost: a\r\n\r\n" % n for n in range(50))
    reader, _ = await front.connect(requests)
    for n in range(50):
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        assert await reader.readexactly(2) == b"%02d" % n


async def test_who_pipelines_waits_for_the_others_turn_between_two_requests(open_front: Open) -> None:
    rounds, loop = 0, asyncio.get_running_loop()

    def tick() -> None:
        nonlocal rounds
        rounds += 1
        loop.call_soon(tick)

    at: list[int] = []

    async def note(x: Exchange) -> None:
        at.append(rounds)
        x.client.write(OK)

    front = await open_front(note)
    tick()
    reader, _ = await front.connect(GET * 50)
    await asyncio.wait_for(reader.readexactly(50 * len(OK)), DEADLINE_S)
    assert len(set(at)) == 50


async def test_a_connection_that_waits_holds_no_request(open_front: Open) -> None:
    front = await open_front(say_ok)
    reader, _ = await front.connect(GET)
    assert await reader.readexactly(len(OK)) == OK
    await until(lambda: front.connection.phase == ingress.KEEPALIVE)
    gc.collect()
    kept = [x for x in gc.get_objects() if isinstance(x, Exchange) and x.client is front.connection]
    assert kept == []


async def test_a_client_that_pipelines_without_end_is_not_read_on(open_front: Open) -> None:
    front = await open_front(never)
    _, writer = await front.connect(GET)
    await until(lambda: front.connection.phase == ingress.BUSY)
    writer.write(GET * 1_000_000)
    await until(lambda: not front.connection._is_reading)
    assert len(front.connection._received) < 1_000_000
    assert writer.transport.get_write_buffer_size() > 1_000_000


async def test_an_ipv4_address_looks_the_same_on_a_socket_of_both_families(open_front: Open) -> None:
    seen: list[str] = []

    async def look(x: Exchange) -> None:
        seen.append(x.address)
        x.client.write(OK)

    try:
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError):
        pytest.skip("no IPv6 here")
    front = await open_front(look, listener=listener)
    reader, _ = await front.connect(GET)
    await reader.readexactly(len(OK))
    assert seen == ["127.0.0.1"]


# -- 100 Continue ----------------------------------------------------------------------------------

EXPECT = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_a_client_is_told_to_continue_when_its_body_is_wanted(open_front: Open) -> None:
    front = await open_front(read_body)
    reader, writer = await front.connect(EXPECT)
    assert await asyncio.wait_for(reader.readexactly(len(CONTINUE)), DEADLINE_S) == CONTINUE
    writer.write(b"body")
    assert await asyncio.wait_for(reader.readexactly(len(OK)), DEADLINE_S) == OK


async def test_a_refused_upload_is_not_asked_for(open_front: Open) -> None:
    front = await open_front(refuse)
    reader, _ = await front.connect(EXPECT)
    assert (await ended(reader)).startswith(b"HTTP/1.1 401 ")


async def test_a_body_that_came_along_needs_no_continue(open_front: Open) -> None:
    async def take(x: Exchange) -> None:
        assert x.body.arrived() == b"body"
        x.client.write(OK)

    front = await open_front(take)
    reader, _ = await front.connect(EXPECT + b"body")
    assert await asyncio.wait_for(reader.readexactly(len(OK)), DEADLINE_S) == OK


async def test_a_client_of_http_1_0_is_never_told_to_continue(open_front: Open) -> None:
    front = await open_front(read_body)
    reader, writer = await front.connect(EXPECT.replace(b"1.1", b"1.0"))
    await until(lambda: front.connection.phase == ingress.BODY)
    writer.write(b"body")
    assert await ended(reader) == OK
