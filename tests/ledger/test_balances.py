"""Slices and leases: nobody spends what Postgres did not grant, and nothing granted gets lost."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from proxy.ledger.balances import (
    AHEAD_PART,
    CALLS_AHEAD,
    LOW_CALLS,
    LOW_PART,
    ON_TRUST,
    NodeLeases,
    Slices,
)

A = 7  # an account


# -- a worker ------------------------------------------------------------------------------------


def test_a_hold_is_taken_only_where_it_fits():
    slices = Slices()
    assert slices.take(A, 1) is None
    slices.add(A, "L", 100)
    assert slices.take(A, 101) is None
    assert slices.take(A, 60) == ("L", 40)
    assert slices.take(A, 41) is None
    assert slices.take(A, 40) == ("L", 0)
    assert slices.figures(A) == (0, 100)


def test_settling_below_the_hold_frees_the_rest():
    slices = Slices()
    slices.add(A, "L", 100)
    slices.take(A, 100)
    slices.settle(A, "L", 100, 30)
    assert slices.figures(A) == (70, 0)


def test_a_settlement_above_the_hold_is_never_refused_and_stops_new_holds():
    slices = Slices()
    slices.add(A, "L", 100)
    slices.take(A, 50)
    slices.settle(A, "L", 50, 130)
    assert slices.figures(A) == (-30, 0)
    assert slices.take(A, 1) is None
    assert slices.wants(A, 10) == (40, 40 + CALLS_AHEAD * 10)


def test_a_settlement_is_taken_even_for_a_lease_that_is_not_known():
    slices = Slices()
    slices.settle(A, "gone", 0, 5)
    assert slices.figures(A) == (-5, 0)


def test_the_money_of_several_leases_adds_up():
    slices = Slices()
    slices.add(A, "L1", 60)
    slices.add(A, "L2", 60)
    assert slices.take(A, 100) in (("L1", 20), ("L2", 20))
    assert slices.figures(A) == (20, 100)
    assert sum(amount for _, amount in slices.give_back(A)) == 20


def test_money_on_trust_is_not_mixed_with_leased_money():
    slices = Slices()
    slices.add(A, "L", 60)
    slices.add(A, ON_TRUST, 50)
    assert slices.take(A, 100) is None
    assert slices.take(A, 60) == ("L", 50)  # what is on trust is the most that is left
    assert slices.take(A, 50) == (ON_TRUST, 0)
    slices.settle(A, ON_TRUST, 50, 10)
    assert slices.give_back(A) == [(ON_TRUST, 40)]


def test_what_nobody_touched_since_the_last_look_is_given_back():
    slices = Slices()
    slices.add(A, "L", 100)
    assert slices.idle() == []
    slices.take(A, 10)
    assert slices.idle() == []
    assert slices.idle() == [(A, "L", 90)]
    assert slices.idle() == []
    assert slices.hello() == [(A, "L", 10)]


def test_who_spends_fast_asks_for_more_and_asks_earlier():
    slices = Slices()
    slices.add(A, "L", 100_000)
    for _ in range(100):
        slices.take(A, 300)
        slices.settle(A, "L", 300, 160)
    assert slices.wants(A, 300) == (0, CALLS_AHEAD * 300)
    assert not slices.is_low(A, LOW_CALLS * 300, 300)
    assert slices.idle() == []  # a second is over: 16,000 were spent in it
    assert slices.wants(A, 300) == (0, 16_000 // AHEAD_PART)
    assert slices.is_low(A, 16_000 // LOW_PART - 1, 300)
    assert not slices.is_low(A, 16_000 // LOW_PART, 300)
    slices.settle(A, "L", 0, 0)  # a free call
    assert slices.idle() == []
    assert slices.wants(A, 300) == (0, CALLS_AHEAD * 300)  # it is calm again
    assert not slices.is_low(A, LOW_CALLS * 300, 300)


# -- a node --------------------------------------------------------------------------------------


def test_a_grant_comes_out_of_an_open_lease():
    leases = NodeLeases()
    assert leases.grant("w0", A, 10, 50) is None
    leases.open("L", A, 100)
    assert leases.grant("w0", A, 10, 50) == ("L", 50)
    assert leases.grant("w1", A, 10, 80) == ("L", 50)
    assert leases.grant("w1", A, 1, 1) is None
    leases.give("w0", "L", 20)
    assert leases.free("L") == 20


def test_a_dead_worker_keeps_what_it_used():
    leases = NodeLeases()
    leases.open("L", A, 100)
    leases.grant("w0", A, 80, 80)
    leases.worker_dead("w0", {"L": 30})
    assert leases.free("L") == 70


def test_a_dead_worker_that_overspent_makes_the_next_ask_larger():
    leases = NodeLeases()
    leases.open("L", A, 100)
    leases.grant("w0", A, 100, 100)
    leases.worker_dead("w0", {"L": 105})
    assert leases.free("L") == 0
    at_least, _ = leases.asks(A, 10, 50)
    assert at_least == 15
    leases.extend("L", at_least)
    assert leases.grant("w1", A, 10, 50) == ("L", 10)


def test_after_a_restart_old_leases_wait_for_everyone_who_may_hold_of_them():
    leases = NodeLeases()
    leases.load([("old", A, 100)], ["w0", "w1"])
    assert leases.free("old") == 0
    assert leases.grant("w0", A, 1, 1) is None
    leases.open("new", A, 20)
    assert leases.grant("w0", A, 5, 5) == ("new", 5)
    leases.adopt_hello("w0", [(A, "old", 60), (A, "new", 5)])
    assert leases.grant("w0", A, 20, 20) is None
    leases.worker_dead("w1", {"old": 10})
    assert leases.free("old") == 30
    assert leases.open_lease(A) == "old"


def test_what_was_on_its_way_when_the_connection_broke_is_free_again():
    leases = NodeLeases()
    leases.open("L", A, 100)
    leases.grant("w0", A, 60, 60)
    leases.adopt_hello("w0", [])
    assert leases.free("L") == 100


def test_a_closed_lease_is_forgotten():
    leases = NodeLeases()
    leases.open("L", A, 100)
    leases.close("L")
    leases.close("L")
    assert leases.open_lease(A) is None
    assert list(leases.surplus()) == []


# -- all of it, against a tiny bank --------------------------------------------------------------


@dataclass
class Bank:
    """What Postgres does with one account, in five lines each."""

    balance: int = 0
    leases: dict[str, list[int]] = field(default_factory=dict)  # id -> [granted, used], open ones
    uses: dict[tuple[str, str], int] = field(default_factory=dict)  # (worker, lease) -> used

    @property
    def available(self) -> int:
        return self.balance - sum(granted - used for granted, used in self.leases.values())

    def grant(self, lease: str, at_least: int, at_most: int) -> int:
        if self.available < at_least:
            return 0
        amount = min(at_most, self.available)
        self.leases.setdefault(lease, [0, 0])[0] += amount
        return amount

    def drain(self, worker: str, lease: str, cost: int) -> None:
        self.balance -= cost
        self.leases[lease][1] += cost
        self.uses[worker, lease] = self.uses.get((worker, lease), 0) + cost


@dataclass
class Worker:
    name: str
    slices: Slices = field(default_factory=Slices)
    journal: list[tuple[str, int]] = field(default_factory=list)  # settled, not yet drained
    heard: bool = True  # by the present control
    holds: dict[int, tuple[str, int]] = field(default_factory=dict)  # call -> (lease, hold)


class Spending(RuleBasedStateMachine):
    """Calls whose cost stays within their hold, on a node whose parts die and forget messages."""

    workers = Bundle("workers")
    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.bank = Bank()
        self.leases = NodeLeases()
        self.alive: dict[str, Worker] = {}
        self.dead: dict[str, Worker] = {}
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number

    @initialize()
    def some_money(self) -> None:
        self.bank.balance = 1000

    @rule(amount=st.integers(1, 500))
    def topup(self, amount: int) -> None:
        self.bank.balance += amount

    @rule(target=workers)
    def worker_starts(self) -> str:
        name = f"w{self.next()}"
        self.alive[name] = Worker(name)
        self.leases.adopt_hello(name, [])
        return name

    @rule(target=calls, name=workers, hold=st.integers(1, 120), lost=st.booleans())
    def admit(self, name: str, hold: int, lost: bool) -> tuple[str, int]:
        worker = self.alive.get(name)
        call = self.next()
        if worker is None:
            return name, call
        taken = worker.slices.take(A, hold)
        if taken is None and worker.heard:
            need, want = worker.slices.wants(A, hold)
            granted = self.ask(worker.name, need, want)
            if granted is not None and lost:
                self.reconnect(worker)
            elif granted is not None:
                worker.slices.add(A, *granted)
                taken = worker.slices.take(A, hold)
                assert taken is not None, "what was granted is enough"
        if taken is not None:
            worker.holds[call] = (taken[0], hold)
        return name, call

    def ask(self, worker: str, need: int, want: int) -> tuple[str, int] | None:
        granted = self.leases.grant(worker, A, need, want)
        if granted is None:
            at_least, at_most = self.leases.asks(A, need, want)
            lease = self.leases.open_lease(A)
            new = lease or f"L{self.next()}"
            more = self.bank.grant(new, at_least, at_most)
            if not more:
                return None
            if lease is None:
                self.leases.open(new, A, more)
            else:
                self.leases.extend(lease, more)
            granted = self.leases.grant(worker, A, need, want)
            assert granted is not None, "what Postgres was asked for is enough"
        assert need <= granted[1] <= max(need, want)
        return granted

    def reconnect(self, worker: Worker) -> None:
        worker.heard = True
        self.leases.adopt_hello(worker.name, worker.slices.hello())

    @rule(ended=consumes(calls), part=st.integers(0, 100))
    def settle(self, ended: tuple[str, int], part: int) -> None:
        name, call = ended
        worker = self.alive.get(name)
        if worker is not None and call in worker.holds:
            lease, hold = worker.holds.pop(call)
            cost = hold * part // 100
            worker.slices.settle(A, lease, hold, cost)
            worker.journal.append((lease, cost))

    @rule(name=workers, lost=st.booleans())
    def give_idle_money_back(self, name: str, lost: bool) -> None:
        worker = self.alive.get(name)
        if worker is not None and worker.heard:
            for _, lease, amount in worker.slices.idle():
                if not lost:
                    self.leases.give(name, lease, amount)
            if lost:
                self.reconnect(worker)

    @rule(name=workers)
    def drain(self, name: str) -> None:
        worker = self.alive.get(name)
        if worker is not None:
            for lease, cost in worker.journal:
                self.bank.drain(name, lease, cost)
            worker.journal.clear()

    @rule(name=workers)
    def worker_dies(self, name: str) -> None:
        if name in self.alive:
            self.dead[name] = self.alive.pop(name)

    @rule(part=st.integers(0, 100))
    def adopt(self, part: int) -> None:
        """Drain what a dead worker settled, close its open calls within their hold, free the rest."""
        if not self.dead:
            return
        name, worker = self.dead.popitem()
        for lease, cost in worker.journal:
            self.bank.drain(name, lease, cost)
        for lease, hold in worker.holds.values():
            self.bank.drain(name, lease, hold * part // 100)
        used = {lease: n for (of, lease), n in self.bank.uses.items() if of == name}
        self.leases.worker_dead(name, used)

    @rule()
    def control_restarts(self) -> None:
        self.leases = NodeLeases()
        rows = [(lease, A, granted) for lease, (granted, _) in self.bank.leases.items()]
        self.leases.load(rows, [*self.alive, *self.dead])
        known = {*self.alive, *self.dead}
        before: dict[str, int] = {}
        for (name, lease), used in self.bank.uses.items():
            if name not in known:
                before[lease] = before.get(lease, 0) + used
        self.leases.worker_dead("before", before)
        for worker in self.alive.values():
            worker.heard = False

    @rule(name=workers)
    def hello(self, name: str) -> None:
        worker = self.alive.get(name)
        if worker is not None:
            self.reconnect(worker)

    @rule()
    def surplus_goes_back_to_postgres(self) -> None:
        for lease, _, free in list(self.leases.surplus()):
            granted, used = self.bank.leases[lease]
            if free := min(free, self.leases.free(lease)):
                self.leases.extend(lease, -free)
                if used <= granted - free:
                    self.bank.leases[lease][0] -= free
                else:  # as the store does: what is used cannot be given back
                    self.leases.extend(lease, free)

    @invariant()
    def what_is_set_aside_is_covered(self) -> None:
        workers = [*self.alive.values(), *self.dead.values()]
        held = sum(hold for w in workers for _, hold in w.holds.values())
        undrained = sum(cost for w in workers for _, cost in w.journal)
        assert self.bank.available >= 0
        assert self.bank.balance - undrained - held >= 0

    @invariant()
    def workers_hold_what_the_node_gave(self) -> None:
        for worker in self.alive.values():
            available, held = worker.slices.figures(A)
            assert available >= 0
            assert held == sum(hold for _, hold in worker.holds.values())
        free = sum(self.leases.free(lease) for lease in self.bank.leases)
        granted = sum(granted for granted, _ in self.bank.leases.values())
        given = sum(n for w in self.alive.values() for _, _, n in w.slices.hello())
        assert free + given <= granted

    def teardown(self) -> None:
        """Everything ends: all that was set aside is there again."""
        for name in list(self.alive):
            self.worker_dies(name)
        while self.dead:
            self.adopt(50)
        for lease in list(self.bank.leases):
            self.leases.close(lease)
            del self.bank.leases[lease]
        assert self.bank.available == self.bank.balance >= 0


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
