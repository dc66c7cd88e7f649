"""Statements have every line once, in pages, and add up to the ledger."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from proxy.ledger import entry
from proxy.ledger.entry import Settle
from proxy.store.catalog import Catalog
from proxy.store.payments import Payments
from proxy.store.reports import Reports
from proxy.store.statements import EVERYTHING, RECEIPTS, Cursor, Span
from tests.midday import MIDDAY
from tests.store.journals import NOW_MS, PRICE, PRICE_ENTRY, YUAN, Life, day_of_station, end, new_id

DAY_MS = 86_400_000
TODAY = day_of_station(NOW_MS)
ALWAYS = Span()


@pytest.fixture
async def calls(database, journal_dir, accounts, drainer):
    """Of ada: calls of three days, corrections of two of them, a void one; and one call of ben."""
    await Catalog(database).open_station("CNY", MIDDAY)
    life = Life(journal_dir)
    calls = [
        end(accounts[0], at_ms=NOW_MS - n % 3 * DAY_MS, id=new_id(NOW_MS - 3 * DAY_MS)) for n in range(20)
    ]
    await life.write(
        [
            PRICE_ENTRY,
            *calls,
            end(accounts[1]),
            end(accounts[0], state=entry.VOID, cost_nanos=0, usage={}, provenance="none"),
            Settle(new_id(), NOW_MS, 45_005, "final", {"input": 11}, corrects=calls[3].id),
            Settle(new_id(), NOW_MS - DAY_MS, 44_000, "final", {"input": 9}, corrects=calls[4].id),
        ]
    )
    await drainer.run_once()
    await life.die()
    return calls


async def lines(database, account, span=ALWAYS, kinds=EVERYTHING, limit=3):
    """All of them, page by page, each page in a transaction of its own."""
    found, cursor = [], None
    while True:
        async with Reports(database).books() as books:
            page = await books.page(account, span, cursor, limit=limit, kinds=kinds)
        assert len(page.rows) <= limit
        found += page.rows
        if page.next is None:
            return found
        cursor = Cursor.parse(page.next)


@pytest.mark.parametrize("limit", [1, 3, 24, 1000])
async def test_pages_have_every_line_once_the_newest_day_first(database, accounts, calls, limit):
    found = await lines(database, accounts[0], limit=limit)
    assert len(found) == len({(row["kind"], row["id"]) for row in found}) == 20 + 1 + 2 + 1
    days = [row["posted_day"] for row in found]
    assert days == sorted(days, reverse=True)
    assert {row["id"] for row in found if row["kind"] == "call"} > {call.id for call in calls}
    assert [row["kind"] for row in found if row["posted_day"] == str(TODAY)][:2] == ["topup", "correction"]


async def test_lines_of_any_span_add_up_to_the_ledger_to_the_nano(database, accounts, calls):
    for days in range(4):
        for first in (TODAY - timedelta(days=n) for n in range(4)):
            span = Span(first, first + timedelta(days=days))
            found = await lines(database, accounts[0], span)
            async with Reports(database).books() as books:
                posted = await books.posted(accounts[0], span)
            assert sum(row["amount_nanos"] for row in found) == sum(posted.values())
    balance = (await Catalog(database).account("ada")).balance_nanos
    assert sum(row["amount_nanos"] for row in await lines(database, accounts[0])) == balance


async def test_receipts_are_calls_and_their_corrections(database, accounts, calls):
    found = await lines(database, accounts[0], kinds=RECEIPTS)
    assert {row["kind"] for row in found} == {"call", "correction"}
    corrected = next(row for row in found if row["id"] == calls[3].id)
    assert (corrected["cost_nanos"], corrected["corrected_nanos"], corrected["amount_nanos"]) == (
        45_000, 5, -45_000,
    )  # fmt: skip
    assert sum(row["amount_nanos"] for row in found) == -(20 * 45_000 + 5 - 1_000)


async def test_free_corrected_and_refunded_calls_add_up_too(database, journal_dir, accounts, drainer):
    """60,000 of two calls of 45,000 were free: one wholly, the other for a third."""
    await Catalog(database).open_station("CNY", MIDDAY)
    await database.execute(
        "INSERT INTO pocket (account, period_start, period_end, amount_nanos)"
        " VALUES ($1, now() - interval '1 day', now() + interval '1 day', 60000)",
        accounts[2],
    )
    free, mixed = end(accounts[2]), end(accounts[2])
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, free, mixed])
    await drainer.run_once()
    await Payments(database).refund_call(mixed.id, "an apology")
    await life.write([Settle(new_id(), NOW_MS, 46_000, "final", {"input": 11}, corrects=free.id)])
    await drainer.run_once()
    await life.die()
    found = {(row["kind"], row["amount_nanos"]) for row in await lines(database, accounts[2])}
    assert found == {
        ("topup", 100 * YUAN), ("call", 0), ("call", -30_000), ("refund", 30_000), ("correction", -1_000),
    }  # fmt: skip
    async with Reports(database).books() as books:
        posted = await books.posted(accounts[2], ALWAYS)
        receipts = [await books.receipt(accounts[2], call.id) for call in (free, mixed)]
    assert posted == {"topup": 100 * YUAN, "usage": -30_000, "refund": 30_000, "correction": -1_000}
    assert [(r["free_nanos"], r["corrected_nanos"], r["refunded_nanos"]) for r in receipts] == [
        (45_000, 1_000, 0), (15_000, 0, 30_000),
    ]  # fmt: skip
    month = await Reports(database).month(accounts[2], TODAY.replace(day=1))
    assert month.used_nanos == month.charged_nanos == 31_000


async def test_what_calls_took_of_a_span_is_the_ledgers_figure(database, accounts, calls):
    reports = Reports(database)
    assert await reports.used_nanos(accounts[0], Span()) == 20 * 45_000 + 5 - 1_000
    assert await reports.used_nanos(accounts[0], Span(TODAY, None)) == 7 * 45_000 + 5
    assert await reports.used_nanos(accounts[0], Span(None, date(2020, 1, 1))) == 0


async def test_prices_are_those_that_lines_name(database, accounts, calls):
    async with Reports(database).books() as books:
        page = await books.page(accounts[0], Span(), limit=100, kinds=EVERYTHING)
        assert await books.prices(page.rows) == {PRICE.id: PRICE}


NO_CURSORS = ["x", "20261103-0", "20261103-9-0", "20261103-0-zz", "20261399-0-1", "20261103-2--1"]
NO_CURSORS += ["20261103-2-" + "f" * 17, "20261103-0-" + "f" * 33]


@pytest.mark.parametrize("text", NO_CURSORS)
def test_what_is_no_cursor_is_refused(text):
    with pytest.raises(ValueError):
        Cursor.parse(text)


def test_a_cursor_comes_back_as_it_went():
    for cursor in (Cursor(TODAY, 0, int(new_id(), 16)), Cursor(TODAY, 2, 7)):
        assert Cursor.parse(str(cursor)) == cursor
