"""Vendors hint that something became of a task: ask about it now instead of later.

Owns the hints of one node until Postgres knows their tasks. A hint says nothing about a task: the poller asks
the vendor, so that poll and callback cannot count twice.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.store.due import DueTasks
from proxy.telemetry import Stats

WAIT_MS = 60_000  # for a submit that is not drained yet
HINTS_MAX = 20_000


class Hints:
    """Of one node's control."""

    def __init__(self, due: Callable[[], DueTasks], now_ms: Callable[[], int], stats: Stats) -> None:
        self._due = due
        self._now_ms = now_ms
        self._stats = stats
        self._waiting: dict[str, int] = {}  # call -> until when

    def hear(self, call: str) -> None:
        self._waiting.setdefault(call, self._now_ms() + WAIT_MS)
        if len(self._waiting) > HINTS_MAX:
            del self._waiting[next(iter(self._waiting))]

    async def run_once(self) -> int:
        """Make what was hinted at due; how many tasks that are. Raises DatabaseUnavailable."""
        if not self._waiting:
            return 0
        calls, now = list(self._waiting), self._now_ms()
        known = await self._due().hurry(calls, now)
        for call in calls:
            if call in known or self._waiting[call] <= now:
                del self._waiting[call]
                self._stats.inc("callback_hints_total", "taken" if call in known else "unknown")
        return len(known)
