"""Slices of balance for workers, cut from the node's leases.

Owns the way from "a worker needs money" to a grant or a refusal. Arithmetic is ledger/balances.py's,
SQL is the store's. Amounts are nano-units, times milliseconds of the Unix epoch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from proxy import telemetry
from proxy.broker.outage import Outage
from proxy.broker.recall import Recall, is_spare
from proxy.broker.trust import Trust
from proxy.errors import StationFault
from proxy.ledger.balances import NodeLeases
from proxy.routing.table import OnOutage
from proxy.store.database import DatabaseUnavailable
from proxy.store.leases import Leases

log = logging.getLogger("headrace.money")

REFUSAL_MS = 1_000  # a refusal for balance is believed this long (money.md 16)
IDLE_MS = 10_000  # what nobody asked for in this time goes back to Postgres
ACCOUNTS_MAX = 100_000  # whose last answer is remembered
BANK_S = 0.3  # money.md 6: a call waits no longer for Postgres
PAUSE_S = 0.05  # before the second try
ON_TRUST = ""  # names the slice that was granted while Postgres was away
BEFORE = "before"  # stands for all workers of this life that are dead and adopted

NO_CREDIT = {"refused": "no_credit"}
OUTAGE = {"refused": "outage"}


class Ask(NamedTuple):
    """A worker needs `need` and would like `want`; `policy` is its tier's for an outage."""

    worker: str
    account: int
    need: int
    want: int
    policy: OnOutage


@dataclass(slots=True)
class _Standing:
    """What is remembered of an account's last answers."""

    drawn_ms: int = 0
    is_positive: bool = False  # Postgres granted something last time
    is_scarce: bool = False  # but less than was asked for: hand out no more than what is needed
    is_dry: bool = False  # and now nothing
    refused_ms: int = -REFUSAL_MS
    refused_need: int = 0
    new_lease: str = ""  # asked for and not answered yet: the same id is asked for again
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # one change of its leases at a time


class MoneyDesk:
    """Answers op `slice`. Workers are named by their incarnation."""

    def __init__(
        self, outage: Outage, trust: Trust, new_id: Callable[[], str], now_ms: Callable[[], int]
    ) -> None:
        self.trust = trust
        self.recall = Recall()
        self._bank: Leases | None = None  # until Postgres was reached for the first time
        self._leases: NodeLeases[int] = NodeLeases()
        self._totals: dict[str, int] = {}  # lease -> granted in all, as Postgres has it
        self._unsure: set[str] = set()  # leases of which the last change may not have been committed
        self._outage = outage
        self._new_id = new_id
        self._now_ms = now_ms
        self._standings: dict[int, _Standing] = {}
        self._asking: dict[int, asyncio.Task[None]] = {}

    async def open(self, bank: Leases, unadopted: Iterable[str]) -> None:
        """Take over what an earlier control of this life leased. Raises DatabaseUnavailable.

        `unadopted` are the lives that may hold of it: each has to be heard or adopted first. Nothing may
        be drained meanwhile.
        """
        rows = await bank.open()
        used_before = {row.id: row.used_nanos for row in rows}
        for life in (unadopted := list(unadopted)):
            for lease, used in (await bank.used(life)).items():
                if lease in used_before:
                    used_before[lease] -= used
        self._leases.load(((row.id, row.account, row.granted_nanos) for row in rows), unadopted)
        self._leases.worker_dead(BEFORE, used_before)
        self._totals = {row.id: row.granted_nanos for row in rows}
        for row in rows:
            self._standing(row.account).is_positive = True
        self._bank = bank

    # -- workers --------------------------------------------------------------------------------

    def heard(self, worker: str, slices: Iterable[tuple[int, str, int]]) -> None:
        """A worker said hello with what it holds: (account, lease, granted in all)."""
        self._leases.adopt_hello(worker, slices)

    def adopted(self, worker: str, used: Mapping[str, int]) -> None:
        """A dead worker's journal is drained: what it did not use is free."""
        self._leases.worker_dead(worker, used)

    async def give(self, worker: str, account: int, lease: str, amount: int) -> None:
        """A worker returns what it does not need (op `give`)."""
        if lease == ON_TRUST:
            await self.trust.give(account, amount)
        else:
            self.returned(worker, lease, amount)

    def returned(self, worker: str, lease: str, amount: int) -> None:
        """A worker returned leased money."""
        self._leases.give(worker, lease, amount)

    # -- grants ---------------------------------------------------------------------------------

    async def take(self, ask: Ask) -> dict[str, Any]:
        """{"lease", "granted"}, {"refused": "no_credit"} or {"refused": "outage"}."""
        standing = self._standing(ask.account)
        standing.drawn_ms = now_ms = self._now_ms()
        deadline = asyncio.get_running_loop().time() + BANK_S
        is_recalled = False
        while True:
            want = ask.need if standing.is_scarce else ask.want
            got = self._leases.grant(ask.worker, ask.account, ask.need, want)
            if got is not None:
                return {"lease": got[0], "granted": got[1]}
            if self._bank is None or self._outage.is_away:
                return await self._on_trust(ask, standing)
            if now_ms - standing.refused_ms < REFUSAL_MS and ask.need >= standing.refused_need:
                return NO_CREDIT
            try:
                async with asyncio.timeout(BANK_S):
                    await self._ask_bank(self._bank, ask)
            except (StationFault, TimeoutError) as e:
                log.warning("no answer about a lease", extra={"why": str(e) or type(e).__name__})
                self._outage.probed(False)
                await asyncio.sleep(PAUSE_S)  # one slow query is no outage; the second try decides
                continue
            if not standing.is_dry:
                continue
            if not is_recalled:
                is_recalled = True
                await self.recall.from_workers(ask.account, self._leases.others(ask.account, ask.worker))
            elif not await self._may_come(ask.account, deadline):
                standing.refused_ms, standing.refused_need = now_ms, ask.need
                return NO_CREDIT

    async def _may_come(self, account: int, deadline: float) -> bool:
        """Nothing is left in Postgres and on this node: whether to look once more, after other nodes had a
        moment to give back."""
        try:
            return await self.recall.from_nodes(account, deadline)
        except DatabaseUnavailable:
            return True  # which the next look finds out

    async def _on_trust(self, ask: Ask, standing: _Standing) -> dict[str, Any]:
        """Postgres does not answer: the tier's policy decides."""
        if ask.policy.kind == "allowance" and not standing.is_positive:
            return OUTAGE  # its last known balance was nothing, or is not known
        granted = await self.trust.extend(ask.account, ask.policy, ask.need, ask.want)
        return {"lease": ON_TRUST, "granted": granted} if granted else OUTAGE

    async def _ask_bank(self, bank: Leases, ask: Ask) -> None:
        """Ask Postgres for more, once for all who wait for the same account.

        Runs to its end even when its askers gave up: what it brings is the next one's.
        """
        task = self._asking.get(ask.account)
        if task is None:
            task = telemetry.spawn("lease", self._more(bank, ask))
            self._asking[ask.account] = task
            task.add_done_callback(lambda _: self._asking.pop(ask.account, None))
        await asyncio.shield(task)

    async def _more(self, bank: Leases, ask: Ask) -> None:
        standing = self._standing(ask.account)
        async with standing.lock:
            at_least, at_most = self._leases.asks(ask.account, ask.need, ask.want)
            lease = self._leases.open_lease(ask.account)
            more: int | None
            if lease is None:
                more = await self._grant(bank, ask.account, at_least, at_most)
            else:
                more = await self._extend(bank, lease, at_least, at_most)
            if more is None:
                return  # what was known of the lease was wrong: ask again
            standing.is_positive = more > 0
            standing.is_scarce = more < at_most
            standing.is_dry = more == 0

    async def _grant(self, bank: Leases, account: int, at_least: int, at_most: int) -> int:
        """What a new lease brought; 0: there is not that much."""
        standing = self._standing(account)
        standing.new_lease = lease = standing.new_lease or self._new_id()
        granted = await bank.grant(lease, account, at_least, at_most) or 0
        standing.new_lease = ""
        if granted:
            self._totals[lease] = granted
            self._leases.open(lease, account, granted)
        return granted

    async def _extend(self, bank: Leases, lease: str, at_least: int, at_most: int) -> int | None:
        """What was added; 0: there is not that much; None: the lease is not what it was thought to be."""
        before = self._totals[lease]
        total = await bank.extend(lease, before, at_least, at_most)
        if total is None:
            return 0 if await self._is_as_known(bank, lease) else None
        self._move(lease, total - before)
        return total - before

    async def _is_as_known(self, bank: Leases, lease: str) -> bool:
        """Compare a lease with Postgres and believe Postgres."""
        found = await bank.find(lease)
        self._unsure.discard(lease)
        if found is None:  # an operator retired the node
            self._forget(lease)
            return False
        drift = found.granted_nanos - self._totals[lease]
        self._move(lease, drift)
        return drift == 0

    def _move(self, lease: str, amount: int) -> None:
        self._totals[lease] += amount
        self._leases.extend(lease, amount)

    # -- back to Postgres -----------------------------------------------------------------------

    async def tidy(self) -> None:
        """Give back what nobody asked for lately. Raises DatabaseUnavailable."""
        bank = self._bank
        if bank is None or self._outage.is_away:
            return
        for lease in list(self._unsure):
            await self._is_as_known(bank, lease)
        oldest_ms = self._now_ms() - IDLE_MS
        for lease, account, _ in list(self._leases.surplus()):
            standing = self._standing(account)
            if standing.drawn_ms < oldest_ms:
                async with standing.lock:
                    await self._give_back(bank, lease)

    async def recalled(self, account: int) -> None:
        """Another node lacks what may be free here. Raises DatabaseUnavailable."""
        leases = self._leases.leases_of(account)
        standing = self._standing(account)
        if self._bank is not None and leases and is_spare(standing, self._now_ms()):
            await self.recall.from_workers(account, self._leases.others(account, ""))
            async with standing.lock:
                for lease in leases:
                    await self._give_back(self._bank, lease)

    async def _give_back(self, bank: Leases, lease: str) -> None:
        free = self._leases.free(lease)
        if free <= 0:
            return
        before = self._totals[lease]
        self._move(lease, -free)  # not to be handed out while it is on its way
        try:
            total = await bank.give_back(lease, before, free)
        except DatabaseUnavailable:
            self._unsure.add(lease)
            raise
        if total is None:
            await self._is_as_known(bank, lease)

    async def close(self) -> None:
        """All workers are dead and adopted: nothing is leased any more. Raises DatabaseUnavailable."""
        for lease in list(self._totals):
            if self._bank is not None:
                await self._bank.close(lease)
            self._forget(lease)

    def leased(self) -> int:
        """What this node has set aside in Postgres, as far as it knows."""
        return sum(self._totals.values())

    def _forget(self, lease: str) -> None:
        self._leases.close(lease)
        self._unsure.discard(lease)
        del self._totals[lease]

    def _standing(self, account: int) -> _Standing:
        standing = self._standings.get(account)
        if standing is None:
            if len(self._standings) >= ACCOUNTS_MAX:
                del self._standings[next(iter(self._standings))]
            standing = self._standings[account] = _Standing()
        return standing
