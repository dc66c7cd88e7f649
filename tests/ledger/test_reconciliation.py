"""A bill that is right has no findings; each thing that is wrong with one is named, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.ledger.reconciliation import (
    DOUBLED,
    PATIENCE_MS,
    PRICE,
    UNBILLED,
    UNKNOWN,
    USAGE,
    VOID,
    Attempt,
    Billed,
    Calls,
    Totals,
    figures_of,
    model_key,
)
from proxy.ledger.vendor_bills import BillLine
from proxy.metering.usage import Usage

T = 1_800_000_000_000 // 86_400_000 * 86_400_000  # a midnight
DAY_MS = 86_400_000
NANOS_PER_TOKEN = 7


def attempt(n: int, at_ms: int = T, *, tokens: tuple[int, int] = (10, 20), **changes) -> Attempt:
    values = {
        "call": f"call-{n}", "upstream_id": f"req_{n}", "models": ("gpt-4o-2024-08-06", "gpt-4o"),
        "began_ms": at_ms - 900, "ended_ms": at_ms,
        "figures": figures_of(Usage(input=tokens[0], output=tokens[1])),
        "cost_nanos": sum(tokens) * NANOS_PER_TOKEN, "is_due": True, "is_void": False, "is_exact": True,
    }  # fmt: skip
    return Attempt(**values | changes)


def billed(a: Attempt, number: int = 2, **changes) -> Billed:
    """The line of the bill that is right for an attempt."""
    figures = {name: a.figures.get(name, 0) for name in ("input_tokens", "output_tokens")}
    cost = changes.pop("cost_nanos", a.cost_nanos)
    values = {
        "number": number, "id": a.upstream_id, "model": a.models[0], "at_ms": a.ended_ms,
        "until_ms": a.ended_ms, "figures": figures, "cost": Decimal(0),
    }  # fmt: skip
    return Billed(BillLine(**values | changes), cost)


def failed(n: int, at_ms: int = T) -> Attempt:
    return attempt(n, at_ms, figures={"calls": 1}, cost_nanos=None, is_due=False, is_void=True)


def calls(lines, attempts, tolerance_nanos=1):
    side = Calls(lines, tolerance_nanos)
    for each in attempts:
        side.add(each)
    found = side.findings()
    return side, found


def kinds(found):
    return [(finding.kind, finding.line, finding.call, finding.stake_nanos) for finding in found]


# -- lines of single calls ---------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=20), st.booleans(), st.randoms())
def test_a_bill_that_is_right_has_no_findings(tokens, has_ids, random):
    """With ids however close the calls are; without while no two of a kind are close."""
    pause_ms = 1 if has_ids else 3 * PATIENCE_MS
    ours = [attempt(n, T + n * pause_ms, tokens=(count, count)) for n, count in enumerate(tokens)]
    lines = [billed(a, n, id=a.upstream_id if has_ids else "") for n, a in enumerate(ours)]
    if not has_ids:
        late = (replace(each.line, at_ms=each.line.at_ms + random.randint(0, 60_000)) for each in lines)
        lines = [replace(each, line=line) for each, line in zip(lines, late, strict=True)]
    random.shuffle(lines)
    side, found = calls(lines, ours)
    assert found == []
    assert (side.by_id, side.by_time) == ((len(ours), 0) if has_ids else (0, len(ours)))


def test_a_call_that_the_bill_does_not_have_is_unbilled():
    ours = [attempt(n, T + n) for n in range(3)]
    _, found = calls([billed(ours[0]), billed(ours[2])], ours)
    assert kinds(found) == [(UNBILLED, None, "call-1", -210)]


def test_calls_beyond_the_first_and_last_line_are_not_missed():
    ours = [attempt(0, T), attempt(1, T + 1000), attempt(2, T - 1000)]
    assert calls([billed(ours[0])], ours)[1] == []


def test_a_line_without_a_call_of_ours_is_unknown():
    stranger = billed(attempt(9, T + 10 * PATIENCE_MS), 3)
    _, found = calls([billed(attempt(0)), stranger], [attempt(0)])
    assert kinds(found) == [(UNKNOWN, 3, None, 210)]


def test_an_id_that_is_billed_twice_is_doubled():
    _, found = calls([billed(attempt(0), 2), billed(attempt(0), 3)], [attempt(0)])
    assert kinds(found) == [(DOUBLED, 3, None, 210)]


def test_a_line_without_id_that_stands_there_twice_is_doubled():
    lines = [billed(attempt(0), n, id="") for n in (2, 3)]
    side, found = calls(lines, [attempt(0)])
    assert kinds(found) == [(DOUBLED, 3, None, 210)]
    assert side.by_time == 1


def test_another_price_and_other_figures_are_told_apart():
    ours = [attempt(0), attempt(1, T + 1), attempt(2, T + 2, is_exact=False)]
    dearer = billed(ours[0], 2, cost_nanos=250)
    more = billed(ours[1], 3, figures={"input_tokens": 10, "output_tokens": 25}, cost_nanos=245)
    counted = billed(ours[2], 4, figures={"input_tokens": 11, "output_tokens": 20})
    _, found = calls([dearer, more, counted], ours)
    assert kinds(found) == [(PRICE, 2, "call-0", 40), (USAGE, 3, "call-1", 35), (USAGE, 4, "call-2", 0)]
    assert found[1].what == "output_tokens 25, here 20"
    assert found[2].what == "input_tokens 11, here 10; ours is our own count"


def test_what_rounding_explains_is_no_difference():
    assert calls([billed(attempt(0), cost_nanos=215)], [attempt(0)], tolerance_nanos=5)[1] == []
    assert len(calls([billed(attempt(0), cost_nanos=216)], [attempt(0)], tolerance_nanos=5)[1]) == 1


def test_without_a_declared_upstream_price_only_usage_is_compared():
    ours = attempt(0, cost_nanos=None)
    assert calls([billed(attempt(0), cost_nanos=10**9)], [ours])[1] == []


def test_an_attempt_that_failed_here_and_is_billed_all_the_same_is_told():
    retried = [failed(0), attempt(1, T + 500)]
    _, found = calls([billed(attempt(0), 2, cost_nanos=99), billed(retried[1], 3)], retried)
    assert kinds(found) == [(VOID, 2, "call-0", 99)]
    assert calls([billed(retried[1], 3)], retried)[1] == []


def test_ids_of_another_kind_are_matched_by_time_and_tokens():
    """The body's `chatcmpl-...` where the answer's header said `req_...`; the line is written later."""
    ours = [attempt(n, T + n * 60_000, tokens=(10, 20 + n)) for n in range(3)]
    lines = [billed(a, n, id=f"chatcmpl-{n}", at_ms=a.ended_ms + 90_000) for n, a in enumerate(ours)]
    side, found = calls(lines, ours)
    assert (found, side.by_id, side.by_time) == ([], 0, 3)


def test_the_nearest_call_is_the_one():
    ours = [attempt(0, T, tokens=(1, 1)), attempt(1, T + 30_000, tokens=(5, 5))]
    line = billed(ours[1], id="", at_ms=T + 29_000, figures={"input_tokens": 5, "output_tokens": 6})
    _, found = calls([line], ours)
    assert kinds(found) == [(USAGE, 2, "call-1", 0)]


# -- totals ------------------------------------------------------------------------------------------


def total(
    model: str, figures: dict[str, int], cost_nanos: int | None = None, day: int = 0, number: int = 2
) -> Billed:
    at_ms = T + day * DAY_MS
    return Billed(BillLine(number, "", model, at_ms, at_ms + DAY_MS, figures, None), cost_nanos)


def totals(lines, attempts, idle=(), tolerance_nanos=1):
    side = Totals(lines, idle, tolerance_nanos)
    for each in attempts:
        side.add(each)
    return side.findings()


NOON = T + DAY_MS // 2
OURS = [attempt(n, NOON + n) for n in range(4)]
RIGHT = {"calls": 4, "input_tokens": 40, "output_tokens": 80}


def test_sums_that_agree_are_no_finding():
    assert totals([total("gpt-4o", RIGHT, 4 * 210)], OURS) == []
    of_two_keys = [
        total("gpt-4o-2024-08-06", {"calls": 1, "output_tokens": 20}),
        total("gpt-4o", {"calls": 3, "output_tokens": 60}),
    ]
    assert totals(of_two_keys, OURS) == []


def test_sums_that_differ_are_named_with_both_figures():
    (found,) = totals([total("gpt-4o", RIGHT | {"output_tokens": 90}, 910)], OURS)
    assert (found.kind, found.what, found.stake_nanos) == (USAGE, "output_tokens 90, here 80", 70)
    (found,) = totals([total("gpt-4o", RIGHT, 1000)], OURS)
    assert (found.kind, found.stake_nanos) == (PRICE, 160)
    (found,) = totals([total("gpt-4o", RIGHT, 700)], OURS)
    assert (found.kind, found.stake_nanos) == (PRICE, -140)


def test_a_model_or_a_day_that_one_side_does_not_have():
    found = totals([total("gpt-4o", RIGHT), total("gpt-5", {"calls": 1}, 50, number=3)], OURS)
    assert [(f.kind, f.line, f.stake_nanos) for f in found] == [(UNKNOWN, 3, 50)]
    (found,) = totals([total("gpt-5", {"calls": 0}, 0)], OURS)
    assert (found.kind, found.what, found.stake_nanos) == (UNBILLED, "4 calls are not on the bill", -840)
    (found,) = totals([total("gpt-4o", RIGHT, day=1)], OURS, idle=[(T, T + DAY_MS)])[:1]
    assert (found.kind, found.at_ms) == (UNBILLED, T)


def test_a_call_at_the_edge_of_a_day_may_count_for_either():
    edge = attempt(9, T + DAY_MS + 400)
    with_it = {name: figure * 5 // 4 for name, figure in RIGHT.items()}
    alone = {name: figure // 4 for name, figure in RIGHT.items()}
    for first, second in ((RIGHT, alone), (with_it, {"calls": 0})):
        assert totals([total("gpt-4o", first), total("gpt-4o", second, day=1)], [*OURS, edge]) == []


def test_a_bill_that_names_no_model_is_held_against_all_of_them():
    others = attempt(7, NOON, models=("o3", "o3"))
    assert totals([total("", {}, 5 * 210)], [*OURS, others]) == []
    (found,) = totals([total("", {}, 6 * 210)], [*OURS, others])
    assert (found.kind, found.stake_nanos) == (PRICE, 210)


def test_failed_attempts_may_be_among_the_requests_of_a_bill():
    ours = [*OURS, failed(8, NOON)]
    for count in (4, 5):
        assert totals([total("gpt-4o", RIGHT | {"calls": count})], ours) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Claude Haiku 4.5", "claude-haiku-4-5-20251001"),
        ("Claude Haiku 3.5", "claude-3-5-haiku-20241022"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet@20240620"),
    ],
)
def test_one_model_has_one_key(one, other):
    assert model_key(one) == model_key(other)


def test_other_models_have_other_keys():
    names = ("gpt-4o", "gpt-4o-mini", "gpt-4", "claude-opus-4-1", "claude-opus-4", "o3", "o3-pro")
    assert len({model_key(name) for name in names}) == len(names)
