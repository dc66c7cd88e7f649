"""Take everything that one call needs, money and limits, in one plain function, or nothing.

Owns what a running call holds (`Ticket`). Pure: what is missing comes back as a `Shortage` for the
caller to fetch from control; nothing was taken then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from proxy.access.limits import (
    ONE_CALL,
    Counts,
    Found,
    Limit,
    LimitBook,
    Share,
    Want,
    rate_lines,
)
from proxy.dialects.headers import RateHeaders
from proxy.ledger.balances import Slice, Slices

Back = list[tuple[str, int]]  # (bucket, count) of limits that go back to control at once
NOTHING: Mapping[str, Any] = {}
_FREE = "", 0  # of no lease


class Ticket(Struct, gc=False):
    """What an admitted call holds until it is closed."""

    account: int
    lease: str
    left_nanos: int  # of its account on this worker, for the next calls
    hold_nanos: int
    shares: Sequence[Share] = ()  # of its limits
    demand: Counts = ONE_CALL
    there: Sequence[Share] = ()  # of those of the upstream that it is at
    money: Slice | None = None  # what the hold is of, where that is at hand

    def rates(self, names: RateHeaders, now_ms: int) -> bytes:
        """What is left of its limits, as header lines."""
        return rate_lines(self.shares, names, now_ms)


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
        self._only_slice = slices.only.get

    def admit_again(
        self, account: int, hold_nanos: int, found: Found, now_ms: int, tokens: int
    ) -> Ticket | None:
        """`admit` of nearly every call: its account has one slice, and its limits are where they were. None:
        it is free, that is not so, or there is no room: `admit` knows."""
        money, shares = self._only_slice(account), found.shares
        if money is None or shares is None or not hold_nanos:
            return None
        left_nanos = money.granted - money.spent - money.held - hold_nanos
        if left_nanos < 0:
            return None
        for _, part in shares:
            if part.free < 1 or part.ends_ms <= now_ms:
                return None
        for _, part in shares:
            part.free -= 1
            part.touched = True
        money.held += hold_nanos
        money.touched = True
        demand = 1, 1, tokens, hold_nanos
        return Ticket(account, money.lease, left_nanos, hold_nanos, shares, demand, (), money)

    def admit(
        self, account: int, hold_nanos: int, limits: tuple[Limit, ...], now_ms: int, tokens: int = 0
    ) -> Ticket | Shortage:
        """All or nothing. A free call (`hold_nanos` 0) takes limits only; `tokens` is what it may use."""
        demand = 1, 1, tokens, hold_nanos
        shares, wants = self.limits.find(limits, demand, now_ms)
        if wants:
            return Shortage(tuple(wants), None)
        taken = self.slices.take(account, hold_nanos) if hold_nanos else _FREE
        if taken is None:
            return Shortage((), self.slices.wants(account, hold_nanos))
        self.limits.take(shares, demand)
        return Ticket(account, *taken, hold_nanos, shares, demand)

    def enter(self, ticket: Ticket, limits: tuple[Limit, ...], now_ms: int) -> tuple[Want, ...]:
        """Take the limits of an upstream for a call that is about to go there. What is missing; then
        nothing was taken."""
        shares, wants = self.limits.find(limits, ticket.demand, now_ms)
        if not wants:
            self.limits.take(shares, ticket.demand)
            ticket.there = shares
        return tuple(wants)

    def leave(self, ticket: Ticket, cost_nanos: int = 0, usage: Mapping[str, Any] = NOTHING) -> Back:
        """The call is over at its upstream: it ended, or goes to another one."""
        there, ticket.there = ticket.there, ()
        return self.limits.release(there, ticket.demand, cost_nanos, usage)

    def close(self, ticket: Ticket, cost_nanos: int, usage: Mapping[str, Any] = NOTHING) -> Back:
        """The call is over: settle its hold at `cost_nanos` (0: void), its limits at its usage.

        Returns the limits that go back to control at once.
        """
        if ticket.money is not None:
            ticket.money.settle(ticket.hold_nanos, cost_nanos)
        elif ticket.hold_nanos:
            self.slices.settle(ticket.account, ticket.lease, ticket.hold_nanos, cost_nanos)
        back = self.limits.release(ticket.shares, ticket.demand, cost_nanos, usage)
        return self.leave(ticket, cost_nanos, usage) + back if ticket.there else back

    def correct(self, ticket: Ticket, more_nanos: int) -> None:
        """A call that is closed cost so much more (less than 0: less) than it was closed at."""
        self.slices.settle(ticket.account, ticket.lease, 0, more_nanos)
        self.limits.correct(ticket.shares, more_nanos)
