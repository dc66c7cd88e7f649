"""What this worker holds and does not need goes back to control: when it is idle, or recalled.

Owns the way back of slices of money and limits. Nothing is lost on it: what control did not hear is kept, and
the next hello tells control what is held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.access.admission import Gate
from proxy.channel import Channel
from proxy.ledger.balances import ON_TRUST


class Returns:
    """Of one worker."""

    def __init__(self, channel: Channel, gate: Gate, wall_ms: Callable[[], int]) -> None:
        self._channel = channel
        self._gate = gate
        self._wall_ms = wall_ms

    def idle(self) -> None:
        """Once a second: what was not used since the last time may be needed elsewhere."""
        for bucket, until_ms, amount in self._gate.limits.idle(self._wall_ms()):
            self._give_limit(bucket, until_ms, amount)
        for account, lease, amount in self._gate.slices.idle():
            if not self._channel.notify("give", {"account": account, "lease": lease, "amount": amount}):
                self._gate.slices.add(account, lease, amount)  # control is away: keep it

    def recall(self, args: dict[str, Any]) -> None:
        """Somebody lacks what may be free here (op `recall`); `owner` is an account or the bucket of a limit.
        What was granted on trust stays: it is not control's to give to others."""
        slices: list[tuple[int, str, int]] = []
        limits: list[tuple[str, int, int]] = []
        owner = args["owner"]
        if isinstance(owner, str):
            until_ms, amount = self._gate.limits.give_back(owner)
            limits = [(owner, until_ms, amount)] if amount else []
        else:
            slices = [(owner, lease, amount) for lease, amount in self._gate.slices.give_back(owner)]
            for _, lease, amount in slices:
                if lease == ON_TRUST:
                    self._gate.slices.add(owner, lease, amount)
            slices = [given for given in slices if given[1] != ON_TRUST]
        said = {"id": args["id"], "slices": slices, "limits": limits}
        if not self._channel.notify("recalled", said):
            for account, lease, amount in slices:
                self._gate.slices.add(account, lease, amount)
            for bucket, until_ms, amount in limits:
                self._gate.limits.keep(bucket, until_ms, amount)

    def _give_limit(self, bucket: str, until_ms: int, amount: int) -> None:
        said = {"bucket": bucket, "until_ms": until_ms, "n": amount}
        if not self._channel.notify("limit_give", said):
            self._gate.limits.keep(bucket, until_ms, amount)
