"""How answers and connections end: refusals, bugs, cut answers, clients that still send."""

from __future__ import annotations

import asyncio
import logging

import pytest

from proxy.errors import InvalidKey, MalformedRequest, UpstreamFault
from proxy.relay import ingress
from proxy.relay.exchange import Exchange
from tests.fakes.front import GET, Handle, Open, ended, refuse, say_ok
from tests.waiting import DEADLINE_S, until


def cutting(head: bytes) -> Handle:
    async def cut(x: Exchange) -> None:
        x.client.write(head + b"5\r\nhello\r\n")
        x.status = 200
        raise UpstreamFault

    return cut


async def test_an_error_after_the_answer_began_ends_the_connection_and_nothing_else_is_written(
    open_front: Open,
) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    front = await open_front(cutting(head))
    reader, _ = await front.connect(GET)
    assert await ended(reader) == head + b"5\r\nhello\r\n"  # no last chunk: not a clean end


async def test_a_cut_body_that_ends_with_the_connection_is_reset(open_front: Open) -> None:
    front = await open_front(cutting(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"))
    reader, _ = await front.connect(GET.replace(b"1.1", b"1.0"))
    with pytest.raises(ConnectionResetError):
        await ended(reader)


async def test_a_bug_is_a_500_that_says_nothing(open_front: Open, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(x: Exchange) -> None:
        raise ValueError("sk-canary-in-a-message")

    front = await open_front(fail)
    reader, writer = await front.connect(GET)
    with caplog.at_level(logging.ERROR):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
    assert head.startswith(b"HTTP/1.1 500 ")
    writer.write_eof()
    body = await ended(reader)
    assert b"internal_error" in body and b"canary" not in body
    assert [record.message for record in caplog.records] == ["call failed"]


async def test_what_is_no_http_is_refused_without_an_echo(
    open_front: Open, caplog: pytest.LogCaptureFixture
) -> None:
    front = await open_front(say_ok)
    secret = b"GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-canary\0\r\n\r\n"
    with caplog.at_level(logging.DEBUG):
        reader, _ = await front.connect(secret)
        answer = await ended(reader)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"canary" not in answer
    assert "canary" not in caplog.text
    assert [("refusals_total", "malformed_request"), 1] in front.stats.snapshot()["values"]


@pytest.mark.parametrize(
    ("error", "stays"), [(InvalidKey, True), (MalformedRequest, False)], ids=["refused", "malformed"]
)
async def test_a_sound_request_that_is_refused_leaves_the_connection_open(
    open_front: Open, error: type[Exception], stays: bool
) -> None:
    async def refuse(x: Exchange) -> None:
        raise error

    front = await open_front(refuse)
    reader, writer = await front.connect(GET)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
    assert (b"connection: close" in head) is not stays
    assert reader.at_eof() is False
    if stays:
        writer.write(GET)
        assert b"HTTP/1.1 401 " in await asyncio.wait_for(reader.readuntil(b"HTTP/1.1 401 "), DEADLINE_S)


UPLOAD = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n"


async def test_a_client_that_still_sends_sees_the_end_and_is_read_on_for_a_moment(open_front: Open) -> None:
    front = await open_front(refuse)
    reader, writer = await front.connect(UPLOAD + b"x")
    answer = await ended(reader)  # FIN, not RST
    assert answer.startswith(b"HTTP/1.1 401 ")
    writer.write(b"x" * 100_000)
    await writer.drain()
    assert front.connection.phase == ingress.LINGER
    front.later(4.0)
    assert front.ingress.connections
    front.later(5.5)
    await until(lambda: not front.ingress.connections)


async def test_no_more_than_a_megabyte_is_read_after_an_early_answer(open_front: Open) -> None:
    front = await open_front(refuse)
    reader, writer = await front.connect(UPLOAD)
    await ended(reader)
    for _ in range(20):
        writer.write(bytes(100_000))
    await until(lambda: not front.ingress.connections)


async def test_a_client_that_leaves_while_it_lingers_is_forgotten(open_front: Open) -> None:
    front = await open_front(refuse)
    reader, writer = await front.connect(UPLOAD)
    await ended(reader)
    writer.close()
    await until(lambda: not front.ingress.connections)
