"""Answers in which our links stand for the URLs of files that are kept here.

Owns a worker's linker, and the delivery of such an answer: it is held until it is whole, and goes out with
its new length. Only answers of operations that show tasks, of families whose files are kept, with `rewrite`,
and of those whose answers name addresses of the vendor's API; what links are is dialects.links'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from proxy.dialects.links import WHOLE_BYTES_MAX, Hosting, Linker, Shown, readdressed, relinked
from proxy.http1.head import Head
from proxy.relay.exchange import Exchange
from proxy.relay.heading import Heading

if TYPE_CHECKING:
    from proxy.relay.delivery import Writer


class Links:
    """Of one worker."""

    def __init__(self) -> None:
        self.linker: Linker | None = None

    def know(self, secret: bytes) -> None:
        """The station's; b"" while control does not know it itself."""
        self.linker = Linker(secret) if secret else None

    def hosting(self, x: Exchange) -> Hosting | None:
        """What becomes of the files that the answer to a call shows; None: nothing."""
        operation = x.operation
        assert operation is not None and x.snapshot is not None and x.endpoint is not None
        if operation.task is None or not operation.task.files:
            return None
        return x.snapshot.hosting(self.linker, operation.api, x.endpoint.url)


def shown_by(x: Exchange) -> Shown:
    """How the answer to a call shows tasks."""
    assert x.operation is not None and x.operation.task is not None
    task = x.operation.task
    many = task.many
    if many is not None and many.operation == x.operation.name:
        return Shown(task, many.items, many.id_at)
    return Shown(task, task.object)


def changes_links(x: Exchange) -> bool:
    """Do answers to this call show links of ours?"""
    assert x.operation is not None
    return bool(x.operation.links) or (x.hosting is not None and x.hosting.rewrites)


def is_held(x: Exchange, head: Head) -> bool:
    """May the answer with this head get links of ours?"""
    kind = head.value(b"content-type") or b""
    is_plain = head.shape.coding is None
    return 200 <= head.status < 300 and is_plain and b"json" in kind and x.method != "HEAD"


def linked(x: Exchange, content: bytes) -> bytes:
    """The whole answer of a vendor with our links in it."""
    assert x.operation is not None and x.snapshot is not None and x.endpoint is not None
    at = x.attempts[-1]
    if x.hosting is not None and x.hosting.rewrites:
        vendor_id = x.bound.vendor_id if x.bound is not None else ""
        content = relinked(content, shown_by(x), vendor_id, x.hosting.link(at.upstream, at.credential))
    if x.operation.links:
        here = x.snapshot.here(x.operation.api, at.upstream, x.endpoint.url)
        content = readdressed(content, x.operation.links, here)
    return content


class Relinking:
    """A Writer: the answer goes on as a whole. One that is too long goes on as it is."""

    __slots__ = ("_heading", "_held", "_make", "_out", "_size", "_x")

    def __init__(self, x: Exchange, heading: Heading, make: Callable[[Heading], Writer]) -> None:
        """`make` gives what writes an answer with such a heading."""
        self._x = x
        self._heading = heading
        self._make = make
        self._held: list[bytes] = []
        self._size = 0
        self._out: Writer | None = None

    def write(self, pieces: Sequence[bytes], last: bool, now: float) -> None:
        if self._out is None:
            self._held += pieces
            self._size += sum(map(len, pieces))
            if not last and self._size <= WHOLE_BYTES_MAX:
                return
            pieces, self._held = self._relinked() if last else self._held, []
            self._out = self._make(self._heading)
        self._out.write(pieces, last, now)

    def lane(self, *_: object) -> None:
        """It must be whole."""

    def let_go(self, now: float) -> None:
        """Half an answer has no links, and its client has seen nothing of it."""

    def _relinked(self) -> list[bytes]:
        content = b"".join(self._held)
        changed = linked(self._x, content)
        if len(changed) != len(content) and not self._heading.chunked:
            self._heading = replace(
                self._heading,
                head=self._heading.head.replace(
                    b"content-length: %d\r\n" % len(content), b"content-length: %d\r\n" % len(changed)
                ),
            )
        return [changed]
