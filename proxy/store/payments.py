"""Money that people move: top-ups, adjustments, refunds and chargebacks.

Owns the ledger rows that a person or a payment gateway causes. Each is one row, unique by (source,
reference), so that saying it twice moves money once. Amounts are nano-units of the station's currency.
What calls cost is posting's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from proxy.errors import StateError
from proxy.store.database import Connection, Database
from proxy.store.spending import spend

REFUNDS = "refund"  # the source of refunded calls; the reference is the call's id
# kind -> where the money comes from, or goes to
CONTRAS = {
    "topup": "cash", "code": "promotion", "trial": "promotion", "adjustment": "write_off",
    "refund": "cash", "chargeback": "cash",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Posting:
    """A ledger row that a person caused. `is_new` False: the same one was made before."""

    id: int
    is_new: bool
    account: int
    amount_nanos: int


@dataclass(frozen=True, slots=True)
class Movement:
    """What a ledger row is to say. `paid`: what was really paid, in its own currency."""

    kind: str
    amount_nanos: int
    source: str
    reference: str
    paid: tuple[Decimal, str] | None = None
    note: str = ""
    undoes: int | None = None  # the ledger row of the payment that is taken back
    contra: str = ""  # "": the kind's own


_INSERT = """
INSERT INTO ledger (account, contra, kind, amount_nanos, source, reference, paid_amount, paid_currency,
                    undoes, note, posted_day)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, (now() AT TIME ZONE timezone)::date
FROM station_state ON CONFLICT (source, reference) DO NOTHING RETURNING id
"""


async def post(connection: Connection, account: int, movement: Movement) -> Posting:
    """Within the caller's transaction. Raises StateError: the reference was used for something else."""
    m = movement
    amount, currency = m.paid or (None, None)
    new_id = await connection.fetchval(
        _INSERT, account, m.contra or CONTRAS[m.kind], m.kind, m.amount_nanos, m.source, m.reference,
        amount, currency, m.undoes, m.note,
    )  # fmt: skip
    if new_id is not None:
        return Posting(new_id, True, account, m.amount_nanos)
    row = await connection.fetchrow(
        "SELECT id, account, amount_nanos FROM ledger WHERE source = $1 AND reference = $2",
        m.source,
        m.reference,
    )
    if (row["account"], row["amount_nanos"]) != (account, m.amount_nanos):
        raise StateError(f"reference {m.reference!r} was used before, for another account or amount")
    return Posting(row["id"], False, account, m.amount_nanos)


async def account_id(connection: Connection, name: str) -> int:
    """Of an account that is locked from here on. Raises LookupError."""
    found = await connection.fetchval("SELECT id FROM account WHERE name = $1 FOR NO KEY UPDATE", name)
    if found is None:
        raise LookupError(f"there is no account {name!r}")
    return int(found)


class Payments:
    """Every method raises DatabaseUnavailable; asking again is harmless."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def move(self, name: str, movement: Movement) -> Posting:
        """A top-up or an adjustment of a named account, once per (source, reference).

        Raises LookupError (no such account) and StateError (the reference was used for something else,
        a top-up of nothing, an adjustment without a reason).
        """
        if movement.amount_nanos == 0 or (movement.kind == "topup" and movement.amount_nanos < 0):
            raise StateError(f"there is nothing in this {movement.kind}")
        if movement.kind == "adjustment" and not movement.note.strip():
            raise StateError("an adjustment needs a reason")
        async with self._database.transaction() as connection:
            return await post(connection, await account_id(connection, name), movement)

    async def take_back(self, payment: tuple[str, str], movement: Movement) -> Posting:
        """A refund or a chargeback of a payment, named by its (source, reference).

        `movement.amount_nanos` is what goes back, 0: all that is left of it. What was spent already
        leaves the balance below zero. Raises LookupError and StateError: more than is left.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_PAYMENT, *payment)
            if row is None:
                raise LookupError(f"there is no payment {payment[1]!r} of {payment[0]!r}")
            await connection.execute("SELECT FROM account WHERE id = $1 FOR NO KEY UPDATE", row["account"])
            before = await connection.fetchrow(
                "SELECT id, undoes, amount_nanos FROM ledger WHERE source = $1 AND reference = $2",
                movement.source,
                movement.reference,
            )
            if before is not None and before["undoes"] == row["id"]:
                return Posting(before["id"], False, row["account"], before["amount_nanos"])
            left = await connection.fetchval(_LEFT, row["id"])
            back = movement.amount_nanos or left
            if not 0 < back <= left:
                raise StateError(f"of this payment {left} nano-units are left, not {back}")
            taken = Movement(
                movement.kind, -back, movement.source, movement.reference,
                movement.paid, movement.note, undoes=row["id"],
            )  # fmt: skip
            return await post(connection, row["account"], taken)

    async def refund_call(self, call: str, note: str) -> Posting:
        """Give back what a call cost its account, once. Its free part was not paid and stays used.

        Raises LookupError (no such call, or not settled yet) and StateError (it cost nothing).
        """
        try:
            call_id = UUID(call)
        except ValueError as e:
            raise LookupError(f"{call!r} is no id of a call") from e
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                "SELECT account, key, tier, began_ms FROM usage WHERE id = $1", call_id
            )
            if row is None:
                raise LookupError(f"there is no call {call_id}, or it is not settled yet")
            account = row["account"]
            await connection.execute("SELECT FROM account WHERE id = $1 FOR NO KEY UPDATE", account)
            before = await connection.fetchrow(
                "SELECT id, amount_nanos FROM ledger WHERE source = $1 AND reference = $2",
                REFUNDS,
                str(call_id),
            )
            if before is not None:
                return Posting(before["id"], False, account, before["amount_nanos"])
            paid = await connection.fetchval(_PAID_FOR, call_id)
            if paid <= 0:
                raise StateError("this call cost its account nothing")
            await spend(connection, -paid, **row)  # the key that was sold with an amount may spend it again
            refund = Movement("refund", paid, REFUNDS, str(call_id), note=note, contra="write_off")
            return await post(connection, account, refund)

    async def history(self, account: int, before: int | None, limit: int) -> list[dict[str, Any]]:
        """What people moved, the newest first: rows of the ledger without the calls."""
        rows = await self._database.fetch(
            "SELECT id, kind, amount_nanos, source, reference, paid_amount, paid_currency, undoes, note,"
            " posted_ms FROM ledger WHERE account = $1 AND kind NOT IN ('usage', 'correction')"
            " AND ($2::bigint IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
            account, before, limit,
        )  # fmt: skip
        return [dict(row) for row in rows]


_PAYMENT = "SELECT id, account FROM ledger WHERE source = $1 AND reference = $2 AND kind IN ('topup', 'code')"

_LEFT = """
SELECT amount_nanos + coalesce((SELECT sum(amount_nanos)::bigint FROM ledger WHERE undoes = l.id), 0)
FROM ledger l WHERE id = $1
"""

# What the balance saw of a call: its cost and its corrections without what was free.
_PAID_FOR = """
SELECT (cost_nanos - free_nanos + coalesce((
    SELECT sum(coalesce(charged_nanos, delta_nanos)) FROM correction WHERE corrects = u.id), 0))::bigint
FROM usage u WHERE id = $1
"""


@dataclass(frozen=True, slots=True)
class NetPayment:
    """A payment that may earn a tier, less what was paid back of it."""

    id: int
    at: datetime
    nanos: int


async def net_payments(connection: Connection, account: int, kinds: tuple[str, ...]) -> list[NetPayment]:
    """The oldest first."""
    rows = await connection.fetch(
        "SELECT l.id, to_timestamp(l.posted_ms / 1000.0) AS at, l.amount_nanos"
        " + coalesce((SELECT sum(amount_nanos)::bigint FROM ledger WHERE undoes = l.id), 0) AS nanos"
        " FROM ledger l WHERE account = $1 AND kind = ANY($2) ORDER BY l.id",
        account,
        list(kinds),
    )
    return [NetPayment(**row) for row in rows]
