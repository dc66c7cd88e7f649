"""Take everything that one call needs, money and limits, in one plain function, or nothing.

Owns what a running call holds (`Ticket`). Pure: what is missing comes back as a `Shortage` for the
caller to fetch from control; nothing was taken then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.access.limits import ONE_CALL, TOKENS, Demand, Limit, LimitBook, Part, Want, rate_fields
from proxy.dialects.headers import RateHeaders
from proxy.ledger.balances import Slices
from proxy.metering.usage import Usage

Back = list[tuple[str, int]]  # (bucket, count) of limits that go back to control at once
NOTHING: Mapping[str, Any] = {}


@dataclass(slots=True)
class Ticket:
    """What an admitted call holds until it is closed."""

    account: int
    lease: str
    hold_nanos: int
    limits: tuple[Limit, ...] = ()
    parts: tuple[Part, ...] = ()  # of the limits, one by one
    demand: Demand = ONE_CALL
    there: tuple[tuple[Limit, ...], tuple[Part, ...]] | None = None  # those of the upstream that it is at

    def rates(self, names: RateHeaders, now_ms: int) -> list[tuple[bytes, bytes]]:
        """What is left of its limits, as headers."""
        return rate_fields(self.limits, self.parts, names, now_ms)


@dataclass(frozen=True, slots=True)
class Shortage:
    """What has to be fetched before the call can be admitted."""

    wants: tuple[Want, ...]
    money: tuple[int, int] | None  # (need, want) in nanos


class Gate:
    """Admits calls against a worker's slices."""

    def __init__(self, slices: Slices, limits: LimitBook) -> None:
        self.slices = slices
        self.limits = limits

    def admit(
        self, account: int, hold_nanos: int, limits: tuple[Limit, ...], now_ms: int, tokens: int = 0
    ) -> Ticket | Shortage:
        """All or nothing. A free call (`hold_nanos` 0) takes limits only; `tokens` is what it may use."""
        if not limits:
            lease = self.slices.take(account, hold_nanos) if hold_nanos else ""
            if lease is None:
                return Shortage((), self.slices.wants(account, hold_nanos))
            return Ticket(account, lease, hold_nanos)
        demand = Demand(1, 1, tokens, hold_nanos)
        parts, wants = self.limits.find(limits, demand, now_ms)
        if wants:
            return Shortage(tuple(wants), None)
        lease = self.slices.take(account, hold_nanos) if hold_nanos else ""
        if lease is None:
            return Shortage((), self.slices.wants(account, hold_nanos))
        self.limits.take(limits, parts, demand)
        return Ticket(account, lease, hold_nanos, limits, tuple(parts), demand)

    def enter(self, ticket: Ticket, limits: tuple[Limit, ...], now_ms: int) -> tuple[Want, ...]:
        """Take the limits of an upstream for a call that is about to go there. What is missing; then
        nothing was taken."""
        parts, wants = self.limits.find(limits, ticket.demand, now_ms)
        if not wants:
            self.limits.take(limits, parts, ticket.demand)
            ticket.there = limits, tuple(parts)
        return tuple(wants)

    def leave(self, ticket: Ticket, used: Demand) -> Back:
        """The call is over at its upstream: it ended, or goes to another one."""
        if ticket.there is None:
            return []
        (limits, parts), ticket.there = ticket.there, None
        return self.limits.release(limits, parts, ticket.demand, used)

    def close(self, ticket: Ticket, cost_nanos: int, usage: Mapping[str, Any] = NOTHING) -> Back:
        """The call is over: settle its hold at `cost_nanos` (0: void), its limits at its usage.

        Returns the limits that go back to control at once.
        """
        if ticket.hold_nanos:
            self.slices.settle(ticket.account, ticket.lease, ticket.hold_nanos, cost_nanos)
        if not ticket.limits and ticket.there is None:
            return []
        tokens = 0
        there = ticket.there[0] if ticket.there is not None else ()
        if usage and any(limit.unit == TOKENS for limit in (*ticket.limits, *there)):
            found = Usage.from_dict(dict(usage))
            tokens = found.input_tokens_all() + found.output_tokens_all()
        used = Demand(0, 1, tokens, cost_nanos)
        back = self.leave(ticket, used)
        return back + self.limits.release(ticket.limits, ticket.parts, ticket.demand, used)

    def correct(self, ticket: Ticket, more_nanos: int) -> None:
        """A call that is closed cost so much more (less than 0: less) than it was closed at."""
        self.slices.settle(ticket.account, ticket.lease, 0, more_nanos)
        self.limits.correct(ticket.limits, ticket.parts, more_nanos)
