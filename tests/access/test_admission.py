"""Everything that a call needs is taken at once, or nothing of it."""

from __future__ import annotations

from collections.abc import Callable

from proxy.access.admission import Found, Gate, Shortage, Ticket
from proxy.access.limits import Demand, Limit, LimitBook, Want, tightest
from proxy.ledger.balances import Slices

NOW = 1_800_000_000_000
RATE = Limit("k1:rpm", "requests_per_minute", 400)
MANY = Limit("k1:con", "concurrency", 400)
LIMITS = (RATE, MANY)


def gate(*, money: int = 0, rate: int = 0, concurrency: int = 0) -> Gate:
    made = Gate(Slices(), LimitBook(1))
    if money:
        made.slices.add(7, "lease", money)
    if rate:
        made.limits.add(RATE, rate, NOW + 60_000)
    if concurrency:
        made.limits.add(MANY, concurrency, 0)
    return made


def missing(of: Gate, *limits: Limit) -> list[Limit]:
    return [want.limit for want in of.limits.find(limits, Demand(), NOW)[1]]


def figures(of: Gate) -> tuple[tuple[int, int], list[tuple[str, int, int]], bool]:
    return of.slices.figures(7), of.limits.held(), missing(of, RATE) == []


def test_a_call_takes_its_money_and_its_limits() -> None:
    entered = gate(money=100, rate=1, concurrency=1)
    ticket = entered.admit(7, 60, LIMITS, NOW, tokens=9)
    assert isinstance(ticket, Ticket)
    assert (ticket.account, ticket.lease, ticket.hold_nanos) == (7, "lease", 60)
    assert tuple(limit for limit, _ in ticket.shares) == LIMITS
    assert ticket.demand == Demand(1, 1, 9, 60)
    assert entered.slices.figures(7) == (40, 60)
    assert missing(entered, *LIMITS) == [RATE, MANY]


def test_limits_are_asked_for_before_money() -> None:
    """A call that must wait for a limit sets no money aside."""
    entered = gate(money=100, rate=1)
    before = figures(entered)
    got = entered.admit(7, 60, LIMITS, NOW)
    assert got == Shortage((Want(MANY, 1, 100),), None)
    assert figures(entered) == before


def test_without_money_no_limit_is_used_up() -> None:
    entered = gate(money=10, rate=1, concurrency=1)
    before = figures(entered)
    got = entered.admit(7, 60, LIMITS, NOW)
    assert isinstance(got, Shortage) and got.wants == ()
    assert got.money is not None and got.money[0] == 50 <= got.money[1]
    assert figures(entered) == before


def test_another_accounts_money_is_none() -> None:
    got = gate(money=100).admit(8, 60, (), NOW)
    assert isinstance(got, Shortage) and got.money is not None and got.money[0] == 60


def test_a_free_call_takes_limits_only() -> None:
    ticket = gate().admit(7, 0, (), NOW)
    assert isinstance(ticket, Ticket) and (ticket.lease, ticket.hold_nanos, ticket.left_nanos) == ("", 0, 0)
    assert isinstance(gate().admit(7, 0, LIMITS, NOW), Shortage)
    entered = gate(rate=1, concurrency=1)
    assert isinstance(entered.admit(7, 0, LIMITS, NOW), Ticket)
    assert entered.slices.figures(7) == (0, 0)


def test_a_call_that_ends_gives_back_what_it_did_not_use() -> None:
    entered = gate(money=100, rate=1, concurrency=1)
    ticket = entered.admit(7, 60, LIMITS, NOW)
    assert isinstance(ticket, Ticket)
    assert entered.close(ticket, 25) == []
    assert entered.slices.figures(7) == (75, 0)
    assert missing(entered, *LIMITS) == [RATE]


def test_a_void_call_costs_nothing() -> None:
    entered = gate(money=100)
    ticket = entered.admit(7, 60, (), NOW)
    assert isinstance(ticket, Ticket)
    entered.close(ticket, 0)
    assert entered.slices.figures(7) == (100, 0)


def test_a_call_that_cost_more_than_its_hold_is_settled_and_stops_the_next() -> None:
    entered = gate(money=100)
    ticket = entered.admit(7, 60, (), NOW)
    assert isinstance(ticket, Ticket)
    entered.close(ticket, 130)
    assert entered.slices.figures(7) == (-30, 0)
    assert isinstance(entered.admit(7, 1, (), NOW), Shortage)


def test_what_a_call_used_is_settled_under_every_limit() -> None:
    tokens, spend = Limit("k1:tpm", "tokens_per_minute", 5_000), Limit("k1:sp", "spend_per_day", 900)
    entered = gate(money=100)
    entered.limits.add(tokens, 5_000, NOW + 60_000)
    entered.limits.add(spend, 900, NOW + 60_000)
    ticket = entered.admit(7, 60, (tokens, spend), NOW, tokens=700)
    assert isinstance(ticket, Ticket)
    assert [part.free for _, part in ticket.shares] == [4_300, 840]
    entered.close(ticket, 25, {"input": 10, "output": 30, "reasoning": 20, "calls": 1})
    assert [part.free for _, part in ticket.shares] == [4_960, 875]


def test_what_is_counted_late_is_spent_at_its_hold_until_then() -> None:
    spend = Limit("k1:sp", "spend_per_day", 900)
    entered = gate(money=100, rate=10)
    entered.limits.add(spend, 900, NOW + 60_000)
    ticket = entered.admit(7, 60, (RATE, spend), NOW)
    assert isinstance(ticket, Ticket)
    entered.close(ticket, 60)
    assert entered.slices.figures(7) == (40, 0) and ticket.shares[1][1].free == 840
    entered.correct(ticket, 25 - 60)
    assert entered.slices.figures(7) == (75, 0) and ticket.shares[1][1].free == 875
    assert ticket.shares[0][1].free == 9


def test_what_a_call_may_use_counts_at_an_upstream_that_alone_has_limits() -> None:
    there = Limit("u:one:tpm", "tokens_per_minute", 5_000)
    entered = gate(money=100)
    entered.limits.add(there, 5_000, NOW + 60_000)
    ticket = entered.admit(7, 60, (), NOW, tokens=700)
    assert isinstance(ticket, Ticket) and entered.enter(ticket, (there,), NOW) == ()
    assert [part.free for _, part in ticket.there] == [4_300]


def test_a_call_holds_the_limits_of_the_upstream_that_it_is_at() -> None:
    there = Limit("u:one:con", "concurrency", 3)
    entered = gate(money=100)
    ticket = entered.admit(7, 60, (), NOW)
    assert isinstance(ticket, Ticket)
    assert [want.limit for want in entered.enter(ticket, (there,), NOW)] == [there]
    entered.limits.add(there, 1, 0)
    assert entered.enter(ticket, (there,), NOW) == ()
    assert entered.leave(ticket) == [("u:one:con", 1)]  # on to the next upstream
    entered.limits.add(there, 1, 0)
    assert entered.enter(ticket, (there,), NOW) == ()
    assert entered.close(ticket, 25) == [("u:one:con", 1)]
    assert entered.leave(ticket) == []


def test_a_call_is_admitted_again_where_the_one_before_it_was() -> None:
    """The same is taken, and given back, as by `admit`."""
    one, again = (gate(money=100, rate=2, concurrency=2) for _ in range(2))
    found = Found.of(LIMITS)
    tickets = [(one.admit(7, 10, LIMITS, NOW, 9), again.admit(7, 10, LIMITS, NOW, 9, found))]
    assert found.footing is not None
    tickets.append((one.admit(7, 10, LIMITS, NOW, 9), again.admit_again(found.footing, 10, NOW, 9)))
    for first, second in tickets:
        assert isinstance(first, Ticket) and isinstance(second, Ticket)
        assert (first.lease, first.left_nanos, first.demand) == (
            second.lease,
            second.left_nanos,
            second.demand,
        )
    assert figures(one) == figures(again)
    for first, second in tickets:
        assert isinstance(first, Ticket) and isinstance(second, Ticket)
        assert [*one.close(first, 7)] == [*again.close(second, 7)] == []
        assert figures(one) == figures(again)


def test_what_is_not_as_it_was_is_not_taken_again() -> None:
    def after(change: Callable[[Gate], object] = lambda _: None, hold: int = 10, now: int = NOW) -> bool:
        entered, found = gate(money=100, rate=2, concurrency=2), Found.of(LIMITS)
        ticket = entered.admit(7, 10, LIMITS, NOW, found=found)
        assert isinstance(ticket, Ticket) and found.footing is not None
        entered.close(ticket, 10)
        change(entered)
        before = figures(entered)
        got = entered.admit_again(found.footing, hold, now, 0)
        assert got is not None or figures(entered) == before
        return got is not None

    assert after()
    assert after(hold=30) and not after(hold=31)  # the next ones must be asked for
    assert not after(hold=0)
    assert after(now=NOW + 59_999) and not after(now=NOW + 60_000)
    assert not after(lambda of: of.admit(7, 10, LIMITS, NOW))  # the last request of this window
    assert not after(lambda of: of.limits.add(RATE, 5, NOW + 120_000))  # a new window
    assert not after(lambda of: of.limits.give_back(MANY.bucket))
    assert not after(lambda of: (of.limits.give_back(MANY.bucket), of.limits.idle(NOW)))
    assert not after(lambda of: of.slices.add(7, "another", 50))
    assert not after(lambda of: of.slices.give_back(7))

    def spend(of: Gate) -> None:
        of.slices.settle(7, "lease", 0, 1_000 - 10)
        of.slices.add(7, "lease", 1_000 - 30)
        of.slices.idle()

    assert not after(spend)  # 70 are left, and a thousand were spent in a second
    assert after(lambda of: (spend(of), of.slices.settle(7, "lease", 0, 0), of.slices.idle()))


def test_what_answers_tell_of_is_the_same_where_a_call_is_admitted_again() -> None:
    wide = Limit("a7:rpm", "requests_per_minute", 800)
    for limits, is_one_of_each in ((LIMITS, True), ((*LIMITS, wide), False)):
        entered, found = gate(money=100, rate=2, concurrency=2), Found.of(limits)
        entered.limits.add(wide, 200, NOW + 60_000)
        first = entered.admit(7, 10, limits, NOW, found=found)
        assert isinstance(first, Ticket) and found.footing is not None
        again = entered.admit_again(found.footing, 10, NOW, 0)
        assert again is not None and tightest(again.shares) == tightest(first.shares) != ()
        assert again.footing is not None
        assert again.footing.told == (tightest(again.shares) if is_one_of_each else ())


def test_what_is_lent_for_one_call_goes_back_after_it() -> None:
    few = Limit("k1:con", "concurrency", 3)
    entered, found = gate(money=100), Found.of((few,))
    entered.limits.add(few, 1, 0)
    ticket = entered.admit(7, 10, (few,), NOW, found=found)
    assert isinstance(ticket, Ticket) and found.footing is None
    assert entered.close(ticket, 10) == [("k1:con", 1)]


def test_only_what_counts_calls_is_found_again() -> None:
    assert Found.of(()).is_kept and Found.of(LIMITS).is_kept
    limits = MANY, Limit("k1:tpm", "tokens_per_minute", 5_000)
    assert not Found.of(limits).is_kept and not Found.of((Limit("k1:sp", "spend_per_day", 900),)).is_kept
    entered, found = gate(money=100, concurrency=2), Found.of(limits)
    entered.limits.add(limits[1], 5_000, NOW + 60_000)
    assert isinstance(entered.admit(7, 10, limits, NOW, 700, found), Ticket)
    assert found.footing is None
