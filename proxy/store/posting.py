"""One batch of journal entries becomes rows, money and a moved cursor, in one transaction.

Owns the SQL that posts: usage, ledger, lease use, pending calls, corrections, bindings, quarantine.
Money moves only for rows that were really inserted, so that posting the same entries again moves
nothing. Accounts are locked first and in order: whoever moves money does, so nobody deadlocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any
from uuid import UUID

import orjson

from proxy.errors import StateError
from proxy.journal.crashpoint import crash_point
from proxy.ledger import entry
from proxy.ledger.entry import Allowance, Bind, End, Entry, Observed, PriceEntry, Settle
from proxy.store import pockets, usage_rows
from proxy.store.database import Connection
from proxy.store.upstream_costs import UpstreamCosts

DayOf = Callable[[int], date]  # milliseconds -> the day in the station's zone that is posted to


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
    await work.pendings()
    await work.settles()
    inserted = await work.usage_rows()
    await work.corrections()
    await work.others()
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

    async def pendings(self) -> None:
        """Calls that are still being counted, unless a Settle closed them before (a replay)."""
        ends = [i.entry for i in self._of(End)]
        self._ends = [end for end in ends if end.state != entry.PENDING]
        if len(self._ends) == len(ends):
            return
        self.closed += await self._connection.fetchval(
            "SELECT count(*) FROM usage WHERE id = ANY($1::uuid[])",
            [e.id for e in ends if e.state == entry.PENDING],
        )
        await self._many(
            "INSERT INTO pending_usage (id, account, lease, hold_nanos, entry, incarnation, since_ms)"
            " SELECT $1::uuid, $2, $3, $4, $5, $6, $7"
            " WHERE NOT EXISTS (SELECT FROM usage WHERE id = $1::uuid) ON CONFLICT DO NOTHING",
            [
                (e.id, e.account, e.lease or None, e.hold_nanos, e, self._batch.incarnation, e.at_ms)
                for e in ends
                if e.state == entry.PENDING
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
                end = entry.decode(End.TAG.encode() + orjson.dumps(row["entry"]))
                assert isinstance(end, End)
                self._ends.append(usage_rows.settled(end, late.pop(end.id)))
        self._corrections = [i for i in self._of(Settle) if i.entry.corrects or i.entry.id in late]

    async def corrections(self) -> None:
        """In their order: each says what its call cost from then on."""
        for item in self._corrections:
            await self._correct(item)

    async def _correct(self, item: Item) -> None:
        settle = item.entry
        assert isinstance(settle, Settle)
        call = settle.corrects or settle.id
        row = await self._connection.fetchrow(_CLOSED_CALL, call)
        if row is None:
            self._refuse(item, f"settles the unknown call {call}")
            return
        if not settle.corrects and settle.cost_nanos == row["cost_nanos"]:
            return  # the Settle that closed the call, once more; what corrected it since then stands
        cost_before = row["cost_nanos"] + row["corrected_nanos"]
        delta = settle.cost_nanos - cost_before
        day = self._day_of(settle.at_ms)
        # What was free stays so, and what was refunded is not given back once more.
        not_paid = row["not_paid"]
        charged = max(settle.cost_nanos - not_paid, 0) - max(cost_before - not_paid, 0)
        is_new = await self._connection.fetchval(
            "INSERT INTO correction (id, corrects, account, posted_day, at_ms, delta_nanos, cost_nanos,"
            " provenance, usage, incarnation, charged_nanos)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, nullif($11::bigint, $6::bigint))"
            " ON CONFLICT (id) DO NOTHING RETURNING true",
            settle.id, call, row["account"], day, settle.at_ms, delta, settle.cost_nanos,
            settle.provenance, settle.usage, self._batch.incarnation, charged,
        )  # fmt: skip
        if is_new and charged:
            await self._connection.execute(
                "INSERT INTO ledger (account, contra, kind, amount_nanos, source, reference, posted_day)"
                " VALUES ($1, 'revenue', 'correction', $2, 'correction', $3, $4)",
                row["account"], -charged, str(UUID(settle.id)), day,
            )  # fmt: skip

    async def usage_rows(self) -> int:
        """Rows, lease use and ledger in one statement; how many rows are new."""
        self.closed += len(self._ends)
        if not self._ends:
            return 0
        drawn = await pockets.draw(self._connection, self._ends)
        costs = await self._costs.of(self._connection, self._ends)
        crash_point("drain-before-copy")
        await usage_rows.stage(
            self._connection,
            [
                usage_rows.record(
                    e,
                    self._batch.incarnation,
                    self._day_of(e.at_ms),
                    usage_rows.shares(drawn.get(e.id), costs.get(e.id)),
                )
                for e in self._ends
            ],
        )
        crash_point("drain-after-copy")
        return await usage_rows.charge(self._connection, self._batch.incarnation)

    async def others(self) -> None:
        incarnation = self._batch.incarnation
        await self._many(
            "INSERT INTO allowance (id, account, at_ms, amount_nanos, incarnation)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            [(e.id, e.account, e.at_ms, e.amount_nanos, incarnation) for e in self._entries(Allowance)],
        )
        await self._many(
            "INSERT INTO observation (id, at_ms, upstream, vendor_id, state, usage, incarnation)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
            [
                (e.id, e.at_ms, e.upstream, e.vendor_id, e.state, e.usage, incarnation)
                for e in self._entries(Observed)
            ],
        )
        for item in self._of(Bind):
            await self._bind(item)

    async def _bind(self, item: Item) -> None:
        """The hold of a task moves from its lease to the binding: what is available does not change."""
        bind = item.entry
        assert isinstance(bind, Bind)
        is_new = await self._connection.fetchval(_BIND, *_bind_record(bind, self._batch.incarnation))
        if not is_new:
            owner = await self._connection.fetchval(
                "SELECT account FROM binding WHERE (upstream, credential, vendor_id) = ($1, $2, $3)",
                bind.upstream, bind.credential, bind.vendor_id,
            )  # fmt: skip
            if owner != bind.account:
                self._refuse(item, f"binds what belongs to account {owner}")
        elif bind.hold_nanos:
            await self._connection.execute(
                _HOLD, bind.lease or None, bind.account, bind.hold_nanos, self._batch.incarnation
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


_CLOSED_CALL = """
SELECT account, cost_nanos,
       coalesce((SELECT sum(delta_nanos)::bigint FROM correction
                 WHERE corrects = u.id), 0) AS corrected_nanos,
       free_nanos + coalesce((SELECT amount_nanos FROM ledger
                              WHERE source = 'refund' AND reference = u.id::text), 0) AS not_paid
FROM usage u WHERE id = $1::uuid
"""

_BIND = """
INSERT INTO binding (id, account, key, kind, vendor_id, upstream, mirror, credential, at_ms, hold_nanos,
                     state, incarnation)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING RETURNING true
"""


def _bind_record(bind: Bind, incarnation: str) -> tuple[Any, ...]:
    return (
        bind.id, bind.account, bind.key, bind.kind, bind.vendor_id, bind.upstream, bind.mirror,
        bind.credential, bind.at_ms, bind.hold_nanos, "pending" if bind.hold_nanos else "bound", incarnation,
    )  # fmt: skip


_HOLD = """
WITH spent AS (
    UPDATE lease SET used_nanos = used_nanos + $3
    WHERE id = $1 AND account = $2 AND closed_at IS NULL RETURNING id
), shares AS (
    INSERT INTO lease_use AS u (lease, incarnation, used_nanos) SELECT id, $4, $3 FROM spent
    ON CONFLICT (lease, incarnation) DO UPDATE SET used_nanos = u.used_nanos + excluded.used_nanos
)
UPDATE account SET available_nanos = available_nanos - $3
WHERE id = $2 AND NOT EXISTS (SELECT FROM spent)
"""
