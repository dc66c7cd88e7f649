"""Late truth: what a call that is closed costs from now on.

Owns the correction row and its ledger row. Its account is locked by the caller.
"""

from __future__ import annotations

from datetime import date
from uuid import UUID

from proxy.ledger.entry import Settle
from proxy.store.database import Connection
from proxy.store.spending import spend


async def correct(connection: Connection, settle: Settle, day: date, incarnation: str) -> str:
    """Post a correction to a day, once; why it cannot be, or ""."""
    call = settle.corrects or settle.id
    row = await connection.fetchrow(_CLOSED_CALL, call)
    if row is None:
        return f"settles the unknown call {call}"
    if not settle.corrects and settle.cost_nanos == row["cost_nanos"]:
        return ""  # the Settle that closed the call, once more; what corrected it since then stands
    cost_before = row["cost_nanos"] + row["corrected_nanos"]
    delta = settle.cost_nanos - cost_before
    # What was free stays so, and what was refunded is not given back once more.
    not_paid = row["free_nanos"] + row["refunded"]
    charged = max(settle.cost_nanos - not_paid, 0) - max(cost_before - not_paid, 0)
    is_new = await connection.fetchval(
        "INSERT INTO correction (id, corrects, account, posted_day, at_ms, delta_nanos, cost_nanos,"
        " provenance, usage, incarnation, charged_nanos)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, nullif($11::bigint, $6::bigint))"
        " ON CONFLICT (id) DO NOTHING RETURNING true",
        settle.id, call, row["account"], day, settle.at_ms, delta, settle.cost_nanos,
        settle.provenance, settle.usage, incarnation, charged,
    )  # fmt: skip
    if is_new and charged:
        await connection.execute(
            "INSERT INTO ledger (account, contra, kind, amount_nanos, source, reference, posted_day)"
            " VALUES ($1, 'revenue', 'correction', $2, 'correction', $3, $4)",
            row["account"], -charged, str(UUID(settle.id)), day,
        )  # fmt: skip
    if is_new and settle.corrects:
        refunded = row["refunded"]
        spent = max(settle.cost_nanos - refunded, 0) - max(cost_before - refunded, 0)
        await spend(
            connection, spent, account=row["account"], key=row["key"], tier=row["tier"],
            began_ms=row["began_ms"],
        )  # fmt: skip
    return ""


_CLOSED_CALL = """
SELECT account, key, tier, began_ms, cost_nanos, free_nanos,
       coalesce((SELECT sum(delta_nanos)::bigint FROM correction
                 WHERE corrects = u.id), 0) AS corrected_nanos,
       coalesce((SELECT amount_nanos FROM ledger
                 WHERE source = 'refund' AND reference = u.id::text), 0) AS refunded
FROM usage u WHERE id = $1::uuid
"""
