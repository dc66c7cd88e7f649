"""Copy the journals of this node into Postgres, exactly once.

Owns which segment is read from where, the size of a batch, what is tried again and what goes into
quarantine. Reads below the fsync watermark only; a dead life's rest is adoption's. What a batch does to
the tables is posting's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Protocol
from zoneinfo import ZoneInfo

import asyncpg

from proxy.journal import reader
from proxy.journal.crashpoint import crash_point
from proxy.journal.directory import claim, incarnations, segments
from proxy.journal.frame import START
from proxy.journal.reader import JournalDamageError, UpTo
from proxy.ledger import entry
from proxy.ledger.entry import Begin, Checkpoint, End, Settle
from proxy.routing.table import Table
from proxy.store.charges import DayOf
from proxy.store.database import Connection, Database, DatabaseUnavailable
from proxy.store.posting import Batch, CursorMovedError, Item, Refused, post
from proxy.store.upstream_costs import UpstreamCosts

log = logging.getLogger("headrace.store")

ENTRIES_MAX = 2_000  # per transaction: 20 to 50 ms, and accounts are locked meanwhile
FRAMES_MAX = 20_000  # of the kinds that are only counted
BYTES_MAX = 8 << 20  # of a batch in memory
DAMAGE_BYTES_MAX = 64 << 10  # of an unreadable part of a journal, for quarantine
RETRY_S = 5.0  # within one run; the next run tries again anyway
CLOSED_AFTER = timedelta(days=3)  # a day takes no more postings 72 hours after its end

EPOCH = date(1970, 1, 1)
DAY_MS = 86_400_000
QUARTER_MS = 900_000  # every zone's midnight falls on one
LAST_ID = f"{253_402_300_799_999:012x}".ljust(32, "f")  # of the year 9999

COUNTED = {Begin.TAG, Checkpoint.TAG}

# An entry that no table takes: quarantined. Anything else that fails is our bug or the database's.
UNFIT = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError, TypeError, OverflowError)


class Station(Protocol):
    """What the drainer needs of routing.table.Station."""

    @property
    def timezone(self) -> str: ...


@dataclass(slots=True)
class DrainReport:
    """What one run did. `alarms` are new lines for the operator: damaged journals and quarantined
    entries. `damage` are those of all journals that are damaged, told before or not."""

    entries: int = 0
    inserted: int = 0
    quarantined: int = 0
    behind: bool = False  # there was more than this run took
    damage: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)


class Drainer:
    """Drains what lives below `journal_dir`. One `run_once` at a time; two drainers are harmless.

    `station` says the time zone whose days are posted to, `costs` what upstreams take; `follow` a reload.
    """

    def __init__(
        self,
        database: Database,
        journal_dir: Path,
        node: str,
        station: Station,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.station = station
        self.costs = UpstreamCosts()
        self._database = database
        self._journal_dir = journal_dir
        self._node = node
        self._now_ms = now_ms
        self._cursors: dict[tuple[str, int], int] = {}
        self._done: set[tuple[str, int]] = set()  # closed and read to the end
        self._damaged: set[Path] = set()  # told already
        self._known: set[str] = set()  # incarnations that have their row
        self._partitions: set[int] = set()  # days, counted from 1970, that have theirs

    def follow(self, table: Table) -> None:
        """A routes.yaml was loaded."""
        self.station = table.station
        self.costs.declare(table.upstreams)

    async def run_once(self) -> DrainReport:
        """One batch from each segment of a living process that has something new.

        Raises DatabaseUnavailable; nothing is lost by it. Damage of a journal is an alarm of its own
        segment and never stops the others.
        """
        report = DrainReport()
        for directory in await asyncio.to_thread(living, self._journal_dir):
            await self.drain_life(directory, report)
        return report

    async def drain_life(self, directory: Path, report: DrainReport, *, upto: UpTo = "watermark") -> None:
        """The segments of one incarnation in their order: one batch each, or with "end" all there is."""
        await self._register(directory.name)
        for path in await asyncio.to_thread(segments, directory):
            if (directory.name, int(path.stem)) in self._done:
                continue
            try:
                while await self._drain_segment(path, report, upto) and upto == "end":
                    pass
            except JournalDamageError as e:
                report.damage.append(str(e))
                if path not in self._damaged:
                    self._damaged.add(path)
                    report.alarms.append(str(e))
                    log.exception("journal damaged")
            except FileNotFoundError:
                continue  # drained long ago and deleted just now

    def forget(self, incarnation: str) -> None:
        """Its directory is gone."""
        self._known.discard(incarnation)
        self._done = {k for k in self._done if k[0] != incarnation}
        self._cursors = {k: v for k, v in self._cursors.items() if k[0] != incarnation}

    async def position(self, incarnation: str, segment: int) -> int:
        """Up to which byte a segment is in Postgres."""
        at = await self._database.fetchval(
            "SELECT position FROM segment_cursor WHERE incarnation = $1 AND segment = $2",
            incarnation,
            segment,
        )
        return START if at is None else int(at)

    async def _drain_segment(self, path: Path, report: DrainReport, upto: UpTo) -> bool:
        """One batch of a segment; whether there is more."""
        key = (path.parent.name, int(path.stem))
        start = self._cursors.get(key)
        if start is None:
            start = self._cursors[key] = await self.position(*key)
        found = await asyncio.to_thread(read_batch, path, start, upto)
        if found.batch.end > start:
            await self.post(found.batch, report)
        if found.damage is not None:
            raise found.damage
        if found.is_finished:
            self._done.add(key)
        report.behind |= found.has_more
        return found.has_more

    async def post(self, batch: Batch, report: DrainReport) -> None:
        """Apply a batch, in halves where an entry in it is unfit, until that one is alone."""
        remembered = await self._make_partitions(batch)
        key = (batch.incarnation, batch.segment)
        try:
            inserted = await self._database.retry(
                lambda connection: post(connection, batch, self.days(), self.costs), deadline_s=RETRY_S
            )
        except CursorMovedError as e:
            self._cursors[key] = e.position
            return
        except DatabaseUnavailable:
            self._cursors.pop(key, None)  # it may have been committed all the same
            raise
        except UNFIT as e:
            if remembered and isinstance(e, asyncpg.CheckViolationError):
                self._partitions -= remembered  # one may have been dropped meanwhile: made again, then told
                await self.post(batch, report)
                return
            if len(batch.items) > 1:
                for half in batch.halves():
                    await self.post(half, report)
                return
            if not batch.items:
                raise
            item = batch.items.pop()
            batch.refused.append(Refused(item.position, item.payload, f"{type(e).__name__}: {e}"))
            await self.post(batch, report)
            return
        crash_point("drain-after-commit")
        self._cursors[key] = batch.end
        report.inserted += inserted
        report.entries += len(batch.items)
        for refused in batch.refused:
            report.quarantined += 1
            report.alarms.append(f"{batch.incarnation}/{batch.segment}@{refused.position}: {refused.reason}")
            log.error("entry quarantined", extra={"segment": batch.segment, "reason": refused.reason})

    def days(self) -> DayOf:
        """From a moment to the station's day, unless that day is closed already or has not begun."""
        return days_of(self.station.timezone, self._now_ms())

    async def _register(self, incarnation: str) -> None:
        if incarnation in self._known:
            return

        async def insert(connection: Connection) -> None:
            await connection.execute("INSERT INTO node (id) VALUES ($1) ON CONFLICT DO NOTHING", self._node)
            await connection.execute(
                "INSERT INTO incarnation (id, node) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                incarnation,
                self._node,
            )

        await self._database.retry(insert, deadline_s=RETRY_S)
        self._known.add(incarnation)

    async def _make_partitions(self, batch: Batch) -> set[int]:
        """Before the batch and on its own: making one takes locks that should not wait for a batch.

        The days whose partition is only remembered to be there.
        """
        days = {day_of_id(item.entry.id) for item in batch.items if isinstance(item.entry, End | Settle)}
        missing = days - self._partitions
        for day in sorted(missing):
            async with self._database.connection() as connection:
                await connection.execute("SELECT make_usage_partition($1)", EPOCH + timedelta(days=day))
            self._partitions.add(day)
        return days - missing


def days_of(timezone: str, now_ms: int) -> DayOf:
    """From a moment to the day of a zone that it is posted to."""
    zone = ZoneInfo(timezone)
    today = datetime.fromtimestamp(now_ms / 1000, zone).date()
    days: dict[int, date] = {}

    def posted_day(at_ms: int) -> date:
        quarter = at_ms // QUARTER_MS
        day = days.get(quarter)
        if day is None:
            day = datetime.fromtimestamp(quarter * QUARTER_MS / 1000, zone).date()
            day = days[quarter] = min(max(day, today - CLOSED_AFTER), today)
        return day

    return posted_day


@dataclass(slots=True)
class Found:
    """What reading a segment gave."""

    batch: Batch
    has_more: bool = False
    is_finished: bool = False  # nothing will ever be added, and all of it is in the batch or before
    damage: JournalDamageError | None = None


def living(journal_dir: Path) -> list[Path]:
    """The lives whose owner holds the lock. Blocking."""
    return [directory for directory in incarnations(journal_dir) if not _is_dead(directory)]


def _is_dead(directory: Path) -> bool:
    try:
        lock = claim(directory)
    except FileNotFoundError:
        return True
    if lock is not None:
        os.close(lock)
    return lock is not None


def read_batch(path: Path, start: int, upto: UpTo) -> Found:
    """The next frames of a segment, decoded, at most a batch. Blocking."""
    batch = Batch(path.parent.name, int(path.stem), start, start)
    found = Found(batch)
    frames = size = 0

    def skip(damage: JournalDamageError) -> None:
        batch.refused.append(_damaged(damage))
        batch.end = batch.refused[-1].position

    try:
        head = reader.head(path)
        for payload, position in reader.read_past_damage(path, start, skip, upto=upto):
            if len(batch.items) >= ENTRIES_MAX or frames >= FRAMES_MAX or size >= BYTES_MAX:
                found.has_more = True
                return found
            frames += 1
            size += len(payload)
            batch.end = position
            if payload[:1] in COUNTED:
                batch.begins += payload[:1] == b"B"
                continue
            try:
                decoded = entry.decode(payload)
                _check_id(decoded)
                batch.items.append(Item(position, payload, decoded))
            except (ValueError, TypeError, LookupError) as e:
                batch.refused.append(Refused(position, payload, f"{type(e).__name__}: {e}"))
        found.is_finished = head is not None and head.mark.closed and batch.end >= head.mark.offset
    except JournalDamageError as e:
        found.damage = e
    return found


def _damaged(damage: JournalDamageError) -> Refused:
    """The bytes that are no frame, as far as they fit into a row; all of them stay in the file, which is
    kept for as long as they are in quarantine."""
    assert damage.resume_at is not None
    with damage.path.open("rb") as file:
        file.seek(damage.position)
        data = file.read(min(damage.resume_at - damage.position, DAMAGE_BYTES_MAX))
    return Refused(damage.resume_at, data, str(damage))


def _check_id(decoded: entry.Entry) -> None:
    if isinstance(decoded, End | Settle):
        day_of_id(decoded.id)


def day_of_id(id_hex: str) -> int:
    """The UTC day in a UUIDv7, counted from 1970: its partition. Raises ValueError: it is none."""
    if len(id_hex) != 32 or id_hex[12] != "7" or id_hex > LAST_ID:
        raise ValueError(f"{id_hex!r} is no UUIDv7")
    return int(id_hex[:12], 16) // DAY_MS
