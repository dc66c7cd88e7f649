"""Statements: what was posted to accounts, line by line, in pages.

Owns the reading SQL of lines and their order. A line is a call, a correction of one, or a payment; it
stands on the day that the ledger posted it to, so that the lines of a span add up to the ledger's rows to
the nano. Changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import date
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

from proxy.metering.pricing import Price, price_from_content
from proxy.store.database import Connection

PAGE_MAX = 1000

CALLS, CORRECTIONS, PAYMENTS = 0, 1, 2  # within a day payments come first, then corrections, then calls
RECEIPTS = (CALLS, CORRECTIONS)
EVERYTHING = (CALLS, CORRECTIONS, PAYMENTS)
Kinds = tuple[int, ...]

CHARGES = ("usage", "correction")  # the ledger's kinds that calls cause; all others are payments


class Span(NamedTuple):
    """Days of the station, from `first` up to before `end`; None: open."""

    first: date | None = None
    end: date | None = None

    @classmethod
    def month(cls, first: date) -> Span:
        """The month that begins at `first`."""
        return cls(first, date(first.year + first.month // 12, first.month % 12 + 1, 1))

    @property
    def days(self) -> tuple[date, date]:
        return self.first or date.min, self.end or date.max


class Cursor(NamedTuple):
    """A line: a page begins behind it. Its text goes to clients and comes back."""

    day: date
    kind: int
    id: int  # of calls and corrections: of their UUID

    def __str__(self) -> str:
        return f"{self.day:%Y%m%d}-{self.kind}-{self.id:x}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises ValueError."""
        day, kind, number = text.split("-")
        cursor = cls(date.fromisoformat(day), int(kind), int(number, 16))
        if cursor.kind not in EVERYTHING or not 0 <= cursor.id <= _LAST_ID[cursor.kind]:
            raise ValueError(f"{text!r} is no cursor")
        return cursor

    def below(self, kind: int) -> int:
        """On the cursor's day, lines of this kind follow whose id is below this."""
        if kind == self.kind:
            return self.id
        return _LAST_ID[kind] if kind < self.kind else 0


_LAST_ID = {CALLS: (1 << 128) - 1, CORRECTIONS: (1 << 128) - 1, PAYMENTS: (1 << 63) - 1}
_NEWEST = Cursor(date(9999, 12, 31), PAYMENTS, _LAST_ID[PAYMENTS])


@dataclass(frozen=True, slots=True)
class Page:
    """Lines, the newest first. `next` is the cursor of the page behind them; None: there is none."""

    rows: list[dict[str, Any]]
    next: str | None


# A call took from the balance what its price was, less what was free.
_CALLS = """
SELECT 'call' AS kind, u.id, u.posted_day::text, u.ended_ms, u.began_ms, u.account, u.key, u.model,
       u.operation, u.stream, u.status, u.outcome, u.cut, u.provenance, u.usage, u.price, u.model_ppm,
       u.tier_ppm, u.multiplied, u.override, u.tier, u.endpoint, u.mirror, u.rurt_ms, u.ttft_ms, u.took_ms,
       u.flags, u.upstream, u.upstream_model, u.upstream_id, u.credential, u.upstream_nanos,
       greatest(jsonb_array_length(u.attempts) - 1, 0) AS retries,
       u.cost_nanos, u.free_nanos, u.free_nanos - u.cost_nanos AS amount_nanos,
       coalesce((SELECT sum(delta_nanos) FROM correction WHERE corrects = u.id), 0)::bigint
           AS corrected_nanos,
       coalesce((SELECT amount_nanos FROM ledger WHERE source = 'refund' AND reference = u.id::text), 0)
           AS refunded_nanos
FROM usage u
"""

_CORRECTIONS = """
SELECT 'correction' AS kind, u.id, corrects, u.posted_day::text, at_ms AS ended_ms, provenance, usage,
       cost_nanos, -coalesce(charged_nanos, delta_nanos) AS amount_nanos
FROM correction u
"""
_PAYMENTS = """
SELECT kind, u.id, u.posted_day::text, posted_ms AS ended_ms, amount_nanos, source, reference,
       paid_amount, paid_currency, note
FROM ledger u
"""

# Of one key of the account ($7), or of all.
_OF_KEY = {
    CALLS: "($7::bigint IS NULL OR u.key = $7)",
    CORRECTIONS: (
        "($7::bigint IS NULL OR EXISTS (SELECT FROM usage c WHERE c.id = u.corrects AND c.key = $7))"
    ),
    PAYMENTS: "$7::bigint IS NULL",
}
# Of an account ($1), from a day ($2) up to before one ($3), below a cursor: its day ($4) and the id below
# which lines of that day follow ($5). $6: how many.
_PAGE = "account = $1 AND u.posted_day >= $2 AND u.posted_day < $3 AND (u.posted_day, u.id) < ($4, $5)"
_ORDER = "ORDER BY u.posted_day DESC, u.id DESC LIMIT $6"
_LINES = {
    CALLS: f"{_CALLS} WHERE {_PAGE} AND {_OF_KEY[CALLS]} {_ORDER}",
    CORRECTIONS: f"{_CORRECTIONS} WHERE {_PAGE} AND {_OF_KEY[CORRECTIONS]} {_ORDER}",
    PAYMENTS: (
        f"{_PAYMENTS} WHERE {_PAGE} AND kind NOT IN ('usage', 'correction') AND {_OF_KEY[PAYMENTS]} {_ORDER}"
    ),
}
_RECEIPT = f"{_CALLS} WHERE account = $1 AND u.id = $2 AND ($3::bigint IS NULL OR u.key = $3)"


class Books:
    """The books of one moment: within a read-only transaction of the caller."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._prices: dict[str, Price] = {}

    async def page(
        self, account: int, span: Span, cursor: Cursor | None = None, *, limit: int,
        kinds: Kinds = RECEIPTS, key: int | None = None,
    ) -> Page:  # fmt: skip
        """`key`: only what this one of the account's keys has used."""
        limit, cursor = min(limit, PAGE_MAX), cursor or _NEWEST
        found: list[tuple[Cursor, dict[str, Any]]] = []
        for kind in kinds:
            below = cursor.below(kind)
            rows = await self._connection.fetch(
                _LINES[kind], account, *span.days, cursor.day,
                below if kind == PAYMENTS else UUID(int=below), limit + 1, key,
            )  # fmt: skip
            found += [_line(kind, row) for row in rows]
        found.sort(key=itemgetter(0), reverse=True)
        lines = found[:limit]
        return Page([row for _, row in lines], str(lines[-1][0]) if len(found) > limit else None)

    async def pages(self, account: int, span: Span, kinds: Kinds = EVERYTHING) -> AsyncIterator[Page]:
        """All of a span, one page in memory at a time."""
        cursor = None
        while True:
            page = await self.page(account, span, cursor, limit=PAGE_MAX, kinds=kinds)
            yield page
            if page.next is None:
                return
            cursor = Cursor.parse(page.next)

    async def receipt(self, account: int, call: str, key: int | None = None) -> dict[str, Any] | None:
        """One call, wherever it was posted. Raises ValueError for what is no id."""
        row = await self._connection.fetchrow(_RECEIPT, account, UUID(call), key)
        return None if row is None else _line(CALLS, row)[1]

    async def prices(self, rows: Iterable[dict[str, Any]]) -> dict[str, Price]:
        """The prices that these lines name, and those that were asked for before."""
        ids = {row["price"] for row in rows if row["kind"] == "call"} - self._prices.keys()
        if ids:
            found = await self._connection.fetch(
                "SELECT id, content FROM price WHERE id = ANY($1)", list(ids)
            )
            self._prices |= {row["id"]: price_from_content(row["content"]) for row in found}
        return self._prices

    async def posted(self, account: int, span: Span) -> dict[str, int]:
        """What the ledger posted to an account within a span, by its kinds."""
        rows = await self._connection.fetch(
            "SELECT kind, sum(amount_nanos)::bigint AS amount FROM ledger"
            " WHERE account = $1 AND posted_day >= $2 AND posted_day < $3 GROUP BY kind ORDER BY kind",
            account, *span.days,
        )  # fmt: skip
        return {row["kind"]: row["amount"] for row in rows}


def _line(kind: int, row: Any) -> tuple[Cursor, dict[str, Any]]:
    values = dict(row)
    id_ = values["id"] if kind == PAYMENTS else values["id"].int
    values |= {name: values[name].hex for name in ("id", "corrects") if isinstance(values.get(name), UUID)}
    return Cursor(date.fromisoformat(values["posted_day"]), kind, id_), values
