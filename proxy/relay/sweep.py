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
    """Calls `check` of every member once a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: list[set[Checked]] = [set() for _ in range(SLOTS)]
        self._slot_of: dict[Checked, int] = {}
        self._turn = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = self._loop.call_later(1 / SLOTS, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def add(self, member: Checked) -> None:
        slot = len(self._slot_of) % SLOTS
        self._slot_of[member] = slot
        self._slots[slot].add(member)

    def discard(self, member: Checked) -> None:
        slot = self._slot_of.pop(member, None)
        if slot is not None:
            self._slots[slot].discard(member)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(1 / SLOTS, self._tick)
        self._turn = (self._turn + 1) % SLOTS
        self.sweep(self._turn, monotonic())

    def sweep(self, slot: int, now: float) -> None:
        for member in tuple(self._slots[slot]):
            member.check(now)
