"""A request's body: whole, in pieces, broken, late; told to its reader, and nothing behind it is lost."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import BodyTimeout, MalformedRequest
from proxy.relay.request_body import READ_AHEAD_BYTES, ArrivedBody, ArrivingBody, body_of
from proxy.relay.request_head import HeadReader

CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
LENGTH = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\n"


class Wire:
    """A connection as a body sees it."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.written = b""
        self.steered = 0

    def begin_body(self) -> None:
        self.phases.append("body")

    def end_body(self) -> None:
        self.phases.append("busy")

    def steer_reading(self) -> None:
        self.steered += 1

    def write(self, data: bytes) -> None:
        self.written += data


async def begun(data: bytes) -> tuple[ArrivedBody | ArrivingBody, bytes, Wire]:
    wire = Wire()
    found = HeadReader(asyncio.get_running_loop()).find(data)
    assert found is not None
    return (*body_of(wire, found, data), wire)


async def all_of(body: ArrivedBody | ArrivingBody) -> bytes:
    content = b""
    while piece := await body.more():
        content += piece
    return content


@pytest.mark.parametrize(
    "sent", [LENGTH % 5 + b"hello", CHUNKED + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nx-sum: 1\r\n\r\n"]
)
async def test_a_body_is_the_same_however_it_is_cut(sent: bytes) -> None:
    start = sent.index(b"\r\n\r\n") + 4
    for cut in range(start, len(sent)):
        body, rest, _ = await begun(sent[:cut])
        assert rest == b"" and not body.is_complete
        assert body.feed(sent[cut:] + NEXT) == NEXT
        assert body.is_complete and await all_of(body) == b"hello"
    body, rest, _ = await begun(sent + NEXT)
    assert (rest, body.is_complete, body.arrived()) == (NEXT, True, b"hello")


async def test_no_body_is_complete_and_leaves_what_follows() -> None:
    body, rest, _ = await begun(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" + NEXT)
    assert (body.is_complete, body.arrived(), rest) == (True, b"", NEXT)


BROKEN = {
    "LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "longer than its size": b"5\r\nhelloxx\r\n0\r\n\r\n",
    "no size": b"zz\r\nhello",
    "a trailer that frames": b"5\r\nhello\r\n0\r\ncontent-length: 5\r\n\r\n",
    "a trailer with a key": b"5\r\nhello\r\n0\r\nAuthorization : Bearer x\r\n\r\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
async def test_a_broken_frame_is_told_to_its_reader_and_nothing_behind_it_is_believed(content: bytes) -> None:
    """Byte by byte: its reader waits already when the frame breaks."""
    body, _, _ = await begun(CHUNKED)
    reader = asyncio.ensure_future(all_of(body))
    await asyncio.sleep(0)
    for at in range(len(content)):
        assert body.feed(content[at : at + 1]) == b""
    assert body.feed(NEXT) == b"" and not body.is_complete
    with pytest.raises(MalformedRequest):
        await reader
    with pytest.raises(MalformedRequest):
        body.arrived()


async def test_a_late_body_is_told_so() -> None:
    body, _, wire = await begun(LENGTH % 5 + b"he")
    assert await body.more() == b"he"
    reader = asyncio.ensure_future(body.more())
    await asyncio.sleep(0)
    assert wire.phases == ["body"]
    body.fail(BodyTimeout())
    with pytest.raises(BodyTimeout):
        await reader
    assert wire.phases == ["body", "busy"]


async def test_a_client_waits_while_its_body_is_not_taken() -> None:
    body, _, wire = await begun(LENGTH % (2 * READ_AHEAD_BYTES))
    body.feed(bytes(READ_AHEAD_BYTES))
    assert not body.is_ahead
    body.feed(b"x")
    assert body.is_ahead
    assert len(await body.more()) == READ_AHEAD_BYTES + 1
    assert not body.is_ahead and wire.steered == 1
