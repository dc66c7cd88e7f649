"""Leases: the part of a balance that a node may spend without asking, as rows in Postgres.

Owns granting, extending, giving back and closing. The guard is the WHERE of the grant and only there:
a settlement is never refused. Every change locks the account row first. Amounts are nano-units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import asyncpg

from proxy.errors import StateError
from proxy.journal.crashpoint import crash_point
from proxy.store.database import Connection, Database
from proxy.store.windows import Windows


@dataclass(frozen=True, slots=True)
class Lease:
    id: str  # 32 hex digits
    account: int
    granted_nanos: int
    used_nanos: int


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the station, as an operator sees it."""

    id: str
    first_seen_at: str
    last_seen_at: str  # when it started or last brought something into Postgres
    is_alive: bool  # it said so within the last seconds, and did not say goodbye
    retired_at: str | None
    open_leases: int
    set_aside_nanos: int  # granted to it and not yet known to be used
    open_lives: int  # processes that were not adopted yet, living ones included


# One statement, one round trip: lock and decide, make the row, take it from what is available. The
# lock makes `amount` that of the newest row; the same lease id again makes nothing.
_GRANT = """
WITH account_locked AS MATERIALIZED (
    SELECT id, least($4::bigint, available_nanos) AS amount FROM account
    WHERE id = $2 AND status = 'active' AND available_nanos >= $3
    FOR NO KEY UPDATE
), made AS (
    INSERT INTO lease (id, node, incarnation, account, granted_nanos)
    SELECT $1, $5, $6, id, amount FROM account_locked
    WHERE NOT EXISTS (SELECT FROM node WHERE id = $5 AND retired_at IS NOT NULL)
    ON CONFLICT (id) DO NOTHING RETURNING account, granted_nanos
)
UPDATE account SET available_nanos = available_nanos - made.granted_nanos
FROM made WHERE account.id = made.account RETURNING made.granted_nanos
"""

_EXTEND = """
WITH account_locked AS MATERIALIZED (
    SELECT a.id, least($4::bigint, a.available_nanos) AS amount
    FROM account a JOIN lease l ON l.account = a.id
    WHERE l.id = $1 AND a.status = 'active' AND a.available_nanos >= $3
    FOR NO KEY UPDATE OF a
), grown AS (
    UPDATE lease SET granted_nanos = granted_nanos + account_locked.amount
    FROM account_locked
    WHERE lease.id = $1 AND closed_at IS NULL AND granted_nanos = $2
    RETURNING lease.account, lease.granted_nanos, account_locked.amount
)
UPDATE account SET available_nanos = available_nanos - grown.amount
FROM grown WHERE account.id = grown.account RETURNING grown.granted_nanos
"""


class Leases:
    """The leases of one life of one node. Every method raises DatabaseUnavailable; as the ids are the
    asker's and changes name what they start from, asking again is harmless."""

    def __init__(self, database: Database, node: str, incarnation: str) -> None:
        self._database = database
        self._node = node
        self._incarnation = incarnation

    def windows(self) -> Windows:
        """The limits of the same life."""
        return Windows(self._database, self._node, self._incarnation)

    async def register(self) -> None:
        """Say that this node lives. Raises StateError: an operator retired it."""
        retired = await self._database.fetchval(
            "INSERT INTO node (id) VALUES ($1)"
            " ON CONFLICT (id) DO UPDATE SET last_seen_at = now() RETURNING retired_at IS NOT NULL",
            self._node,
        )
        if retired:
            raise StateError(f"node {self._node} was retired: remove its node.json to join as a new one")

    async def grant(self, lease: str, account: int, at_least: int, at_most: int) -> int | None:
        """A new lease of as much as there is, within the bounds; None: there is not that much."""
        crash_point("lease-before-commit")
        granted = await self._database.fetchval(
            _GRANT, lease, account, max(at_least, 1), at_most, self._node, self._incarnation
        )
        crash_point("lease-after-commit")
        if granted is None:  # refused, or granted before and the answer was lost
            found = await self.find(lease)
            return None if found is None else found.granted_nanos
        return int(granted)

    async def extend(self, lease: str, granted: int, at_least: int, at_most: int) -> int | None:
        """Add to an open lease of which the asker knows `granted`; its new total.

        None: there is not that much, or the lease was closed.
        """
        total = await self._database.fetchval(_EXTEND, lease, granted, max(at_least, 1), at_most)
        if total is None:
            found = await self.find(lease)
            return found.granted_nanos if found is not None and found.granted_nanos > granted else None
        return int(total)

    async def give_back(self, lease: str, granted: int, amount: int) -> int | None:
        """Return what nobody holds of an open lease; its new total. None: it is not what it was."""

        async def shrink(connection: Connection) -> int | None:
            row = await _lock(connection, lease)
            if row is None or row["granted_nanos"] != granted or row["used_nanos"] > granted - amount:
                return None
            await connection.execute(
                "UPDATE lease SET granted_nanos = granted_nanos - $2 WHERE id = $1", lease, amount
            )
            await _release(connection, row["account"], amount)
            return granted - amount

        async with self._database.transaction() as connection:
            return await shrink(connection)

    async def close(self, lease: str) -> None:
        """Return what it did not use. What is charged to it later takes from what is available."""
        async with self._database.transaction() as connection:
            await _close(connection, lease)

    async def find(self, lease: str) -> Lease | None:
        """An open lease."""
        row = await self._database.fetchrow(f"{_OPEN} AND id = $1", lease)
        return None if row is None else _lease(row)

    async def open(self) -> list[Lease]:
        """What this life was granted: for a control that starts again under the same supervisor."""
        rows = await self._database.fetch(f"{_OPEN} AND node = $1 AND incarnation = $2", *self._owner)
        return [_lease(row) for row in rows]

    async def close_earlier_lives(self) -> int:
        """Close the leases of this node's earlier lives; how many. Only when every journal of theirs was
        adopted: what they used would be spent again."""
        rows = await self._database.fetch(f"{_OPEN} AND node = $1 AND incarnation <> $2", *self._owner)
        await self._close_all([row["id"] for row in rows])
        return len(rows)

    async def used(self, incarnation: str) -> dict[str, int]:
        """What one process spent of each lease, as far as its journal was drained."""
        rows = await self._database.fetch(
            "SELECT lease, used_nanos FROM lease_use WHERE incarnation = $1", incarnation
        )
        return {row["lease"].hex: row["used_nanos"] for row in rows}

    @property
    def _owner(self) -> tuple[str, str]:
        return (self._node, self._incarnation)

    async def _close_all(self, leases: Iterable[str]) -> None:
        for lease in leases:
            await self.close(lease)


_OPEN = "SELECT id, account, granted_nanos, used_nanos FROM lease WHERE closed_at IS NULL"


def _lease(row: asyncpg.Record) -> Lease:
    return Lease(row["id"].hex, row["account"], row["granted_nanos"], row["used_nanos"])


async def _lock(connection: Connection, lease: str) -> asyncpg.Record | None:
    """An open lease whose account is locked, so that nothing about it changes."""
    await connection.execute(
        "SELECT FROM account WHERE id = (SELECT account FROM lease WHERE id = $1) FOR NO KEY UPDATE", lease
    )
    return await connection.fetchrow(f"{_OPEN} AND id = $1 FOR UPDATE", lease)


async def _release(connection: Connection, account: int, amount: int) -> None:
    await connection.execute(
        "UPDATE account SET available_nanos = available_nanos + $2 WHERE id = $1", account, amount
    )


async def _close(connection: Connection, lease: str) -> None:
    row = await _lock(connection, lease)
    if row is not None:
        await connection.execute("UPDATE lease SET closed_at = now() WHERE id = $1", lease)
        await _release(connection, row["account"], row["granted_nanos"] - row["used_nanos"])


# -- nodes -----------------------------------------------------------------------------------------


_NODES = """
SELECT n.id::text, n.first_seen_at::text, n.retired_at::text, l.open_leases, l.set_aside_nanos, i.open_lives,
       greatest(n.last_seen_at, i.drained_at)::text AS last_seen_at, n.alive_until > now() AS is_alive
FROM node n
CROSS JOIN LATERAL (
    SELECT count(*) AS open_leases, coalesce(sum(granted_nanos - used_nanos), 0)::bigint AS set_aside_nanos
    FROM lease WHERE node = n.id AND closed_at IS NULL) l
CROSS JOIN LATERAL (
    SELECT count(DISTINCT id) FILTER (WHERE closed_at IS NULL) AS open_lives, max(moved_at) AS drained_at
    FROM incarnation LEFT JOIN segment_cursor ON incarnation = id WHERE node = n.id) i
ORDER BY n.first_seen_at
"""


async def nodes(database: Database) -> list[Node]:
    return [Node(**row) for row in await database.fetch(_NODES)]


async def retire(database: Database, node: str, *, even_alive: bool = False) -> int:
    """An operator knows that this node will not come back: close its leases; how many there were.

    If it comes back all the same, what it used is posted and taken from what is available.
    Raises LookupError, and StateError for a node that lives: what it leased would be spent twice.
    """
    async with database.transaction() as connection:
        is_alive = await connection.fetchval(
            "SELECT alive_until > now() FROM node WHERE id = $1 FOR UPDATE", node
        )
        if is_alive is None:
            raise LookupError(f"there is no node {node}")
        if is_alive and not even_alive:
            raise StateError(f"node {node} is alive: stop it first, or say --force")
        await connection.execute(
            "UPDATE node SET retired_at = coalesce(retired_at, now()) WHERE id = $1", node
        )
        rows = await connection.fetch(f"{_OPEN} AND node = $1 ORDER BY account", node)
        for row in rows:
            await _close(connection, row["id"])
        return len(rows)
