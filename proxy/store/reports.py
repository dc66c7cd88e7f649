"""What an account used and paid: bill lines, receipts and months.

Owns the reading SQL of bills. Every figure comes from one snapshot; a month's usage equals its ledger
to the nano, or the month says so. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from proxy.ledger.settlement import INPUT, OUTPUT
from proxy.store.database import Connection, Database

PAGE_MAX = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """Calls, the newest first. `before` asks for the page behind it; None: there is none."""

    rows: list[dict[str, Any]]
    before: str | None


@dataclass(frozen=True, slots=True)
class ModelLine:
    """One model within a month."""

    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost_nanos: int


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
        return -(self.postings.get("usage", 0) + self.postings.get("correction", 0))


_LINE = """
SELECT u.id, ended_ms, key, model, operation, outcome, cut, state, status, stream, provenance, usage,
       u.cost_nanos + c.delta_nanos AS cost_nanos, c.delta_nanos AS corrected_nanos, free_nanos,
       price, model_ppm, tier_ppm, multiplied, override, tier, endpoint, mirror, rurt_ms, ttft_ms, took_ms,
       flags, posted_day::text, client
FROM usage u CROSS JOIN LATERAL (
    SELECT coalesce(sum(delta_nanos), 0)::bigint AS delta_nanos FROM correction WHERE corrects = u.id
) c
"""


def _tokens(buckets: tuple[str, ...]) -> str:
    """SQL that adds buckets of the usage column."""
    figures = " + ".join(f"coalesce((usage ->> '{bucket}')::bigint, 0)" for bucket in buckets)
    return f"sum({figures})::bigint"


_BY_MODEL = f"""
SELECT model, count(*) AS calls, {_tokens(INPUT)} AS input_tokens, {_tokens(OUTPUT)} AS output_tokens,
       sum(cost_nanos)::bigint AS cost_nanos
FROM usage WHERE account = $1 AND posted_day >= $2 AND posted_day < $3
GROUP BY model ORDER BY sum(cost_nanos) DESC, model
"""  # noqa: S608 - bucket names are ours


class Reports:
    """Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def calls(self, account: int, *, before: str | None = None, limit: int = 100) -> Page:
        """A page of bill lines. Keyset: a page far back costs no more than the first."""
        limit = min(limit, PAGE_MAX)
        rows = await self._database.fetch(
            f"{_LINE} WHERE account = $1 AND ($2::uuid IS NULL OR u.id < $2) ORDER BY u.id DESC LIMIT $3",
            account, before, limit,
        )  # fmt: skip
        lines = [_line(row) for row in rows]
        return Page(lines, lines[-1]["id"] if len(lines) == limit else None)

    async def receipt(self, account: int, call: str) -> dict[str, Any] | None:
        """One call with the content of its price; None: this account made no such call.

        Raises ValueError for what is no id.
        """
        row = await self._database.fetchrow(
            f"{_LINE} WHERE account = $1 AND u.id = $2", account, call.replace("-", "")
        )
        if row is None:
            return None
        content = await self._database.fetchval("SELECT content FROM price WHERE id = $1", row["price"])
        return {**_line(row), "price_content": content}

    async def month(self, account: int, first: date) -> Month:
        """The month that begins at `first`, from one snapshot."""
        next_first = date(first.year + first.month // 12, first.month % 12 + 1, 1)
        async with self._database.transaction(readonly=True) as connection:
            return await _month(connection, account, first, next_first)


async def _month(connection: Connection, account: int, first: date, next_first: date) -> Month:
    lines = await connection.fetch(_BY_MODEL, account, first, next_first)
    corrections = await connection.fetchval(
        "SELECT coalesce(sum(delta_nanos), 0)::bigint FROM correction"
        " WHERE account = $1 AND posted_day >= $2 AND posted_day < $3",
        account, first, next_first,
    )  # fmt: skip
    postings = await connection.fetch(
        "SELECT kind, sum(amount_nanos)::bigint AS amount FROM ledger"
        " WHERE account = $1 AND posted_day >= $2 AND posted_day < $3 GROUP BY kind ORDER BY kind",
        account, first, next_first,
    )  # fmt: skip
    opening = await connection.fetchval(
        "SELECT coalesce(sum(amount_nanos), 0)::bigint FROM ledger WHERE account = $1 AND posted_day < $2",
        account, first,
    )  # fmt: skip
    by_kind = {row["kind"]: row["amount"] for row in postings}
    return Month(
        first=first,
        next_first=next_first,
        lines=[ModelLine(**row) for row in lines],
        corrections_nanos=corrections,
        postings=by_kind,
        opening_nanos=opening,
        closing_nanos=opening + sum(by_kind.values()),
    )


def _line(row: Any) -> dict[str, Any]:
    return {**row, "id": row["id"].hex}
