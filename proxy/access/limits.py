"""Count requests per minute and calls at once against slices granted by control.

Owns a worker's slices of limits. Pure: `now_ms` comes in, what is missing goes out as `Want`s that
the caller fetches from control. A limit too small to slice is counted one by one by control itself
(money.md, "limits"): its slice is asked for per call and given back at once.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALL_LIMIT_PER_WORKER = 10  # below this many per worker, control counts one by one
SLICES_PER_WORKER = 4  # a slice is this part of a worker's fair share: small enough to share


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of one owner. `bucket` is its identity in control, e.g. `k12:rpm`."""

    bucket: str
    kind: str  # "rate": per minute; "concurrency": at once
    amount: int


@dataclass(frozen=True, slots=True)
class Want:
    """What control must be asked for before a call can start."""

    limit: Limit
    count: int


@dataclass(slots=True)
class _Slice:
    free: int = 0
    until_ms: int = 0  # rate: end of the window; concurrency: 0
    busy: int = 0  # concurrency in use here


class LimitBook:
    """The slices of one worker. `workers` is the number of workers of the node."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._slices: dict[str, _Slice] = {}

    def missing(self, limits: tuple[Limit, ...], now_ms: int) -> list[Want]:
        """What is not at hand for one more call. Takes nothing."""
        wants = []
        for limit in limits:
            part = self._slices.get(limit.bucket)
            if part is None or part.free < 1 or (part.until_ms and part.until_ms <= now_ms):
                wants.append(Want(limit, self._share(limit)))
        return wants

    def take(self, limits: tuple[Limit, ...]) -> None:
        """Take one of each; the caller has seen `missing` return nothing in the same breath."""
        for limit in limits:
            part = self._slices[limit.bucket]
            part.free -= 1
            if limit.kind == "concurrency":
                part.busy += 1

    def add(self, limit: Limit, granted: int, until_ms: int) -> None:
        """A slice arrived from control."""
        part = self._slices.setdefault(limit.bucket, _Slice())
        if until_ms != part.until_ms:  # a new window: what was left of the old one is void
            part.free, part.until_ms = 0, until_ms
        part.free += granted

    def release(self, limits: tuple[Limit, ...]) -> list[tuple[str, int]]:
        """A call ended. Returns (bucket, count) of what goes back to control at once."""
        back = []
        for limit in limits:
            part = self._slices.get(limit.bucket)
            if limit.kind != "concurrency" or part is None:
                continue
            part.busy -= 1
            part.free += 1
            if self._is_small(limit):
                part.free -= 1
                back.append((limit.bucket, 1))
        return back

    def idle(self, now_ms: int) -> list[tuple[str, int]]:
        """Forget ended windows; return the unused concurrency of quiet buckets to control."""
        back = []
        for bucket, part in list(self._slices.items()):
            if part.until_ms:
                if part.until_ms <= now_ms:
                    del self._slices[bucket]
            elif part.busy == 0:
                if part.free:
                    back.append((bucket, part.free))
                del self._slices[bucket]
        return back

    def held(self) -> dict[str, int]:
        """Concurrency per bucket that this worker holds, for the hello to a new control."""
        return {b: p.free + p.busy for b, p in self._slices.items() if not p.until_ms and p.free + p.busy}

    def _is_small(self, limit: Limit) -> bool:
        return limit.amount < SMALL_LIMIT_PER_WORKER * self._workers

    def _share(self, limit: Limit) -> int:
        if self._is_small(limit):
            return 1
        return max(1, limit.amount // (self._workers * SLICES_PER_WORKER))
