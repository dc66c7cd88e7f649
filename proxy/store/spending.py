"""What calls spent of limits of spending beyond what their worker knew: tasks that end later, corrections,
refunds.

Owns the rows of `limit_slice` that no node holds (`LATE`): what is added to a window, or given back to it.
A worker counts a task at its hold; the rest follows here. A window that is over is left as it is.
"""

from __future__ import annotations

from proxy.store.database import Connection

LATE = "late"  # holder of such rows


async def spend(
    connection: Connection, nanos: int, *, account: int, key: int, tier: str, began_ms: int
) -> None:
    """A call that began then spent so much more (less than 0: less) than was counted."""
    if not nanos:
        return
    owners = [f"k{key}", f"a{account}", f"a{account}:{tier}"]
    await connection.execute(_SPEND, owners, began_ms, nanos, LATE)


# A call belongs to the window in which it began, by the station's calendar. Only where somebody drew of a
# window before is there anything to correct.
_SPEND = """
WITH began AS (
    SELECT to_timestamp($2 / 1000.0) AT TIME ZONE timezone AS at, timezone FROM station_state
), its (kind, ends_ms) AS (
    SELECT k.kind, CASE WHEN k.unit IS NULL THEN NULL ELSE (extract(epoch FROM
        (date_trunc(k.unit, at) + ('1 ' || k.unit)::interval) AT TIME ZONE timezone) * 1000)::bigint END
    FROM began, (VALUES ('spend_per_day', 'day'), ('spend_per_month', 'month'), ('spend_total', NULL))
         AS k (kind, unit)
), drawn AS (
    SELECT DISTINCT ON (s.bucket, s.ends_ms) s.bucket, s.ends_ms, s.node
    FROM unnest($1::text[]) AS o (owner) CROSS JOIN its
    JOIN limit_slice s ON s.bucket = o.owner || ':' || its.kind
     AND (its.ends_ms IS NULL OR s.ends_ms = its.ends_ms)
    ORDER BY s.bucket, s.ends_ms, s.node
)
INSERT INTO limit_slice AS s (bucket, ends_ms, holder, node, granted)
SELECT bucket, ends_ms, $4, node, $3::bigint FROM drawn
ON CONFLICT (bucket, ends_ms, holder, node) DO UPDATE SET granted = s.granted + excluded.granted
"""
