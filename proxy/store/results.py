"""Files that tasks have made: orders to fetch them, and what is kept until when.

Owns the table `result`. An order comes with the end of its task, in the transaction that posts it. Several
nodes are safe: a claim skips what others have locked, and counts up `tries`, which fences what comes late.
Where the files are is jobs.shelves'.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.store.database import Connection, Database

ORDERED = "ordered"  # to be fetched
KEPT = "kept"  # on our shelf
LEFT = "left"  # at its vendor; our link leads there
LOST = "lost"  # its vendor has it no more
GONE = "gone"  # we have removed it

NOTE_CHARS_MAX = 200
REMEMBERED_MS = 365 * 86_400_000  # what is over; a link that was given says so for so long
AT_ONCE = 500  # rows of one sweep


@dataclass(frozen=True, slots=True)
class Order:
    """A file that this node may fetch now; `tries` is its fence."""

    id: str
    url: str
    ordered_ms: int
    tries: int
    refusals: int


@dataclass(frozen=True, slots=True)
class File:
    """What was fetched."""

    size: int  # bytes
    sha256: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Result:
    """One row, as operators see it and links ask for it."""

    id: str
    binding: str
    account: str
    url: str
    ordered_ms: int
    state: str
    tries: int
    note: str
    shelf: str
    node: str
    size: int
    sha256: str  # hex
    content_type: str
    kept_ms: int
    expires_ms: int


async def order(
    connection: Connection, binding: str, account: int, files: Mapping[str, str], at_ms: int
) -> None:
    """To be fetched: id -> the vendor's URL. What was ordered before stays as it is."""
    await connection.execute(
        "INSERT INTO result (id, url, binding, account, ordered_ms, next_try_ms)"
        " SELECT id, url, $3, $4, $5, $5 FROM unnest($1::text[], $2::text[]) AS f (id, url)"
        " ON CONFLICT DO NOTHING",
        list(files), list(files.values()), binding, account, at_ms,
    )  # fmt: skip


async def forsake(connection: Connection, binding: str, at_ms: int) -> None:
    """Its owner has deleted the task: nothing of it is kept any longer."""
    await connection.execute(
        "UPDATE result SET expires_ms = $2 WHERE binding = $1 AND state = 'kept' AND expires_ms > $2",
        binding, at_ms,
    )  # fmt: skip
    await connection.execute(
        "UPDATE result SET state = 'gone', next_try_ms = NULL, note = 'its owner deleted the task'"
        " WHERE binding = $1 AND state IN ('ordered', 'left')",
        binding,
    )


class Results:
    """Every method raises DatabaseUnavailable; asking again is harmless."""

    def __init__(self, database: Database, node: str) -> None:
        self._database = database
        self._node = node

    # -- fetching --

    async def claim(self, count: int, now_ms: int, until_ms: int) -> list[Order]:
        """At most so many that are due, the longest due first. Nobody else gets them before `until_ms`."""
        rows = await self._database.fetch(_CLAIM, count, now_ms, until_ms)
        return [Order(**row) for row in rows]

    async def renew(self, orders: Collection[Order], until_ms: int) -> None:
        """They are still being fetched."""
        if orders:
            await self._database.execute(
                "UPDATE result r SET next_try_ms = $3 FROM unnest($1::text[], $2::int[]) AS t (id, tries)"
                " WHERE r.id = t.id AND r.tries = t.tries AND state = 'ordered'",
                [o.id for o in orders], [o.tries for o in orders], until_ms,
            )  # fmt: skip

    async def keep(self, order: Order, file: File, shelf: str, kept_ms: int, expires_ms: int) -> str:
        """It is on the shelf. The state after it: another one where an operator was faster."""
        changed = await self._database.fetchval(
            "UPDATE result SET state = 'kept', next_try_ms = NULL, note = '', shelf = $3, node = $4,"
            " size = $5, sha256 = $6, content_type = $7, kept_ms = $8, expires_ms = $9"
            " WHERE id = $1 AND tries = $2 AND state = 'ordered' RETURNING state",
            order.id, order.tries, shelf, self._node, file.size, file.sha256, file.content_type, kept_ms,
            expires_ms,
        )  # fmt: skip
        state = changed or await self._database.fetchval("SELECT state FROM result WHERE id = $1", order.id)
        return str(state or GONE)

    async def put_off(self, order: Order, at_ms: int, note: str, *, is_refusal: bool) -> None:
        """Not now; again at a moment."""
        await self._database.execute(
            "UPDATE result SET next_try_ms = $3, note = $4,"
            " refusals = CASE WHEN $5 THEN refusals + 1 ELSE 0 END"
            " WHERE id = $1 AND tries = $2 AND state = 'ordered'",
            order.id, order.tries, at_ms, note[:NOTE_CHARS_MAX], is_refusal,
        )  # fmt: skip

    async def give_up(self, order: Order, state: str, note: str) -> None:
        """It is LEFT or LOST."""
        await self._database.execute(
            "UPDATE result SET state = $3, next_try_ms = NULL, note = $4"
            " WHERE id = $1 AND tries = $2 AND state = 'ordered'",
            order.id, order.tries, state, note[:NOTE_CHARS_MAX],
        )  # fmt: skip

    # -- what is over --

    async def expired(self, now_ms: int, until_ms: int) -> list[tuple[str, str]]:
        """(id, shelf) of what is to be removed; nobody else gets it before `until_ms`."""
        rows = await self._database.fetch(_EXPIRE, now_ms, until_ms, AT_ONCE)
        return [(row["id"], row["shelf"]) for row in rows]

    async def removed(self, ids: Sequence[str]) -> None:
        """They are on no shelf any more."""
        await self._database.execute(
            "UPDATE result SET state = 'gone', next_try_ms = NULL WHERE id = ANY($1) AND state = 'kept'",
            list(ids),
        )

    async def forget(self, now_ms: int) -> None:
        """Rows of what was over long ago."""
        await self._database.execute(
            "DELETE FROM result WHERE id IN (SELECT id FROM result WHERE state IN ('left', 'lost', 'gone')"
            " AND ordered_ms < $1 LIMIT $2)",
            now_ms - REMEMBERED_MS, AT_ONCE,
        )  # fmt: skip

    async def remove(self, ids: Sequence[str], now_ms: int) -> int:
        """By an operator: what is kept expires now, what is ordered is not fetched; how many."""
        done = await self._database.fetch(
            "UPDATE result SET state = CASE state WHEN 'kept' THEN 'kept' ELSE 'gone' END,"
            " expires_ms = CASE state WHEN 'kept' THEN $2 ELSE expires_ms END, next_try_ms = NULL,"
            " note = 'removed by the operator' WHERE id = ANY($1) AND state <> 'gone' RETURNING id",
            list(ids), now_ms,
        )  # fmt: skip
        return len(done)

    # -- asking --

    async def find(self, id_: str) -> Result | None:
        rows = await self._database.fetch(f"{_SELECT} WHERE r.id = $1", id_)
        return _result(rows[0]) if rows else None

    async def newest(
        self, account: str | None, state: str | None, call: str | None, count: int
    ) -> list[Result]:
        """Those of an account, in a state, of a call: of all, where it is None."""
        rows = await self._database.fetch(
            f"{_SELECT} WHERE ($1::text IS NULL OR a.name = $1) AND ($2::text IS NULL OR r.state = $2)"
            " AND ($3::uuid IS NULL OR r.binding = $3) ORDER BY r.ordered_ms DESC, r.id LIMIT $4",
            account, state, call, count,
        )  # fmt: skip
        return [_result(row) for row in rows]

    async def waiting(self, now_ms: int) -> tuple[int, int]:
        """How many orders there are, and for how many ms the oldest has been due."""
        row = await self._database.fetchrow(
            "SELECT count(*) AS orders, coalesce($1 - min(ordered_ms), 0) AS age_ms FROM result"
            " WHERE state = 'ordered'",
            now_ms,
        )
        assert row is not None
        return row["orders"], row["age_ms"]

    async def of_other_nodes(self, shelf: str) -> list[str]:
        """The newest that each other node has put on such a shelf."""
        rows = await self._database.fetch(
            "SELECT DISTINCT ON (node) id FROM result WHERE state = 'kept' AND shelf = $1 AND node <> $2"
            " AND expires_ms > (extract(epoch FROM now()) * 1000)::bigint ORDER BY node, kept_ms DESC",
            shelf, self._node,
        )  # fmt: skip
        return [row["id"] for row in rows]


def _result(row: Any) -> Result:
    values = dict(row)
    sha256, node = values.pop("sha256"), values.pop("node")
    return Result(
        **{**values, "binding": row["binding"].hex},
        sha256=sha256.hex() if sha256 else "",
        node=str(node or ""),
    )


_SELECT = """
SELECT r.id, r.binding, a.name AS account, r.url, r.ordered_ms, r.state, r.tries, r.note, r.shelf, r.node,
       r.size, r.sha256, r.content_type, coalesce(r.kept_ms, 0) AS kept_ms,
       coalesce(r.expires_ms, 0) AS expires_ms
FROM result r JOIN account a ON a.id = r.account
"""

_CLAIM = """
WITH due AS (
    SELECT id FROM result WHERE state = 'ordered' AND next_try_ms <= $2
    ORDER BY next_try_ms LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE result r SET next_try_ms = $3, tries = tries + 1 FROM due WHERE r.id = due.id
RETURNING r.id, r.url, r.ordered_ms, r.tries, r.refusals
"""

_EXPIRE = """
WITH over AS (
    SELECT id FROM result
    WHERE state = 'kept' AND expires_ms <= $1 AND (next_try_ms IS NULL OR next_try_ms <= $1)
    ORDER BY expires_ms LIMIT $3 FOR UPDATE SKIP LOCKED
)
UPDATE result r SET next_try_ms = $2 FROM over WHERE r.id = over.id RETURNING r.id, r.shelf
"""
