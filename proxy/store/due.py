"""The due-time table: tasks that wait for their end, claimed by one poller at a time, closed once.

Owns who may poll what and when, what a poll's word does to the books, and disputes. Several nodes are
safe: a claim skips what others have locked, and counts up `polls`, which fences what comes too late. The
end of a task needs no fence: it is the vendor's truth, whoever brings it, and the first one counts.
What a round costs grows with what is due, never with what is finished.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any

import asyncpg

from proxy.access.overrides import Override
from proxy.errors import StateError
from proxy.ledger import bindings
from proxy.ledger.bindings import Closing
from proxy.ledger.entry import Bind, Observed
from proxy.metering.pricing import Price
from proxy.store.bindings import accounts_of, bind, observe
from proxy.store.charges import DayOf, charge
from proxy.store.corrections import correct
from proxy.store.database import Connection, Database
from proxy.store.deadlines import Deadline, Sort, sweep
from proxy.store.outbox import Change, tell
from proxy.store.posting import NOTHING_DECLARED
from proxy.store.submissions import Submissions
from proxy.store.upstream_costs import UpstreamCosts

log = logging.getLogger("headrace.tasks")

EPOCH = date(1970, 1, 1)
DAY_MS = 86_400_000
RETRY_S = 5.0
NOTE_CHARS_MAX = 500
FORGET_ROWS = 20_000  # per statement, so that it is short
SEEN_DAYS = 90
APART_MS = 7 * DAY_MS  # what cannot be posted waits so long for an operator before it is tried again

# What is wrong with an observation, not with the database.
UNFIT = (
    asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ArithmeticError, LookupError, StateError,
    TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Due:
    """A task that this poller may ask about now; `polls` is its fence."""

    id: str  # of the call that submitted it
    account: int
    kind: str
    vendor_id: str
    upstream: str
    mirror: str
    credential: str
    at_ms: int
    polls: int
    failures: int
    key: int
    tier: str  # of its account when it was submitted
    overrides: tuple[Override, ...]  # of its account, in force then
    told_mark: str | None = None  # of what its account was told last; None: it did not ask to be told

    @property
    def sort(self) -> Sort:
        return self.upstream, self.kind


@dataclass(frozen=True, slots=True)
class Dispute:
    """A task whose end nobody knows; its hold is set aside until `deadline_ms`."""

    id: str
    account: str
    kind: str
    vendor_id: str
    upstream: str
    credential: str
    at_ms: int
    deadline_ms: int
    hold_nanos: int
    note: str


@dataclass(frozen=True, slots=True)
class Later:
    """A task that goes on."""

    due: Due
    next_poll_ms: int
    failures: int = 0
    content: dict[str, Any] = field(default_factory=dict)
    change: Change | None = None  # that its account is told of


@dataclass(slots=True)
class Learned:
    """What polls brought."""

    seen: list[Observed] = field(default_factory=list)
    made: list[Bind] = field(default_factory=list)  # what tasks have made
    prices: dict[str, Price] = field(default_factory=dict)  # those that the parts of `seen` name
    later: list[Later] = field(default_factory=list)
    disputes: list[tuple[Due, str, int]] = field(default_factory=list)  # why, until when

    @property
    def is_empty(self) -> bool:
        return not (self.seen or self.made or self.later or self.disputes)

    def plus(self, other: Learned) -> Learned:
        return Learned(
            self.seen + other.seen,
            self.made + other.made,
            self.prices | other.prices,
            self.later + other.later,
            self.disputes + other.disputes,
        )

    def halves(self) -> tuple[Learned, Learned]:
        """What was seen, in two; the rest is left to who has it whole."""
        middle = len(self.seen) // 2
        first = Learned(self.seen[:middle], self.made, self.prices)
        return first, replace(first, seen=self.seen[middle:])


class DueTasks:
    """Every method raises DatabaseUnavailable; asking again is harmless."""

    def __init__(self, database: Database, incarnation: str, costs: UpstreamCosts = NOTHING_DECLARED) -> None:
        self._database = database
        self._incarnation = incarnation  # who says so in what is posted
        self._costs = costs

    async def claim(self, slots: Mapping[Sort, int], now_ms: int, until_ms: int) -> list[Due]:
        """At most `slots[sort]` tasks of each sort that are due, the longest due first. Nobody else gets
        them before `until_ms`."""
        upstreams, kinds = [sort[0] for sort in slots], [sort[1] for sort in slots]
        rows = await self._database.fetch(_CLAIM, upstreams, kinds, list(slots.values()), now_ms, until_ms)
        return [
            Due(
                **{**row, "id": row["id"].hex, "overrides": tuple(Override(*own) for own in row["overrides"])}
            )
            for row in rows
        ]

    async def write(self, learned: Learned, day_of: DayOf) -> tuple[int, int]:
        """How many tasks ended by it, and how many are disputed now.

        An end that cannot be posted is disputed: it keeps no other from being posted.
        """
        try:
            ended = await self.settle(learned.seen, day_of, prices=learned.prices.values(), made=learned.made)
        except UNFIT as e:
            if len(learned.seen) == 1:
                await self._set_apart(learned.seen[0], e)
                ended = 0
            else:
                halves = [await self.write(half, day_of) for half in learned.halves()]
                ended = sum(ended for ended, _ in halves)
        await self.put_off(learned.later)
        return ended, await self.dispute(learned.disputes)

    async def put_off(self, later: Sequence[Later]) -> None:
        """They go on. Nothing happens to those that somebody else has claimed since."""
        if later:
            async with self._database.transaction() as connection:
                await connection.execute(
                    _PUT_OFF,
                    [it.due.id for it in later],
                    [it.due.polls for it in later],
                    [it.next_poll_ms for it in later],
                    [it.failures for it in later],
                    [it.content or None for it in later],
                )
                await tell(connection, [it.change for it in later if it.change is not None])

    async def dispute(self, disputes: Sequence[tuple[Due, str, int]]) -> int:
        """Nobody knows what became of them: their holds are kept until an operator decides, or the time.
        How many are disputed by it."""
        if not disputes:
            return 0
        begun = await self._database.fetch(
            _DISPUTE,
            [due.id for due, _, _ in disputes],
            [due.polls for due, _, _ in disputes],
            [note[:NOTE_CHARS_MAX] for _, note, _ in disputes],
            [until_ms for _, _, until_ms in disputes],
        )
        return sum(row["begins"] for row in begun)

    async def hurry(self, calls: Sequence[str], now_ms: int) -> set[str]:
        """Somebody hints at a change: ask about these calls' tasks now, also about disputed ones; a poll that
        is under way may have come too early, and puts nothing off. Those of the calls that are known."""
        return {row["id"].hex for row in await self._database.fetch(_HURRY, calls, now_ms)}

    async def sweep(self, deadlines: Sequence[Deadline], overdue_ms: int, until_ms: int) -> int:
        """See deadlines.sweep."""
        return await sweep(self._database, deadlines, overdue_ms, until_ms)

    async def forget(self, days: Mapping[str, int], now_ms: int) -> int:
        """Drop what vendors have forgotten, by kind, and what else is over; how many bindings."""
        await Submissions(self._database).forget(now_ms)
        first_ids = [_first_id(now_ms - (count + 1) * DAY_MS) for count in days.values()]
        dropped = await self._database.fetch(_FORGET, list(days), first_ids, FORGET_ROWS)
        await self._database.execute(
            "DELETE FROM observation WHERE id < $1", _first_id(now_ms - SEEN_DAYS * DAY_MS)
        )
        return len(dropped)

    async def disputes(self, over_by_ms: int | None = None) -> list[Dispute]:
        """All that are open, the oldest first; or those whose time was over at a moment."""
        rows = await self._database.fetch(
            "SELECT b.id, a.name AS account, b.kind, b.vendor_id, b.upstream, b.credential, b.at_ms,"
            " coalesce(b.deadline_ms, 0) AS deadline_ms, b.hold_nanos, b.note"
            " FROM binding b JOIN account a ON a.id = b.account WHERE b.state = 'disputed'"
            " AND ($1::bigint IS NULL OR b.deadline_ms <= $1) ORDER BY b.id",
            over_by_ms,
        )
        return [Dispute(**{**row, "id": row["id"].hex}) for row in rows]

    async def settle(
        self,
        seen: Sequence[Observed],
        day_of: DayOf,
        *,
        prices: Iterable[Price] = (),
        made: Sequence[Bind] = (),
    ) -> int:
        """Apply what was seen, and post what ended by it; how many tasks ended."""
        if not seen and not made:
            return 0
        await self._make_partitions(seen)

        async def settle(connection: Connection) -> int:
            await _know(connection, prices)
            for record in made:
                await bind(connection, record, self._incarnation)
            return await self._settle(connection, seen, day_of)

        return await self._database.retry(settle, deadline_s=RETRY_S)

    async def _set_apart(self, seen: Observed, why: Exception) -> None:
        note = f"its end ({seen.state}) cannot be posted: {type(why).__name__}: {why}"
        log.error("a task's end cannot be posted", extra={"task": seen.vendor_id}, exc_info=why)
        await self._database.execute(
            _SET_APART, seen.upstream, seen.credential, seen.vendor_id, note[:NOTE_CHARS_MAX],
            seen.at_ms + APART_MS,
        )  # fmt: skip

    async def _make_partitions(self, seen: Sequence[Observed]) -> None:
        """Of the rows that are new calls' (a part's own): the others have theirs."""
        days = {int(part["id"][:12], 16) // DAY_MS for e in seen for part in e.parts[1:]}
        for day in sorted(days):
            await self._database.execute("SELECT make_usage_partition($1)", EPOCH + timedelta(days=day))

    async def _settle(self, connection: Connection, seen: Sequence[Observed], day_of: DayOf) -> int:
        await connection.fetch(
            "SELECT FROM account WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE",
            list(await accounts_of(connection, seen)),
        )
        closings = [await observe(connection, e, self._incarnation) for e in seen]
        ends = [end for closing in closings for end in closing.ends]
        await charge(connection, ends, self._incarnation, day_of, self._costs)
        for closing in closings:
            if closing.correction is not None:
                await correct(
                    connection, closing.correction, day_of(closing.correction.at_ms), self._incarnation
                )
        return sum(closing != Closing() for closing in closings)


async def _know(connection: Connection, prices: Iterable[Price]) -> None:
    for price in prices:
        await connection.execute(
            "INSERT INTO price (id, content) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            price.id,
            dict(price.content),
        )


def decided(dispute: Dispute, id_: str, is_charged: bool, at_ms: int) -> Observed:
    """An operator's word, or the time's, as an observation."""
    state = bindings.CHARGED if is_charged else bindings.RELEASED
    return Observed(id_, at_ms, dispute.vendor_id, dispute.upstream, state, credential=dispute.credential)


def _first_id(at_ms: int) -> str:
    """No UUIDv7 of a moment or of a later one is less."""
    return f"{max(at_ms, 0):012x}".ljust(32, "0")


_CLAIM = """
WITH due AS (
    SELECT b.id FROM unnest($1::text[], $2::text[], $3::int[]) AS s (upstream, kind, slots)
    CROSS JOIN LATERAL (
        SELECT id FROM binding
        WHERE upstream = s.upstream AND kind = s.kind AND next_poll_ms <= $4
        ORDER BY next_poll_ms LIMIT s.slots FOR UPDATE SKIP LOCKED
    ) b
)
UPDATE binding b SET next_poll_ms = $5, polls = polls + 1 FROM due WHERE b.id = due.id
RETURNING b.id, b.account, b.kind, b.vendor_id, b.upstream, b.mirror, b.credential, b.at_ms, b.polls,
          b.failures, b.key, coalesce(b.entry ->> 'tier', '') AS tier,
          CASE WHEN b.hook IS NOT NULL THEN b.told_mark END AS told_mark,
          (SELECT coalesce(jsonb_agg(jsonb_build_array(o.id, model, ppm, content) ORDER BY o.id), '[]')
           FROM price_override o
           WHERE o.account = b.account AND created_at <= to_timestamp(b.at_ms / 1000.0)
             AND (ended_at IS NULL OR ended_at > to_timestamp(b.at_ms / 1000.0))) AS overrides
"""

# A disputed task that was asked about once more is not asked about again. An object that did not change stays
# where it is: large ones live beside the row.
_PUT_OFF = """
UPDATE binding b SET failures = t.failures,
       next_poll_ms = CASE b.state WHEN 'pending' THEN t.next_poll_ms END,
       content = CASE WHEN t.content = b.content THEN b.content ELSE coalesce(t.content, b.content) END
FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::int[], $5::jsonb[])
     AS t (id, polls, next_poll_ms, failures, content)
WHERE b.id = t.id AND b.polls = t.polls AND b.state IN ('pending', 'disputed')
"""

_DISPUTE = """
WITH lost AS (
    SELECT b.id, b.state = 'pending' AS begins, t.note, t.until_ms
    FROM unnest($1::uuid[], $2::int[], $3::text[], $4::bigint[]) AS t (id, polls, note, until_ms)
    JOIN binding b ON b.id = t.id AND b.polls = t.polls
    WHERE b.state IN ('pending', 'disputed') FOR UPDATE OF b
)
UPDATE binding b SET state = 'disputed', next_poll_ms = NULL,
       note = CASE WHEN begins THEN lost.note ELSE b.note END,
       deadline_ms = CASE WHEN begins THEN lost.until_ms ELSE b.deadline_ms END
FROM lost WHERE b.id = lost.id RETURNING begins
"""

_HURRY = """
WITH hurried AS (
    UPDATE binding SET next_poll_ms = least(next_poll_ms, $2), polls = polls + 1
    WHERE id = ANY($1::uuid[]) AND state IN ('pending', 'disputed')
)
SELECT id FROM binding WHERE id = ANY($1::uuid[])
"""

_SET_APART = """
UPDATE binding SET state = 'disputed', next_poll_ms = NULL, note = $4, deadline_ms = $5
WHERE (upstream, credential, vendor_id) = ($1, $2, $3) AND state IN ('pending', 'disputed')
"""

_FORGET = """
DELETE FROM binding WHERE id IN (
    SELECT b.id FROM unnest($1::text[], $2::uuid[]) AS k (kind, first)
    JOIN binding b ON b.kind = k.kind AND b.id < k.first
    WHERE b.state IN ('bound', 'settled', 'void') LIMIT $3
) RETURNING true
"""
