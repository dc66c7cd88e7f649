"""Journals become rows and money exactly once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from proxy.ledger import entry
from proxy.ledger.entry import Allowance, Bind, Observed, Settle
from proxy.store.drainer import Drainer
from tests.store.journals import NOW_MS, PRICE_ENTRY, YUAN, Life, Station, begin, day_of_station, end, new_id

COST = 45_000


async def money(database, account):
    row = await database.fetchrow("SELECT balance_nanos, available_nanos FROM account WHERE id = $1", account)
    return row["balance_nanos"], row["available_nanos"]


async def totals(database):
    """(usage rows, their cost, what the ledger took for it)"""
    row = await database.fetchrow(
        "SELECT (SELECT count(*) FROM usage), (SELECT coalesce(sum(cost_nanos), 0) FROM usage),"
        " (SELECT -coalesce(sum(amount_nanos), 0) FROM ledger WHERE kind IN ('usage', 'correction'))"
    )
    return tuple(int(value) for value in row)


async def test_a_call_becomes_a_row_and_its_cost_leaves_the_balance(database, journal_dir, accounts, drainer):
    life = Life(journal_dir)
    call = end(accounts[0])
    await life.write([PRICE_ENTRY, begin(accounts[0], id=call.id), call])
    report = await drainer.run_once()
    assert (report.entries, report.inserted, report.alarms, report.damage) == (2, 1, [], [])
    row = await database.fetchrow("SELECT * FROM usage")
    assert (row["id"].hex, row["cost_nanos"], row["usage"]) == (call.id, COST, {"input": 10, "output": 20})
    assert row["attempts"][0]["upstream"] == "openai"
    assert row["posted_day"] == day_of_station(NOW_MS)
    assert await money(database, accounts[0]) == (100 * YUAN - COST, 100 * YUAN - COST)
    assert await totals(database) == (1, COST, COST)
    cursor = await database.fetchrow("SELECT begins, ends, entries FROM segment_cursor")
    assert tuple(cursor) == (1, 1, 2)
    await life.die()


async def test_a_second_run_inserts_nothing_twice(database, journal_dir, accounts, drainer):
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, *(end(a) for a in accounts)])
    assert (await drainer.run_once()).inserted == 3
    again = await drainer.run_once()
    assert (again.entries, again.inserted) == (0, 0)
    await life.write([end(accounts[0])])
    assert (await drainer.run_once()).inserted == 1
    await life.die()


async def test_a_lost_cursor_replays_without_moving_money(database, journal_dir, accounts, drainer):
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, *(end(a) for a in accounts)])
    await drainer.run_once()
    before = [await money(database, a) for a in accounts]
    await database.execute("DELETE FROM segment_cursor")
    replay = Drainer(database, journal_dir, drainer._node, Station(), now_ms=lambda: NOW_MS)
    report = await replay.run_once()
    assert (report.entries, report.inserted) == (4, 0)
    assert [await money(database, a) for a in accounts] == before
    assert await totals(database) == (3, 3 * COST, 3 * COST)
    await life.die()


async def test_two_drainers_at_once_insert_each_row_once(database, journal_dir, accounts):
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, *(end(accounts[n % 3]) for n in range(600))])
    drainers = [
        Drainer(database, journal_dir, "0199a000-0000-7000-8000-000000000001", Station()) for _ in range(2)
    ]
    reports = await asyncio.gather(*(d.run_once() for d in drainers))
    assert sorted(r.inserted for r in reports) == [0, 600]
    assert await totals(database) == (600, 600 * COST, 600 * COST)
    await life.die()


async def test_drainers_of_different_lives_with_the_same_accounts_do_not_deadlock(
    database, journal_dir, tmp_path, accounts
):
    """Two nodes: the same accounts in opposite order, at the same time."""
    lives = []
    for number, order in enumerate((accounts, accounts[::-1])):
        life = Life(tmp_path / f"node{number}")
        await life.write([PRICE_ENTRY, *(end(a) for _ in range(100) for a in order)])
        lives.append(life)
    nodes = [f"0199a000-0000-7000-8000-00000000000{n}" for n in range(2)]
    for _ in range(3):
        reports = await asyncio.gather(
            *(
                Drainer(database, tmp_path / f"node{n}", node, Station()).run_once()
                for n, node in enumerate(nodes)
            )
        )
        assert not any(r.alarms for r in reports)
    assert await totals(database) == (600, 600 * COST, 600 * COST)
    for life in lives:
        await life.die()


async def test_a_charge_against_a_lease_leaves_what_is_available(database, journal_dir, accounts, drainer):
    lease = new_id()
    account = accounts[0]
    await database.execute("INSERT INTO node (id) VALUES ($1)", drainer._node)
    await database.execute(
        "INSERT INTO lease (id, node, incarnation, account, granted_nanos) VALUES ($1, $2, 'n', $3, $4)",
        lease, drainer._node, account, YUAN,
    )  # fmt: skip
    await database.execute(
        "UPDATE account SET available_nanos = available_nanos - $2 WHERE id = $1", account, YUAN
    )
    life = Life(journal_dir)
    closed = new_id()  # a lease that nobody knows: as if it was closed long ago
    await life.write(
        [PRICE_ENTRY, end(account, lease=lease), end(account, lease=lease), end(account, lease=closed)]
    )
    await drainer.run_once()
    assert await money(database, account) == (100 * YUAN - 3 * COST, 99 * YUAN - COST)
    assert await database.fetchval("SELECT used_nanos FROM lease") == 2 * COST
    used = await database.fetchrow("SELECT incarnation, used_nanos FROM lease_use")
    assert tuple(used) == (life.name, 2 * COST)
    await life.die()


async def test_a_void_call_is_a_row_and_costs_nothing(database, journal_dir, accounts, drainer):
    life = Life(journal_dir)
    await life.write(
        [PRICE_ENTRY, end(accounts[0], state=entry.VOID, outcome=entry.FAILED, cost_nanos=0, usage={})]
    )
    await drainer.run_once()
    assert await totals(database) == (1, 0, 0)
    assert await money(database, accounts[0]) == (100 * YUAN, 100 * YUAN)
    await life.die()


@pytest.mark.parametrize("apart", [False, True])
async def test_a_settle_makes_the_row_of_a_pending_call(database, journal_dir, accounts, drainer, apart):
    life = Life(journal_dir)
    call = end(accounts[0], state=entry.PENDING, cost_nanos=0, provenance="estimated")
    settle = Settle(call.id, NOW_MS + 5, COST, "counted", {"input": 10, "output": 20})
    await life.write([PRICE_ENTRY, call] if apart else [PRICE_ENTRY, call, settle])
    await drainer.run_once()
    if apart:
        assert await database.fetchval("SELECT count(*) FROM pending_usage") == 1
        assert await totals(database) == (0, 0, 0)
        await life.write([settle])
        await drainer.run_once()
    row = await database.fetchrow("SELECT state, provenance, cost_nanos, flags FROM usage")
    assert tuple(row) == ("settled", "counted", COST, [])
    assert await totals(database) == (1, COST, COST)
    await database.execute("DELETE FROM segment_cursor")
    await Drainer(database, journal_dir, drainer._node, Station()).run_once()
    assert await totals(database) == (1, COST, COST)
    assert await database.fetchval("SELECT count(*) FROM pending_usage") == 0
    await life.die()


async def test_late_truth_is_a_correction(database, journal_dir, accounts, drainer):
    life = Life(journal_dir)
    call = end(accounts[0])
    corrections = [
        Settle(new_id(), NOW_MS, 60_000, "final", {"input": 12}, corrects=call.id),
        Settle(new_id(), NOW_MS, 30_000, "final", {"input": 6}, corrects=call.id),
        Settle(call.id, NOW_MS, 40_000, "final", {"input": 8}),  # came after the call was closed
    ]
    await life.write([PRICE_ENTRY, call, *corrections])
    await drainer.run_once()
    deltas = await database.fetch("SELECT delta_nanos FROM correction ORDER BY id")
    assert sorted(r["delta_nanos"] for r in deltas) == [-30_000, 10_000, 15_000]
    assert await money(database, accounts[0]) == (100 * YUAN - 40_000, 100 * YUAN - 40_000)
    await database.execute("DELETE FROM segment_cursor")
    await Drainer(database, journal_dir, drainer._node, Station()).run_once()
    assert (await money(database, accounts[0]))[0] == 100 * YUAN - 40_000
    await life.die()


async def test_a_settle_read_again_does_not_undo_the_correction_after_it(
    database, journal_dir, accounts, drainer
):
    life = Life(journal_dir)
    call = end(accounts[0], state=entry.PENDING, cost_nanos=0, provenance="estimated")
    settle = Settle(call.id, NOW_MS + 5, COST, "counted", {"input": 10, "output": 20})
    correction = Settle(new_id(), NOW_MS + 9, 30_000, "final", {"input": 6}, corrects=call.id)
    await life.write([PRICE_ENTRY, begin(accounts[0], id=call.id), call, settle, correction])
    await drainer.run_once()
    await database.execute("DELETE FROM segment_cursor")
    await Drainer(database, journal_dir, drainer._node, Station()).run_once()
    assert tuple(await database.fetchrow("SELECT begins, ends FROM segment_cursor")) == (1, 1)
    assert await totals(database) == (1, COST, 30_000)
    assert (await money(database, accounts[0]))[0] == 100 * YUAN - 30_000
    await life.die()


UNFIT = {
    "unknown account": end(99_999),
    "negative cost": end(1, cost_nanos=-1),
    "too large": end(1, status=1 << 40),
    "zero byte": end(1, client="a\0b"),
    "no id": end(1, id="0" * 32),
    "no lease": end(1, lease="nonsense"),
    "unknown call": Settle(new_id(), NOW_MS, 5, "final"),
}


@pytest.mark.parametrize("name", UNFIT)
async def test_an_entry_that_cannot_be_applied_is_quarantined_alone(
    database, journal_dir, accounts, drainer, name
):
    life = Life(journal_dir)
    others = [end(accounts[n % 3]) for n in range(20)]
    await life.write([PRICE_ENTRY, *others[:9], UNFIT[name], *others[9:]])
    report = await drainer.run_once()
    assert (report.inserted, report.quarantined, len(report.alarms)) == (20, 1, 1)
    row = await database.fetchrow("SELECT payload, reason FROM quarantine")
    assert row["payload"] == entry.encode(UNFIT[name])
    assert await totals(database) == (20, 20 * COST, 20 * COST)
    assert (await drainer.run_once()).entries == 0
    await life.die()


async def test_an_entry_of_another_build_is_quarantined(database, journal_dir, accounts, drainer):
    life = Life(journal_dir)
    life._journal.append(b'Z{"id":1}')
    life._journal.append(b'E{"colour":"blue"}')
    await life.write([PRICE_ENTRY, end(accounts[0])])
    report = await drainer.run_once()
    assert (report.inserted, report.quarantined) == (1, 2)
    await life.die()


async def test_bindings_allowances_and_observations_have_rows(database, journal_dir, accounts, drainer):
    life = Life(journal_dir)
    bind = Bind(new_id(), NOW_MS, accounts[0], 1, "file", "file-1", "openai", "direct", "main")
    foreign = Bind(new_id(), NOW_MS, accounts[1], 1, "file", "file-1", "openai", "direct", "main")
    task = Bind(new_id(), NOW_MS, accounts[0], 1, "task:mj", "mj-1", "mj", "direct", "main", hold_nanos=YUAN)
    await life.write(
        [
            bind,
            task,
            Allowance(new_id(), NOW_MS, accounts[0], YUAN),
            Observed(new_id(), NOW_MS, "mj-1", "mj", "SUCCESS"),
            foreign,
        ]
    )
    report = await drainer.run_once()
    assert report.quarantined == 1
    rows = await database.fetch(
        "SELECT vendor_id, account, state, hold_nanos FROM binding ORDER BY vendor_id"
    )
    assert [tuple(r) for r in rows] == [
        ("file-1", accounts[0], "bound", 0),
        ("mj-1", accounts[0], "pending", YUAN),
    ]
    assert await money(database, accounts[0]) == (100 * YUAN, 99 * YUAN)
    assert await database.fetchval("SELECT count(*) FROM allowance") == 1
    assert await database.fetchval("SELECT state FROM observation") == "SUCCESS"
    await life.die()


async def test_the_posted_day_is_the_stations_and_never_a_closed_one(
    database, journal_dir, accounts, drainer
):
    hour = 3_600_000
    life = Life(journal_dir)
    await life.write(
        [
            PRICE_ENTRY,
            end(accounts[0], at_ms=NOW_MS - 24 * hour, key=1),
            end(accounts[0], at_ms=NOW_MS - 24 * hour * 30, key=2),
            end(accounts[0], at_ms=NOW_MS + 24 * hour, key=3),
        ]
    )
    await drainer.run_once()
    days = await database.fetch("SELECT posted_day FROM usage ORDER BY key")
    today = day_of_station(NOW_MS)
    assert [(today - r["posted_day"]).days for r in days] == [1, 3, 0]
    await life.die()


async def test_a_cursor_beyond_the_end_is_an_alarm_and_stops_nobody_else(
    database, journal_dir, accounts, drainer
):
    broken, sound = Life(journal_dir, "w0-a"), Life(journal_dir, "w1-b")
    await broken.write([PRICE_ENTRY, end(accounts[0])])
    await drainer.run_once()
    await database.execute("UPDATE segment_cursor SET position = position + 1000")
    await sound.write([PRICE_ENTRY, end(accounts[1])])
    fresh = Drainer(database, journal_dir, drainer._node, Station())
    report = await fresh.run_once()
    assert report.inserted == 1
    assert len(report.damage) == 1 and "beyond" in report.damage[0]
    for life in (broken, sound):
        await life.die()


async def test_calls_of_many_days_find_their_partitions(database, journal_dir, accounts, drainer):
    day = 86_400_000
    life = Life(journal_dir)
    await life.write(
        [PRICE_ENTRY, *(end(accounts[0], id=f"{NOW_MS - n * day:012x}{'7':0<20}") for n in range(5))]
    )
    assert (await drainer.run_once()).inserted == 5
    tables = await database.fetch("SELECT DISTINCT tableoid::regclass::text AS name FROM usage ORDER BY 1")
    days = [datetime.fromtimestamp(NOW_MS / 1000 - n * 86_400, UTC) for n in range(5)]
    assert [r["name"] for r in tables] == [f"usage_{d:%Y%m%d}" for d in reversed(days)]
    await life.die()


async def test_a_partition_that_was_dropped_is_made_again(database, journal_dir, accounts, drainer):
    """No good entry is quarantined for it; one that no partition takes still is."""
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, end(accounts[0])])
    assert (await drainer.run_once()).inserted == 1
    (table,) = await database.fetch("SELECT DISTINCT tableoid::regclass::text AS name FROM usage")
    await database.execute(f"DROP TABLE {table['name']}")
    await life.write([end(accounts[0], provenance="nowhere"), *(end(accounts[0]) for _ in range(5))])
    report = await drainer.run_once()
    assert (report.inserted, report.quarantined) == (5, 1)
    assert "usage_provenance_check" in report.alarms[0]
    await life.die()
