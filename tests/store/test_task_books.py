"""Whatever order submits, polls, callbacks, cancels, crashes, refunds and disputes come in: each task has one
end and one charge or none, and the ledger holds what a small model of plain sums says."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

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

from proxy.dialects.owned import CANCELLED, FAILED, RUNNING, SUCCEEDED
from proxy.ledger import bindings
from proxy.ledger.entry import Observed
from proxy.store.adoption import Adopter
from proxy.store.audit import audit
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.deadlines import Deadline
from proxy.store.drainer import Drainer
from proxy.store.due import Due, DueTasks, Later, Learned, decided
from proxy.store.journal_audit import audit_journals
from proxy.store.leases import Leases
from proxy.store.payments import Payments
from tests.store.journals import NOW_MS, PRICE_ENTRY, YUAN, Life, Station, new_id
from tests.store.tasks import COST, DAYS, HOLD, seen, submitted

NAMES = ("ada", "ben")
NODES = 2
SORT = ("openai", "response")
OPEN_MAX = 6  # tasks: each has much happen to it
WALKS, STEPS = (400 if "HEADRACE_SOAK" in os.environ else 24), 80
AUDIT_EVERY = 15  # steps; and at the end of a walk
# The same walks on every machine; new ones in `make soak`.
SEED = random.randrange(1 << 32) if "HEADRACE_SOAK" in os.environ else 0
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # for journals: no disk to wait for

# What the books make of a word: the model's own table, by what the row said before.
SETTLES = {SUCCEEDED: COST, bindings.CHARGED: HOLD}
VOIDS = {FAILED, CANCELLED, bindings.RELEASED}

which = st.integers(0, 7)  # of whatever there is, by remainder
on_node = st.integers(0, NODES - 1)


@dataclass
class Job:
    """A task at the vendor, and what the model's books say of it."""

    owner: str
    vendor_id: str
    node: int  # whose worker submitted it
    entries: list[Any]  # Begin, Bind, End: a worker may die between any two
    written: int = 0
    truth: str = RUNNING  # the vendor's word at the moment
    row: str = ""  # state of its binding; "": there is none yet
    is_closed: bool = False  # its End, or the one that adoption made of it, is in the books
    is_interrupted: bool = False
    cost: int = 0
    refunded: bool = False

    @property
    def call(self) -> str:
        return str(self.entries[0].id)

    def told(self, state: str) -> None:
        """A word about it reaches the books."""
        if self.row in ("pending", "disputed"):
            if state == bindings.GONE and self.row == "pending":
                self.row = "disputed"
            elif self.is_closed and state in SETTLES:
                self.row, self.cost = "settled", SETTLES[state]
            elif self.is_closed and state in VOIDS:
                self.row = "void"
        elif self.row == "void" and state == SUCCEEDED:
            self.row, self.cost = "settled", COST


@dataclass
class Worker:
    """One node's: its journal, and what of it is not in the books yet."""

    folder: Path
    node: str
    life: Any = None
    drainer: Any = None
    adopter: Any = None
    poller: Any = None
    log: list[tuple[str, Job, str]] = field(default_factory=list)  # of the present life
    drained: int = 0
    learned: list[Learned] = field(default_factory=list)  # polls whose answers are not written


class TaskBooks(RuleBasedStateMachine):
    def __init__(self, databases) -> None:
        super().__init__()
        self.databases = databases
        self.dsn = databases.take()
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.jobs: list[Job] = []
        self.leases: list[tuple[str, str]] = []
        self.clock = NOW_MS + 10**6
        self.steps = 0

    @initialize()
    def start(self) -> None:
        async def begin_station() -> None:
            self.database = await Database.connect(self.dsn)
            self.payments = Payments(self.database)
            catalog = Catalog(self.database)
            self.ids = {name: (await catalog.create_account(name)).id for name in NAMES}
            for name in NAMES:
                await catalog.top_up(name, YUAN, f"start-{name}")
            self.workers = []
            for number in range(NODES):
                worker = Worker(self.folder / str(number), f"0199a000-0000-7000-8000-00000000000{number}")
                worker.folder.mkdir()
                worker.drainer = Drainer(
                    self.database, worker.folder, worker.node, Station(), now_ms=lambda: NOW_MS
                )
                worker.adopter = Adopter(self.database, worker.folder, worker.drainer, now_ms=lambda: NOW_MS)
                worker.poller = DueTasks(self.database, f"c-{number}")
                self.workers.append(worker)
                await self.new_life(worker)
            self.lender = Leases(self.database, self.workers[0].node, "life1")
            await self.lender.register()

        self.runner.run(begin_station())

    async def new_life(self, worker: Worker) -> None:
        worker.life = Life(worker.folder)
        await worker.life.write([PRICE_ENTRY])
        worker.log, worker.drained = [], 0

    def job(self, n: int) -> Job:
        return self.jobs[-1 - n % len(self.jobs)]  # young ones are the interesting ones

    def write(self, worker: Worker, entry: Any, *noted: tuple[str, Job, str]) -> None:
        self.runner.run(worker.life.write_unsynced([entry]))
        worker.log += noted

    # -- what customers and the vendor do ----------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), need=st.integers(HOLD, 3 * HOLD))
    def grant(self, name, need) -> None:
        lease = new_id()
        if self.runner.run(self.lender.grant(lease, self.ids[name], need, need)) is not None:
            self.leases.append((lease, name))

    @precondition(lambda self: self.leases and self.steps % 5 == 0)
    @rule(n=which)
    def close_lease(self, n) -> None:
        self.runner.run(self.lender.close(self.leases[n % len(self.leases)][0]))

    @precondition(lambda self: sum(job.row in ("", "pending") for job in self.jobs) < OPEN_MAX)
    @rule(name=st.sampled_from(NAMES), node=on_node, n=which, writes=st.sampled_from([1, 2, 3, 3, 3]))
    def submit(self, name, node, n, writes) -> None:
        own = [lease for lease, owner in self.leases if owner == name]
        vendor_id = f"t{len(self.jobs)}"
        lease = own[n % len(own)] if own and n else ""
        job = Job(name, vendor_id, node, submitted(self.ids[name], vendor_id, lease))
        self.jobs.append(job)
        for _ in range(writes):
            self.goes_on(job)
        if n % 2:
            self.drain(node)

    @precondition(lambda self: any(job.written < 3 and not job.is_interrupted for job in self.jobs))
    @rule(n=which)
    def submit_goes_on(self, n) -> None:
        open_ = [job for job in self.jobs if job.written < 3 and not job.is_interrupted]
        self.goes_on(open_[n % len(open_)])

    def goes_on(self, job: Job) -> None:
        what = ("begin", "bind", "end")[job.written]
        self.write(self.workers[job.node], job.entries[job.written], (what, job, ""))
        job.written += 1

    @precondition(lambda self: self.jobs)
    @rule(n=which, state=st.sampled_from([SUCCEEDED, FAILED, CANCELLED, SUCCEEDED]))
    def vendor_says(self, n, state) -> None:
        """Also what it has denied before."""
        self.job(n).truth = state

    @precondition(lambda self: self.jobs)
    @rule(n=which, node=on_node)
    def customer_looks(self, n, node) -> None:
        """By any node; its journal may be drained before the submit's."""
        job = self.job(n)
        self.write(self.workers[node], seen(job.vendor_id, job.truth), ("seen", job, job.truth))

    @precondition(lambda self: self.jobs and self.steps % 3 == 0)
    @rule(n=which, node=on_node)
    def customer_deletes(self, n, node) -> None:
        job = self.job(n)
        self.write(self.workers[node], seen(job.vendor_id, bindings.GONE), ("seen", job, bindings.GONE))

    @precondition(lambda self: self.jobs)
    @rule(n=which)
    def callback(self, n) -> None:
        job = self.job(n)
        found = self.runner.run(self.workers[0].poller.hurry([job.call], self.clock))
        assert found == ({job.call} if job.row else set())

    # -- what the poller does ----------------------------------------------------------------------------

    @precondition(lambda self: any(job.row in ("pending", "disputed") for job in self.jobs))
    @rule(node=on_node, count=st.integers(1, 4), is_lost=st.booleans(), is_late=st.booleans())
    def poll(self, node, count, is_lost, is_late) -> None:
        """Late answers wait to be written: others claim the same tasks meanwhile."""
        worker = self.workers[node]
        self.clock += 10
        learned = Learned()
        for due in self.runner.run(worker.poller.claim({SORT: count}, self.clock, self.clock + 5)):
            job = next(job for job in self.jobs if job.vendor_id == due.vendor_id)
            assert job.row in ("pending", "disputed")
            if job.truth == RUNNING and is_lost:
                learned.disputes.append((due, "the vendor does not know it", self.clock + 100))
            elif job.truth == RUNNING:
                learned.later.append(Later(due, self.clock))
            else:
                learned.seen.append(seen(due.vendor_id, job.truth))
        if is_late:
            worker.learned.append(learned)
        else:
            self.write_learned(worker, learned)

    @precondition(lambda self: any(worker.learned for worker in self.workers))
    @rule(n=which)
    def write_polls(self, n) -> None:
        busy = [worker for worker in self.workers if worker.learned]
        worker = busy[n % len(busy)]
        self.write_learned(worker, worker.learned.pop(0))

    def write_learned(self, worker: Worker, learned: Learned) -> None:
        fences = {due.id: due.polls for due, _, _ in learned.disputes}
        rows = self.runner.run(self.database.fetch("SELECT id, polls FROM binding"))
        in_force = {row["id"].hex for row in rows if fences.get(row["id"].hex) == row["polls"]}
        self.runner.run(worker.poller.write(learned, DAYS))
        for it in learned.seen:
            self.tell(it)
        for due, _, _ in learned.disputes:
            job = self.job_of(due)
            if due.id in in_force and job.row == "pending":
                job.row = "disputed"

    def tell(self, it: Observed) -> None:
        next(job for job in self.jobs if job.vendor_id == it.vendor_id).told(it.state)

    def job_of(self, due: Due) -> Job:
        return next(job for job in self.jobs if job.vendor_id == due.vendor_id)

    @precondition(lambda self: self.steps % 5 == 0)
    @rule()
    def deadline(self) -> None:
        self.sweep()

    def sweep(self) -> None:
        sweep = self.workers[0].poller.sweep([Deadline(SORT, NOW_MS + 1, self.clock + 100)], 0, self.clock)
        self.runner.run(sweep)
        for job in self.jobs:
            job.row = "disputed" if job.row == "pending" else job.row

    @precondition(lambda self: any(job.row == "disputed" for job in self.jobs))
    @rule(n=which, node=on_node, is_charged=st.booleans())
    def operator_decides(self, n, node, is_charged) -> None:
        """At the same time as another one who thinks otherwise."""
        disputes = self.runner.run(self.workers[node].poller.disputes())
        dispute = disputes[n % len(disputes)]
        self.decide(node, dispute, is_charged)
        self.decide(1 - node, dispute, not is_charged)

    def decide(self, node: int, dispute: Any, is_charged: bool) -> None:
        word = decided(dispute, new_id(), is_charged, NOW_MS)
        self.runner.run(self.workers[node].poller.settle([word], DAYS))
        self.tell(word)

    def time_decides(self) -> None:
        self.clock += 1000
        for dispute in self.runner.run(self.workers[0].poller.disputes(self.clock)):
            self.decide(0, dispute, False)

    @precondition(lambda self: any(job.cost and not job.refunded for job in self.jobs))
    @rule(n=which)
    def refund(self, n) -> None:
        paid = [job for job in self.jobs if job.cost and not job.refunded]
        job = paid[n % len(paid)]
        for _ in range(2):
            self.runner.run(self.payments.refund_call(job.call, "it is ugly"))
        job.refunded = True

    # -- what happens to the station ---------------------------------------------------------------------

    @rule(node=on_node)
    def drain(self, node) -> None:
        worker = self.workers[node]
        self.runner.run(worker.life.synced())
        report = self.runner.run(worker.drainer.run_once())
        assert report.alarms == report.damage == []
        self.posted(worker, worker.drained)

    @precondition(lambda self: self.steps % 5 == 0)
    @rule(node=on_node)
    def drain_all_again(self, node) -> None:
        """As if the cursors of what lives were lost."""
        self.drain(node)
        worker = self.workers[node]

        async def again() -> None:
            sql = "DELETE FROM segment_cursor WHERE incarnation = $1"
            await self.database.execute(sql, worker.life.name)
            report = await Drainer(self.database, worker.folder, worker.node, Station()).run_once()
            assert report.alarms == []

        self.runner.run(again())
        self.posted(worker, 0)

    @precondition(lambda self: self.steps % 5 == 0)
    @rule(node=on_node)
    def kill(self, node) -> None:
        """The node's worker dies and is adopted; its control's polls are never written."""
        worker = self.workers[node]
        worker.learned = []

        async def die() -> None:
            await worker.life.die()
            (adopted,) = await worker.adopter.run_once()
            assert adopted.alarms == []

        self.runner.run(die())
        self.posted(worker, worker.drained)
        for job in self.jobs:
            if job.node == node and 0 < job.written < 3 and not job.is_interrupted:
                job.is_interrupted = job.is_closed = True
        self.runner.run(self.new_life(worker))

    def posted(self, worker: Worker, since: int) -> None:
        """Entries of the journal reach the books: within a batch bindings and ends before what was seen."""
        batch = worker.log[since:]
        for what, job, _ in batch:
            if what == "bind" and not job.row:
                job.row = "pending"
        for what, job, _ in batch:
            if what == "end":
                job.is_closed = True
        for what, job, state in batch:
            if what == "seen":
                job.told(state)
        worker.drained = len(worker.log)

    # -- what must hold ----------------------------------------------------------------------------------

    @invariant()
    def books_are_clean(self) -> None:
        self.steps += 1
        if self.steps % AUDIT_EVERY == 0:
            self.audit()

    def audit(self) -> None:
        async def look() -> list[str]:
            found = await audit(self.database)
            for worker in self.workers:
                found += await audit_journals(self.database, worker.folder)
            return [str(violation) for violation in found]

        assert self.runner.run(look()) == []
        rows = self.runner.run(self.database.fetch("SELECT vendor_id, state, hold_nanos FROM binding"))
        held = {job.vendor_id: job for job in self.jobs if job.row}
        waits = ("pending", "disputed")
        assert {(row["vendor_id"], row["state"], row["hold_nanos"]) for row in rows} == {
            (job.vendor_id, job.row, HOLD if job.row in waits else 0) for job in held.values()
        }
        rows = self.runner.run(self.database.fetch("SELECT name, balance_nanos FROM account"))
        assert {row["name"]: row["balance_nanos"] for row in rows} == {
            name: YUAN - sum(job.cost for job in self.jobs if job.owner == name and not job.refunded)
            for name in NAMES
        }

    def teardown(self) -> None:
        if hasattr(self, "lender"):
            for node in range(NODES):
                self.drain(node)
            self.audit()
            self.everything_ends()
            self.runner.run(self.database.close())
        self.runner.close()
        shutil.rmtree(self.folder)
        self.databases.give_back(self.dsn)

    def everything_ends(self) -> None:
        """Nothing is stuck: once workers are adopted and times are over, each task has its one end."""
        for node in range(NODES):
            self.kill(node)
        self.sweep()
        self.time_decides()
        self.audit()
        assert {job.row for job in self.jobs} <= {"", "settled", "void"}
        rows = self.runner.run(self.database.fetch("SELECT id FROM usage"))
        assert sorted(row["id"].hex for row in rows) == sorted(job.call for job in self.jobs)
        for worker in self.workers:
            self.runner.run(worker.life.die())


def test_each_task_has_one_end_whatever_happens(databases):
    walks = settings(
        max_examples=WALKS,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(SEED)(partial(TaskBooks, databases)), settings=walks)
