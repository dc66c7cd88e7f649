"""Slices of limits for workers, cut from what this node has of them.

Owns the way from "a worker lacks room under a limit" to a grant or a refusal, and which window is now.
Arithmetic is ledger/balances.py's, SQL is the store's. What the node lacks it draws from Postgres; what is
free in its other workers it recalls, and what is free in other nodes it asks for. While Postgres is away it
counts alone, up to the whole limit, where the tier's policy allows that. Times are milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, NamedTuple

from proxy.access.calendar import around
from proxy.access.limits import CALLS, EVER, KINDS, SMALL_PER_WORKER, SPEND, Kind
from proxy.broker.outage import Outage
from proxy.broker.recall import Recall, is_spare
from proxy.errors import StationFault
from proxy.ledger.balances import NodeLeases
from proxy.routing.table import OnOutage
from proxy.routing.units import Period
from proxy.store.windows import Drawn, Idle, Windows

log = logging.getLogger("headrace.limits")

MINUTE_MS = 60_000
FOREVER_MS = 253_402_300_799_000  # the end of the year 9999, of a window that has none
REFUSAL_MS = 1_000  # a refusal is believed this long: others may give back
CALLS_RETRY_S = 1.0  # a call at once may end any moment
BANK_S = 0.3  # a call waits no longer for Postgres
IDLE_AT_ONCE = 500  # windows that one statement gives back
IDLE_MS = 10_000  # what nobody asked for in this time goes back to Postgres
SLICES_AHEAD = 4  # the node draws this many slices beyond the one it needs
BEFORE = "before"  # stands for what an earlier control of this life had handed out
DAYS = {"day": Period(1, "day"), "month": Period(1, "month")}


class Span(NamedTuple):
    """A window; one of calls at once neither begins nor ends."""

    begins_ms: int
    ends_ms: int


def window(kind: str, now_ms: int, zone: tzinfo) -> Span:
    """The window of a kind of limit that a moment is in. Days and months are the station's."""
    unit = KINDS[kind].window
    if unit == "minute":
        begins_ms = now_ms - now_ms % MINUTE_MS
        return Span(begins_ms, begins_ms + MINUTE_MS)
    if unit in DAYS:
        begin, end = around(datetime.fromtimestamp(now_ms / 1000, UTC), DAYS[unit], zone)
        return Span(int(begin.timestamp() * 1000), int(end.timestamp() * 1000))
    return Span(0, FOREVER_MS) if unit == EVER else Span(0, 0)


class Ask(NamedTuple):
    """A worker lacks `need` of a limit and would like `want`; `policy` is its tier's for an outage."""

    worker: str
    bucket: str
    kind: str
    amount: int
    need: int
    want: int
    policy: OnOutage


@dataclass(slots=True)
class _Window:
    """What this node has of one window of one limit."""

    bucket: str
    ends_ms: int
    total: int = 0  # as Postgres has it
    alone: int = 0  # added while Postgres was away
    left: int = 0  # for everybody, when Postgres was asked last
    drawn_ms: int = 0  # when a worker asked last
    refused_ms: int = -REFUSAL_MS
    refused_need: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # one change in Postgres at a time

    @property
    def key(self) -> str:
        return key_of(self.bucket, self.ends_ms)

    @property
    def kind(self) -> Kind:
        return KINDS[_kind(self.bucket)]


def _kind(bucket: str) -> str:
    return bucket.rpartition(":")[2]


def key_of(bucket: str, ends_ms: int) -> str:
    return f"{bucket}@{ends_ms}"


class LimitDesk:
    """Answers op `limit`. Workers are named by their incarnation, `workers` is how many there should be."""

    def __init__(self, outage: Outage, workers: int, now_ms: Callable[[], int]) -> None:
        self.recall = Recall()
        self.zone: tzinfo = UTC  # of the station
        self._outage = outage
        self._workers = workers
        self._now_ms = now_ms
        self._bank: Windows | None = None  # until Postgres was reached for the first time
        self._windows: dict[str, _Window] = {}
        self._leases: NodeLeases[str] = NodeLeases()  # by window; each is one lease
        self._heard: set[str] = set()
        self._unheard: set[str] | None = None  # who may hold of what an earlier control handed out

    async def open(self, bank: Windows, unadopted: Iterable[str]) -> None:
        """Take over what an earlier control of this life had. Raises DatabaseUnavailable.

        All of it counts as handed out until a worker says that it has it, and the rest is free once each of
        the lives `unadopted` was heard or adopted.
        """
        await bank.forget_calls_of_earlier_lives()
        self.recall.nodes = await bank.beat(self._now_ms())
        rows = await bank.open()
        for bucket, ends_ms, granted in rows:
            self._learn(self._window(bucket, ends_ms), granted)
        self._leases.worker_dead(BEFORE, {key_of(bucket, ends_ms): n for bucket, ends_ms, n in rows})
        self._unheard = set(unadopted) - self._heard
        self._bank = bank

    # -- workers --------------------------------------------------------------------------------

    def heard(self, worker: str, held: Iterable[tuple[str, int, int]]) -> None:
        """A worker said hello with what it holds: (bucket, end of the window, granted in all)."""
        now_ms = self._now_ms()
        rows = [(bucket, ends_ms, n) for bucket, ends_ms, n in held if not ends_ms or ends_ms > now_ms]
        for bucket, ends_ms, granted in rows:
            key = self._window(bucket, ends_ms).key
            before = self._leases.granted(BEFORE, key)
            if worker not in self._heard and before:
                self._leases.give(BEFORE, key, min(before, granted))
        self._leases.adopt_hello(worker, [(k := key_of(b, e), k, n) for b, e, n in rows])
        self._heard.add(worker)
        if self._unheard is not None:
            self._unheard.discard(worker)

    def lost(self, worker: str) -> None:
        """Its connection is gone. If it lives it will say again what it holds; if not, its calls are over;
        what else it had of a window it may have used."""
        for found in self._windows.values():
            if not found.ends_ms:
                self._leases.give(worker, found.key, self._leases.granted(worker, found.key))

    async def adopted(self, worker: str) -> None:
        """A dead worker's journal is in Postgres: what it did not spend of limits of spending is free.
        Raises DatabaseUnavailable."""
        if self._bank is not None:
            await self._spent(self._bank, worker, [worker])
        if self._unheard is not None:
            self._unheard.discard(worker)

    async def _spent(self, bank: Windows, holder: str, lives: list[str]) -> None:
        """What was handed out to a holder that is no more becomes what those lives really spent."""
        for found in list(self._windows.values()):
            granted = self._leases.granted(holder, found.key)
            if granted and found.kind.unit == SPEND:
                spent = await bank.spent(found.bucket, self._begin(found.bucket), lives)
                self._leases.give(holder, found.key, granted - spent)

    async def _close_before(self, bank: Windows) -> None:
        """All who may hold of what an earlier control handed out were heard or adopted."""
        ended = [life for life in await bank.lives() if life not in self._heard]
        await self._spent(bank, BEFORE, ended)
        self.lost(BEFORE)
        self._unheard = None

    def give(self, worker: str, bucket: str, ends_ms: int, count: int) -> None:
        """A worker returns what it does not use (op `limit_give`)."""
        self._leases.give(worker, key_of(bucket, ends_ms), count)

    # -- grants ---------------------------------------------------------------------------------

    async def take(self, ask: Ask) -> dict[str, Any]:
        """{"granted", "until_ms", "left"}, or {"granted": 0, "until_ms", "retry_after_s"}, the latter with
        "outage" where Postgres is away and the policy refuses."""
        now_ms = self._now_ms()
        found = self._window(ask.bucket, window(ask.kind, now_ms, self.zone).ends_ms)
        found.drawn_ms = now_ms
        if not self._outage.is_away:
            self._count_together(found)
        deadline = asyncio.get_running_loop().time() + BANK_S
        is_recalled = False
        while True:
            got = self._grant(ask, found)
            if got:
                return {"granted": got, "until_ms": found.ends_ms, "left": self._left(found)}
            if self._bank is None or self._outage.is_away:
                if not self._count_alone(ask, found):
                    return self._refusal(found, now_ms, is_outage=self._is_refused_alone(ask))
                continue
            if now_ms - found.refused_ms < REFUSAL_MS and ask.need >= found.refused_need:
                return self._refusal(found, now_ms)
            try:
                async with asyncio.timeout(BANK_S):
                    drew = await self._draw(self._bank, ask, found)
            except (StationFault, TimeoutError) as e:
                log.warning("no answer about a limit", extra={"why": str(e) or type(e).__name__})
                self._outage.probed(False)
                continue
            if drew:
                continue
            if not is_recalled:
                is_recalled = True
                await self.recall.from_workers(ask.bucket, self._leases.others(found.key, ask.worker))
            elif not await self.recall.from_nodes(ask.bucket, deadline):
                found.refused_ms, found.refused_need = now_ms, ask.need
                return self._refusal(found, now_ms)

    def _grant(self, ask: Ask, found: _Window) -> int:
        got = self._leases.grant(ask.worker, found.key, ask.need, ask.want)
        return got[1] if got is not None else 0

    async def _draw(self, bank: Windows, ask: Ask, found: _Window) -> bool:
        """Draw more from Postgres; whether anything was to be had."""
        async with found.lock:
            at_least, at_most = self._leases.asks(found.key, ask.need, ask.want)
            if self._leases.free(found.key) >= ask.need:
                return True  # somebody else drew it meanwhile
            if ask.amount < SMALL_PER_WORKER * self._workers * self.recall.nodes:
                at_most = at_least
            fair = max(ask.amount // (self.recall.nodes * SLICES_AHEAD), at_least)
            before = found.total
            drawn = await bank.draw(
                ask.bucket, found.ends_ms, ask.amount, at_least, max(at_least, min(at_most, fair))
            )
            self._learn(found, drawn)
            return found.total > before

    def _learn(self, found: _Window, drawn: Drawn | int) -> None:
        """Believe Postgres about what this node has."""
        total = drawn if isinstance(drawn, int) else drawn.total
        if not isinstance(drawn, int):
            found.left = drawn.left
        self._leases.extend(found.key, total - found.total)
        found.total = total

    def _count_alone(self, ask: Ask, found: _Window) -> bool:
        """Postgres is away: add what the whole limit allows this node; whether that is anything."""
        if self._is_refused_alone(ask):
            return False
        more = ask.amount - found.total - found.alone
        if more > 0:
            found.alone += more
            self._leases.extend(found.key, more)
        return self._leases.free(found.key) >= ask.need

    def _is_refused_alone(self, ask: Ask) -> bool:
        """Calls at once use nothing up: they are always counted."""
        return ask.policy.kind == "refuse" and KINDS[ask.kind].unit != CALLS

    def _count_together(self, found: _Window) -> None:
        """Postgres is back: what was added alone has to be drawn, or comes back as calls end."""
        if found.alone:
            self._leases.extend(found.key, -found.alone)
            found.alone = 0

    def _left(self, found: _Window) -> int:
        return max(found.left, 0) + self._leases.free(found.key)

    def _refusal(self, found: _Window, now_ms: int, *, is_outage: bool = False) -> dict[str, Any]:
        ends_ms = found.ends_ms
        wait_s = (ends_ms - now_ms) / 1000 if ends_ms else CALLS_RETRY_S
        return {"granted": 0, "until_ms": ends_ms, "retry_after_s": wait_s, "outage": is_outage}

    # -- back to Postgres -----------------------------------------------------------------------

    async def tidy(self) -> None:
        """Say that this node lives, forget what is over, give back what nobody asked for lately.
        Raises DatabaseUnavailable."""
        bank, now_ms = self._bank, self._now_ms()
        idle_ms = now_ms - IDLE_MS
        for key, found in list(self._windows.items()):
            is_over = 0 < found.ends_ms <= now_ms
            if not found.lock.locked() and (is_over or self._is_unused(found, idle_ms)):
                self._leases.close(key)
                del self._windows[key]
        if bank is None or self._outage.is_away:
            return
        self.recall.nodes = await bank.beat(now_ms)
        if self._unheard is not None and not self._unheard:
            await self._close_before(bank)
        await self._put_back(bank, [w for w in self._windows.values() if w.drawn_ms < idle_ms])

    def _is_unused(self, found: _Window, idle_ms: int) -> bool:
        has_any = found.total or found.alone or self._leases.others(found.key, "")
        return not has_any and found.drawn_ms < idle_ms

    async def recalled(self, owner: str) -> None:
        """Another node lacks what may be free here. Raises DatabaseUnavailable."""
        bank, now_ms = self._bank, self._now_ms()
        for found in [w for w in self._windows.values() if w.bucket == owner and is_spare(w, now_ms)]:
            await self.recall.from_workers(owner, self._leases.others(found.key, ""))
            if bank is not None:
                await self._put_back(bank, [found])

    async def _put_back(self, bank: Windows, idle: list[_Window]) -> None:
        """Return what is free of some windows. Raises DatabaseUnavailable: the next answer about each of them
        tells what this node has."""
        for start in range(0, len(idle), IDLE_AT_ONCE):
            async with AsyncExitStack() as locks:
                free: list[tuple[_Window, Idle]] = []
                for found in idle[start : start + IDLE_AT_ONCE]:
                    await locks.enter_async_context(found.lock)
                    amount = self._leases.free(found.key) - found.alone
                    if amount > 0:
                        free.append((found, Idle(found.bucket, found.ends_ms, found.total, amount)))
                        self._learn(found, found.total - amount)  # not to be handed out on its way
                if free:
                    totals = await bank.put_back([given for _, given in free])
                    for (found, _), total in zip(free, totals, strict=True):
                        self._learn(found, total)

    async def close(self) -> None:
        """All workers are dead and adopted: what is free goes back. Raises DatabaseUnavailable."""
        if self._bank is None:
            return
        await self._put_back(self._bank, list(self._windows.values()))
        await self._bank.leave()

    async def close_earlier_lives(self) -> None:
        """All journals of earlier lives were adopted: what they did not spend is free.
        Raises DatabaseUnavailable."""
        if self._bank is not None:
            await self._bank.close_earlier_lives(self._begin)

    def busy(self) -> dict[str, int]:
        """What workers hold of limits of calls at once, by bucket; for the admin page."""
        held = {
            w.bucket: w.total + w.alone - self._leases.free(w.key)
            for w in self._windows.values()
            if not w.ends_ms
        }
        return {bucket: count for bucket, count in held.items() if count}

    def _begin(self, bucket: str) -> int:
        return window(_kind(bucket), self._now_ms(), self.zone).begins_ms

    def _window(self, bucket: str, ends_ms: int) -> _Window:
        key = key_of(bucket, ends_ms)
        found = self._windows.get(key)
        if found is None:
            found = self._windows[key] = _Window(bucket, ends_ms, drawn_ms=self._now_ms())
            self._leases.open(key, key, 0)
        return found
