"""Hold the books against the invariants of accounting and name every row that breaks one.

Owns the checks; changes nothing. All of Postgres is read in one snapshot. The names are those of the
accounting rules: I2 append-only, I4 balances, I8 leases, I9 recomputed costs and so on; "journal" and
"quarantine" are what waits for an operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from proxy.ledger import entry
from proxy.ledger.settlement import owed
from proxy.metering.pricing import Price, cost_nanos, price_from_content
from proxy.metering.usage import Usage
from proxy.store import usage_rows
from proxy.store.database import Connection, Database

ROWS_MAX = 20  # named per check; a broken rule tends to break everywhere
PREFETCH = 2_000
TIMEOUT_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken invariant and the row that breaks it."""

    invariant: str
    row: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.row}: {self.what}"


# invariant -> SQL that gives (row, what) for each violation
CHECKS: tuple[tuple[str, str], ...] = (
    ("I1 integers", """
        SELECT table_name || '.' || column_name, 'is ' || data_type || ', not bigint'
        FROM information_schema.columns
        WHERE table_schema = current_schema() AND column_name LIKE '%\\_nanos' AND data_type <> 'bigint'"""),
    ("I2 append-only", """
        SELECT e.t || '.' || e.name, 'the trigger is missing or disabled'
        FROM (VALUES ('ledger', 'append_only'), ('ledger', 'seal'), ('ledger', 'balance'),
                     ('usage', 'append_only'), ('correction', 'append_only'), ('correction', 'seal'),
                     ('account', 'balance_moves_by_ledger')) e (t, name)
        WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = e.t::regclass AND tgname = e.name
                          AND tgenabled IN ('O', 'A'))"""),
    ("I2 append-only", """
        SELECT 'ledger ' || id, 'was edited: its seal does not fit'
        FROM ledger l WHERE seal <> seal_of(to_jsonb(l))"""),
    ("I2 append-only", """
        SELECT 'correction ' || id, 'was edited: its seal does not fit'
        FROM correction c WHERE seal <> seal_of(to_jsonb(c))"""),
    ("I2 append-only", """
        SELECT 'account ' || a.id, 'has ' || l.rows || ' ledger rows where ' || a.ledger_rows
               || ' were posted, or they are others'
        FROM account a CROSS JOIN LATERAL (
            SELECT count(*) AS rows, coalesce(bit_xor(seal), 0) AS seal FROM ledger WHERE account = a.id) l
        WHERE (l.rows, l.seal) IS DISTINCT FROM (a.ledger_rows, a.ledger_seal)"""),
    ("I3 double entry", """
        SELECT 'ledger ' || id, 'a ' || kind || ' against ' || contra FROM ledger
        WHERE (kind IN ('usage', 'correction')) <> (contra = 'revenue')"""),
    ("I4 balance", """
        SELECT 'account ' || a.id, 'balance ' || a.balance_nanos || ', its ledger says ' || l.amount
        FROM account a CROSS JOIN LATERAL (
            SELECT coalesce(sum(amount_nanos), 0) AS amount FROM ledger WHERE account = a.id) l
        WHERE l.amount <> a.balance_nanos"""),
    ("I4b usage", """
        SELECT 'account ' || account || ' day ' || posted_day,
               'calls cost ' || coalesce(u.cost, 0) || ', the ledger took ' || coalesce(l.amount, 0)
        FROM (SELECT account, posted_day, sum(cost_nanos - free_nanos) AS cost FROM usage GROUP BY 1, 2) u
        FULL JOIN (SELECT account, posted_day, -sum(amount_nanos) AS amount FROM ledger
                   WHERE kind = 'usage' GROUP BY 1, 2) l USING (account, posted_day)
        WHERE coalesce(u.cost, 0) <> coalesce(l.amount, 0)"""),
    ("I4b usage", """
        SELECT 'account ' || account || ' day ' || posted_day,
               'corrections of ' || coalesce(c.delta, 0) || ', the ledger took ' || coalesce(l.amount, 0)
        FROM (SELECT account, posted_day, sum(coalesce(charged_nanos, delta_nanos)) AS delta
              FROM correction GROUP BY 1, 2) c
        FULL JOIN (SELECT account, posted_day, -sum(amount_nanos) AS amount FROM ledger
                   WHERE kind = 'correction' GROUP BY 1, 2) l USING (account, posted_day)
        WHERE coalesce(c.delta, 0) <> coalesce(l.amount, 0)"""),
    ("I5 identity", """
        SELECT 'usage ' || id, 'is no UUIDv7' FROM usage WHERE substr(id::text, 15, 1) <> '7'"""),
    ("I6 settle once", """
        SELECT 'usage ' || id, 'is settled and pending' FROM usage JOIN pending_usage USING (id)"""),
    ("I7 hold first", """
        SELECT 'usage ' || id, 'cost ' || cost_nanos || ' without a hold'
        FROM usage WHERE cost_nanos > 0 AND hold_nanos <= 0"""),
    ("I8 leases", """
        SELECT 'account ' || a.id, 'available ' || a.available_nanos
               || ', balance and free quota less leases and tasks is '
               || a.balance_nanos + p.free - l.aside - b.held
        FROM account a
        CROSS JOIN LATERAL (SELECT coalesce(sum(granted_nanos - used_nanos), 0) AS aside
                            FROM lease WHERE account = a.id AND closed_at IS NULL) l
        CROSS JOIN LATERAL (SELECT coalesce(sum(hold_nanos), 0) AS held
                            FROM binding WHERE account = a.id AND hold_nanos <> 0) b
        CROSS JOIN LATERAL (SELECT coalesce(sum(amount_nanos - used_nanos), 0) AS free
                            FROM pocket WHERE account = a.id AND closed_at IS NULL) p
        WHERE a.available_nanos <> a.balance_nanos + p.free - l.aside - b.held"""),
    ("I8 leases", """
        SELECT 'lease ' || l.id, 'used ' || l.used_nanos || ', its users say ' || u.used
        FROM lease l CROSS JOIN LATERAL (
            SELECT coalesce(sum(used_nanos), 0) AS used FROM lease_use WHERE lease = l.id) u
        WHERE u.used <> l.used_nanos"""),
    ("I10 provenance", """
        SELECT 'usage ' || id, 'cost ' || cost_nanos || ' of usage from nowhere'
        FROM usage WHERE cost_nanos > 0 AND (provenance = 'none' OR state = 'void')"""),
    ("I11 conservation", """
        SELECT 'incarnation ' || i.id, sum(c.begins) || ' calls began, ' || sum(c.ends) || ' ended'
        FROM incarnation i JOIN segment_cursor c ON c.incarnation = i.id
        WHERE i.closed_at IS NOT NULL GROUP BY i.id HAVING sum(c.begins) <> sum(c.ends)"""),
    ("I11 conservation", """
        SELECT 'pending_usage ' || p.id, 'waits for its Settle, but ' || p.incarnation || ' is over'
        FROM pending_usage p JOIN incarnation i ON i.id = p.incarnation WHERE i.closed_at IS NOT NULL"""),
    ("I12 refunds", """
        SELECT 'usage ' || u.id, 'cost ' || u.cost_nanos || ', corrected by ' || sum(c.delta_nanos)
        FROM correction c JOIN usage u ON u.id = c.corrects
        GROUP BY u.id, u.cost_nanos HAVING u.cost_nanos + sum(c.delta_nanos) < 0"""),
    ("I13 closed days", """
        SELECT 'ledger ' || id, 'posted to ' || posted_day || ' on ' || written
        FROM (SELECT id, posted_day, (to_timestamp(posted_ms / 1000) AT TIME ZONE timezone)::date AS written
              FROM ledger CROSS JOIN station_state) l
        WHERE posted_day NOT BETWEEN written - 4 AND written + 1"""),
    ("I14 top-ups", """
        SELECT 'ledger ' || source || ' ' || reference, 'is there ' || count(*) || ' times'
        FROM ledger GROUP BY source, reference HAVING count(*) > 1"""),
    ("I15 free quota", """
        SELECT 'pocket ' || p.id, 'gave ' || p.used_nanos || ', its calls took ' || u.free
        FROM pocket p CROSS JOIN LATERAL (
            SELECT coalesce(sum(free_nanos), 0) AS free FROM usage
            WHERE account = p.account AND pocket = p.id AND free_nanos <> 0) u
        WHERE u.free <> p.used_nanos"""),
    ("I15 free quota", """
        SELECT 'usage ' || id, 'of its cost of ' || cost_nanos || ', ' || free_nanos || ' is free'
        FROM usage WHERE free_nanos NOT BETWEEN 0 AND cost_nanos"""),
    ("I16 refunds", """
        SELECT 'ledger ' || p.id, 'of a payment of ' || p.amount_nanos || ', ' || -sum(b.amount_nanos)
               || ' went back'
        FROM ledger p JOIN ledger b ON b.undoes = p.id
        GROUP BY p.id, p.amount_nanos HAVING -sum(b.amount_nanos) > p.amount_nanos"""),
    ("quarantine", """
        SELECT incarnation || '/' || segment || '@' || position, reason
        FROM quarantine WHERE resolved_at IS NULL"""),
)  # fmt: skip


async def audit(database: Database) -> list[Violation]:
    """Every violation in Postgres, at most ROWS_MAX per check. Raises DatabaseUnavailable."""
    async with database.transaction(readonly=True) as connection:
        await connection.execute("SET LOCAL statement_timeout = 0")
        found = []
        for invariant, sql in CHECKS:
            rows = await connection.fetch(f"{sql} LIMIT {ROWS_MAX}", timeout=TIMEOUT_S)
            found += [Violation(invariant, row[0], row[1]) for row in rows]
        prices, broken = await _prices(connection)
        return found + broken + await _calls(connection, prices)


async def _prices(connection: Connection) -> tuple[dict[str, Price], list[Violation]]:
    """By id. A price's id is the hash of its content."""
    prices: dict[str, Price] = {}
    broken = []
    for row in await connection.fetch("SELECT id, content FROM price"):
        price = price_from_content(row["content"])
        prices[row["id"]] = price
        if price.id != row["id"]:
            broken.append(Violation("I9 price", f"price {row['id']}", "its content was edited"))
    return prices, broken


async def _calls(connection: Connection, prices: dict[str, Price]) -> list[Violation]:
    """Every usage row: is it what was sealed, and does its usage cost what it says?"""
    found: list[Violation] = []
    columns = ", ".join(usage_rows.COLUMNS)
    async for row in connection.cursor(f"SELECT {columns} FROM usage", prefetch=PREFETCH, timeout=TIMEOUT_S):  # noqa: S608
        if len(found) >= ROWS_MAX:
            break
        found += _broken_call(row, prices)
    return found


def _broken_call(row: Any, prices: dict[str, Price]) -> Iterator[Violation]:
    name = f"usage {row['id']}"
    *values, seal = (value.hex if isinstance(value, UUID) else value for value in row.values())
    if usage_rows.seal(tuple(values)) != seal:
        yield Violation("I2 append-only", name, "was edited: its seal does not fit")
    if row["state"] == entry.VOID:
        return
    price = prices.get(row["price"])
    if price is None:
        yield Violation("I9 price", name, f"its price {row['price']} is unknown")
        return
    full = cost_nanos(price, Usage.from_dict(row["usage"]), row["model_ppm"], row["tier_ppm"])
    cost = owed(full, row["hold_nanos"], row["flags"])
    if cost != row["cost_nanos"]:
        yield Violation("I9 price", name, f"cost {row['cost_nanos']}, recomputed {cost}")
