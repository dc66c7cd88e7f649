"""One batch of journal entries becomes rows, money and a moved cursor, in one transaction.

Owns the SQL that posts: usage, ledger, lease use, pending calls, corrections, bindings, quarantine.
Money moves only for rows that were really inserted, so that posting the same entries again moves
nothing. Accounts are locked first and in order: whoever moves money does, so nobody deadlocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from proxy.errors import StateError
from proxy.journal.crashpoint import crash_point
from proxy.ledger import entry
from proxy.ledger.bindings import undone
from proxy.ledger.entry import Allowance, Bind, End, Entry, Observed, PriceEntry, Settle
from proxy.store import bindings, usage_rows
from proxy.store.charges import DayOf, charge
from proxy.store.corrections import correct
from proxy.store.database import Connection
from proxy.store.upstream_costs import UpstreamCosts


@dataclass(slots=True)
class Item:
    """One entry, and the byte offset behind its frame, which names it within its segment."""

    position: int
    payload: bytes
    entry: Entry


@dataclass(slots=True)
class Refused:
    """What cannot be applied, whole, and why."""

    position: int
    payload: bytes
    reason: str


@dataclass(slots=True)
class Batch:
    """Consecutive frames of one segment. Begin and Checkpoint are only counted."""

    incarnation: str
    segment: int
    start: int
    end: int
    items: list[Item] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    begins: int = 0

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches that do the same one after the other."""
        middle = len(self.items) // 2
        cut = self.items[middle - 1].position
        first = replace(self, end=cut, items=self.items[:middle])
        return first, Batch(self.incarnation, self.segment, cut, self.end, self.items[middle:])


class CursorMovedError(StateError):
    """Somebody else posted this part of the segment: read again from `position`."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the cursor is at {position}")
        self.position = position


NOTHING_DECLARED = UpstreamCosts()


async def post(
    connection: Connection, batch: Batch, day_of: DayOf, costs: UpstreamCosts = NOTHING_DECLARED
) -> int:
    """Apply a batch within the caller's transaction; how many usage rows are new.

    Raises CursorMovedError, and asyncpg's errors for an entry that no table takes.
    """
    await _lock_cursor(connection, batch)
    work = _Work(connection, batch, day_of, costs)
    await work.lock_accounts()
    await work.prices()
    await work.bindings()
    await work.pendings()
    await work.settles()
    await work.observations()
    inserted = await work.usage_rows()
    await work.corrections()
    await work.allowances()
    await work.quarantine()
    await _move_cursor(connection, batch, work.closed)
    crash_point("drain-before-commit")
    return inserted


async def _lock_cursor(connection: Connection, batch: Batch) -> None:
    """Two who drain one segment queue here; the second finds the cursor moved."""
    position = await connection.fetchval(
        "INSERT INTO segment_cursor AS c (incarnation, segment, position) VALUES ($1, $2, $3)"
        " ON CONFLICT (incarnation, segment) DO UPDATE SET position = c.position RETURNING c.position",
        batch.incarnation, batch.segment, batch.start,
    )  # fmt: skip
    if position != batch.start:
        raise CursorMovedError(position)


async def _move_cursor(connection: Connection, batch: Batch, closed: int) -> None:
    await connection.execute(
        "UPDATE segment_cursor SET position = $3, begins = begins + $4, ends = ends + $5,"
        " entries = entries + $6, moved_at = now() WHERE incarnation = $1 AND segment = $2",
        batch.incarnation, batch.segment, batch.end, batch.begins, closed, len(batch.items),
    )  # fmt: skip


class _Work:
    """What is to be done for one batch, sorted by kind. Refusals gather on the way."""

    def __init__(self, connection: Connection, batch: Batch, day_of: DayOf, costs: UpstreamCosts) -> None:
        self._connection = connection
        self._batch = batch
        self._day_of = day_of
        self._costs = costs
        self._refused = list(batch.refused)
        self._ends: list[End] = []  # what becomes usage rows
        self._closings: list[End] = []  # the same, of calls that ended long before
        self._corrections: list[Item] = []
        self._items: dict[type[Entry], list[Item]] = {}
        for item in batch.items:
            self._items.setdefault(type(item.entry), []).append(item)
        self.closed = 0  # calls that these entries end

    def _of(self, kind: type[Entry]) -> list[Any]:
        return self._items.get(kind, [])

    def _refuse(self, item: Item, reason: str) -> None:
        self._refused.append(Refused(item.position, item.payload, reason))

    async def lock_accounts(self) -> None:
        """Every account that these entries name, in the order of their ids; the unknown are refused."""
        named = {i.entry.account for kind in (End, Bind, Allowance) for i in self._of(kind)}
        if settles := [i.entry.corrects or i.entry.id for i in self._of(Settle)]:
            rows = await self._connection.fetch(
                "SELECT account FROM usage WHERE id = ANY($1::uuid[])"
                " UNION SELECT account FROM pending_usage WHERE id = ANY($1::uuid[])",
                settles,
            )
            named |= {row["account"] for row in rows}
        named |= await bindings.accounts_of(self._connection, self._entries(Observed))
        rows = await self._connection.fetch(
            "SELECT id FROM account WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE", list(named)
        )
        known = {row["id"] for row in rows}
        for kind in (End, Bind, Allowance):
            if named <= known:
                break
            for item in self._of(kind):
                if item.entry.account not in known:
                    self._refuse(item, f"there is no account {item.entry.account}")
            self._items[kind] = [i for i in self._of(kind) if i.entry.account in known]

    async def prices(self) -> None:
        entries = [i.entry for i in self._of(PriceEntry)]
        await self._many(
            "INSERT INTO price (id, content) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            [(e.id, e.content) for e in entries],
        )

    async def bindings(self) -> None:
        """Ids that live at vendors, before the Ends of the calls that made them."""
        for item in self._of(Bind):
            if refusal := await bindings.bind(self._connection, item.entry, self._batch.incarnation):
                self._refuse(item, refusal)

    async def pendings(self) -> None:
        """Calls that are over and not yet billed: still being counted, unless a Settle closed them before
        (a replay), or with a task of theirs that goes on."""
        by_state: dict[str, list[End]] = {}
        for item in self._of(End):
            by_state.setdefault(item.entry.state, []).append(item.entry)
        pending, deferred = by_state.pop(entry.PENDING, []), by_state.pop(entry.DEFERRED, [])
        self._ends = [end for ends in by_state.values() for end in ends]
        for end in deferred:
            if await bindings.defer(self._connection, end):
                self.closed += 1
            else:
                self._ends.append(undone(end))
        if not pending:
            return
        self.closed += await self._connection.fetchval(
            "SELECT count(*) FROM usage WHERE id = ANY($1::uuid[])", [e.id for e in pending]
        )
        await self._many(
            "INSERT INTO pending_usage (id, account, lease, hold_nanos, entry, incarnation, since_ms)"
            " SELECT $1::uuid, $2, $3, $4, $5, $6, $7"
            " WHERE NOT EXISTS (SELECT FROM usage WHERE id = $1::uuid) ON CONFLICT DO NOTHING",
            [
                (e.id, e.account, e.lease or None, e.hold_nanos, e, self._batch.incarnation, e.at_ms)
                for e in pending
            ],
        )

    async def settles(self) -> None:
        """A Settle closes a pending call; what is left corrects calls that are closed."""
        late = {i.entry.id: i.entry for i in self._of(Settle) if not i.entry.corrects}
        if late:
            rows = await self._connection.fetch(
                "DELETE FROM pending_usage WHERE id = ANY($1::uuid[]) RETURNING entry",
                list(late),
            )
            for row in rows:
                end = entry.decode(End.TAG + orjson.dumps(row["entry"]))
                assert isinstance(end, End)
                self._ends.append(usage_rows.settled(end, late.pop(end.id)))
        self._corrections = [i for i in self._of(Settle) if i.entry.corrects or i.entry.id in late]

    async def observations(self) -> None:
        """What ended with them becomes usage rows, each once."""
        for item in self._of(Observed):
            closing = await bindings.observe(self._connection, item.entry, self._batch.incarnation)
            self._closings += closing.ends
            if closing.correction is not None:
                self._corrections.append(replace(item, entry=closing.correction))

    async def corrections(self) -> None:
        """In their order: each says what its call cost from then on."""
        for item in self._corrections:
            assert isinstance(item.entry, Settle)
            day = self._day_of(item.entry.at_ms)
            if refusal := await correct(self._connection, item.entry, day, self._batch.incarnation):
                self._refuse(item, refusal)

    async def usage_rows(self) -> int:
        """Rows, lease use and ledger in one statement; how many rows are new."""
        self.closed += len(self._ends)
        ends = self._ends + self._closings
        return await charge(self._connection, ends, self._batch.incarnation, self._day_of, self._costs)

    async def allowances(self) -> None:
        incarnation = self._batch.incarnation
        await self._many(
            "INSERT INTO allowance (id, account, at_ms, amount_nanos, incarnation)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            [(e.id, e.account, e.at_ms, e.amount_nanos, incarnation) for e in self._entries(Allowance)],
        )

    async def quarantine(self) -> None:
        await self._many(
            "INSERT INTO quarantine (incarnation, segment, position, payload, reason)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            [
                (self._batch.incarnation, self._batch.segment, r.position, r.payload, r.reason[:2000])
                for r in self._refused
            ],
        )
        self._batch.refused = self._refused

    def _entries(self, kind: type[Entry]) -> Iterable[Any]:
        return (item.entry for item in self._of(kind))

    async def _many(self, sql: str, rows: Collection[tuple[Any, ...]]) -> None:
        if rows:
            await self._connection.executemany(sql, rows)
