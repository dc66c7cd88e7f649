"""Journals as workers leave them behind, and the entries in them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from proxy.journal import reader
from proxy.journal.directory import segments
from proxy.journal.segments import Journal
from proxy.ledger import entry
from proxy.ledger.entry import Begin, End, Entry, PriceEntry
from proxy.metering.pricing import cost_nanos, price_from_content
from proxy.metering.usage import Usage
from proxy.relay.ids import IdSource
from tests.midday import MIDDAY

NODE = "0199a000-0000-7000-8000-000000000001"
YUAN = 1_000_000_000
NOW_MS = time.time_ns() // 1_000_000  # of the whole run; Postgres' own clock is close to it
PRICE = price_from_content({"input": 1_000_000_000, "output": 4_000_000_000})
PRICE_ENTRY = PriceEntry(PRICE.id, dict(PRICE.content))
_ids = IdSource()


def new_id(at_ms: int = NOW_MS) -> str:
    return _ids.next(at_ms)


def begin(account: int, **changes: Any) -> Begin:
    values: dict[str, Any] = {
        "id": new_id(), "at_ms": NOW_MS - 500, "account": account, "key": 1, "lease": "",
        "hold_nanos": 5_000_000, "model": "gpt-4o-mini", "operation": "chat", "dialect": "openai",
        "price": PRICE.id, "model_ppm": 1_000_000, "tier_ppm": 500_000, "tier": "VIP", "endpoint": "direct",
        "generation": 3, "stream": True, "input_bound": 40, "request_bytes": 120,
    }  # fmt: skip
    return Begin(**{**values, **changes})


def end(account: int, **changes: Any) -> End:
    """A complete call of 10 and 20 tokens; its cost is right unless it is given."""
    usage = changes.setdefault("usage", {"input": 10, "output": 20})
    cost = cost_nanos(PRICE, Usage.from_dict(usage), 1_000_000, 500_000)
    values: dict[str, Any] = {
        "id": new_id(), "at_ms": NOW_MS, "began_ms": NOW_MS - 500, "state": entry.SETTLED,
        "outcome": entry.COMPLETE, "account": account, "key": 1, "lease": "", "hold_nanos": 5_000_000,
        "cost_nanos": cost, "model": "gpt-4o-mini", "operation": "chat", "dialect": "openai",
        "price": PRICE.id, "model_ppm": 1_000_000, "tier_ppm": 500_000, "tier": "VIP", "endpoint": "direct",
        "generation": 3, "stream": True, "status": 200, "provenance": "final", "upstream": "openai",
        "mirror": "direct", "credential": "main", "upstream_id": "req_1", "upstream_model": "gpt-4o-mini-x",
        "attempts": [entry.Attempt("openai", "direct", "main", "ok", 200)], "ttft_ms": 210, "took_ms": 480,
    }  # fmt: skip
    return End(**{**values, **changes})


class Life:
    """One life of a worker: its journal on disk."""

    def __init__(self, journal_dir: Path, name: str = "", **options: Any) -> None:
        self.name = name or f"w0-{new_id()}"
        self.directory = journal_dir / self.name
        options = {"fsync_interval_s": 0.001, "reserve_bytes": 1 << 16, **options}
        self._journal = Journal(self.directory, loop=asyncio.get_running_loop(), **options)

    async def write(self, entries: Iterable[Entry]) -> None:
        """Returns once they are below the watermark."""
        await self.write_unsynced(entries)
        await self.synced()

    async def synced(self) -> None:
        """Returns once all that was written is below the watermark."""
        async with asyncio.timeout(60):
            while self._unsynced():
                await asyncio.sleep(0.001)

    async def write_unsynced(self, entries: Iterable[Entry]) -> None:
        """Returns once they are in the file."""
        written = asyncio.get_running_loop().create_future()
        entries = list(entries)
        for found in entries[:-1]:
            self._journal.append(entry.encode(found))
        self._journal.append(entry.encode(entries[-1]), lambda error: written.set_result(error))
        assert await written is None

    def _unsynced(self) -> bool:
        """Whether a frame stands above a watermark."""
        heads = [(path, reader.head(path)) for path in segments(self.directory)]
        return any(
            True
            for path, head in heads
            if head is not None
            for _ in reader.read(path, head.mark.offset, upto="end")
        )

    async def die(self) -> None:
        """Nothing more is written and the lock is free."""
        await self._journal.close()


def day_of_station(at_ms: int) -> date:
    return datetime.fromtimestamp(at_ms / 1000, ZoneInfo(Station.timezone)).date()


class Station:
    """What the drainer asks of the station."""

    timezone = MIDDAY
