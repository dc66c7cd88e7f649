"""What an account used and paid: receipts, statements and months.

Owns the sums of bills. Every figure comes from one snapshot; a month's usage equals its ledger to the nano,
or the month says so. Changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

from proxy.ledger.settlement import INPUT, OUTPUT
from proxy.store.database import Connection, Database
from proxy.store.statements import CHARGES, Books, Span


@dataclass(frozen=True, slots=True)
class ModelLine:
    """One model within a month."""

    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost_nanos: int  # what of it was not free


@dataclass(frozen=True, slots=True)
class Month:
    """An account's days from `first` up to before `next_first`, by the day that was posted to."""

    first: date
    next_first: date
    lines: list[ModelLine]
    corrections_nanos: int  # what late truth added to the cost
    postings: dict[str, int]  # ledger kind -> sum, as the balance saw it
    opening_nanos: int
    closing_nanos: int

    @property
    def used_nanos(self) -> int:
        """By the calls."""
        return sum(line.cost_nanos for line in self.lines) + self.corrections_nanos

    @property
    def charged_nanos(self) -> int:
        """By the ledger."""
        return -sum(self.postings.get(kind, 0) for kind in CHARGES)


def _tokens(buckets: tuple[str, ...]) -> str:
    """SQL that adds buckets of the usage column."""
    figures = " + ".join(f"coalesce((usage ->> '{bucket}')::bigint, 0)" for bucket in buckets)
    return f"sum({figures})::bigint"


_BY_MODEL = f"""
SELECT model, count(*) AS calls, {_tokens(INPUT)} AS input_tokens, {_tokens(OUTPUT)} AS output_tokens,
       sum(cost_nanos - free_nanos)::bigint AS cost_nanos
FROM usage WHERE account = $1 AND posted_day >= $2 AND posted_day < $3 AND ($4::bigint IS NULL OR key = $4)
GROUP BY model ORDER BY sum(cost_nanos) DESC, model
"""  # noqa: S608 - bucket names are ours


_CORRECTED = """
SELECT coalesce(sum(coalesce(charged_nanos, delta_nanos)), 0)::bigint FROM correction r
WHERE account = $1 AND posted_day >= $2 AND posted_day < $3
  AND ($4::bigint IS NULL OR EXISTS (SELECT FROM usage c WHERE c.id = r.corrects AND c.key = $4))
"""


class Reports:
    """Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def books(self) -> AsyncIterator[Books]:
        """For whoever needs lines, prices and sums of one moment."""
        async with self._database.transaction(readonly=True) as connection:
            yield Books(connection)

    async def receipt(self, account: int, call: str) -> dict[str, Any] | None:
        """One call as a line of a statement; None: this account made no such call. Raises ValueError."""
        async with self.books() as books:
            return await books.receipt(account, call)

    async def month(self, account: int, first: date) -> Month:
        """The month that begins at `first`, from one snapshot."""
        async with self._database.transaction(readonly=True) as connection:
            return await _month(connection, account, Span.month(first))

    async def used(self, account: int, span: Span, key: int) -> tuple[list[ModelLine], int]:
        """What the calls of one key have cost within a span, by model; and what corrections added."""
        async with self._database.transaction(readonly=True) as connection:
            return await _used(connection, account, span, key)

    async def used_nanos(self, account: int, span: Span) -> int:
        """What calls took from the balance within a span, by the ledger."""
        async with self.books() as books:
            posted = await books.posted(account, span)
        return -sum(posted.get(kind, 0) for kind in CHARGES)


async def _used(
    connection: Connection, account: int, span: Span, key: int | None
) -> tuple[list[ModelLine], int]:
    asked = (account, *span.days, key)
    lines = await connection.fetch(_BY_MODEL, *asked)
    return [ModelLine(**row) for row in lines], await connection.fetchval(_CORRECTED, *asked)


async def _month(connection: Connection, account: int, span: Span) -> Month:
    first, next_first = span.days
    lines, corrections = await _used(connection, account, span, None)
    opening = await connection.fetchval(
        "SELECT coalesce(sum(amount_nanos), 0)::bigint FROM ledger WHERE account = $1 AND posted_day < $2",
        account, first,
    )  # fmt: skip
    postings = await Books(connection).posted(account, span)
    return Month(
        first=first,
        next_first=next_first,
        lines=lines,
        corrections_nanos=corrections,
        postings=postings,
        opening_nanos=opening,
        closing_nanos=opening + sum(postings.values()),
    )
