"""What goes to the client of one answer: the head with the first content, then content in our own framing.

Framing is hop-by-hop (RFC 9112 7): the client's chunks are ours, their content is the upstream's bytes.
No copy, no await.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from proxy.http1.head import Head
from proxy.relay.exchange import Exchange
from proxy.relay.heading import Heading


def delivery_for(x: Exchange, head: Head, heading: Heading) -> Writer:
    """Of an answer with the upstream's `head` and the client's `heading`."""
    if x.heartbeat is not None:
        return x.heartbeat.delivery(head, heading)
    return Delivery(x, head.status, heading)


class Writer(Protocol):
    """What a pump gives content to."""

    def write(self, pieces: Sequence[bytes], last: bool, now: float) -> None:
        """The next content; `last`: it ends here."""


class Delivery:
    """One answer on its way to its client."""

    __slots__ = ("_chunked", "_head", "_status", "_x")

    def __init__(self, x: Exchange, status: int, heading: Heading) -> None:
        self._x = x
        self._status = status
        self._head = heading.head
        self._chunked = heading.chunked

    def write(self, pieces: Sequence[bytes], last: bool, now: float) -> None:
        """The next content; `last`: it ends here. The first call sends the head as well."""
        x = self._x
        size = sum(map(len, pieces))
        out: list[bytes] = []
        if self._head:
            out.append(self._head)
            self._head = b""
            x.status = self._status
            x.answered = now
        if size:
            x.response_bytes += size
            if self._chunked:
                out.append(b"%x\r\n" % size)
                out += pieces
                out.append(b"\r\n")
            else:
                out += pieces
        if last and self._chunked:
            out.append(b"0\r\n\r\n")
        if out:
            x.client.writelines(out)
