"""What calls were sold for, what their upstreams took for them, and what is left: by upstream and model.

Owns the sums over all accounts. Every figure is of one moment, and what calls were sold for is what the
ledger posted for them, to the nano, or the report says so. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxy.ledger.amounts import as_text
from proxy.store.database import Database
from proxy.store.statements import Span

GROUPS = ("upstream", "model")


@dataclass(frozen=True, slots=True)
class Margin:
    """One group; "" for what it is not grouped by, and for calls whose rows are too old to be kept."""

    upstream: str
    model: str
    calls: int
    uncosted: int  # of the calls: billed ones, of which nobody declared what they cost
    sale_nanos: int  # charged to accounts: without what was free, with corrections
    free_nanos: int  # given away of free quotas
    refunded_nanos: int
    cost_nanos: int  # what upstreams take, as far as it is declared, also for tries that failed

    @property
    def margin_nanos(self) -> int:
        return self.sale_nanos - self.refunded_nanos - self.cost_nanos


@dataclass(frozen=True, slots=True)
class Margins:
    """Of the days of a span; the dearest group comes first."""

    lines: list[Margin]
    total: Margin
    charged_nanos: int  # by the ledger, less what it gave back

    @property
    def is_equal(self) -> bool:
        """Do the calls add up to the ledger?"""
        return self.total.sale_nanos - self.total.refunded_nanos == self.charged_nanos


COLUMNS = (*GROUPS, "calls", "uncosted", "sale", "free", "refunded", "cost", "margin")


def document(line: Margin) -> dict[str, Any]:
    """The members of `COLUMNS`; amounts are decimal texts of the station's currency."""
    amounts = ("sale", "free", "refunded", "cost", "margin")
    return {
        **{name: getattr(line, name) for name in COLUMNS if name not in amounts},
        **{name: as_text(getattr(line, f"{name}_nanos")) for name in amounts},
    }


async def margins(database: Database, span: Span, by: Sequence[str] = GROUPS) -> Margins:
    """`by` are some of GROUPS. Raises DatabaseUnavailable."""
    names = [name if name in by else "''" for name in GROUPS]
    async with database.transaction(readonly=True) as connection:
        rows = await connection.fetch(_MARGINS.format(*names), *span.days)
        charged = await connection.fetchval(_CHARGED, *span.days)
    lines = [Margin(**row) for row in rows]
    figures = [name for name in Margin.__dataclass_fields__ if name not in GROUPS]
    total = Margin("", "", **{name: sum(getattr(line, name) for line in lines) for name in figures})
    return Margins(lines, total, charged)


# Corrections and refunds stand on the day that they were posted to, under their call's upstream and model.
_MARGINS = """
WITH line AS (
    SELECT upstream, model, 1 AS calls, cost_nanos - free_nanos AS sale, free_nanos AS free, 0 AS refunded,
           coalesce(upstream_nanos, 0) AS cost,
           (state = 'settled' AND upstream_nanos IS NULL)::int AS uncosted
    FROM usage WHERE posted_day >= $1 AND posted_day < $2
    UNION ALL
    SELECT tried.upstream, u.model, 0, 0, 0, 0, tried.cost_nanos, 0
    FROM usage u CROSS JOIN LATERAL
         jsonb_to_recordset(u.attempts) AS tried (upstream text, cost_nanos bigint)
    WHERE u.posted_day >= $1 AND u.posted_day < $2 AND tried.cost_nanos <> 0
    UNION ALL
    SELECT u.upstream, u.model, 0, coalesce(c.charged_nanos, c.delta_nanos), 0, 0, 0, 0
    FROM correction c LEFT JOIN usage u ON u.id = c.corrects
    WHERE c.posted_day >= $1 AND c.posted_day < $2
    UNION ALL
    SELECT u.upstream, u.model, 0, 0, 0, l.amount_nanos, 0, 0
    FROM ledger l LEFT JOIN usage u ON u.id = CASE WHEN l.source = 'refund' THEN l.reference::uuid END
    WHERE l.source = 'refund' AND l.posted_day >= $1 AND l.posted_day < $2
)
SELECT upstream, model, sum(calls)::int AS calls, sum(uncosted)::int AS uncosted,
       sum(sale)::bigint AS sale_nanos, sum(free)::bigint AS free_nanos,
       sum(refunded)::bigint AS refunded_nanos, sum(cost)::bigint AS cost_nanos
FROM (SELECT coalesce({}, '') AS upstream, coalesce({}, '') AS model,
             calls, uncosted, sale, free, refunded, cost FROM line) grouped
GROUP BY upstream, model ORDER BY sum(sale) DESC, upstream, model
"""

_CHARGED = """
SELECT coalesce(-sum(amount_nanos), 0)::bigint FROM ledger
WHERE (kind IN ('usage', 'correction') OR source = 'refund') AND posted_day >= $1 AND posted_day < $2
"""
