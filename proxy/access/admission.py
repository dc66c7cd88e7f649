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
    TOKENS,
    UNIT_OF,
    Counts,
    Limit,
    LimitBook,
    Part,
    Want,
    rate_fields,
)
from proxy.dialects.headers import RateHeaders
from proxy.ledger.balances import Slices
from proxy.metering.usage import Usage

Back = list[tuple[str, int]]  # (bucket, count) of limits that go back to control at once
NOTHING: Mapping[str, Any] = {}
_FREE = "", 0  # of no lease


class Ticket(Struct):
    """What an admitted call holds until it is closed."""

    account: int
    lease: str
    left_nanos: int  # of its account on this worker, for the next calls
    hold_nanos: int
    limits: tuple[Limit, ...] = ()
    parts: Sequence[Part] = ()  # of the limits, one by one
    demand: Counts = ONE_CALL
    there: tuple[tuple[Limit, ...], Sequence[Part]] | None = None  # those of the upstream that it is at

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
        demand = 1, 1, tokens, hold_nanos
        parts, wants = self.limits.find(limits, demand, now_ms)
        if wants:
            return Shortage(tuple(wants), None)
        taken = self.slices.take(account, hold_nanos) if hold_nanos else _FREE
        if taken is None:
            return Shortage((), self.slices.wants(account, hold_nanos))
        self.limits.take(limits, parts, demand)
        return Ticket(account, *taken, hold_nanos, limits, parts, demand)

    def enter(self, ticket: Ticket, limits: tuple[Limit, ...], now_ms: int) -> tuple[Want, ...]:
        """Take the limits of an upstream for a call that is about to go there. What is missing; then
        nothing was taken."""
        parts, wants = self.limits.find(limits, ticket.demand, now_ms)
        if not wants:
            self.limits.take(limits, parts, ticket.demand)
            ticket.there = limits, parts
        return tuple(wants)

    def leave(self, ticket: Ticket, used: Counts) -> Back:
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
        limits, there = ticket.limits, ticket.there
        if not limits and there is None:
            return []
        tokens = 0
        if usage and TOKENS in map(UNIT_OF, limits if there is None else limits + there[0]):
            found = Usage.from_dict(dict(usage))
            tokens = found.input_tokens_all() + found.output_tokens_all()
        used = 0, 1, tokens, cost_nanos
        back = self.limits.release(limits, ticket.parts, ticket.demand, used)
        return back if there is None else self.leave(ticket, used) + back

    def correct(self, ticket: Ticket, more_nanos: int) -> None:
        """A call that is closed cost so much more (less than 0: less) than it was closed at."""
        self.slices.settle(ticket.account, ticket.lease, 0, more_nanos)
        self.limits.correct(ticket.limits, ticket.parts, more_nanos)
