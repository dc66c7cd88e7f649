"""Calls as the front would hand them over, for tests of what happens behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy

from proxy.relay.exchange import Exchange


class GivenBody:
    """A request body that arrives in the given pieces; an exception stands for how it ends.

    `is_here`: all of it has arrived already.
    """

    def __init__(self, pieces: Sequence[bytes | Exception], *, is_here: bool = False) -> None:
        self._pieces = list(pieces)
        self._is_here = is_here
        self.taken = 0

    @property
    def is_complete(self) -> bool:
        return self._is_here or not self._pieces

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


def call(
    target: str = "/v1/chat/completions",
    *fields: tuple[str, str],
    method: str = "POST",
    body: GivenBody | None = None,
    version: tuple[int, int] = (1, 1),
    **values: Any,
) -> Exchange:
    """A call of which nothing is known but its head; `values` are set on it."""
    x = Exchange(
        id="0199" + "0" * 28,
        client=None,  # type: ignore[arg-type]
        method=method,
        raw_target=target,
        headers=CIMultiDictProxy(CIMultiDict(fields)),
        raw_headers=tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in fields),
        body=body or GivenBody([]),
        address="127.0.0.1",
        version=version,
        http10=version < (1, 1),
        arrived=0.0,
        at_ms=0,
    )
    for name, value in values.items():
        setattr(x, name, value)
    return x
