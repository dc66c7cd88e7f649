"""What workers ask and tell, answered: the broker of one node.

Owns the list of workers and which desk serves which message; the desks decide. What all workers must
hear goes out through `tell`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from proxy.broker.health import HealthBook
from proxy.broker.keys import KeyDesk
from proxy.broker.limits import Ask as LimitAsk
from proxy.broker.limits import LimitDesk
from proxy.broker.money import Ask, MoneyDesk
from proxy.broker.recall import Recall
from proxy.routing.table import OnOutage
from proxy.store.leases import Leases
from proxy.store.windows import Windows
from proxy.telemetry import Stats

Args = dict[str, Any]
Tell = Callable[[str, Args], None]  # (op, args) to every worker
Policy = Callable[[str], Awaitable[OnOutage]]  # of a tier


class Worker(Protocol):
    """A worker's end of the channel."""

    slot: int
    incarnation: str
    pid: int

    def send(self, op: str, args: Args) -> None: ...


@dataclass(slots=True)
class WorkerState:
    """What control knows of one connected worker."""

    worker: Worker
    generation: int  # of the table it has installed; -1: none


@dataclass(slots=True)
class Desks:
    """Who decides about what."""

    keys: KeyDesk
    limits: LimitDesk
    money: MoneyDesk
    health: HealthBook


class Broker:
    """Serves the workers that are connected; one per life of a worker."""

    def __init__(
        self, desks: Desks, policy: Policy, tell: Tell, stats: Stats, now_ms: Callable[[], int]
    ) -> None:
        self.desks = desks
        self.recall = desks.money.recall = desks.limits.recall = Recall(self.send)
        self.workers: dict[str, WorkerState] = {}  # by incarnation
        self._policy = policy
        self._tell = tell
        self._stats = stats
        self._now_ms = now_ms

    def handlers(self) -> Mapping[str, Callable[[Any, Args], Awaitable[Args] | Args | None]]:
        return {
            "key": self._key,
            "slice": self._slice,
            "give": self._give,
            "limit": self._limit,
            "limit_give": self._limit_give,
            "recalled": self._recalled,
            "health": self._health,
            "measures": self._measures,
        }

    # -- life of the node -----------------------------------------------------------------------

    async def open(self, leases: Leases, windows: Windows, unadopted: list[str]) -> None:
        """Postgres was reached for the first time; see MoneyDesk.open. Raises DatabaseUnavailable."""
        self.recall.open(windows)
        await self.desks.money.open(leases, unadopted)
        await self.desks.limits.open(windows, unadopted)

    async def tidy(self) -> None:
        """Every few seconds: what is idle goes back to Postgres. Raises DatabaseUnavailable."""
        await self.desks.money.tidy()
        await self.desks.limits.tidy()

    async def close(self) -> None:
        """All workers are dead and adopted. Raises DatabaseUnavailable."""
        await self.desks.money.close()
        await self.desks.limits.close()

    # -- life of a worker -----------------------------------------------------------------------

    def hello(self, worker: Worker, args: Args) -> None:
        """The first message of a connection: what it says it holds is true."""
        self.workers[worker.incarnation] = WorkerState(worker, args["generation"])
        self.desks.money.heard(worker.incarnation, [tuple(part) for part in args["slices"]])
        self.desks.limits.heard(worker.incarnation, [tuple(part) for part in args["limits_held"]])
        for cool in self.desks.health.current(self._now_ms()):
            worker.send("cool", cool)

    def lost(self, worker: Worker) -> None:
        """Its connection ended. If it lives it will say hello again; if not, its calls are over, and its
        money is the adopter's business."""
        state = self.workers.get(worker.incarnation)
        if state is not None and state.worker is worker:
            del self.workers[worker.incarnation]
            self.desks.limits.lost(worker.incarnation)

    def installed(self, worker: Worker, generation: int) -> None:
        """A worker uses this table from now on (op `ack`)."""
        state = self.workers.get(worker.incarnation)
        if state is not None:
            state.generation = generation

    def everybody_has(self, generation: int, workers: int) -> bool:
        """Is this table installed in as many workers as there should be?"""
        installed = {s.worker.slot for s in self.workers.values() if s.generation == generation}
        return len(installed) >= workers

    # -- what workers ask -----------------------------------------------------------------------

    async def _key(self, worker: Worker, args: Args) -> Args:
        reply = await self.desks.keys.find(args["digest"], args["address"], self._now_ms())
        self._stats.inc("key_lookups_total", next(iter(reply)))
        return reply

    async def _slice(self, worker: Worker, args: Args) -> Args:
        policy = await self._policy(args.get("tier", ""))
        ask = Ask(worker.incarnation, args["account"], args["need"], args["want"], policy)
        reply = await self.desks.money.take(ask)
        self._stats.inc("slices_total", reply.get("refused") or ("granted" if reply["lease"] else "on_trust"))
        return reply

    async def _give(self, worker: Worker, args: Args) -> Args:
        await self.desks.money.give(worker.incarnation, args["account"], args["lease"], args["amount"])
        return {}

    async def _limit(self, worker: Worker, args: Args) -> Args:
        policy = await self._policy(args.get("tier", ""))
        amount, need, want = args["limit"], args["need"], args["want"]
        ask = LimitAsk(worker.incarnation, args["bucket"], args["kind"], amount, need, want, policy)
        reply = await self.desks.limits.take(ask)
        if not reply["granted"]:
            self._stats.inc("limits_refused_total", args["kind"])
        return reply

    def _limit_give(self, worker: Worker, args: Args) -> None:
        self.desks.limits.give(worker.incarnation, args["bucket"], args.get("until_ms", 0), args["n"])

    def _recalled(self, worker: Worker, args: Args) -> None:
        """All of it was free and is control's again when this is read: no await in between."""
        for _, lease, amount in args["slices"]:
            self.desks.money.returned(worker.incarnation, lease, amount)
        for bucket, until_ms, amount in args["limits"]:
            self.desks.limits.give(worker.incarnation, bucket, until_ms, amount)
        self.recall.answered(worker.incarnation, args["id"])

    def send(self, incarnation: str, op: str, args: Args) -> bool:
        """Tell one worker; False: it is not connected."""
        state = self.workers.get(incarnation)
        if state is not None:
            state.worker.send(op, args)
        return state is not None

    async def answer_recalls(self) -> None:
        """Give back what other nodes lack and nobody needs here. Raises DatabaseUnavailable."""
        for owner in await self.recall.asked():
            if isinstance(owner, int):
                await self.desks.money.recalled(owner)
            else:
                await self.desks.limits.recalled(owner)

    def _measures(self, worker: Worker, args: Args) -> None:
        """What a worker has measured of mirrors is for all of the node."""
        for other in self.workers.values():
            if other.worker is not worker:
                other.worker.send("measures", args)

    def _health(self, worker: Worker, args: Args) -> None:
        message = self.desks.health.report(args, self._now_ms())
        if message is not None:
            self._tell(*message)
