"""Orders of holders, and what gateways say became of them.

Owns the way from a proven notice to a ledger row: once per (gateway, transaction), only for the amount
and currency that were asked for. A refund or a chargeback takes back what its payment brought.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any
from uuid import UUID

from proxy.errors import NoticeRefused
from proxy.ledger.notices import CHARGEBACK, PAID, REFUND, WON, Notice
from proxy.routing.tiers import Gateway
from proxy.routing.units import NANOS
from proxy.store.database import Connection, Database
from proxy.store.payments import Movement, Payments, Posting, post

CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Order:
    id: str  # 32 hex digits
    account: int
    gateway: str
    amount_nanos: int  # what the balance gets
    price: Decimal  # what has to be paid
    currency: str
    is_paid: bool


def source_of(gateway: str) -> str:
    """Of ledger rows that a gateway caused."""
    return f"gateway:{gateway}"


class Orders:
    """Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, order: str, account: int, gateway: Gateway, amount_nanos: int) -> Order:
        """`order` is made by the asker: asking again is harmless. The price is rounded up to the cent."""
        price = (Decimal(amount_nanos) / NANOS / Decimal(gateway.rate)).quantize(CENT, ROUND_CEILING)
        await self._database.execute(
            "INSERT INTO payment_order (id, account, gateway, amount_nanos, price, currency)"
            " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            order, account, gateway.name, amount_nanos, price, gateway.currency,
        )  # fmt: skip
        return Order(order, account, gateway.name, amount_nanos, price, gateway.currency, False)

    async def of(self, account: int, limit: int) -> list[Order]:
        """The newest first."""
        rows = await self._database.fetch(
            f"{_ORDER} WHERE account = $1 ORDER BY created_at DESC LIMIT $2", account, limit
        )
        return [_order(row) for row in rows]

    async def accept(self, gateway: Gateway, notice: Notice) -> Posting | None:
        """Do what a proven notice says, once; None: it asks for nothing.

        Raises NoticeRefused: there is no such order or payment, or it was for something else.
        """
        source = source_of(gateway.name)
        if notice.kind == PAID:
            async with self._database.transaction() as connection:
                return await _pay(connection, gateway, notice)
        if notice.kind in (REFUND, CHARGEBACK):
            amount = await self._worth(source, notice)
            movement = Movement(
                notice.kind, amount, source, f"{notice.kind}:{notice.reference}",
                (-notice.amount, notice.currency),
            )  # fmt: skip
            try:
                return await Payments(self._database).take_back((source, notice.transaction), movement)
            except LookupError as e:
                raise NoticeRefused(detail=str(e)) from e
        if notice.kind == WON:
            async with self._database.transaction() as connection:
                return await _give_again(connection, source, notice)
        return None

    async def _worth(self, source: str, notice: Notice) -> int:
        """The part of what a payment brought that is taken back with an amount of its currency."""
        row = await self._database.fetchrow(
            "SELECT amount_nanos, paid_amount, paid_currency FROM ledger"
            " WHERE source = $1 AND reference = $2 AND kind = 'topup'",
            source,
            notice.transaction,
        )
        if row is None or row["paid_currency"] != notice.currency or notice.amount > row["paid_amount"]:
            raise NoticeRefused(detail=f"{notice.kind} of {notice.transaction}")
        if notice.amount == row["paid_amount"]:
            return 0  # all that is left of it
        return int(row["amount_nanos"] * notice.amount / row["paid_amount"])


async def _pay(connection: Connection, gateway: Gateway, notice: Notice) -> Posting:
    try:
        order_id = UUID(notice.order)
    except ValueError as e:
        raise NoticeRefused(detail=f"order {notice.order!r}") from e
    row = await connection.fetchrow(f"{_ORDER} WHERE id = $1 FOR UPDATE", order_id)
    if row is None or row["gateway"] != gateway.name:
        raise NoticeRefused(detail=f"there is no order {notice.order}")
    if (row["price"], row["currency"]) != (notice.amount, notice.currency):
        asked = f"{row['price']} {row['currency']}"
        raise NoticeRefused(detail=f"order {order_id}: {notice.amount} {notice.currency} for {asked}")
    paid = Movement(
        "topup", row["amount_nanos"], source_of(gateway.name), notice.transaction,
        (notice.amount, notice.currency), note=f"order {order_id}",
    )  # fmt: skip
    posting = await post(connection, row["account"], paid)
    await connection.execute(
        "UPDATE payment_order SET paid = coalesce(paid, $2) WHERE id = $1", order_id, posting.id
    )
    return posting


async def _give_again(connection: Connection, source: str, notice: Notice) -> Posting:
    """A chargeback was decided for the station: the account has again what it lost by it."""
    row = await connection.fetchrow(
        "SELECT account, amount_nanos, undoes FROM ledger"
        " WHERE source = $1 AND reference = $2 AND kind = 'chargeback'",
        source,
        f"{CHARGEBACK}:{notice.reference}",
    )
    if row is None:
        raise NoticeRefused(detail=f"there was no chargeback {notice.reference}")
    again = Movement(
        "chargeback", -row["amount_nanos"], source, f"{WON}:{notice.reference}", undoes=row["undoes"],
        note="decided for the station",
    )  # fmt: skip
    return await post(connection, row["account"], again)


_ORDER = "SELECT id, account, gateway, amount_nanos, price, currency, paid FROM payment_order"


def _order(row: Any) -> Order:
    return Order(
        row["id"].hex, row["account"], row["gateway"], row["amount_nanos"], row["price"], row["currency"],
        row["paid"] is not None,
    )  # fmt: skip
