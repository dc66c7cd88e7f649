"""What the upstreams take of each call, beside what it is sold for.

Owns the figure `usage.upstream_nanos`: the call's usage at the price that the upstream's `costs` declare,
a part of the model's own price or a price of its own. It is an estimate until a vendor's bill is compared,
and never moves a balance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from proxy.errors import UpstreamConnectFailed, UpstreamStale
from proxy.ledger import entry, settlement
from proxy.ledger.entry import Attempt, End
from proxy.metering.pricing import PPM, Price, cost_nanos, price_from_content
from proxy.metering.usage import Usage
from proxy.routing.globs import Globs
from proxy.routing.table import Upstream
from proxy.store.database import Connection

PRICES_MAX = 10_000  # remembered by id
REFUSING = (503, 529)  # too busy to begin
UNSENT = (UpstreamConnectFailed.code, UpstreamStale.code)  # no byte of an answer, and none of a request read


@dataclass(frozen=True, slots=True)
class _Declared:
    globs: Globs
    costs: Mapping[str, Mapping[str, Any]]


class UpstreamCosts:
    """Knows what upstreams declare; `declare` again after a reload."""

    def __init__(self) -> None:
        self._of: dict[str, _Declared] = {}
        self._prices: dict[str, Price] = {}

    def declare(self, upstreams: Mapping[str, Upstream]) -> None:
        self._of = {name: _Declared(Globs(u.costs), u.costs) for name, u in upstreams.items() if u.costs}

    async def of(self, connection: Connection, ends: Sequence[End]) -> dict[str, int]:
        """By call; a call that is not in it went where nothing is declared."""
        asked = [end for end in ends if end.upstream in self._of and end.state == entry.SETTLED]
        missing = {end.price for end in ends if self._needs_price(end)} - self._prices.keys()
        if missing:
            rows = await connection.fetch("SELECT id, content FROM price WHERE id = ANY($1)", list(missing))
            if len(self._prices) > PRICES_MAX:
                self._prices.clear()
            self._prices |= {row["id"]: price_from_content(row["content"]) for row in rows}
        found = {}
        for end in asked:
            nanos = self._cost(end, end.upstream, Usage.from_dict(end.usage))
            if nanos is not None:
                found[end.id] = nanos
        return found

    def tried(self, end: End) -> End:
        """The call with an estimate of what its failed attempts cost, beside the cost of the call itself.

        A try that its upstream may have acted on (it failed by itself, 5xx, or never answered to the end) is
        estimated as one call; one that never answered to the end as the input of the call, too, as far as
        another try has told it. What was refused, or never got there, costs nothing. What a try has put out
        that brought no answer no vendor tells.

        Call it behind `of` for the same calls: the prices that are needed are known then.
        """
        billed = end.attempts[-1:] if end.state == entry.SETTLED else []
        if not self._of or len(end.attempts) == len(billed):
            return end
        attempts = [
            structs.replace(tried, cost_nanos=self._cost(end, tried.upstream, _consumed(end, tried)) or 0)
            if tried not in billed and _may_cost(tried)
            else tried
            for tried in end.attempts
        ]
        return structs.replace(end, attempts=attempts)

    def _needs_price(self, end: End) -> bool:
        """Of the call: costs may be declared as a part of it."""
        return end.state == entry.SETTLED and any(
            name in self._of for name in (end.upstream, *(tried.upstream for tried in end.attempts))
        )

    def _cost(self, end: End, upstream: str, usage: Usage) -> int | None:
        """What an upstream takes for so much of a call's model; None: it does not declare it."""
        declared = self._of.get(upstream)
        pattern = declared.globs.find(end.model) if declared is not None else None
        if declared is None or pattern is None:
            return None
        cost = declared.costs[pattern]
        if "price" in cost:
            return cost_nanos(price_from_content(cost["price"]), usage, PPM, PPM)
        price = self._prices.get(end.price)
        return None if price is None else cost_nanos(replace(price, multiplied=True), usage, cost["ppm"], PPM)


def _consumed(end: End, tried: Attempt) -> Usage:
    """By a try that brought no whole answer."""
    if tried.status >= 500 or end.state != entry.SETTLED:
        return Usage(calls=1)
    told = Usage.from_dict(end.usage)
    return Usage(calls=1, **{bucket: getattr(told, bucket) for bucket in settlement.INPUT})


def _may_cost(tried: Attempt) -> bool:
    if tried.status:
        return tried.status >= 500 and tried.status not in REFUSING
    return tried.outcome not in UNSENT
