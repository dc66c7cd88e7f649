"""Whatever happens in whatever order, the books are clean after every step and hold what a small model
of plain sums says."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
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
from proxy.store.adoption import Adopter
from proxy.store.audit import audit
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.drainer import Drainer
from proxy.store.journal_audit import audit_journals
from proxy.store.leases import Leases
from tests.store.journals import NODE, NOW_MS, PRICE, PRICE_ENTRY, Life, Station, begin, end, new_id

NAMES = ("ada", "ben")
HOLD = 5_000_000
EXAMPLES, STEPS = 8, 20

tokens = st.integers(0, 3000)
which = st.integers(0, 7)  # of whatever there is, by remainder


class Books(RuleBasedStateMachine):
    """One node with one worker, its journal, two accounts."""

    def __init__(self, databases) -> None:
        super().__init__()
        self.databases = databases
        self.dsn = databases.take()
        self.folder = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.balance = dict.fromkeys(NAMES, 0)
        self.pending: list[entry.End] = []
        self.open: list[Begin] = []
        self.seen: dict[str, Progress] = {}
        self.costs: dict[str, tuple[str, int]] = {}  # closed call -> account's name, its cost
        self.leases: list[tuple[str, str, int]] = []

    @initialize()
    def start(self) -> None:
        async def begin_station() -> None:
            self.database = await Database.connect(self.dsn)
            self.catalog = Catalog(self.database)
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
        self.runner.run(self.life.write(entries))

    # -- money -------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), amount=st.integers(1, 20_000_000))
    def top_up(self, name, amount) -> None:
        self.runner.run(self.catalog.top_up(name, amount, new_id()))
        self.balance[name] += amount

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
        name, before = self.costs[call]
        self.costs[call] = (name, cost)
        self.balance[name] -= cost - before

    def charge(self, call, cost) -> None:
        name = next(name for name, id_ in self.ids.items() if id_ == call.account)
        self.costs[call.id] = (name, cost)
        self.balance[name] -= cost

    # -- what may happen to it ---------------------------------------------------------------------

    @rule()
    def drain(self) -> None:
        report = self.runner.run(self.drainer.run_once())
        assert report.alarms == report.damage == []

    @rule()
    def drain_all_again(self) -> None:
        """As if the cursors of what lives were lost."""

        async def again() -> None:
            await self.drainer.run_once()
            await self.database.execute("DELETE FROM segment_cursor WHERE incarnation = $1", self.life.name)
            report = await Drainer(self.database, self.folder, NODE, Station()).run_once()
            assert (report.inserted, report.alarms) == (0, [])

        self.runner.run(again())

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

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def books_are_clean(self) -> None:
        async def look() -> list[str]:
            found = [*await audit(self.database), *await audit_journals(self.database, self.folder)]
            return [str(violation) for violation in found]

        if hasattr(self, "adopter"):
            assert self.runner.run(look()) == []

    def teardown(self) -> None:
        if hasattr(self, "adopter"):
            self.drain()
            accounts = self.runner.run(self.catalog.accounts())
            assert {a.name: a.balance_nanos for a in accounts} == self.balance
            self.runner.run(self.life.die())
            self.runner.run(self.database.close())
        self.runner.close()
        shutil.rmtree(self.folder)
        self.databases.give_back(self.dsn)


def price_of(usage: dict[str, int]) -> int:
    return cost_nanos(PRICE, Usage.from_dict(usage), 1_000_000, 500_000)


def test_books_are_clean_after_every_step(databases):
    run_state_machine_as_test(
        lambda: Books(databases),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,  # the same walks on every machine; the long form takes new ones
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
