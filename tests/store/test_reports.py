"""Bills are exact."""

from __future__ import annotations

from datetime import date

import pytest

from proxy.ledger import entry
from proxy.ledger.entry import Settle
from proxy.store.reports import Reports
from tests.store.journals import NOW_MS, PRICE_ENTRY, Life, day_of_station, end, new_id

COST = 45_000


@pytest.fixture
async def calls(database, journal_dir, accounts, drainer):
    life = Life(journal_dir)
    calls = [end(accounts[0], model=f"m{n % 2}") for n in range(25)]
    await life.write(
        [
            PRICE_ENTRY,
            *calls,
            end(accounts[1]),
            end(accounts[0], state=entry.VOID, cost_nanos=0, usage={}, outcome=entry.FAILED),
            Settle(new_id(), NOW_MS, COST + 5, "final", {"input": 11}, corrects=calls[3].id),
        ]
    )
    await drainer.run_once()
    await life.die()
    return calls


async def test_a_month_equals_its_ledger_to_the_nano(database, accounts, calls):
    month = await Reports(database).month(accounts[0], day_of_station(NOW_MS).replace(day=1))
    assert month.used_nanos == month.charged_nanos == 25 * COST + 5
    assert [(line.model, line.calls, line.input_tokens, line.output_tokens) for line in month.lines] == [
        ("m0", 13, 130, 260),
        ("m1", 12, 120, 240),
        ("gpt-4o-mini", 1, 0, 0),
    ]
    assert month.closing_nanos - month.opening_nanos == sum(month.postings.values())
    december = await Reports(database).month(accounts[0], date(2020, 12, 1))
    assert (december.used_nanos, december.next_first) == (0, date(2021, 1, 1))


async def test_a_receipt_is_its_accounts_alone(database, accounts, calls):
    reports = Reports(database)
    receipt = await reports.receipt(accounts[0], calls[3].id)
    assert receipt["usage"] == {"input": 10, "output": 20}
    assert (receipt["cost_nanos"], receipt["corrected_nanos"]) == (COST, 5)
    assert await reports.receipt(accounts[1], calls[0].id) is None
    assert await reports.receipt(accounts[0], new_id()) is None
