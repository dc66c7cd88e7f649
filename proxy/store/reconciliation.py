"""What of our calls an upstream may have billed.

Owns the reading SQL: one attempt at the upstream each, also those that failed, and calls of which it is not
known where they went. Changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from proxy.ledger import entry
from proxy.ledger.reconciliation import Attempt, figures_of
from proxy.metering.usage import Provenance, Usage
from proxy.store.database import Database

PREFETCH = 2_000
TIMEOUT_S = 3_600.0
CALL_MS_MAX = 86_400_000  # ids tell when calls began, bills when they were over

_CALLS = """
SELECT id, model, upstream, upstream_model, upstream_id, state, provenance, usage, upstream_nanos, began_ms,
       ended_ms, attempts
FROM usage
WHERE id >= $2 AND id < $3 AND ended_ms >= $4
      AND (upstream IN ($1, '') OR attempts @> jsonb_build_array(jsonb_build_object('upstream', $1::text)))
ORDER BY id
"""


async def attempts_at(database: Database, upstream: str, from_ms: int, to_ms: int) -> AsyncIterator[Attempt]:
    """Every attempt that was under way between two moments, in the order of the calls' ids."""
    first, last = (_first_id(ms) for ms in (from_ms - CALL_MS_MAX, to_ms + 1))
    async with database.transaction(readonly=True) as connection:
        rows = connection.cursor(_CALLS, upstream, first, last, from_ms, prefetch=PREFETCH, timeout=TIMEOUT_S)
        async for row in rows:
            for attempt in _attempts(row, upstream):
                yield attempt


def _first_id(at_ms: int) -> UUID:
    """The smallest UUIDv7 of a millisecond."""
    return UUID(int=max(at_ms, 0) << 80)


def _attempts(row: Any, upstream: str) -> list[Attempt]:
    """The last one is the call's own; what was tried before failed."""
    found = [_failed(row, tried) for tried in row["attempts"][:-1] if tried["upstream"] == upstream]
    if row["upstream"] in (upstream, ""):
        found.append(_answered(row))
    return found


def _answered(row: Any) -> Attempt:
    return Attempt(
        call=str(row["id"]),
        upstream_id=row["upstream_id"],
        models=(row["upstream_model"] or row["model"], row["model"]),
        began_ms=row["began_ms"],
        ended_ms=row["ended_ms"],
        figures=figures_of(Usage.from_dict(row["usage"])),
        cost_nanos=row["upstream_nanos"],
        is_due=row["state"] == entry.SETTLED and row["upstream"] != "",
        is_void=row["state"] == entry.VOID,
        is_exact=row["provenance"] == Provenance.FINAL,
    )


def _failed(row: Any, tried: dict[str, Any]) -> Attempt:
    began_ms = tried["started_ms"] or row["began_ms"]
    return Attempt(
        call=str(row["id"]),
        upstream_id=tried["upstream_id"],
        models=(row["model"],),
        began_ms=began_ms,
        ended_ms=began_ms + tried["took_ms"],
        figures={"calls": 1},
        cost_nanos=tried["cost_nanos"] or None,
        is_due=False,
        is_void=True,
        is_exact=False,
    )
