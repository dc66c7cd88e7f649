"""One timer for all connections and calls of a worker, its work spread over the second.

A timer per connection costs more than the requests it guards; a sweep costs a fraction of a
microsecond per open connection and second.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol

SLOTS = 10  # each member is looked at once a second, a tenth of them at a time


class Checked(Protocol):
    def check(self, now: float) -> None:
        """End what is overdue; `now` is time.monotonic(). Must not raise."""


class Sweeper:
    """Calls `check` of every member once a second; of a new one within two."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._members: set[Checked] = set()
        # The set's own, because every call is added and discarded.
        self.add, self.discard = self._members.add, self._members.discard
        self._turn: list[Checked] = []  # those of this second that are still to be looked at
        self._share = 0  # of them, at each tick
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = self._loop.call_later(1 / SLOTS, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(1 / SLOTS, self._tick)
        self.sweep(monotonic())

    def sweep(self, now: float) -> None:
        """The next tenth."""
        if not self._turn:
            self._turn = list(self._members)
            self._share = len(self._turn) // SLOTS + 1
        members, self._turn = self._turn[-self._share :], self._turn[: -self._share]
        for member in members:
            if member in self._members:
                member.check(now)
