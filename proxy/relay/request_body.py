"""The body of one request as it arrives: what is here, what is still to come, and why it may never come.

Implements the relay's Body. Owns the framing of a request (http1/body.py walks it) and the bound on what
is read ahead of its reader; knows no route and no limit.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar, Protocol

from msgspec import Struct

from proxy.errors import MalformedRequest, ProxyError, UpstreamGarbage
from proxy.http1.body import ChunkedWalker, LengthWalker, Walker
from proxy.relay.request_head import Found, RequestHead

READ_AHEAD_BYTES = 256 * 1024  # received and not taken yet: then the client has to wait
# RFC 9110 6.5.1: what frames, routes or authenticates a message has no place behind it.
_NO_TRAILERS = frozenset({
    b"authorization", b"connection", b"content-encoding", b"content-length", b"content-type", b"expect",
    b"host", b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip


class Source(Protocol):
    """The connection, as a body sees it."""

    def begin_body(self) -> None:
        """Its reader waits for more: the time limit of a body counts."""

    def end_body(self) -> None:
        """It waits no more."""

    def steer_reading(self) -> None:
        """`is_ahead` has changed."""

    def write(self, data: bytes) -> None: ...


class ArrivedBody(Struct):
    """A body that came along with its head, as nearly all do; also no body."""

    content: bytes = b""

    is_complete: ClassVar = True
    is_ahead: ClassVar = False

    @property
    def announced(self) -> int:
        return len(self.content)

    def arrived(self) -> bytes:
        return self.content

    async def more(self) -> bytes:
        content, self.content = self.content, b""
        return content

    def feed(self, data: bytes) -> bytes:
        """Nothing of what follows is ours."""
        return data

    def fail(self, error: ProxyError) -> None:
        """It is whole: nothing can go wrong any more."""


class ArrivingBody:
    """A body that is still being sent."""

    __slots__ = (
        "_error", "_expects_continue", "_pieces", "_size", "_source", "_waiter", "_walker", "announced",
    )  # fmt: skip

    content = None

    def __init__(self, source: Source, head: RequestHead, length: int) -> None:
        self.announced = length
        walker: Walker = _Chunks() if head.is_chunked else LengthWalker(self.announced)
        self._source = source
        self._walker = walker
        self._expects_continue = head.expects_continue
        self._pieces: list[bytes] = []
        self._size = 0
        self._error: ProxyError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_complete(self) -> bool:
        """It was sent to its end, sound."""
        return self._walker.done and self._error is None

    @property
    def is_ahead(self) -> bool:
        """More was received than its reader has taken: the client has to wait."""
        return self._size > READ_AHEAD_BYTES

    def feed(self, data: bytes) -> bytes:
        """The next received bytes. Returns those behind the end."""
        if self._walker.done or self._error is not None:
            return data if self._error is None else b""  # behind a broken frame nothing is believed
        pieces = self._walker.feed(data)
        self._pieces += pieces
        self._size += sum(map(len, pieces))
        if self._walker.broken is not None:
            self.fail(MalformedRequest())
            return b""
        if pieces or self._walker.done:
            self._wake()
        return data[len(data) - self._walker.excess :] if self._walker.excess else b""

    def fail(self, error: ProxyError) -> None:
        """No more will come; `error` is what its reader is told."""
        self._error = self._error or error
        self._wake()

    def arrived(self) -> bytes | None:
        if self._error is not None:
            raise self._error
        return self._take() if self._walker.done else None

    async def more(self) -> bytes:
        if self._expects_continue:
            # RFC 9110 10.1.1: only now, so that a refused upload is never sent.
            self._expects_continue = False
            self._source.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._pieces and not self._walker.done and self._error is None:
            self._source.begin_body()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
                self._source.end_body()
        if self._error is not None:
            raise self._error
        return self._take()

    def _take(self) -> bytes:
        content = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        was_ahead = self.is_ahead
        self._pieces.clear()
        self._size = 0
        if was_ahead:
            self._source.steer_reading()
        return content

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Chunks(ChunkedWalker):
    """A chunked request. Trailers are dropped; one that would frame, route or identify is refused."""

    __slots__ = ()

    def _count_trailer(self, line: bytes) -> None:
        if line.partition(b":")[0].strip().lower() in _NO_TRAILERS:
            raise UpstreamGarbage(detail="a trailer that belongs into the head")
        super()._count_trailer(line)


def body_of(source: Source, found: Found, data: bytes) -> tuple[ArrivedBody | ArrivingBody, bytes]:
    """The body of a request whose head was found in `data`, and what lies behind the body."""
    head, length, at = found
    end = at + length
    if not head.is_chunked and len(data) >= end:
        return ArrivedBody(data[at:end]), data[end:]
    body = ArrivingBody(source, head, length)
    return body, body.feed(data[at:]) if len(data) > at else b""
