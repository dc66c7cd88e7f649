"""A worker's slices of limits, against a control that hands them out."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.access.limits import Limit, LimitBook

NOW = 1_800_000_000_000
MINUTE = 60_000

RATE = Limit("k1:rpm", "rate", 400)
MANY = Limit("k1:con", "concurrency", 400)
FEW = Limit("k1:con", "concurrency", 3)


def book(workers: int = 1, **granted: int) -> LimitBook:
    made = LimitBook(workers)
    for kind, count in granted.items():
        made.add(RATE if kind == "rate" else MANY, count, NOW + MINUTE if kind == "rate" else 0)
    return made


def test_a_call_without_limits_needs_nothing() -> None:
    assert book().missing((), NOW) == []


def test_what_is_missing_is_asked_for_in_a_slice() -> None:
    (want,) = book(workers=2).missing((RATE,), NOW)
    assert (want.limit, want.count) == (RATE, 50)  # a quarter of a worker's share


def test_a_small_limit_is_counted_one_by_one() -> None:
    (want,) = book(workers=1).missing((FEW,), NOW)
    assert want.count == 1
    (want,) = book(workers=50).missing((RATE,), NOW)
    assert want.count == 1


def test_nothing_is_taken_by_looking() -> None:
    holds = book(rate=1)
    assert holds.missing((RATE,), NOW) == holds.missing((RATE,), NOW) == []


def test_all_or_what_is_missing() -> None:
    assert [want.limit for want in book(rate=1).missing((RATE, MANY), NOW)] == [MANY]


def test_a_rate_is_used_up_and_never_given_back() -> None:
    holds = book(rate=2)
    for _ in range(2):
        assert holds.missing((RATE,), NOW) == []
        holds.take((RATE,))
        assert holds.release((RATE,)) == []
    assert len(holds.missing((RATE,), NOW)) == 1


def test_a_window_ends_with_what_was_left_of_it() -> None:
    holds = book(rate=10)
    assert holds.missing((RATE,), NOW + MINUTE - 1) == []
    assert len(holds.missing((RATE,), NOW + MINUTE)) == 1
    holds.add(RATE, 1, NOW + 2 * MINUTE)
    holds.take((RATE,))
    assert len(holds.missing((RATE,), NOW + MINUTE)) == 1


def test_slices_of_one_window_add_up() -> None:
    holds = book(rate=1)
    holds.add(RATE, 1, NOW + MINUTE)
    holds.take((RATE,))
    assert holds.missing((RATE,), NOW) == []


def test_concurrency_is_free_again_when_a_call_ends() -> None:
    holds = book(con=1)
    holds.take((MANY,))
    assert len(holds.missing((MANY,), NOW)) == 1
    assert holds.release((MANY,)) == []
    assert holds.missing((MANY,), NOW) == []


def test_small_concurrency_goes_back_to_control_at_once() -> None:
    holds = LimitBook(1)
    holds.add(FEW, 1, 0)
    holds.take((FEW,))
    assert holds.release((FEW,)) == [("k1:con", 1)]
    assert len(holds.missing((FEW,), NOW)) == 1


def test_idle_concurrency_goes_back_and_busy_stays() -> None:
    holds = book(con=5)
    holds.take((MANY,))
    assert holds.idle(NOW) == []
    assert holds.held() == {"k1:con": 5}
    holds.release((MANY,))
    assert holds.idle(NOW) == [("k1:con", 5)]
    assert holds.idle(NOW) == []
    assert holds.held() == {}


def test_ended_windows_are_forgotten() -> None:
    holds = book(rate=5)
    assert holds.idle(NOW + MINUTE) == []
    assert holds._slices == {}


def test_a_call_that_outlives_its_slice_ends_all_the_same() -> None:
    holds = LimitBook(1)
    assert holds.release((RATE, MANY)) == []


# -- against a control -----------------------------------------------------------------------------


class Shared(RuleBasedStateMachine):
    """Some workers share one concurrency limit; control never hands out more than there is."""

    amount: int
    workers: list[LimitBook]

    @initialize(amount=st.integers(1, 60), workers=st.integers(1, 4))
    def start(self, amount: int, workers: int) -> None:
        self.amount = amount
        self.limit = Limit("a1:con", "concurrency", amount)
        self.workers = [LimitBook(workers) for _ in range(workers)]
        self.out = [0] * workers  # what control thinks that each holds
        self.running = [0] * workers

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(0, len(self.workers) - 1))
        worker = self.workers[n]
        for want in worker.missing((self.limit,), NOW):
            granted = min(want.count, self.amount - sum(self.out))
            if not granted:
                return  # refused
            self.out[n] += granted
            worker.add(self.limit, granted, 0)
        worker.take((self.limit,))
        self.running[n] += 1

    @precondition(lambda self: any(self.running))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from([n for n, calls in enumerate(self.running) if calls]))
        self.running[n] -= 1
        for _, count in self.workers[n].release((self.limit,)):
            self.out[n] -= count

    @rule()
    def a_second_passes(self) -> None:
        for n, worker in enumerate(self.workers):
            for _, count in worker.idle(NOW):
                self.out[n] -= count

    @invariant()
    def no_more_run_than_may(self) -> None:
        assert sum(self.running) <= self.amount

    @invariant()
    def both_sides_agree(self) -> None:
        assert [worker.held().get("a1:con", 0) for worker in self.workers] == self.out

    def teardown(self) -> None:
        for n, worker in enumerate(self.workers):
            for _ in range(self.running[n]):
                self.out[n] -= sum(count for _, count in worker.release((self.limit,)))
        self.a_second_passes()
        assert self.out == [0] * len(self.workers), "nothing leaks"


TestShared = Shared.TestCase
TestShared.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("amount", [1, 9, 10, 39, 40, 1000])
def test_a_slice_is_never_more_than_the_limit(amount: int, workers: int) -> None:
    (want,) = LimitBook(workers).missing((Limit("b", "rate", amount),), NOW)
    assert 1 <= want.count <= amount
