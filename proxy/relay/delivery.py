"""What goes to the client of one answer: the head with the first content, then content in our own framing.

Framing is hop-by-hop (RFC 9112 7): the client's chunks are ours, their content is the upstream's bytes; a
chunk of the upstream's that came alone and whole is as good as one of ours. No copy, no await.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from proxy.dialects.base import DONE
from proxy.http1.body import LAST_TWO, PLAIN_CHUNKS
from proxy.http1.head import CRLF, Head
from proxy.metering.events import EVENT_END, NULL_AND_END, USAGE, UsageEventFilter, is_whole_and_other
from proxy.relay.exchange import Exchange
from proxy.relay.heading import Heading
from proxy.relay.linking import Relinking, changes_links, is_held
from proxy.relay.metering_task import Tap
from proxy.relay.plan import Way
from proxy.relay.upstream import Receiver, UpstreamConnection


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


TAIL = -64  # bytes of a read where a terminal event is looked for before the meter confirms it
NO_HINT = bytes(1 - TAIL)  # is never found there
BEFORE_ENDS = slice(-3, -2)  # the last sign of a read that ends in an event, in front of its two line ends


class Writer(Protocol):
    """What a pump gives content to."""

    def lane(
        self, tap: Tap, hint: bytes, connection: UpstreamConnection, hides_usage: bool = False, /
    ) -> Receiver | None:
        """Where whole chunks behind what was written may go without it: to the client as they came, and to
        the tap. So until the next `write`. What has `hint` in its tail may be the end, and is not taken."""

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
    _lane: Receiver | None = None

    def lane(
        self, tap: Tap, hint: bytes, connection: UpstreamConnection, hides_usage: bool = False, /
    ) -> Receiver:
        if self._lane is None:
            self._lane = _lane(self._x, self._chunked, tap, hint, connection, hides_usage)
        return self._lane

    def write(self, pieces: Sequence[bytes], last: bool, now: float) -> None:
        """The next content; `last`: it ends here. The first call sends the head as well."""
        x = self._x
        size = len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))
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


def _lane(
    x: Exchange, chunked: bool, tap: Tap, hint: bytes, connection: UpstreamConnection, hides_usage: bool
) -> Receiver:
    """One function for all that is done with most of a stream; what it needs it has as its own.

    Slices and `partition` instead of `find` and `endswith`: those unpack their arguments, which is dearer.
    """
    client, unread = x.client, tap.unread
    room = 0  # bytes that may be unread before the tap has to know
    other = b"}" if hint == DONE else None  # before the last line ends: an object, not the terminal event

    def take(data: bytes) -> None:
        nonlocal room
        size = len(data)
        first, lines, inside = PLAIN_CHUNKS[size]
        if not (connection.has_lane and data[first] in lines and data[LAST_TWO] == CRLF):
            connection.receive(data)
            return
        content = data[inside]
        if content[BEFORE_ENDS] != other and content.find(hint, TAIL) >= 0:
            connection.receive(data)
            return
        if hides_usage:
            # Most reads have no usage, or end in their only one, which is null. Else the filter has to say.
            rest = content.partition(USAGE)[2]
            is_known = rest == NULL_AND_END or (not rest and content[LAST_TWO] == EVENT_END)
            if not is_known and not is_whole_and_other(content):
                connection.receive(data)
                return
        write = client.write  # another once the client has left
        write(data if chunked else content)
        room -= size
        if unread and room >= 0:
            unread.append(content)
        else:
            room = tap.append(content)

    return take


class _Filtered:
    """A stream without the usage event that was asked for by us."""

    __slots__ = ("_filter", "_out")

    def __init__(self, out: Writer) -> None:
        self._out = out
        self._filter = UsageEventFilter()

    def lane(
        self, tap: Tap, hint: bytes, connection: UpstreamConnection, hides_usage: bool = False, /
    ) -> Receiver | None:
        """Between events only."""
        return self._out.lane(tap, hint, connection, True) if self._filter.is_between else None

    def write(self, pieces: Sequence[bytes], last: bool, now: float) -> None:
        passing = self._filter.feed(pieces)
        if last:
            passing += self._filter.finish()
        self._out.write(passing, last, now)

    def let_go(self, now: float) -> None:
        """Half an event is what the upstream sent."""
        self._out.write(self._filter.finish(), False, now)
