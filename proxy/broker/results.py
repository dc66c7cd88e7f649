"""What workers ask about files that tasks have made: are they kept, and where.

Owns how long an id is waited for that was given a moment ago: its order is still in a journal. Workers ask
only for ids that this station has made, so nobody can make it look for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

Args = dict[str, Any]

LATE_S = (0.1, 0.2, 0.4, 0.8, 1.5)  # pauses while its order may be on its way
WAITING_MAX = 500  # who come then are told at once
UNKNOWN: Args = {"state": "unknown"}
GONE: Args = {"state": "gone"}


class Row(Protocol):
    """A row of the table of results."""

    @property
    def state(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def shelf(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def content_type(self) -> str: ...
    @property
    def expires_ms(self) -> int: ...


class Source(Protocol):
    async def find(self, id_: str) -> Any:
        """The row, or None. May raise what means that Postgres is away."""


class ResultDesk:
    """Answers op `result`."""

    def __init__(self, source: Callable[[], Source], now_ms: Callable[[], int]) -> None:
        self._source = source
        self._now_ms = now_ms
        self._waiting = 0

    async def find(self, args: Args) -> Args:
        """{"state": "kept", ...} | {"state": "away", "url"} | {"state": "gone"} | {"state": "unknown"}.

        Raises what its source raises.
        """
        row = await self._source().find(args["id"])
        if row is None and self._waiting < WAITING_MAX:
            row = await self._wait_for(args["id"])
        return UNKNOWN if row is None else self._told(row)

    async def _wait_for(self, id_: str) -> Row | None:
        self._waiting += 1
        try:
            for pause_s in LATE_S:
                await asyncio.sleep(pause_s)
                row: Row | None = await self._source().find(id_)
                if row is not None:
                    return row
        finally:
            self._waiting -= 1
        return None

    def _told(self, row: Row) -> Args:
        if row.state in ("ordered", "left"):
            return {"state": "away", "url": row.url}
        if row.state != "kept" or row.expires_ms <= self._now_ms():
            return GONE
        return {
            "state": "kept",
            "shelf": row.shelf,
            "size": row.size,
            "type": row.content_type,
            "etag": row.sha256[:32],
            "until_ms": row.expires_ms,
        }
