"""A worker's slices of limits, against a control that hands them out."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.access.limits import Demand, Limit, LimitBook, Share, limits_of, rate_lines, tightest
from proxy.dialects.headers import ANTHROPIC_RATES, X_RATES, moment, span
from proxy.ledger.balances import AHEAD_PART, CALLS_AHEAD

NOW = 1_800_000_000_000
MINUTE = 60_000

RATE = Limit("k1:rpm", "requests_per_minute", 400)
MANY = Limit("k1:con", "concurrency", 400)
FEW = Limit("k1:con", "concurrency", 3)
TOKENS = Limit("k1:tpm", "tokens_per_minute", 10_000)
MONEY = Limit("k1:spend", "spend_total", 5_000)
ONE = Demand()


def book(workers: int = 1, **granted: int) -> LimitBook:
    made = LimitBook(workers)
    limits = {"rate": RATE, "con": MANY, "tokens": TOKENS, "money": MONEY}
    for kind, count in granted.items():
        made.add(limits[kind], count, 0 if kind == "con" else NOW + MINUTE)
    return made


def take(holds: LimitBook, *limits: Limit, demand: Demand = ONE, now: int = NOW) -> list[Share] | None:
    """The slices that were taken of, or None."""
    shares, wants = holds.find(limits, demand, now)
    if wants:
        return None
    holds.take(shares, demand)
    return shares


def missing(holds: LimitBook, *limits: Limit, demand: Demand = ONE, now: int = NOW) -> list[Limit]:
    return [want.limit for want in holds.find(limits, demand, now)[1]]


def test_a_call_without_limits_needs_nothing() -> None:
    assert book().find((), ONE, NOW) == ([], [])


def test_what_is_missing_is_asked_for_in_a_slice() -> None:
    _, (want,) = book(workers=2).find((RATE,), ONE, NOW)
    assert (want.limit, want.need, want.want) == (RATE, 1, 50)  # a quarter of a worker's share


def test_a_small_limit_is_counted_one_by_one() -> None:
    _, (want,) = book(workers=1).find((FEW,), ONE, NOW)
    assert (want.need, want.want) == (1, 1)
    _, (want,) = book(workers=50).find((RATE,), ONE, NOW)
    assert (want.need, want.want) == (1, 1)


def test_tokens_and_money_are_asked_for_some_calls_ahead() -> None:
    _, wants = book(tokens=50).find((TOKENS, MONEY), Demand(1, 1, 200, 30), NOW)
    assert [(want.need, want.want) for want in wants] == [(150, 950), (30, 150)]
    _, (want,) = book(tokens=50).find((TOKENS,), Demand(1, 1, 9_000, 0), NOW)
    assert (want.need, want.want) == (8_950, 8_950)  # more than a share, if one call needs it


def test_what_was_spent_in_the_last_second_is_asked_for_in_parts() -> None:
    holds, demand = book(money=900), Demand(1, 1, 0, 30)
    for _ in range(40):
        shares = take(holds, MONEY, demand=demand)
        assert shares is not None
        holds.release(shares, demand, 22, {})
    assert [want.want for want in holds.find((MONEY,), demand, NOW)[1]] == [10 + CALLS_AHEAD * 30]
    holds.idle(NOW)
    assert [want.want for want in holds.find((MONEY,), demand, NOW)[1]] == [10 + 40 * 22 // AHEAD_PART]
    holds.idle(NOW)
    assert [want.want for want in holds.find((MONEY,), demand, NOW)[1]] == [30 + CALLS_AHEAD * 30]


def test_nothing_is_taken_by_looking() -> None:
    holds = book(rate=1)
    assert missing(holds, RATE) == missing(holds, RATE) == []


def test_all_or_what_is_missing() -> None:
    assert missing(book(rate=1), RATE, MANY) == [MANY]


def test_a_rate_is_used_up_and_never_given_back() -> None:
    holds = book(rate=2)
    for _ in range(2):
        shares = take(holds, RATE)
        assert shares is not None and holds.release(shares, ONE, 0, {}) == []
    assert missing(holds, RATE) == [RATE]


def test_a_call_settles_the_tokens_and_the_money_that_it_used() -> None:
    holds = book(tokens=1_000, money=1_000)
    demand = Demand(1, 1, 600, 400)
    shares = take(holds, TOKENS, MONEY, demand=demand)
    assert shares is not None and missing(holds, TOKENS, demand=demand) == [TOKENS]
    holds.release(shares, demand, 900, {"input": 70, "output": 30})
    assert [part.free for _, part in shares] == [900, 100]


def test_a_call_that_used_more_than_it_took_is_made_up_for_first() -> None:
    holds = book(tokens=100)
    shares = take(holds, TOKENS, demand=Demand(1, 1, 100, 0))
    assert shares is not None
    holds.release(shares, Demand(1, 1, 100, 0), 0, {"input": 350})
    _, (want,) = holds.find((TOKENS,), Demand(1, 1, 10, 0), NOW)
    assert want.need == 260


def test_a_window_ends_with_what_was_left_of_it() -> None:
    holds = book(rate=10)
    assert missing(holds, RATE, now=NOW + MINUTE - 1) == []
    assert missing(holds, RATE, now=NOW + MINUTE) == [RATE]
    holds.add(RATE, 1, NOW + 2 * MINUTE)
    assert take(holds, RATE, now=NOW + MINUTE) is not None
    assert missing(holds, RATE, now=NOW + MINUTE) == [RATE]


def test_a_call_settles_in_the_window_in_which_it_began() -> None:
    holds = book(tokens=500)
    demand = Demand(1, 1, 500, 0)
    shares = take(holds, TOKENS, demand=demand)
    assert shares is not None
    holds.add(TOKENS, 500, NOW + 2 * MINUTE)
    holds.release(shares, demand, 0, {"input": 10_000})
    assert missing(holds, TOKENS, demand=demand, now=NOW + MINUTE) == []


def test_slices_of_one_window_add_up() -> None:
    holds = book(rate=1)
    holds.add(RATE, 1, NOW + MINUTE)
    assert take(holds, RATE) is not None
    assert missing(holds, RATE) == []


def test_concurrency_is_free_again_when_a_call_ends() -> None:
    holds = book(con=1)
    shares = take(holds, MANY)
    assert shares is not None and missing(holds, MANY) == [MANY]
    assert holds.release(shares, ONE, 0, {}) == []
    assert missing(holds, MANY) == []


def test_small_concurrency_goes_back_to_control_at_once() -> None:
    holds = LimitBook(1)
    holds.add(FEW, 1, 0)
    shares = take(holds, FEW)
    assert shares is not None and holds.release(shares, ONE, 0, {}) == [("k1:con", 1)]
    assert missing(holds, FEW) == [FEW]


def test_what_is_idle_for_two_looks_goes_back_and_what_is_busy_stays() -> None:
    holds = book(con=5, rate=5)
    shares = take(holds, MANY)
    assert shares is not None and holds.idle(NOW) == []
    assert holds.idle(NOW) == [("k1:con", 0, 4), ("k1:rpm", NOW + MINUTE, 5)]
    assert holds.held() == [("k1:con", 0, 1), ("k1:rpm", NOW + MINUTE, 0)]
    holds.release(shares, ONE, 0, {})
    assert holds.idle(NOW) == []
    assert holds.idle(NOW) == [("k1:con", 0, 1)]
    assert holds.held() == [("k1:rpm", NOW + MINUTE, 0)]


def test_what_did_not_get_away_is_kept() -> None:
    holds = book(rate=5)
    until_ms, amount = holds.give_back("k1:rpm")
    assert (until_ms, amount) == (NOW + MINUTE, 5) and missing(holds, RATE) == [RATE]
    holds.keep("k1:rpm", until_ms, amount)
    assert missing(holds, RATE) == []
    assert holds.give_back("k2:rpm") == (0, 0)


def test_ended_windows_are_forgotten() -> None:
    holds = book(rate=5)
    assert holds.idle(NOW + MINUTE) == []
    assert holds.held() == []


def fields(lines: bytes) -> dict[bytes, bytes]:
    assert lines.endswith(b"\r\n")
    return {name: value for name, _, value in (line.partition(b": ") for line in lines[:-2].split(b"\r\n"))}


def test_an_answer_tells_the_rate_of_which_least_is_left() -> None:
    holds = LimitBook(1)
    wide = Limit("a1:rpd", "requests_per_day", 9_000)
    holds.add(RATE, 50, NOW + 12_400, left=150)
    holds.add(wide, 500, NOW + 7_200_000, left=8_000)
    holds.add(TOKENS, 1_000, NOW + 12_400, left=0)
    holds.add(MANY, 10, 0)
    limits = (RATE, wide, TOKENS, MANY)
    demand = Demand(1, 1, 300, 0)
    shares = take(holds, *limits, demand=demand)
    assert shares is not None
    assert fields(rate_lines(tightest(shares), X_RATES, NOW)) == {
        b"x-ratelimit-limit-requests": b"400",
        b"x-ratelimit-remaining-requests": b"199",
        b"x-ratelimit-reset-requests": b"13s",
        b"x-ratelimit-limit-tokens": b"10000",
        b"x-ratelimit-remaining-tokens": b"700",
        b"x-ratelimit-reset-tokens": b"13s",
    }
    assert fields(rate_lines(tightest(shares[:1]), ANTHROPIC_RATES, NOW)) == {
        b"anthropic-ratelimit-requests-limit": b"400",
        b"anthropic-ratelimit-requests-remaining": b"199",
        b"anthropic-ratelimit-requests-reset": moment(12_400, NOW),
    }
    assert rate_lines(tightest(()), X_RATES, NOW) == b""


def test_anthropics_moments_are_rfc_3339_and_never_before_the_window_ends() -> None:
    at_ms = 1_769_817_599_001  # a second before midnight of the last of January, and a bit
    assert moment(1_000, at_ms) == b"2026-01-31T00:00:01Z"
    assert moment(-5, at_ms) == b"2026-01-31T00:00:00Z"


@pytest.mark.parametrize(
    ("ms", "text"), [(0, b"0s"), (1, b"1s"), (59_001, b"1m0s"), (360_000, b"6m0s"), (7_262_000, b"2h1m2s")]
)
def test_spans_are_written_as_openai_writes_them(ms: int, text: bytes) -> None:
    assert span(ms) == text


def test_limits_of_an_owner_have_buckets_of_their_own() -> None:
    limits = limits_of("k7", {"concurrency": 2, "tokens_per_day": 5, "requests_per_minute": None})
    assert [(limit.bucket, limit.amount) for limit in limits] == [
        ("k7:concurrency", 2),
        ("k7:tokens_per_day", 5),
    ]


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
        self.running: list[list[list[Share]]] = [[] for _ in range(workers)]

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(0, len(self.workers) - 1))
        worker = self.workers[n]
        _, wants = worker.find((self.limit,), ONE, NOW)
        for want in wants:
            granted = min(want.want, self.amount - sum(self.out))
            if not granted:
                return  # refused
            self.out[n] += granted
            worker.add(self.limit, granted, 0)
        shares = take(worker, self.limit)
        assert shares is not None
        self.running[n].append(shares)

    @precondition(lambda self: any(self.running))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from([n for n, calls in enumerate(self.running) if calls]))
        for _, count in self.workers[n].release(self.running[n].pop(), ONE, 0, {}):
            self.out[n] -= count

    @rule()
    def a_second_passes(self) -> None:
        for n, worker in enumerate(self.workers):
            for _, _, count in worker.idle(NOW):
                self.out[n] -= count

    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(0, len(self.workers) - 1))
        self.out[n] -= self.workers[n].give_back("a1:con")[1]

    @invariant()
    def no_more_run_than_may(self) -> None:
        assert sum(map(len, self.running)) <= self.amount

    @invariant()
    def both_sides_agree(self) -> None:
        assert [sum(n for _, _, n in worker.held()) for worker in self.workers] == self.out

    def teardown(self) -> None:
        for n, worker in enumerate(self.workers):
            while self.running[n]:
                back = worker.release(self.running[n].pop(), ONE, 0, {})
                self.out[n] -= sum(count for _, count in back)
        self.a_second_passes()
        self.a_second_passes()
        assert self.out == [0] * len(self.workers), "nothing leaks"


TestShared = Shared.TestCase
TestShared.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("amount", [1, 9, 10, 39, 40, 1000])
def test_a_slice_is_never_more_than_the_limit(amount: int, workers: int) -> None:
    _, (want,) = LimitBook(workers).find((Limit("b", "requests_per_day", amount),), ONE, NOW)
    assert 1 <= want.want <= amount
