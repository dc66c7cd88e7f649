"""Calls as the front would hand them over, for tests of what happens behind it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy

from proxy.relay.exchange import Exchange
from proxy.relay.heads import HeadFacts
from proxy.relay.request_head import RequestHead
from proxy.routing.table import Endpoint

ENDPOINT = Endpoint("direct", "https://a.test", (), "", "", None, False, ())


class GivenBody:
    """A request body that arrives in the given pieces; an exception stands for how it ends.

    `is_here`: all of it has arrived already.
    """

    def __init__(
        self, pieces: Sequence[bytes | Exception], *, is_here: bool = False, announced: int = 0
    ) -> None:
        self.announced = announced
        self._pieces = list(pieces)
        self._is_here = is_here
        self.taken = 0

    @property
    def is_complete(self) -> bool:
        return self._is_here or not self._pieces

    @property
    def content(self) -> bytes | None:
        return self.arrived()

    def arrived(self) -> bytes | None:
        return b"".join(p for p in self._pieces if isinstance(p, bytes)) if self._is_here else None

    async def more(self) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        self.taken += 1
        return piece


def head_of(
    target: str, *fields: tuple[str, str], method: str = "POST", version: tuple[int, int] = (1, 1)
) -> RequestHead:
    """What the front makes of a head; also of some that its parser would refuse."""
    return RequestHead(
        method,
        target,
        version,
        CIMultiDictProxy(CIMultiDict(fields)),
        tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields),
        keep_alive=version >= (1, 1),
        expects_continue=False,
        is_chunked=False,
        length=0,
        is_remembered=True,
    )


def call(
    target: str = "/v1/chat/completions",
    *fields: tuple[str, str],
    method: str = "POST",
    body: GivenBody | None = None,
    version: tuple[int, int] = (1, 1),
    path: str = "",
    query: str = "",
    captures: dict[str, str] | None = None,
    **values: Any,
) -> Exchange:
    """A call of which nothing is known but its head; `values` are set on it."""
    x = Exchange(
        id="0199" + "0" * 28,
        client=SimpleNamespace(address="127.0.0.1"),  # type: ignore[arg-type]
        head=head_of(target, *fields, method=method, version=version),
        body=body or GivenBody([]),
        arrived=0.0,
        at_ms=0,
    )
    x.facts = HeadFacts(
        path or target.partition("?")[0], query, ENDPOINT, None, b"identity", "", "", captures=captures or {}
    )
    for name, value in values.items():
        setattr(x, name, value)
    return x
