"""The due-time table: tasks that wait for their end, claimed by one poller at a time, closed once.

Owns who may poll what and when, what a poll's word does to the books, and disputes. Several nodes are
safe: a claim skips what others have locked, and counts up `polls`, which fences what comes too late. The
end of a task needs no fence: it is the vendor's truth, whoever brings it, and the first one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from proxy.access.overrides import Override
from proxy.ledger import bindings
from proxy.ledger.bindings import Closing
from proxy.ledger.entry import Bind, Observed
from proxy.metering.pricing import Price
from proxy.store.bindings import accounts_of, bind, observe
from proxy.store.charges import DayOf, charge
from proxy.store.corrections import correct
from proxy.store.database import Connection, Database
from proxy.store.posting import NOTHING_DECLARED
from proxy.store.upstream_costs import UpstreamCosts

EPOCH = date(1970, 1, 1)
DAY_MS = 86_400_000
RETRY_S = 5.0
NOTE_CHARS_MAX = 500
FORGET_ROWS = 20_000  # per statement, so that it is short
SEEN_DAYS = 90

Sort = tuple[str, str]  # upstream and kind: tasks that are asked about in the same way


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
        """How many tasks ended by it, and how many are disputed now."""
        ended = await self.settle(learned.seen, day_of, prices=learned.prices.values(), made=learned.made)
        await self.put_off(learned.later)
        disputed = [await self.dispute(*dispute) for dispute in learned.disputes]
        return ended, sum(disputed)

    async def put_off(self, later: Sequence[Later]) -> None:
        """They go on. Nothing happens to those that somebody else has claimed since."""
        if later:
            await self._database.execute(
                _PUT_OFF,
                [it.due.id for it in later],
                [it.due.polls for it in later],
                [it.next_poll_ms for it in later],
                [it.failures for it in later],
                [it.content or None for it in later],
            )

    async def dispute(self, due: Due, note: str, until_ms: int) -> bool:
        """Nobody knows what became of it: its hold is kept until an operator decides, or the time."""
        changed = await self._database.fetchval(
            "UPDATE binding SET state = 'disputed', note = $3, deadline_ms = $4, next_poll_ms = NULL"
            " WHERE id = $1 AND polls = $2 AND state = 'pending' RETURNING true",
            due.id, due.polls, note[:NOTE_CHARS_MAX], until_ms,
        )  # fmt: skip
        return bool(changed)

    async def sweep(self, overdue_ms: int, until_ms: int) -> None:
        """What nobody has been asking about since a moment is disputed; disputes that a client began by
        deleting what it awaited get their time."""
        await self._database.execute(_SWEEP, overdue_ms, until_ms)

    async def forget(self, days: Mapping[str, int], now_ms: int) -> int:
        """Drop what vendors have forgotten, by kind, and what was seen long ago; how many bindings."""
        dropped = await self._database.fetch(
            _FORGET, list(days), [now_ms - (count + 1) * DAY_MS for count in days.values()], FORGET_ROWS
        )
        await self._database.execute("DELETE FROM observation WHERE at_ms < $1", now_ms - SEEN_DAYS * DAY_MS)
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


_CLAIM = """
WITH due AS (
    SELECT b.id FROM unnest($1::text[], $2::text[], $3::int[]) AS s (upstream, kind, slots)
    CROSS JOIN LATERAL (
        SELECT id FROM binding
        WHERE state = 'pending' AND upstream = s.upstream AND kind = s.kind AND next_poll_ms <= $4
        ORDER BY next_poll_ms LIMIT s.slots FOR UPDATE SKIP LOCKED
    ) b
)
UPDATE binding b SET next_poll_ms = $5, polls = polls + 1 FROM due WHERE b.id = due.id
RETURNING b.id, b.account, b.kind, b.vendor_id, b.upstream, b.mirror, b.credential, b.at_ms, b.polls,
          b.failures, b.key, coalesce(b.entry ->> 'tier', '') AS tier,
          (SELECT coalesce(jsonb_agg(jsonb_build_array(o.id, model, ppm, content) ORDER BY o.id), '[]')
           FROM price_override o
           WHERE o.account = b.account AND created_at <= to_timestamp(b.at_ms / 1000.0)
             AND (ended_at IS NULL OR ended_at > to_timestamp(b.at_ms / 1000.0))) AS overrides
"""

_PUT_OFF = """
UPDATE binding b SET next_poll_ms = t.next_poll_ms, failures = t.failures,
       content = coalesce(t.content, b.content)
FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::int[], $5::jsonb[])
     AS t (id, polls, next_poll_ms, failures, content)
WHERE b.id = t.id AND b.polls = t.polls AND b.state = 'pending'
"""

_SWEEP = """
WITH undated AS (
    UPDATE binding SET deadline_ms = $2 WHERE state = 'disputed' AND deadline_ms IS NULL
)
UPDATE binding SET state = 'disputed', deadline_ms = $2, next_poll_ms = NULL,
       note = 'nobody could be asked about it: is its upstream still in the file?'
WHERE state = 'pending' AND next_poll_ms < $1
"""

_FORGET = """
DELETE FROM binding WHERE id IN (
    SELECT id FROM binding JOIN unnest($1::text[], $2::bigint[]) AS k (kind, before_ms) USING (kind)
    WHERE at_ms < before_ms AND state IN ('bound', 'settled', 'void') LIMIT $3
) RETURNING true
"""
