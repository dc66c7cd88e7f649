"""Take everything that one call needs, money and limits, in one plain function, or nothing.

Owns what a running call holds (`Ticket`). Pure: what is missing comes back as a `Shortage` for the
caller to fetch from control; nothing was taken then.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.access.limits import Limit, LimitBook, Want
from proxy.ledger.balances import Slices


@dataclass(slots=True)
class Ticket:
    """What an admitted call holds until it is closed."""

    account: int
    lease: str
    hold_nanos: int
    limits: tuple[Limit, ...]


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
        self, account: int, hold_nanos: int, limits: tuple[Limit, ...], now_ms: int
    ) -> Ticket | Shortage:
        """All or nothing. A free call (`hold_nanos` 0) takes limits only."""
        wants = self.limits.missing(limits, now_ms) if limits else []
        if wants:
            return Shortage(tuple(wants), None)
        lease = ""
        if hold_nanos:
            taken = self.slices.take(account, hold_nanos)
            if taken is None:
                return Shortage((), self.slices.wants(account, hold_nanos))
            lease = taken
        if limits:
            self.limits.take(limits)
        return Ticket(account, lease, hold_nanos, limits)

    def close(self, ticket: Ticket, cost_nanos: int) -> list[tuple[str, int]]:
        """The call is over: settle its hold at `cost_nanos` (0: void).

        Returns the limits that go back to control at once, as (bucket, count).
        """
        if ticket.hold_nanos:
            self.slices.settle(ticket.account, ticket.lease, ticket.hold_nanos, cost_nanos)
        return self.limits.release(ticket.limits) if ticket.limits else []
