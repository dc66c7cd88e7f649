"""Who may use an id that lives at a vendor, and what the end of a task costs."""

from __future__ import annotations

import pytest

from proxy.ledger.bindings import PENDING, Binding, closed, usable
from proxy.ledger.entry import Bind, End, Observed
from proxy.metering.pricing import price_from_content

BOUND = Binding.of(Bind("0" * 32, 5, 7, 8, "file", "file-abc", "openai", "direct", "main"))


def test_only_the_account_that_made_an_id_may_use_it():
    assert usable(BOUND, 7) is BOUND
    assert usable(BOUND, 8) is None


def test_an_unbound_id_looks_like_a_foreign_one():
    assert usable(None, 7) is usable(BOUND, 8) is None


def test_the_same_id_at_another_credential_is_another_thing():
    other = Binding.of(Bind("1" * 32, 5, 7, 8, "file", "file-abc", "openai", "direct", "spare"))
    assert other.identity != BOUND.identity


# -- the end of a task -----------------------------------------------------------------------------

PRICES = {"p": price_from_content({"call": 1000, "second": 10, "output": 1_000_000})}
DEFERRED = End(
    "f" * 32, 20, 10, "deferred", "complete", 7, 8, "", 9000, 0, "film", "film.make", "film", "p", 1_000_000,
    1_000_000, "VIP", "direct", 1, False, 200, "estimated", {"calls": 1, "input": 40, "seconds_ms": 8000},
)  # fmt: skip


def ended(state: str, usage: dict[str, int] | None = None, was: str = PENDING) -> tuple[str, str, int, str]:
    seen = Observed("e" * 32, 30, "17", "mj", state, usage or {}, "main")
    [end] = closed(DEFERRED, seen, was, PRICES).ends
    return end.state, end.outcome, end.cost_nanos, end.provenance


def test_a_success_that_tells_no_usage_costs_what_its_submit_asked_for():
    assert ended("succeeded", {"calls": 1}) == ("settled", "complete", 1080, "final")
    assert ended("succeeded", {"calls": 1, "output": 5}) == ("settled", "complete", 1005, "final")


@pytest.mark.parametrize(("state", "outcome"), [("failed", "upstream_error"), ("cancelled", "failed")])
def test_a_failure_and_a_cancelled_task_are_void_unless_their_family_charges_for_the_try(state, outcome):
    assert ended(state) == ("void", outcome, 0, "none")
    assert ended(state, {"calls": 1}) == ("settled", outcome, 1080, "final")


def test_what_was_cancelled_says_so():
    [end] = closed(DEFERRED, Observed("e" * 32, 30, "17", "mj", "cancelled"), PENDING, PRICES).ends
    assert (end.cut, end.usage) == ("cancelled", {})
