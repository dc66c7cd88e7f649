"""End entries as rows of `usage`, and the one statement that inserts them and moves their money.

Owns the mapping of an End to the table and how a charge falls on lease, balance and ledger. Accounts
are locked by the caller.
"""

from __future__ import annotations

import hashlib
from datetime import date
from typing import Any, NamedTuple

import orjson
from msgspec.structs import replace

from proxy.ledger import entry
from proxy.ledger.entry import Attempt, End, Settle
from proxy.metering.usage import Provenance
from proxy.store.database import Connection

Record = tuple[Any, ...]
ATTEMPT = Attempt.__struct_fields__

COLUMNS = (
    "id", "parent", "account", "key", "posted_day", "began_ms", "ended_ms", "state", "outcome", "cut",
    "provenance", "usage", "cost_nanos", "free_nanos", "hold_nanos", "lease",
    "price", "model_ppm", "tier_ppm", "multiplied", "override", "tier",
    "model", "operation", "dialect", "endpoint", "generation", "stream", "status",
    "upstream", "mirror", "credential", "upstream_id", "upstream_model", "attempts", "flags",
    "request_bytes", "response_bytes", "events", "rurt_ms", "ttft_ms", "took_ms",
    "client", "incarnation", "pocket", "upstream_nanos", "seal",
)  # fmt: skip


class Shares(NamedTuple):
    """Who bears the cost of a call, beside its account."""

    free_nanos: int = 0  # taken from a pocket
    pocket: int | None = None
    upstream_nanos: int | None = None  # what the upstream takes; None: not known


ALL_PAID = Shares()


def shares(drawn: tuple[int, int] | None, upstream_nanos: int | None) -> Shares:
    """`drawn`: what a pocket bears, and which."""
    free_nanos, pocket = drawn or (0, None)
    return Shares(free_nanos, pocket, upstream_nanos)


def record(e: End, incarnation: str, posted_day: date, shares: Shares = ALL_PAID) -> Record:
    """An End as the values of COLUMNS."""
    values = (
        e.id, e.parent or None, e.account, e.key, posted_day, e.began_ms, e.at_ms, e.state, e.outcome, e.cut,
        e.provenance, e.usage, e.cost_nanos, shares.free_nanos, e.hold_nanos, e.lease or None,
        e.price, e.model_ppm, e.tier_ppm, e.multiplied, e.override, e.tier,
        e.model, e.operation, e.dialect, e.endpoint, e.generation, e.stream, e.status,
        e.upstream, e.mirror, e.credential, e.upstream_id, e.upstream_model,
        [{name: getattr(a, name) for name in ATTEMPT} for a in e.attempts], e.flags,
        e.request_bytes, e.response_bytes, e.events, e.rurt_ms, e.ttft_ms, e.took_ms,
        e.client, incarnation, shares.pocket, shares.upstream_nanos,
    )  # fmt: skip
    return (*values, seal(values))


def seal(values: Record) -> int:
    """64 bits of SHA-256 over all columns but the seal; an audit finds an edited row by it.

    Values are plain: ids as hex digits. In Python, because Postgres would take 30 us per row for it.
    Columns that came later are null in older rows, and left out at the end.
    """
    last = len(values)
    while values[last - 1] is None:
        last -= 1
    values = values[:last]
    content = orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big", signed=True)


def settled(end: End, settle: Settle) -> End:
    """A pending End with what was counted after it."""
    is_void = settle.provenance == Provenance.NONE
    return replace(
        end,
        state=entry.VOID if is_void else entry.SETTLED,
        cost_nanos=settle.cost_nanos,
        provenance=settle.provenance,
        usage=settle.usage,
        flags=[*end.flags, *settle.flags],
    )


async def stage(connection: Connection, records: list[Record]) -> None:
    """COPY into a table of this session, the fastest way in."""
    await connection.execute(_MAKE_STAGE)
    await connection.copy_records_to_table("drained", columns=COLUMNS, records=records)


async def charge(connection: Connection, incarnation: str) -> int:
    """Insert what was staged; how many rows are new. Only those cost anything."""
    return int(await connection.fetchval(_CHARGE, incarnation))


_MAKE_STAGE = "CREATE TEMP TABLE IF NOT EXISTS drained (LIKE usage) ON COMMIT DELETE ROWS"

# A charge against an open lease of the same account was set aside when the lease was granted: only the
# balance falls. Any other charge takes from what is available too. What a pocket bears is no charge; its
# trigger takes it from what is available, where a lease had set it aside before.
_CHARGE = """
WITH posted AS (
    INSERT INTO usage SELECT * FROM drained ORDER BY id ON CONFLICT (id) DO NOTHING
    RETURNING id, account, posted_day, lease, cost_nanos, free_nanos, pocket
), charged AS (
    SELECT lease, account, sum(cost_nanos)::bigint AS cost_nanos
    FROM posted WHERE lease IS NOT NULL AND cost_nanos > 0 GROUP BY lease, account
), spent AS (
    UPDATE lease SET used_nanos = lease.used_nanos + charged.cost_nanos
    FROM charged
    WHERE lease.id = charged.lease AND lease.account = charged.account AND lease.closed_at IS NULL
    RETURNING lease.id, lease.account, charged.cost_nanos
), shares AS (
    INSERT INTO lease_use AS u (lease, incarnation, used_nanos) SELECT id, $1, cost_nanos FROM spent
    ON CONFLICT (lease, incarnation) DO UPDATE SET used_nanos = u.used_nanos + excluded.used_nanos
), entries AS (
    INSERT INTO ledger (account, contra, kind, amount_nanos, leased_nanos, source, reference, posted_day)
    SELECT p.account, 'revenue', 'usage', -sum(p.cost_nanos - p.free_nanos),
           coalesce(sum(p.cost_nanos - p.free_nanos) FILTER (WHERE s.id IS NOT NULL), 0),
           'usage', min(p.id::text), p.posted_day
    FROM posted p LEFT JOIN spent s ON s.id = p.lease AND s.account = p.account
    GROUP BY p.account, p.posted_day
    HAVING sum(p.cost_nanos - p.free_nanos) > 0
), pockets AS (
    UPDATE pocket SET used_nanos = used_nanos + taken.free_nanos
    FROM (SELECT pocket, sum(free_nanos)::bigint AS free_nanos FROM posted
          WHERE free_nanos > 0 GROUP BY pocket) taken
    WHERE id = taken.pocket
), set_aside AS (
    UPDATE account SET available_nanos = available_nanos + taken.free_nanos
    FROM (SELECT p.account, sum(p.free_nanos)::bigint AS free_nanos
          FROM posted p JOIN spent s ON s.id = p.lease AND s.account = p.account
          WHERE p.free_nanos > 0 GROUP BY p.account) taken
    WHERE id = taken.account
)
SELECT count(*) FROM posted
"""
