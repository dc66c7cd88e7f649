"""Calls that are over become usage rows, and their money moves: from a pocket, a lease, a balance.

Owns who bears the cost of each call of a batch. Accounts are locked by the caller; only rows that are new
move anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date

from proxy.journal.crashpoint import crash_point
from proxy.ledger.entry import End
from proxy.store import pockets, usage_rows
from proxy.store.database import Connection
from proxy.store.upstream_costs import UpstreamCosts

DayOf = Callable[[int], date]  # milliseconds -> the day in the station's zone that is posted to


async def charge(
    connection: Connection, ends: Sequence[End], incarnation: str, day_of: DayOf, costs: UpstreamCosts
) -> int:
    """Rows, lease use and ledger in one statement; how many rows are new."""
    if not ends:
        return 0
    drawn = await pockets.draw(connection, ends)
    upstream = await costs.of(connection, ends)
    crash_point("drain-before-copy")
    records = [
        usage_rows.record(
            costs.tried(end),
            incarnation,
            day_of(end.at_ms),
            usage_rows.shares(drawn.get(end.id), upstream.get(end.id)),
        )
        for end in ends
    ]
    await usage_rows.stage(connection, records)
    crash_point("drain-after-copy")
    return await usage_rows.charge(connection, incarnation)
