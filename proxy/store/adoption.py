"""Adopt the journals of processes that died: settle what they settled, close what they left open.

Owns what happens to a dead life, in this order: claim its lock, drain it to its last valid frame, close
its open calls by their last checkpoint, mark it closed. A crash in between is harmless: the next run
does the same again and finds the done part done. The terms of an interrupted call are ledger.settlement's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from proxy.journal import directory as folder
from proxy.journal import reader
from proxy.journal.crashpoint import crash_point
from proxy.journal.frame import START
from proxy.journal.reader import JournalDamageError
from proxy.ledger import entry
from proxy.ledger.entry import Begin, Checkpoint, End, PriceEntry, Progress, Settle
from proxy.ledger.settlement import interrupted, recovered
from proxy.metering.pricing import Price, price_from_content
from proxy.store.database import Database
from proxy.store.drainer import ENTRIES_MAX, Drainer, DrainReport
from proxy.store.posting import Batch, Item, Refused

log = logging.getLogger("headrace.store")


@dataclass(slots=True)
class Adopted:
    """A life that is over. `used` says what it spent of each lease; the rest of its slices is free."""

    incarnation: str
    interrupted: int  # calls that were open
    used: dict[str, int]
    alarms: list[str]


@dataclass(slots=True)
class OpenCalls:
    """What a journal leaves open, and what is needed to close it."""

    begins: dict[str, Begin] = field(default_factory=dict)
    pending: dict[str, End] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    prices: dict[str, Price] = field(default_factory=dict)
    last_segment: int = 0

    def all(self) -> list[Begin | End]:
        return [*self.begins.values(), *self.pending.values()]

    def read(self, payload: bytes) -> None:
        """One more frame, in order. What cannot be decoded was quarantined by the drain."""
        try:
            found = entry.decode(payload)
        except ValueError:
            return
        match found:
            case Begin():
                self.begins[found.id] = found
            case Checkpoint():
                self.progress |= {p.id: p for p in found.live}
            case End():
                self.begins.pop(found.id, None)
                self.progress.pop(found.id, None)
                if found.state == entry.PENDING:
                    self.pending[found.id] = found
            case Settle():
                self.pending.pop(found.id, None)
            case PriceEntry():
                self.prices[found.id] = price_from_content(found.content)


def open_calls(directory: Path) -> OpenCalls:
    """Read a dead life from its first frame to its last valid one. Blocking."""
    calls = OpenCalls()
    for path in folder.segments(directory):
        calls.last_segment = int(path.stem)
        try:
            # Damage was told by the drain; what follows may close calls that are open here.
            for payload, _ in reader.read_past_damage(path, START, lambda _: None, upto="end"):
                calls.read(payload)
        except JournalDamageError:
            continue
    return calls


class Adopter:
    """Adopts what is dead below `journal_dir`; shares the drainer that drains what lives there."""

    def __init__(
        self,
        database: Database,
        journal_dir: Path,
        drainer: Drainer,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._database = database
        self._journal_dir = journal_dir
        self._drainer = drainer
        self._now_ms = now_ms
        self._closed: set[str] = set()

    async def run_once(self) -> list[Adopted]:
        """Adopt every life whose lock is free. Raises DatabaseUnavailable."""
        adopted = []
        for directory in await asyncio.to_thread(folder.incarnations, self._journal_dir):
            if directory.name not in self._closed:
                with _claimed(directory) as is_ours:
                    if is_ours and (found := await self._adopt(directory)) is not None:
                        adopted.append(found)
        return adopted

    async def unadopted(self) -> list[str]:
        """The lives below `journal_dir` that are not closed: living ones and those still to be adopted."""
        names = [d.name for d in await asyncio.to_thread(folder.incarnations, self._journal_dir)]
        return [name for name in names if name not in self._closed and not await self._is_closed(name)]

    async def _adopt(self, directory: Path) -> Adopted | None:
        name = directory.name
        if await self._is_closed(name):
            return None
        crash_point("adopt-claimed")
        report = DrainReport()
        await self._drainer.drain_life(directory, report, upto="end")
        crash_point("adopt-drained")
        calls = await asyncio.to_thread(open_calls, directory)
        closing = await self._closing(name, calls)
        for batch in closing:
            await self._drainer.post(batch, report)
        await self._close(name, calls.last_segment, report.damage)
        crash_point("adopt-after-commit")
        log.info("adopted", extra={"incarnation": name, "interrupted": len(calls.begins)})
        used = await self._database.fetch(
            "SELECT lease, used_nanos FROM lease_use WHERE incarnation = $1", name
        )
        return Adopted(
            incarnation=name,
            interrupted=len(calls.begins),
            used={row["lease"].hex: row["used_nanos"] for row in used},
            alarms=[told for told in report.damage if told not in report.alarms] + report.alarms,
        )

    async def _closing(self, incarnation: str, calls: OpenCalls) -> list[Batch]:
        """The entries that end what is open, except for what an earlier, cut short adoption closed."""
        rows = await self._database.fetch(
            "SELECT id FROM usage WHERE id = ANY($1::uuid[])", [*calls.begins, *calls.pending]
        )
        for row in rows:
            calls.begins.pop(row["id"].hex, None)
            calls.pending.pop(row["id"].hex, None)
        await self._load_prices(calls)
        now_ms = self._now_ms()
        position = await self._drainer.position(incarnation, calls.last_segment)
        items: list[Item] = []
        refused: list[Refused] = []
        for call in calls.all():
            price = calls.prices.get(call.price)
            if price is None:
                refused.append(
                    Refused(position, entry.encode(call), f"no price {call.price!r} to close it by")
                )
                continue
            closing: End | Settle
            if isinstance(call, Begin):
                closing = interrupted(call, calls.progress.get(call.id), price, now_ms)
            else:
                closing = recovered(call, price, now_ms)
            items.append(Item(position, entry.encode(closing), closing))
        batches = [
            Batch(incarnation, calls.last_segment, position, position, items[n : n + ENTRIES_MAX])
            for n in range(0, len(items), ENTRIES_MAX)
        ]
        if refused:
            batches.append(Batch(incarnation, calls.last_segment, position, position, refused=refused))
        return batches

    async def _load_prices(self, calls: OpenCalls) -> None:
        """Those that were drained from another journal."""
        named = {call.price for call in calls.all()}
        missing = list(named - calls.prices.keys())
        for row in await self._database.fetch("SELECT id, content FROM price WHERE id = ANY($1)", missing):
            calls.prices[row["id"]] = price_from_content(row["content"])

    async def _close(self, incarnation: str, segment: int, damage: list[str]) -> None:
        """The last step. Damage goes into quarantine, which keeps the files and tells every audit."""
        async with self._database.transaction() as connection:
            for number, what in enumerate(damage):
                await connection.execute(
                    "INSERT INTO quarantine (incarnation, segment, position, reason, payload)"
                    " VALUES ($1, $2, $3, $4, '') ON CONFLICT DO NOTHING",
                    incarnation, segment, -1 - number, what,
                )  # fmt: skip
            await connection.execute("UPDATE incarnation SET closed_at = now() WHERE id = $1", incarnation)
            crash_point("adopt-before-commit")
        self._closed.add(incarnation)

    async def _is_closed(self, incarnation: str) -> bool:
        closed = await self._database.fetchval(
            "SELECT closed_at IS NOT NULL FROM incarnation WHERE id = $1", incarnation
        )
        if closed:
            self._closed.add(incarnation)
        return bool(closed)


@contextmanager
def _claimed(directory: Path) -> Iterator[bool]:
    """Whether its owner is dead; if so, its lock is ours meanwhile."""
    try:
        lock = folder.claim(directory)
    except FileNotFoundError:
        lock = None  # deleted just now
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)
