"""Requests per minute and calls at once, counted for all workers of a node.

Owns the windows and who holds how much; hands out slices, so that most calls are counted within a
worker. Facts in, decisions out: `now_ms` is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WINDOW_MS = 60_000
BUCKETS_SWEPT_ABOVE = 10_000  # ended windows are forgotten when there are this many
CONCURRENCY_RETRY_S = 1.0  # a call at once may end any moment


@dataclass(slots=True)
class _Window:
    ends_ms: int
    granted: int = 0


@dataclass(slots=True)
class _Pool:
    """Concurrency of one bucket: how many each life of a worker holds."""

    held: dict[str, int] = field(default_factory=dict)

    def total(self) -> int:
        return sum(self.held.values())


class LimitDesk:
    """Grants slices of limits to workers, named by their incarnation."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._pools: dict[str, _Pool] = {}

    def take(self, worker: str, limit: dict[str, Any], now_ms: int) -> dict[str, Any]:
        """Answers op `limit`: {bucket, kind, limit, want} -> {granted, until_ms, retry_after_s}."""
        if limit["kind"] == "rate":
            return self._take_rate(limit["bucket"], limit["limit"], limit["want"], now_ms)
        return self._take_concurrency(worker, limit["bucket"], limit["limit"], limit["want"])

    def _take_rate(self, bucket: str, amount: int, want: int, now_ms: int) -> dict[str, Any]:
        window = self._windows.get(bucket)
        if window is None or window.ends_ms <= now_ms:
            if len(self._windows) >= BUCKETS_SWEPT_ABOVE:
                self._windows = {b: w for b, w in self._windows.items() if w.ends_ms > now_ms}
            window = self._windows[bucket] = _Window(now_ms - now_ms % WINDOW_MS + WINDOW_MS)
        granted = max(0, min(want, amount - window.granted))
        window.granted += granted
        retry_after_s = 0.0 if granted else (window.ends_ms - now_ms) / 1000
        return {"granted": granted, "until_ms": window.ends_ms, "retry_after_s": retry_after_s}

    def _take_concurrency(self, worker: str, bucket: str, amount: int, want: int) -> dict[str, Any]:
        pool = self._pools.setdefault(bucket, _Pool())
        granted = max(0, min(want, amount - pool.total()))
        if granted:
            pool.held[worker] = pool.held.get(worker, 0) + granted
        return {"granted": granted, "until_ms": 0, "retry_after_s": 0.0 if granted else CONCURRENCY_RETRY_S}

    def give(self, worker: str, bucket: str, count: int) -> None:
        """A worker returns concurrency that it does not use (op `limit_give`)."""
        pool = self._pools.get(bucket)
        if pool is None:
            return
        left = pool.held.get(worker, 0) - count
        if left > 0:
            pool.held[worker] = left
            return
        pool.held.pop(worker, None)
        if not pool.held:
            del self._pools[bucket]

    def reported(self, worker: str, held: dict[str, int]) -> None:
        """A worker said hello: what it holds is what it says (control may be new)."""
        self.lost(worker)
        for bucket, count in held.items():
            if count > 0:
                self._pools.setdefault(bucket, _Pool()).held[worker] = count

    def lost(self, worker: str) -> None:
        """This life is over, and its calls with it: all its concurrency is free."""
        for bucket, pool in list(self._pools.items()):
            pool.held.pop(worker, None)
            if not pool.held:
                del self._pools[bucket]

    def busy(self) -> dict[str, int]:
        """Concurrency handed out, by bucket; for the admin page."""
        return {bucket: pool.total() for bucket, pool in self._pools.items()}
