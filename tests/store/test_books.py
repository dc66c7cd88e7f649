"""Whatever happens in whatever order, the books are clean and hold what a small model of plain sums says:
ledger, holds, leases, corrections, refunds of calls and of payments, tiers that payments earn, free quota."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from proxy.ledger import entry
from proxy.ledger.entry import Begin, Checkpoint, Progress, Settle
from proxy.metering.pricing import cost_nanos
from proxy.metering.usage import Usage
from proxy.routing.tiers import Earning, FreeQuota, Limits, Tier
from proxy.routing.units import period
from proxy.store.adoption import Adopter
from proxy.store.audit import audit
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.drainer import Drainer
from proxy.store.journal_audit import audit_journals
from proxy.store.leases import Leases
from proxy.store.payments import Movement, Payments
from proxy.store.reviews import Reviews, Rules
from tests.midday import MIDDAY
from tests.store.journals import NODE, NOW_MS, PRICE, PRICE_ENTRY, Life, Station, begin, end, new_id

NAMES = ("ada", "ben")
HOLD = 5_000_000
QUOTA = {"Free": 9_000_000, "VIP": 20_000_000}  # nanos a month
EARNS = 30_000_000  # who pays so much has a better tier
PARTS = 5
STEPS = 50_000 // PARTS
WALK = 200  # steps with the same books
AUDIT_EVERY = 25  # steps; and at the end of a walk
# The same walks on every machine; new ones in `make soak`.
SEED = random.randrange(1 << 32) if "HEADRACE_SOAK" in os.environ else 0
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # for journals: no disk to wait for

RULES = Rules(
    SimpleNamespace(timezone=MIDDAY, default_tier="Free", codes_earn_tiers=False),
    {
        name: Tier(
            name,
            rank,
            ("*",),
            1_000_000,
            Limits(),
            "estimate",
            None,
            FreeQuota(QUOTA[name], period("1 month")),
            earned_by,
        )
        for rank, (name, earned_by) in enumerate(
            {"Free": (), "VIP": (Earning(EARNS, period("1 month")),)}.items()
        )
    },
)

tokens = st.integers(0, 3000)
which = st.integers(0, 7)  # of whatever there is, by remainder


def rarely(self: Books) -> bool:
    """When there may be what takes long, or leaves little behind to go on with."""
    return self.steps % 5 == 0


class Books(RuleBasedStateMachine):
    """One node with one worker, its journal, two accounts."""

    walked = 0  # steps of all

    def __init__(self, databases) -> None:
        super().__init__()
        self.databases = databases
        self.dsn = databases.take()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.balance = dict.fromkeys(NAMES, 0)
        self.pending: list[entry.End] = []
        self.open: list[Begin] = []
        self.seen: dict[str, Progress] = {}
        self.costs: dict[str, tuple[str, int]] = {}  # closed call -> account's name, its cost
        self.refunded: dict[str, int] = {}  # call -> what was given back
        self.quota = dict.fromkeys(NAMES, 0)  # of the period, since the first review
        self.used = dict.fromkeys(NAMES, 0)  # of it
        self.steps_of: dict[str, list[tuple[int, int]]] = {}  # call -> each cost, and what was refunded then
        self.undrained = dict.fromkeys(NAMES, 0)  # what closed calls cost that no pocket could bear yet
        self.payments: dict[str, list[Any]] = {}  # reference -> account's name, what is left of it
        self.leases: list[tuple[str, str, int]] = []
        self.steps = 0

    @initialize()
    def start(self) -> None:
        async def begin_station() -> None:
            self.database = await Database.connect(self.dsn)
            self.catalog = Catalog(self.database)
            self.payments_desk = Payments(self.database)
            self.reviews = Reviews(self.database, lambda: RULES)
            self.ids = {name: (await self.catalog.create_account(name)).id for name in NAMES}
            self.lender = Leases(self.database, NODE, "life1")
            await self.lender.register()
            self.drainer = Drainer(self.database, self.folder, NODE, Station(), now_ms=lambda: NOW_MS)
            self.adopter = Adopter(self.database, self.folder, self.drainer, now_ms=lambda: NOW_MS)
            await self.new_life()

        self.runner.run(begin_station())

    async def new_life(self) -> None:
        self.life = Life(self.folder)
        await self.life.write([PRICE_ENTRY])

    def write(self, *entries) -> None:
        self.runner.run(self.life.write_unsynced(entries))

    # -- money -------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), amount=st.integers(1, 20_000_000))
    def top_up(self, name, amount) -> None:
        reference = new_id()
        self.runner.run(self.catalog.top_up(name, amount, reference))
        self.payments[reference] = [name, amount]
        self.balance[name] += amount

    @precondition(lambda self: any(left for _, left in self.payments.values()))
    @rule(n=which, part=st.integers(1, 20_000_000), is_dispute=st.booleans())
    def take_back(self, n, part, is_dispute) -> None:
        """A refund, or the bank took it back."""
        left = [reference for reference, (_, rest) in self.payments.items() if rest]
        reference = left[n % len(left)]
        payment = self.payments[reference]
        back = min(part, payment[1])
        kind = "chargeback" if is_dispute else "refund"
        for _ in range(2):  # said twice, it happens once
            movement = Movement(kind, back, "test", f"back-{reference}-{payment[1]}")
            self.runner.run(self.payments_desk.take_back(("cli", reference), movement))
        payment[1] -= back
        self.balance[payment[0]] -= back

    @rule()
    def review(self) -> None:
        """Tiers follow what was paid, less what was paid back."""
        self.runner.run(self.reviews.run_once())
        for name, account in self.ids.items():
            net = sum(left for owner, left in self.payments.values() if owner == name)
            held = self.runner.run(self.catalog.tiers_of(account))
            assert (held[0].tier == "VIP") == (net >= EARNS), (net, held)
            # A better tier adds what it has more; a lesser one takes nothing away.
            self.quota[name] = max(self.quota[name], QUOTA[held[0].tier or "Free"])
            told = self.runner.run(self.catalog.account(name))
            assert told.free_nanos == self.quota[name] - self.used[name]

    @rule(name=st.sampled_from(NAMES), need=st.integers(1, 10_000_000), more=st.integers(0, 10_000_000))
    def grant(self, name, need, more) -> None:
        lease = new_id()
        granted = self.runner.run(self.lender.grant(lease, self.ids[name], need, need + more))
        if granted is not None:
            assert need <= granted <= need + more
            self.leases.append((lease, name, granted))

    @precondition(lambda self: self.leases)
    @rule(n=which, amount=st.integers(1, 10_000_000))
    def extend(self, n, amount) -> None:
        lease, name, granted = self.leases[n % len(self.leases)]
        total = self.runner.run(self.lender.extend(lease, granted, 1, amount))
        if total is not None:
            assert granted < total <= granted + amount
            self.leases[n % len(self.leases)] = (lease, name, total)

    @precondition(lambda self: self.leases)
    @rule(n=which)
    def close_lease(self, n) -> None:
        """Calls may still name it: they are charged to what is available."""
        self.runner.run(self.lender.close(self.leases[n % len(self.leases)][0]))

    # -- calls -------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), n=which, is_leased=st.booleans())
    def begin_call(self, name, n, is_leased) -> None:
        own = [lease for lease, owner, _ in self.leases if owner == name]
        lease = own[n % len(own)] if own and is_leased else ""
        call = begin(self.ids[name], lease=lease, hold_nanos=HOLD)
        self.open.append(call)
        self.write(call)

    @precondition(lambda self: self.open)
    @rule(n=which, output=tokens)
    def checkpoint(self, n, output) -> None:
        call = self.open[n % len(self.open)]
        self.seen[call.id] = Progress(call.id, 9, 1, 0, output)
        self.write(Checkpoint(NOW_MS, [self.seen[call.id]]))

    @precondition(lambda self: self.open)
    @rule(n=which, output=tokens, state=st.sampled_from([entry.SETTLED, entry.VOID, entry.PENDING]))
    def end_call(self, n, output, state) -> None:
        call = self.open.pop(n % len(self.open))
        usage = {"output": output} if output and state != entry.VOID else {}
        cost = price_of(usage) if state == entry.SETTLED else 0
        closing = end(
            call.account, id=call.id, lease=call.lease, state=state, usage=usage, cost_nanos=cost,
            provenance="final" if cost else "none",
        )  # fmt: skip
        self.write(closing)
        if state == entry.PENDING:
            self.pending.append(closing)
        else:
            self.charge(call, cost)

    @precondition(lambda self: self.pending)
    @rule(n=which, output=tokens)
    def settle(self, n, output) -> None:
        call = self.pending.pop(n % len(self.pending))
        usage = {"output": output} if output else {}
        cost = price_of(usage)
        self.write(Settle(call.id, NOW_MS, cost, "counted" if cost else "none", usage))
        self.charge(call, cost)

    @precondition(lambda self: self.costs)
    @rule(n=which, cost=st.integers(0, 9_000_000))
    def correct(self, n, cost) -> None:
        call = list(self.costs)[n % len(self.costs)]
        self.write(Settle(new_id(), NOW_MS, cost, "final", {"output": 1}, corrects=call))
        self.costs[call] = (self.costs[call][0], cost)
        self.steps_of[call].append((cost, self.refunded.get(call, 0)))

    @precondition(lambda self: self.costs)
    @rule(n=which)
    def refund_call(self, n) -> None:
        call = list(self.costs)[n % len(self.costs)]
        name, cost = self.costs[call]
        self.drain()
        paid = cost - self.free_of().get(call, 0)
        if call in self.refunded or paid <= 0:
            return
        for _ in range(2):
            self.runner.run(self.payments_desk.refund_call(call, "it did not work"))
        self.refunded[call] = paid
        self.balance[name] += paid

    def free_of(self) -> dict[str, int]:
        """What of each call a pocket bore: which calls it bears is the drainer's, how much is the model's."""
        rows = self.runner.run(self.database.fetch("SELECT id, account, free_nanos FROM usage"))
        for name, account in self.ids.items():
            assert sum(row["free_nanos"] for row in rows if row["account"] == account) == self.used[name]
        return {row["id"].hex: row["free_nanos"] for row in rows}

    def posted(self) -> None:
        """What is left of the quota bears what has come into the books."""
        for name in NAMES:
            self.used[name] += min(self.quota[name] - self.used[name], self.undrained[name])
            self.undrained[name] = 0

    def taken(self, call: str, free: int) -> int:
        """From the balance: what was free or given back is not given back once more."""
        before, taken = 0, 0
        for cost, refunded in self.steps_of[call]:
            taken += max(cost - free - refunded, 0) - max(before - free - refunded, 0)
            before = cost
        return taken

    def charge(self, call, cost) -> None:
        name = next(name for name, id_ in self.ids.items() if id_ == call.account)
        self.costs[call.id] = (name, cost)
        self.steps_of[call.id] = [(cost, 0)]
        self.undrained[name] += cost

    # -- what may happen to it ---------------------------------------------------------------------

    @rule()
    def drain(self) -> None:
        self.runner.run(self.life.synced())
        report = self.runner.run(self.drainer.run_once())
        assert report.alarms == report.damage == []
        self.posted()

    @precondition(rarely)
    @rule()
    def drain_all_again(self) -> None:
        """As if the cursors of what lives were lost."""

        async def again() -> None:
            await self.life.synced()
            await self.drainer.run_once()
            await self.database.execute("DELETE FROM segment_cursor WHERE incarnation = $1", self.life.name)
            report = await Drainer(self.database, self.folder, NODE, Station()).run_once()
            assert (report.inserted, report.alarms) == (0, [])

        self.runner.run(again())
        self.posted()

    @precondition(rarely)
    @rule()
    def kill(self) -> None:
        """The worker dies, is adopted, and another one starts."""

        async def die() -> None:
            await self.life.die()
            (adopted,) = await self.adopter.run_once()
            assert (adopted.interrupted, adopted.alarms) == (len(self.open), [])
            await self.new_life()

        self.runner.run(die())
        for call in self.open:
            seen = self.seen.get(call.id)
            usage = {"input": call.input_bound, "output": seen.output} if seen else {}
            self.charge(call, min(price_of(usage), HOLD))
        for call in self.pending:
            self.charge(call, min(price_of(call.usage), HOLD))
        self.open, self.pending = [], []
        self.posted()

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def books_are_clean(self) -> None:
        self.steps += 1
        Books.walked += 1
        if self.steps % AUDIT_EVERY == 0:
            self.audit()

    def audit(self) -> None:
        async def look() -> list[str]:
            found = [*await audit(self.database), *await audit_journals(self.database, self.folder)]
            return [str(violation) for violation in found]

        assert self.runner.run(look()) == []

    def teardown(self) -> None:
        if hasattr(self, "adopter"):
            self.drain()
            self.audit()
            free = self.free_of()
            for call, (name, _) in self.costs.items():
                self.balance[name] -= self.taken(call, free.get(call, 0))
            accounts = self.runner.run(self.catalog.accounts())
            assert {a.name: a.balance_nanos for a in accounts} == self.balance
            self.runner.run(self.life.die())
            self.runner.run(self.database.close())
        self.runner.close()
        shutil.rmtree(self.folder)
        self.databases.give_back(self.dsn)


def price_of(usage: dict[str, int]) -> int:
    return cost_nanos(PRICE, Usage.from_dict(usage), 1_000_000, 500_000)


@pytest.mark.parametrize("part", range(PARTS))
def test_books_are_clean_whatever_happens(databases, part):
    start, number = Books.walked, SEED + part
    while (missing := STEPS - (Books.walked - start)) > 0:
        walks = settings(
            max_examples=-(-missing // WALK),
            stateful_step_count=WALK,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(seed(number)(partial(Books, databases)), settings=walks)
        number += PARTS
    assert Books.walked - start >= STEPS
