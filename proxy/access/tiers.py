"""Which tier an account has: earned by payments, given, or its own.

Owns the formula by which top-ups earn a tier, and the order in which tiers follow each other as they
end. Pure: payments and moments come in; amounts are nano-units of the station's currency.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import NamedTuple

from proxy.access.calendar import after
from proxy.routing.tiers import Earning


class Payment(NamedTuple):
    """A ledger row, less what was paid back of it."""

    id: int
    at: datetime
    nanos: int


class Earned(NamedTuple):
    until: datetime
    payments: tuple[int, ...]  # those that were counted: without one of them it is not earned


def earned(payments: Sequence[Payment], rules: Sequence[Earning], zone: tzinfo) -> Earned | None:
    """How long payments, the oldest first, give a tier; None: they never did.

    A rule counts from any payment on: what was paid from then until the rule's time is over, and the
    tier lasts from that payment. Times are not added up: the latest end wins.
    """
    best: Earned | None = None
    for rule in rules:
        for i, first in enumerate(payments):
            until = after(first.at, rule.lasts, zone)
            if best is not None and until <= best.until:
                continue
            within = [p for p in payments[i:] if p.at < until and p.nanos > 0]
            if first.nanos > 0 and sum(p.nanos for p in within) >= rule.top_up_nanos:
                best = Earned(until, tuple(p.id for p in within))
    return best


class Held(NamedTuple):
    """A tier and until when, in milliseconds; None: for good."""

    tier: str
    until_ms: int | None


def line_of(held: Sequence[Held], own: str) -> list[Held]:
    """The tiers of an account in the order in which it has them, each until its end; its own last.

    `held` are grants, the highest rank first: one of a lower rank matters only after those before it.
    """
    line: list[Held] = []
    for grant in held:
        if line and line[-1].until_ms is None:
            break
        if not line or grant.until_ms is None or grant.until_ms > (line[-1].until_ms or 0):
            line.append(grant)
    if not line or line[-1].until_ms is not None:
        line.append(Held(own, None))
    return line
