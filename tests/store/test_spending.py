"""Limits of spending follow what calls cost in the end: tasks, corrections, refunds."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from proxy.broker.limits import FOREVER_MS, window
from proxy.ledger.entry import Settle
from proxy.store.due import DueTasks
from proxy.store.leases import Leases
from proxy.store.payments import Payments
from proxy.store.windows import Windows
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, Life, Station, end, new_id
from tests.store.tasks import COST, DAYS, HOLD, seen, submitted

LIMIT = 100_000_000
TOTAL, DAILY, SHARED = "k1:spend_total", "k1:spend_per_day", "a{}:spend_per_month"


@pytest.fixture
async def bank(database, accounts):
    await Leases(database, NODE, "life1").register()
    await database.execute("UPDATE station_state SET timezone = $1", Station.timezone)
    await database.execute(
        "INSERT INTO api_key (id, account, digest, masked) OVERRIDING SYSTEM VALUE VALUES (1, $1, $2, 'sk')",
        accounts[0], b"1" * 32,
    )  # fmt: skip
    return Windows(database, NODE, "life1")


def ends(bucket: str) -> int:
    return window(bucket.rpartition(":")[2], NOW_MS - 500, ZoneInfo(Station.timezone)).ends_ms


async def left(bank: Windows, bucket: str) -> int:
    """What nobody has drawn of a window yet."""
    return (await bank.draw(bucket, ends(bucket), LIMIT, LIMIT * 9, LIMIT * 9)).left


async def test_a_task_spends_what_it_cost_in_the_end_in_the_windows_in_which_it_began(
    database, accounts, bank, journal_dir, drainer
):
    buckets = (TOTAL, DAILY, SHARED.format(accounts[0]))
    for bucket in buckets:
        await bank.draw(bucket, ends(bucket), LIMIT, HOLD, HOLD)  # its worker counts it at its hold
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "r1")])
    await drainer.run_once()
    assert await bank.spent(TOTAL, 0, [life.name]) == HOLD
    for _ in range(2):  # told twice, it ends once
        await DueTasks(database, "c-1").settle([seen("r1")], DAYS)
    assert [await left(bank, bucket) for bucket in buckets] == [LIMIT - COST] * 3
    # Its worker dies: it counts at its hold still, beside what it spent less.
    assert await bank.spent(TOTAL, 0, [life.name, "c-1"]) == HOLD
    await life.die()


async def test_what_is_refunded_or_corrected_may_be_spent_again_or_is_spent(
    database, accounts, bank, journal_dir, drainer
):
    calls = [end(accounts[0]), end(accounts[0])]
    cost = calls[0].cost_nanos
    await bank.draw(TOTAL, FOREVER_MS, LIMIT, 2 * cost, 2 * cost)
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, *calls])
    await drainer.run_once()
    for _ in range(2):
        await Payments(database).refund_call(calls[0].id, "it did not work")
    assert await left(bank, TOTAL) == LIMIT - cost
    settles = [Settle(new_id(), NOW_MS, cost + 7, "final", {"input": 11}, corrects=call.id) for call in calls]
    await life.write(settles)
    await drainer.run_once()
    assert await left(bank, TOTAL) == LIMIT - cost - 7 - 7
    await life.die()


async def test_a_window_of_which_nobody_drew_is_not_begun(database, accounts, bank, journal_dir, drainer):
    call, life = end(accounts[0]), Life(journal_dir)
    await life.write([PRICE_ENTRY, call])
    await drainer.run_once()
    await life.die()
    await Payments(database).refund_call(call.id, "it did not work")
    assert await database.fetch("SELECT FROM limit_slice") == []
