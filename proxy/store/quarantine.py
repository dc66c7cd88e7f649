"""Entries that no table took: what waits for an operator, tried again, or set aside for good.

Owns how a quarantined entry is applied once its reason is gone: in one transaction with its mark, so that it
counts once. A call that was closed meanwhile is corrected by it, never posted twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from proxy.errors import StateError
from proxy.ledger import entry
from proxy.ledger.entry import End, Entry, Settle
from proxy.store.database import Connection, Database
from proxy.store.drainer import EPOCH, UNFIT, day_of_id
from proxy.store.posting import Batch, CursorMovedError, DayOf, Item, post

RETRY_S = 5.0
APPLIED_SEGMENT = 0  # of a life: what came out of quarantine; its files begin at 1


@dataclass(frozen=True, slots=True)
class Waiting:
    """A quarantined entry as an operator sees it. `kind` and `call` "": its bytes are no entry."""

    id: int
    place: str  # incarnation/segment@position
    at: str
    reason: str
    size_bytes: int
    kind: str
    call: str


class StillUnfitError(StateError):
    """It cannot be applied now either; the message says why."""


class Quarantine:
    """`day_of` says which day a moment is posted to."""

    def __init__(self, database: Database, day_of: DayOf) -> None:
        self._database = database
        self._day_of = day_of

    async def waiting(self) -> list[Waiting]:
        """The oldest first. Raises DatabaseUnavailable."""
        rows = await self._database.fetch(
            "SELECT id, incarnation || '/' || segment || '@' || position AS place, at::text, reason, payload"
            " FROM quarantine WHERE resolved_at IS NULL ORDER BY id"
        )
        return [_waiting(row) for row in rows]

    async def apply(self, ids: Sequence[int] | None = None) -> dict[int, str]:
        """Try those again, or all; why each that stays has to, "" for those that are done.

        Raises LookupError: one of them does not wait. DatabaseUnavailable: what was done stays done.
        """
        waiting = [found.id for found in await self.waiting()]
        if missing := set(ids or ()) - set(waiting):
            raise LookupError(f"there is no entry {min(missing)} in quarantine")
        told = {}
        for id_ in waiting if ids is None else ids:
            try:
                await self._apply(id_)
                told[id_] = ""
            except (StillUnfitError, CursorMovedError, *UNFIT) as e:
                told[id_] = str(e).splitlines()[0] if str(e) else type(e).__name__
        return told

    async def dismiss(self, ids: Sequence[int]) -> int:
        """An operator says that nothing is to be made of them; how many waited until now."""
        done = await self._database.fetch(
            "UPDATE quarantine SET resolved_at = now()"
            " WHERE id = ANY($1) AND resolved_at IS NULL RETURNING id",
            list(ids),
        )
        return len(done)

    async def _apply(self, id_: int) -> None:
        """Raises StillUnfitError, and UNFIT."""
        row = await self._database.fetchrow(_ENTRY, id_, APPLIED_SEGMENT)
        assert row is not None
        found = entry.decode(row["payload"])
        end = row["position"] + len(row["payload"])
        if isinstance(found, End | Settle):
            day = EPOCH + timedelta(days=day_of_id(found.id))
            await self._database.execute("SELECT make_usage_partition($1)", day)

        async def work(connection: Connection) -> None:
            waits = await connection.fetchval(
                "SELECT resolved_at IS NULL FROM quarantine WHERE id = $1 FOR UPDATE", id_
            )
            if not waits:
                return  # somebody else was faster
            item = Item(end, row["payload"], await _as_it_is_now(connection, found))
            batch = Batch(row["incarnation"], APPLIED_SEGMENT, row["position"], end, [item])
            await post(connection, batch, self._day_of)
            if batch.refused:
                raise StillUnfitError(batch.refused[0].reason)
            await connection.execute("UPDATE quarantine SET resolved_at = now() WHERE id = $1", id_)

        await self._database.retry(work, deadline_s=RETRY_S)


_ENTRY = """
SELECT q.incarnation, q.payload, coalesce(c.position, 0) AS position
FROM quarantine q LEFT JOIN segment_cursor c ON c.incarnation = q.incarnation AND c.segment = $2
WHERE q.id = $1
"""


async def _as_it_is_now(connection: Connection, found: Entry) -> Entry:
    """The End of a call that adoption closed without it is late truth about that call."""
    if not isinstance(found, End) or found.state == entry.PENDING:
        return found
    is_closed = await connection.fetchval("SELECT EXISTS (SELECT FROM usage WHERE id = $1::uuid)", found.id)
    if not is_closed:
        return found
    return Settle(
        _correction_id(found), found.at_ms, found.cost_nanos, found.provenance, found.usage, corrects=found.id
    )


def _correction_id(end: End) -> str:
    """A UUIDv7 of the call's own millisecond, the same whenever it is made."""
    rest = hashlib.sha256(entry.encode(end)).hexdigest()
    return f"{end.id[:12]}7{rest[:3]}8{rest[3:18]}"


def _waiting(row: Any) -> Waiting:
    payload = row["payload"]
    try:
        found: Entry | None = entry.decode(payload)
    except (ValueError, TypeError, LookupError):
        found = None
    return Waiting(
        id=row["id"],
        place=row["place"],
        at=row["at"],
        reason=row["reason"],
        size_bytes=len(payload),
        kind="" if found is None else type(found).__name__,
        call=str(getattr(found, "id", "")),
    )
