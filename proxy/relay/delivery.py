"""What goes to the client of one answer: the head with the first content, then content in our own framing.

Framing is hop-by-hop (RFC 9112 7): the client's chunks are ours, their content is the upstream's bytes; a
chunk of the upstream's that came alone and whole is as good as one of ours. No copy, no await.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from proxy.http1.head import Head
from proxy.metering.events import UsageEventFilter
from proxy.relay.exchange import Exchange
from proxy.relay.heading import Heading
from proxy.relay.linking import Relinking, changes_links, is_held
from proxy.relay.plan import Way


def delivery_for(x: Exchange, way: Way, head: Head, heading: Heading) -> Writer:
    """Of an answer with the upstream's `head` and the client's `heading`."""
    if not way.may_change and x.heartbeat is None:
        return Delivery(x, head.status, heading.head, heading.chunked)
    if changes_links(x) and is_held(x, head):
        return Relinking(x, heading, lambda changed: _writer_for(x, head, changed))
    writer = _writer_for(x, head, heading)
    return _Filtered(writer) if way.hides_usage and heading.is_event_stream else writer


def _writer_for(x: Exchange, head: Head, heading: Heading) -> Writer:
    if x.heartbeat is not None:
        return x.heartbeat.delivery(head, heading)
    return Delivery(x, head.status, heading.head, heading.chunked)


PassOn = Callable[[bytes, bytes], bool]


class Writer(Protocol):
    """What a pump gives content to."""

    @property
    def pass_on(self) -> PassOn | None:
        """(data, content): content that is not the first and came as one whole chunk; `data` is it with its
        framing. False: it is to be written. None: that is so for every chunk."""

    def write(self, pieces: Sequence[bytes], last: bool, now: float) -> None:
        """The next content; `last`: it ends here."""

    def let_go(self, now: float) -> None:
        """The answer is cut: what was held back of it goes out."""


class Delivery(Struct, eq=False):
    """One answer on its way to its client."""

    _x: Exchange
    _status: int
    _head: bytes
    _chunked: bool

    def pass_on(self, data: bytes, content: bytes) -> bool:
        x = self._x
        x.response_bytes += len(content)
        x.client.write(data if self._chunked else content)
        return True

    def write(self, pieces: Sequence[bytes], last: bool, now: float) -> None:
        """The next content; `last`: it ends here. The first call sends the head as well."""
        x = self._x
        size = sum(map(len, pieces))
        x.response_bytes += size
        if self._chunked:
            pieces = (b"%x\r\n" % size, *pieces, b"\r\n") if size else ()
            if last:
                pieces = (*pieces, b"0\r\n\r\n")
        if self._head:
            pieces = (self._head, *pieces)
            self._head = b""
            x.status = self._status
            x.answered = now
        if pieces:
            x.client.writelines(pieces)

    def let_go(self, now: float) -> None:
        """Nothing is held back."""


class _Filtered:
    """A stream without the usage event that was asked for by us."""

    __slots__ = ("_filter", "_out", "_pass_on")

    def __init__(self, out: Writer) -> None:
        self._out = out
        self._pass_on = out.pass_on
        self._filter = UsageEventFilter()

    def pass_on(self, data: bytes, content: bytes) -> bool:
        return self._pass_on is not None and self._filter.passes(content) and self._pass_on(data, content)

    def write(self, pieces: Sequence[bytes], last: bool, now: float) -> None:
        passing = self._filter.feed(pieces)
        if last:
            passing += self._filter.finish()
        self._out.write(passing, last, now)

    def let_go(self, now: float) -> None:
        """Half an event is what the upstream sent."""
        self._out.write(self._filter.finish(), False, now)
