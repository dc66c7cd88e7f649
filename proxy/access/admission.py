"""Take everything that one call needs, money and limits, in one plain function, or nothing.

Owns what a running call holds (`Ticket`). Pure: what is missing comes back as a `Shortage` for the
caller to fetch from control; nothing was taken then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from proxy.access.limits import (
    CALLS,
    REQUESTS,
    Demand,
    Limit,
    LimitBook,
    Part,
    Share,
    Want,
    is_told,
    tightest,
)
from proxy.ledger.balances import LOW_CALLS, Slice, Slices

Back = Sequence[tuple[str, int]]  # (bucket, count) of limits that go back to control at once
NOTHING: Mapping[str, Any] = {}
_NOTHING_BACK: Back = ()
_FREE = "", 0  # of no lease


class Footing(Struct, frozen=True):
    """Where calls were admitted that take one of each of their limits and their hold of one slice."""

    account: int
    money: Slice  # the account's only one
    shares: Sequence[Share]
    parts: tuple[Part, ...]  # of the shares
    running: tuple[Part, ...]  # of those that count calls at once: what a call takes it gives back
    told: Sequence[Share]  # what is tightest, where that is always the same; else nothing


@dataclass(slots=True, eq=False)
class Found:
    """Keeps where calls with the same limits were admitted last."""

    is_kept: bool = False
    footing: Footing | None = None

    @classmethod
    def of(cls, limits: Iterable[Limit]) -> Found:
        return cls(all(limit.unit in (CALLS, REQUESTS) for limit in limits))


NOWHERE = Found()


class Ticket(Struct, gc=False):
    """What an admitted call holds until it is closed."""

    account: int
    lease: str
    left_nanos: int  # of its account on this worker, for the next calls
    hold_nanos: int
    shares: Sequence[Share]  # of its limits
    tokens: int  # that it may use
    footing: Footing | None = None  # what it was admitted again by
    there: Sequence[Share] = ()  # of the limits of the upstream that it is at

    @property
    def demand(self) -> Demand:
        return Demand(tokens=self.tokens, spend=self.hold_nanos)


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

    def admit_again(self, footing: Footing, hold_nanos: int, now_ms: int, tokens: int) -> Ticket | None:
        """`admit` of nearly every call: its account has one slice with enough also for the next ones, and its
        limits are where they were. None: it is free, that is not so, or there is no room: `admit` knows."""
        money, parts = footing.money, footing.parts
        left_nanos = money.free - hold_nanos
        if not (money.low <= left_nanos >= LOW_CALLS * hold_nanos and hold_nanos and money.is_only):
            return None
        for part in parts:
            if part.free < 1 or part.ends_ms <= now_ms:
                return None
        for part in parts:
            part.free -= 1
            part.touched = True
        money.free = left_nanos
        money.touched = True
        return Ticket(
            footing.account,
            money.lease,
            left_nanos,
            hold_nanos,
            footing.shares,
            tokens,
            footing,
        )

    def admit(
        self,
        account: int,
        hold_nanos: int,
        limits: tuple[Limit, ...],
        now_ms: int,
        tokens: int = 0,
        found: Found = NOWHERE,
    ) -> Ticket | Shortage:
        """All or nothing. A free call (`hold_nanos` 0) takes limits only; `tokens` is what it may use.
        `found` keeps where that was."""
        demand = Demand(tokens=tokens, spend=hold_nanos)
        shares, wants = self.limits.find(limits, demand, now_ms)
        if wants:
            return Shortage(tuple(wants), None)
        taken = self.slices.take(account, hold_nanos) if hold_nanos else _FREE
        if taken is None:
            return Shortage((), self.slices.wants(account, hold_nanos))
        self.limits.take(shares, demand)
        if found.is_kept:
            found.footing = self._footing(account, shares)
        return Ticket(account, *taken, hold_nanos, shares, tokens)

    def _footing(self, account: int, shares: Sequence[Share]) -> Footing | None:
        money = self.slices.only(account)
        if money is None or any(self.limits.is_lent_singly(limit) for limit, _ in shares):
            return None
        parts = tuple(part for _, part in shares)
        running = tuple(part for limit, part in shares if limit.unit == CALLS)
        told = tightest(shares)
        is_one_of_each = len(told) == sum(is_told(limit) for limit, _ in shares)
        return Footing(account, money, shares, parts, running, told if is_one_of_each else ())

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
        footing, back = ticket.footing, _NOTHING_BACK
        if footing is not None:  # as the general road, for these few kinds of limits
            money = footing.money
            money.free += ticket.hold_nanos - cost_nanos
            money.spent += cost_nanos
            money.touched = True
            for part in footing.running:
                part.free += 1
                part.touched = True
        else:
            if ticket.hold_nanos:
                self.slices.settle(ticket.account, ticket.lease, ticket.hold_nanos, cost_nanos)
            back = self.limits.release(ticket.shares, ticket.demand, cost_nanos, usage)
        return [*self.leave(ticket, cost_nanos, usage), *back] if ticket.there else back

    def correct(self, ticket: Ticket, more_nanos: int) -> None:
        """A call that is closed cost so much more (less than 0: less) than it was closed at."""
        self.slices.settle(ticket.account, ticket.lease, 0, more_nanos)
        self.limits.correct(ticket.shares, more_nanos)
