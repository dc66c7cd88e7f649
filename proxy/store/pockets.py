"""Free quota, used first: which calls of a batch a pocket bears, and how much of each.

Owns the order: by id, each call from the pocket of the period in which it began, as long as there is
something in it. Accounts are locked by the caller, so that nobody else draws meanwhile. Pockets are
opened and closed by reviews.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.ledger.entry import End
from proxy.store.database import Connection


@dataclass(slots=True)
class _Pocket:
    id: int
    account: int
    begin_ms: int
    end_ms: int
    left_nanos: int


_WITH_SOMETHING_LEFT = """
SELECT id, account, (extract(epoch FROM period_start) * 1000)::bigint AS begin_ms,
       (extract(epoch FROM period_end) * 1000)::bigint AS end_ms, amount_nanos - used_nanos AS left_nanos
FROM pocket
WHERE account = ANY($1) AND used_nanos < amount_nanos AND period_end > to_timestamp($2 / 1000.0)
ORDER BY period_start DESC
"""


async def draw(connection: Connection, ends: Sequence[End]) -> dict[str, tuple[int, int]]:
    """Which calls a pocket bears: id -> (nanos, pocket). Only calls that are posted for the first time."""
    costly = [end for end in ends if end.cost_nanos > 0]
    if not costly:
        return {}
    accounts = list({end.account for end in costly})
    rows = await connection.fetch(_WITH_SOMETHING_LEFT, accounts, min(end.began_ms for end in costly))
    if not rows:
        return {}
    pockets: dict[int, list[_Pocket]] = {}
    for row in rows:
        pockets.setdefault(row["account"], []).append(_Pocket(**row))
    asked = [end for end in costly if end.account in pockets]
    posted = await connection.fetch(
        "SELECT id FROM usage WHERE id = ANY($1::uuid[])", [end.id for end in asked]
    )
    known = {row["id"].hex for row in posted}
    drawn: dict[str, tuple[int, int]] = {}
    for end in sorted(asked, key=lambda end: end.id):
        if end.id in known or end.id in drawn:
            continue
        for pocket in pockets[end.account]:
            if pocket.begin_ms <= end.began_ms < pocket.end_ms and pocket.left_nanos:
                taken = min(pocket.left_nanos, end.cost_nanos)
                pocket.left_nanos -= taken
                drawn[end.id] = (taken, pocket.id)
                break
    return drawn
