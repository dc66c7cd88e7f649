"""What is earned adds up to the ledger, whatever it is grouped by."""

from __future__ import annotations

from datetime import timedelta

import pytest

from proxy.ledger import entry
from proxy.ledger.entry import Attempt, Settle
from proxy.store.audit import audit
from proxy.store.margins import GROUPS, margins
from proxy.store.payments import Payments
from proxy.store.reports import Reports
from proxy.store.statements import Span
from tests.routing.compiling import table
from tests.store.journals import NOW_MS, PRICE_ENTRY, Life, day_of_station, end, new_id

COST = 45_000
TODAY = Span(day_of_station(NOW_MS), day_of_station(NOW_MS) + timedelta(days=1))
ROUTES = """
station: {currency: USD}
upstreams:
  openai:
    dialect: openai
    mirrors: {direct: {url: "https://api.example"}}
    credentials: {main: "${env:A}"}
    costs: {"gpt-*": 0.4, "o*": {call: 0.00003}}
  elsewhere:
    dialect: openai
    mirrors: {direct: {url: "https://api.example"}}
    credentials: {main: "${env:A}"}
models: {gpt-4o-mini: {candidates: [{upstream: openai}, {upstream: elsewhere}]}}
"""


@pytest.fixture
async def calls(database, journal_dir, accounts, drainer):
    """Of two accounts at two upstreams, of which only one says what it takes."""
    drainer.costs.declare(table(ROUTES, {"A": "a"}).upstreams)
    usage = {"input": 10, "output": 20, "calls": 1}
    names = ("gpt-4o-mini", "o3", "gpt-4o-mini")
    calls = [end(accounts[n % 2], model=model, usage=usage) for n, model in enumerate(names)]
    calls.append(end(accounts[0], upstream="elsewhere"))
    void = end(accounts[0], state=entry.VOID, cost_nanos=0, usage={}, outcome=entry.FAILED)
    late = Settle(new_id(), NOW_MS, COST + 5, "final", {"input": 11}, corrects=calls[0].id)
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, *calls, void, late])
    await drainer.run_once()
    await life.die()
    await Payments(database).refund_call(calls[1].id, "it did not work")
    return calls


async def test_margins_are_what_was_sold_less_what_upstreams_take(database, calls):
    found = await margins(database, TODAY)
    cost = 90_000 * 4 // 10  # of the official price; accounts of this tier pay half of it
    assert [
        (m.upstream, m.model, m.calls, m.uncosted, m.sale_nanos, m.refunded_nanos, m.cost_nanos)
        for m in found.lines
    ] == [
        ("openai", "gpt-4o-mini", 3, 0, 2 * COST + 5, 0, 2 * cost),
        ("elsewhere", "gpt-4o-mini", 1, 1, COST, 0, 0),
        ("openai", "o3", 1, 0, COST, COST, 30_000),
    ]
    assert [m.margin_nanos for m in found.lines] == [2 * (COST - cost) + 5, COST, -30_000]
    assert found.is_equal and found.charged_nanos == 3 * COST + 5


async def test_margins_add_up_to_the_ledger_by_upstream_by_model_and_over_all_accounts(
    database, accounts, calls
):
    both = await margins(database, TODAY)
    for by in GROUPS:
        found = await margins(database, TODAY, (by,))
        assert found.is_equal and found.total == both.total
        assert len({getattr(line, by) for line in found.lines}) == len(found.lines) == 2
    used = [await Reports(database).used_nanos(account, TODAY) for account in accounts]
    assert sum(used) == both.total.sale_nanos
    empty = await margins(database, Span(end=TODAY.first))
    assert empty.lines == [] and empty.is_equal and empty.charged_nanos == 0


async def test_a_failed_try_costs_what_can_be_known_of_it_if_its_upstream_may_have_acted_on_it(
    database, journal_dir, accounts, drainer
):
    drainer.costs.declare(table(ROUTES, {"A": "a"}).upstreams)

    def tried(outcome: str, status: int = 0) -> Attempt:
        return Attempt("openai", "direct", "main", outcome, status)

    tries = [
        tried("upstream_connect_failed"), tried("status:429", 429), tried("status:400", 400),
        tried("upstream_timeout"), tried("status:500", 500),
        Attempt("elsewhere", "direct", "main", "ok", 200),
    ]  # fmt: skip
    calls = [
        end(accounts[0], model="o3", upstream="elsewhere", attempts=tries),
        end(accounts[0], model="gpt-4o-mini", attempts=[tried("status:500", 500), tried("ok", 200)]),
        end(
            accounts[0], model="gpt-4o-mini", upstream="elsewhere",
            attempts=[tried("upstream_timeout"), Attempt("elsewhere", "direct", "main", "ok", 200)],
        ),
        end(
            accounts[0], model="o3", attempts=[tried("status:502", 502)], state=entry.VOID, cost_nanos=0,
            usage={}, outcome=entry.UPSTREAM_ERROR,
        ),
    ]  # fmt: skip
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, *calls])
    await drainer.run_once()
    await life.die()
    rows = await database.fetch("SELECT attempts FROM usage ORDER BY id")
    assert [[a["cost_nanos"] for a in row["attempts"]] for row in rows] == [
        [0, 0, 0, 30_000, 30_000, 0],
        [0, 0],  # by tokens: a vendor that fails by itself asks for none
        [10 * 1000 * 4 // 10, 0],  # it has read what the next one has told
        [30_000],
    ]
    found = await margins(database, TODAY, ("upstream",))
    costs = {line.upstream: line.cost_nanos for line in found.lines}
    assert costs == {"openai": 3 * 30_000 + 36_000 + 4_000, "elsewhere": 0}
    assert await audit(database) == []
