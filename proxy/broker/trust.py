"""Credit on trust: what a node grants by itself while Postgres is away.

Owns how much of each account's allowance is gone. Each change is journaled before it counts, so that a
restart does not refill it. Amounts are nano-units.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from proxy.ledger.entry import Allowance
from proxy.routing.table import OnOutage

Write = Callable[[int, int], Awaitable[None]]  # (account, amount), resolved once it is in the journal


class Trust:
    """What was granted since Postgres went away, by account."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._granted: dict[int, int] = {}

    def restore(self, entries: Iterable[Allowance]) -> None:
        """From the journals of this node's earlier controls, in their order: an outage that ended was
        taken back there."""
        for e in entries:
            self._granted[e.account] = max(0, self._granted.get(e.account, 0) + e.amount_nanos)

    async def extend(self, account: int, policy: OnOutage, need: int, want: int) -> int:
        """What is granted; 0: no more. Raises what the journal raises, and then nothing was granted."""
        amount = max(need, want)
        if policy.kind == "refuse":
            return 0
        if policy.kind == "allowance":
            left = policy.allowance_nanos - self._granted.get(account, 0)
            if left < need:
                return 0
            amount = min(amount, left)
        await self._change(account, amount)
        return amount

    async def give(self, account: int, amount: int) -> None:
        """A worker did not need it."""
        await self._change(account, -min(amount, self._granted.get(account, 0)))

    async def end(self) -> None:
        """Postgres is back: what was spent is on its way there, the next outage starts afresh."""
        for account, amount in list(self._granted.items()):
            await self._change(account, -amount)
            if self._granted.get(account) == 0:
                del self._granted[account]

    async def _change(self, account: int, amount: int) -> None:
        if amount == 0:
            return
        # Counted first: what is asked for meanwhile must not get the same again.
        self._granted[account] = self._granted.get(account, 0) + amount
        try:
            await self._write(account, amount)
        except BaseException:
            self._granted[account] -= amount
            raise
