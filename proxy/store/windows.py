"""Windows of limits in Postgres: what each node may use of them, and who asks others to give back.

Owns the rows of `limit_slice` and `recall`, and which nodes count as living. What is granted is what was
really taken, whatever becomes of the answer: each answer says what the node has in all. Times are
milliseconds, amounts those of the limit: requests, tokens, calls, nanos.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from proxy.store.database import Connection, Database
from proxy.store.spending import LATE

ALIVE_S = 30.0  # a node that was not heard of for so long has no calls


class Drawn(NamedTuple):
    """What this node has of a window in all, and what is left of it for everybody."""

    total: int
    left: int


class Idle(NamedTuple):
    """A part of a window that nobody here needs; `before` is what this node has of it in all."""

    bucket: str
    ends_ms: int
    before: int
    amount: int


# In the order in which they were asked for; the row as it was where it did not change.
_PUT_BACK = """
WITH idle AS (
    SELECT * FROM unnest($3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
    WITH ORDINALITY AS i (bucket, ends_ms, before, amount, number)
), gone AS (
    UPDATE limit_slice s SET granted = granted - i.amount FROM idle i
    WHERE (s.bucket, s.ends_ms, s.holder, s.node) = (i.bucket, i.ends_ms, $1, $2::uuid)
      AND s.granted = i.before
    RETURNING i.number, s.granted
)
SELECT coalesce(g.granted, s.granted, 0) AS granted
FROM idle i
LEFT JOIN gone g USING (number)
LEFT JOIN limit_slice s ON (s.bucket, s.ends_ms, s.holder, s.node) = (i.bucket, i.ends_ms, $1, $2::uuid)
ORDER BY number
"""


class Windows:
    """The slices of one life of one node. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database, node: str, life: str) -> None:
        self._database = database
        self._node = node
        self._life = life

    async def draw(self, bucket: str, ends_ms: int, amount: int, need: int, want: int) -> Drawn:
        """Take at least `need`, or nothing."""
        row = await self._database.fetchrow(
            "SELECT total, remaining FROM draw_limit($1, $2, $3, $4, $5, $6, $7)",
            bucket, ends_ms, self._life, self._node, amount, need, want,
        )  # fmt: skip
        assert row is not None
        return Drawn(row["total"], row["remaining"])

    async def put_back(self, idle: Sequence[Idle]) -> list[int]:
        """Return what nobody here needs; what this node has then of each. Where it has something else than
        is thought, nothing happens."""
        rows = await self._database.fetch(
            _PUT_BACK, self._life, self._node, *(list(column) for column in zip(*idle, strict=True))
        )
        return [row["granted"] for row in rows]

    async def open(self) -> list[tuple[str, int, int]]:
        """(bucket, end, granted) of this life: for a control that starts again under the same supervisor."""
        rows = await self._database.fetch(
            "SELECT bucket, ends_ms, granted FROM limit_slice WHERE node = $1 AND holder = $2",
            self._node, self._life,
        )  # fmt: skip
        return [(row["bucket"], row["ends_ms"], row["granted"]) for row in rows]

    async def beat(self, now_ms: int) -> int:
        """This node lives; how many do. Windows that are over are forgotten."""
        async with self._database.transaction() as connection:
            await connection.execute(
                "UPDATE node SET alive_until = now() + make_interval(secs => $2) WHERE id = $1",
                self._node, ALIVE_S,
            )  # fmt: skip
            await connection.execute(
                "DELETE FROM limit_slice WHERE ends_ms BETWEEN 1 AND $1", now_ms - int(ALIVE_S * 1000)
            )
            await connection.execute(
                "DELETE FROM limit_slice WHERE node = $1 AND ends_ms = 0 AND granted = 0", self._node
            )
            await connection.execute("DELETE FROM recall WHERE at < now() - interval '1 minute'")
            living = await connection.fetchval(
                "SELECT count(*) FROM node WHERE alive_until > now() AND retired_at IS NULL"
            )
        return int(living)

    async def leave(self) -> None:
        """This node stops: it has no calls."""
        await self._database.execute("UPDATE node SET alive_until = now() WHERE id = $1", self._node)

    # -- lives that are over --

    async def forget_calls_of_earlier_lives(self) -> None:
        """Their calls are over, whatever their journals still tell."""
        await self._database.execute(
            "DELETE FROM limit_slice WHERE node = $1 AND holder <> $2 AND ends_ms = 0",
            self._node, self._life,
        )  # fmt: skip

    async def close_earlier_lives(self, since_ms: Callable[[str], int]) -> None:
        """Free what earlier lives of this node held of limits of spending and did not spend. Only when all
        their journals were adopted; `since_ms` tells where a bucket's window begins."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(
                "DELETE FROM limit_slice WHERE node = $1 AND holder NOT IN ($2, $3)"
                " AND bucket LIKE '%:spend%' RETURNING bucket, ends_ms",
                self._node, self._life, LATE,
            )  # fmt: skip
            if not rows:
                return
            lives = await connection.fetch(f"{_LIVES} < $2", self._node, self._life)
            ended = [row["id"] for row in lives]
            for bucket, ends_ms in {(row["bucket"], row["ends_ms"]) for row in rows}:
                used = await _spent(connection, bucket, since_ms(bucket), ended)
                await connection.execute(
                    "INSERT INTO limit_slice (bucket, ends_ms, holder, node, granted)"
                    " VALUES ($1, $2, '', $3, $4)",
                    bucket, ends_ms, self._node, used,
                )  # fmt: skip

    async def lives(self) -> list[str]:
        """The processes of this life of the node that brought something into Postgres."""
        rows = await self._database.fetch(f"{_LIVES} >= $2", self._node, self._life)
        return [row["id"] for row in rows]

    async def spent(self, bucket: str, since_ms: int, lives: Iterable[str]) -> int:
        """What processes, as far as their journals were drained, spent in calls that began since then."""
        async with self._database.connection() as connection:
            return await _spent(connection, bucket, since_ms, lives)

    # -- between nodes --

    async def recall(self, owner: str) -> None:
        """Ask all other nodes to give back what they do not need."""
        await self._database.execute(
            "INSERT INTO recall (owner, at) VALUES ($1, now()) ON CONFLICT (owner) DO UPDATE SET at = now()",
            owner,
        )

    async def recalled(self, since_s: float) -> list[str]:
        """What was asked for within this time."""
        rows = await self._database.fetch(
            "SELECT owner FROM recall WHERE at > now() - make_interval(secs => $1)", since_s
        )
        return [row["owner"] for row in rows]


async def drawn(database: Database, buckets: Iterable[str], now_ms: int) -> dict[str, int]:
    """What nodes have of the windows of this moment, used or not. Raises DatabaseUnavailable."""
    rows = await database.fetch(
        "SELECT bucket, sum(granted)::bigint AS granted FROM limit_slice"
        " WHERE bucket = ANY($1) AND (ends_ms = 0 OR ends_ms > $2) GROUP BY bucket",
        list(buckets), now_ms,
    )  # fmt: skip
    return {row["bucket"]: row["granted"] for row in rows}


# Ids of processes sort behind the one of the life of the node that they belong to.
_LIVES = "SELECT id FROM incarnation WHERE node = $1 AND split_part(id, '-', 2)"

# A call belongs to the window in which it began. The posted day, of any zone, is there for the index. A task
# counts at its hold, as its worker counted it: what it spent more or less is a row of its own (spending).
_SPENT = """
SELECT (SELECT coalesce(sum(cost_nanos), 0) FROM usage u
        WHERE account = {account} AND {owner} AND incarnation = ANY($2) AND began_ms >= $3
          AND posted_day >= (to_timestamp($3 / 1000.0) AT TIME ZONE 'UTC')::date - 1
          AND NOT EXISTS (SELECT FROM binding b WHERE b.id = coalesce(u.parent, u.id) AND {task}))::bigint
     + (SELECT coalesce(sum(CASE WHEN b.closed_ms IS NULL THEN b.hold_nanos
                                 ELSE (SELECT u.hold_nanos FROM usage u WHERE u.id = b.id) END), 0)
        FROM binding b
        WHERE account = {account} AND {owner} AND incarnation = ANY($2) AND at_ms >= $3 AND {task})::bigint
"""
_TASK = "(b.hold_nanos <> 0 OR b.closed_ms IS NOT NULL)"
_SPENT_BY = {
    "k": _SPENT.format(account="(SELECT account FROM api_key WHERE id = $1)", owner="key = $1", task=_TASK),
    "a": _SPENT.format(account="$1", owner="true", task=_TASK),
}


async def _spent(connection: Connection, bucket: str, since_ms: int, lives: Iterable[str]) -> int:
    owner = bucket.split(":", 1)[0]
    spent = await connection.fetchval(_SPENT_BY[owner[0]], int(owner[1:]), list(lives), since_ms)
    return int(spent)
