"""A task is billed once, when it is finished, whoever tells its end and however often."""

from __future__ import annotations

import asyncio
import json

import pytest

from proxy.dialects.owned import FAILED, RUNNING, SUCCEEDED
from proxy.ledger import bindings, entry
from proxy.ledger.entry import Bind, PriceEntry
from proxy.metering.pricing import cost_nanos, price_from_content
from proxy.metering.usage import Usage
from proxy.store import deadlines
from proxy.store import due as due_sql
from proxy.store.audit import audit
from proxy.store.deadlines import Deadline
from proxy.store.drainer import Drainer
from proxy.store.due import DueTasks, Later, Learned, decided
from proxy.store.leases import Leases
from tests.store.journals import NODE, NOW_MS, PRICE, PRICE_ENTRY, YUAN, Life, Station, new_id
from tests.store.tasks import COST, DAYS, HOLD, USAGE, seen, submitted

ONE, OTHER = ("openai", "response"), ("mj", "task:mj")


async def rows(database, sql):
    return [tuple(row) for row in await database.fetch(sql)]


async def state_of(database, vendor_id):
    return tuple(
        await database.fetchrow("SELECT state, hold_nanos FROM binding WHERE vendor_id = $1", vendor_id)
    )


async def money(database, account):
    return tuple(
        await database.fetchrow("SELECT balance_nanos, available_nanos FROM account WHERE id = $1", account)
    )


@pytest.fixture
async def life(journal_dir):
    life = Life(journal_dir)
    yield life
    await life.die()


@pytest.fixture
def tasks(database):
    return DueTasks(database, "c-test")


async def test_the_hold_of_a_task_waits_with_its_binding(database, accounts, drainer, life):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "resp_1")])
    report = await drainer.run_once()
    assert (report.inserted, report.alarms) == (0, [])
    assert await state_of(database, "resp_1") == ("pending", HOLD)
    assert await money(database, accounts[0]) == (100 * YUAN, 100 * YUAN - HOLD)
    assert await rows(database, "SELECT begins, ends FROM segment_cursor") == [(1, 1)]
    assert await audit(database) == []


async def test_success_is_billed_at_the_submits_price_and_frees_the_hold(
    database, accounts, drainer, life, tasks
):
    [_, bind, _] = entries = submitted(accounts[0], "resp_1")
    await life.write([PRICE_ENTRY, *entries])
    await drainer.run_once()
    assert await tasks.settle([seen("resp_1")], DAYS) == 1
    row = await database.fetchrow("SELECT * FROM usage")
    assert (row["id"].hex, row["cost_nanos"], row["usage"]) == (bind.id, COST, USAGE)
    assert (row["state"], row["outcome"], row["provenance"]) == ("settled", "complete", "final")
    assert await state_of(database, "resp_1") == ("settled", 0)
    assert await money(database, accounts[0]) == (100 * YUAN - COST, 100 * YUAN - COST)
    assert await audit(database) == []


async def test_failure_is_void_and_costs_nothing(database, accounts, drainer, life, tasks):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "resp_1")])
    await drainer.run_once()
    assert await tasks.settle([seen("resp_1", FAILED)], DAYS) == 1
    assert await rows(database, "SELECT state, cost_nanos, outcome FROM usage") == [
        ("void", 0, "upstream_error")
    ]
    assert await money(database, accounts[0]) == (100 * YUAN, 100 * YUAN)
    assert await audit(database) == []


async def test_a_leased_hold_comes_back_to_the_account(database, accounts, drainer, life, tasks):
    lender, lease = Leases(database, NODE, "life1"), new_id()
    await lender.register()
    await lender.grant(lease, accounts[0], YUAN, YUAN)
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "resp_1", lease)])
    await drainer.run_once()
    assert await money(database, accounts[0]) == (100 * YUAN, 99 * YUAN)
    assert await database.fetchval("SELECT used_nanos FROM lease") == HOLD
    await tasks.settle([seen("resp_1")], DAYS)
    assert await money(database, accounts[0]) == (100 * YUAN - COST, 99 * YUAN + HOLD - COST)
    assert await audit(database) == []


async def test_poll_client_and_replay_at_once_bill_once(
    database, journal_dir, accounts, drainer, life, tasks
):
    """The poller of two nodes, the client's own poll in a journal, and the journal read again."""
    names = [f"resp_{n}" for n in range(20)]
    await life.write([PRICE_ENTRY, *(e for name in names for e in submitted(accounts[0], name))])
    await drainer.run_once()
    await life.write([seen(name) for name in names])
    closed = await asyncio.gather(
        tasks.settle([seen(name) for name in names], DAYS),
        drainer.run_once(),
        DueTasks(database, "c-other").settle([seen(name) for name in reversed(names)], DAYS),
    )
    assert sum(c if isinstance(c, int) else c.inserted for c in closed) == 20
    await database.execute("DELETE FROM segment_cursor")
    await Drainer(database, journal_dir, NODE, Station(), now_ms=lambda: NOW_MS).run_once()
    assert await rows(database, "SELECT count(*), sum(cost_nanos)::bigint FROM usage") == [(20, 20 * COST)]
    assert await money(database, accounts[0]) == (100 * YUAN - 20 * COST,) * 2
    assert await audit(database) == []


async def test_a_replay_before_the_end_waits_as_before(database, journal_dir, accounts, drainer, life, tasks):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "resp_1")])
    for _ in range(2):
        await Drainer(database, journal_dir, NODE, Station(), now_ms=lambda: NOW_MS).run_once()
        await database.execute("DELETE FROM segment_cursor")
    assert await money(database, accounts[0]) == (100 * YUAN, 100 * YUAN - HOLD)
    await tasks.settle([seen("resp_1")], DAYS)
    assert await money(database, accounts[0]) == (100 * YUAN - COST,) * 2


async def test_success_after_failure_is_a_correction_and_failure_after_success_is_nothing(
    database, accounts, drainer, life, tasks
):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "a"), *submitted(accounts[0], "b")])
    await drainer.run_once()
    for state in (FAILED, SUCCEEDED, SUCCEEDED, FAILED):
        await tasks.settle([seen("a", state)], DAYS)
    for state in (SUCCEEDED, FAILED):
        await tasks.settle([seen("b", state)], DAYS)
    assert await rows(database, "SELECT state, cost_nanos FROM usage ORDER BY id") == [
        ("void", 0), ("settled", COST),
    ]  # fmt: skip
    assert await rows(database, "SELECT delta_nanos FROM correction") == [(COST,)]
    assert await money(database, accounts[0]) == (100 * YUAN - 2 * COST,) * 2
    assert await audit(database) == []


async def test_a_stream_that_named_its_id_early_becomes_a_task_when_it_is_cut(
    database, accounts, drainer, life, tasks
):
    entries = submitted(accounts[0], "resp_1")
    early = Bind(new_id(), NOW_MS, accounts[0], 1, "response", "resp_1", "openai", "direct", "main")
    await life.write([PRICE_ENTRY, early])
    await drainer.run_once()
    assert await state_of(database, "resp_1") == ("bound", 0)
    await life.write(entries)
    await drainer.run_once()
    assert await state_of(database, "resp_1") == ("pending", HOLD)
    await tasks.settle([seen("resp_1")], DAYS)
    assert await money(database, accounts[0]) == (100 * YUAN - COST,) * 2
    assert await audit(database) == []


async def test_a_second_call_that_is_told_of_the_same_task_is_void(database, accounts, drainer, life, tasks):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "mj-1"), *submitted(accounts[0], "mj-1")])
    report = await drainer.run_once()
    assert (report.inserted, report.quarantined) == (1, 0)
    assert await rows(database, "SELECT state, cut FROM usage") == [("void", "exists")]
    assert await money(database, accounts[0]) == (100 * YUAN, 100 * YUAN - HOLD)
    await tasks.settle([seen("mj-1")], DAYS)
    assert await money(database, accounts[0]) == (100 * YUAN - COST,) * 2
    assert await audit(database) == []


async def test_a_task_of_another_account_is_refused_and_void(database, accounts, drainer, life):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "mj-1"), *submitted(accounts[1], "mj-1")])
    report = await drainer.run_once()
    assert (report.inserted, report.quarantined) == (1, 1)
    assert await money(database, accounts[1]) == (100 * YUAN, 100 * YUAN)


async def test_a_relay_that_died_between_bind_and_end_is_billed_as_a_correction(
    database, journal_dir, accounts, adopter, tasks
):
    life = Life(journal_dir)
    call, bind, _ = submitted(accounts[0], "resp_1")
    await life.write([PRICE_ENTRY, call, bind])
    await life.die()
    await adopter.run_once()
    assert await rows(database, "SELECT state, outcome FROM usage") == [("void", "interrupted_relay")]
    assert await state_of(database, "resp_1") == ("pending", HOLD)
    await tasks.settle([seen("resp_1")], DAYS)
    assert await money(database, accounts[0]) == (100 * YUAN - COST,) * 2
    assert await audit(database) == []


async def test_an_end_that_is_seen_before_its_call_was_drained_waits_for_the_poller(
    database, journal_dir, accounts, drainer, life, tasks
):
    call, bind, deferred = submitted(accounts[0], "resp_1")
    await life.write([PRICE_ENTRY, call, bind])
    await drainer.run_once()
    assert await tasks.settle([seen("resp_1")], DAYS) == 0
    await life.write([deferred])
    await drainer.run_once()
    [due] = await tasks.claim({ONE: 5}, NOW_MS + 5000, NOW_MS + 60_000)
    assert await tasks.settle([seen(due.vendor_id)], DAYS) == 1
    assert await money(database, accounts[0]) == (100 * YUAN - COST,) * 2


async def test_parts_at_other_prices_are_rows_of_their_own(database, accounts, drainer, life, tasks):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "batch_1", kind="batch")])
    await drainer.run_once()
    other = price_from_content({"input": 2_000_000_000, "output": 2_000_000_000})
    parts = [
        {
            "id": new_id(),
            "model": m,
            "price": p.id,
            "model_ppm": 1_000_000,
            "tier_ppm": 500_000,
            "override": "",
            "usage": USAGE,
        }
        for m, p in (("gpt-4o-mini", PRICE), ("o3", other))
    ]
    assert await tasks.settle([seen("batch_1", usage={}, parts=parts)], DAYS, prices=[other]) == 1
    found = await rows(database, "SELECT id::text, parent::text, model, cost_nanos FROM usage ORDER BY model")
    second = cost_nanos(other, Usage.from_dict(USAGE), 1_000_000, 500_000)
    assert [(m, c) for _, _, m, c in found] == [("gpt-4o-mini", COST), ("o3", second)]
    assert found[1][1] == found[0][0]
    assert await money(database, accounts[0]) == (100 * YUAN - COST - second,) * 2
    assert await audit(database) == []


async def test_a_claim_is_one_nodes_and_each_upstreams_in_its_number(
    database, accounts, drainer, life, tasks
):
    await life.write([PRICE_ENTRY, *(e for n in range(30) for e in submitted(accounts[n % 3], f"resp_{n}"))])
    await drainer.run_once()
    later = NOW_MS + 5000
    claims = await asyncio.gather(
        *(DueTasks(database, f"c-{n}").claim({ONE: 8, OTHER: 8}, later, later + 60_000) for n in range(3))
    )
    ids = [due.id for claim in claims for due in claim]
    assert len(ids) == len(set(ids)) and all(len(claim) <= 8 for claim in claims)
    while more := await tasks.claim({ONE: 8}, later, later + 60_000):
        ids += [due.id for due in more]
    assert len(ids) == len(set(ids)) == 30
    assert await tasks.claim({OTHER: 8}, later, later + 60_000) == []
    again = await tasks.claim({ONE: 100}, later + 60_000, later + 120_000)
    assert len(again) == 30 and {due.polls for due in again} == {2}


async def test_who_comes_too_late_does_not_move_a_task_that_another_claimed(
    database, accounts, drainer, life, tasks
):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "resp_1")])
    await drainer.run_once()
    [slow] = await tasks.claim({ONE: 1}, NOW_MS + 5000, NOW_MS + 6000)
    [fast] = await tasks.claim({ONE: 1}, NOW_MS + 6000, NOW_MS + 90_000)
    await tasks.put_off([Later(slow, 1)])
    assert not await tasks.dispute([(slow, "late", 1)])
    assert await database.fetchval("SELECT next_poll_ms FROM binding") == NOW_MS + 90_000
    await tasks.put_off([Later(fast, 7, content={"status": "queued"})])
    assert await rows(database, "SELECT next_poll_ms, content->>'status' FROM binding") == [(7, "queued")]


@pytest.mark.parametrize("is_charged", [True, False])
async def test_a_dispute_keeps_the_hold_until_it_is_decided(
    database, accounts, drainer, life, tasks, is_charged
):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "resp_1")])
    await drainer.run_once()
    [due] = await tasks.claim({ONE: 1}, NOW_MS + 5000, NOW_MS + 6000)
    assert await tasks.dispute([(due, "no answer", NOW_MS + 9000)]) == 1
    assert await tasks.claim({ONE: 1}, NOW_MS + 10**9, 0) == []
    assert await money(database, accounts[0]) == (100 * YUAN, 100 * YUAN - HOLD)
    assert await tasks.disputes(NOW_MS) == []
    [dispute] = await tasks.disputes(NOW_MS + 9000)
    assert (dispute.account, dispute.vendor_id, dispute.note) == ("ada", "resp_1", "no answer")
    verdict = decided(dispute, new_id(), is_charged, NOW_MS + 9500)
    assert await tasks.settle([verdict, verdict], DAYS) == 1
    left = 100 * YUAN - (HOLD if is_charged else 0)
    assert await money(database, accounts[0]) == (left, left)
    assert await tasks.disputes() == []
    assert await audit(database) == []


async def test_what_its_owner_deletes_before_its_end_is_disputed_and_no_list_shows_it(
    database, accounts, drainer, life, tasks
):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "resp_1")])
    await drainer.run_once()
    await life.write([seen("resp_1", bindings.GONE)])
    await drainer.run_once()
    await tasks.sweep([], 0, NOW_MS + 7)
    [dispute] = await tasks.disputes()
    assert "deleted" in dispute.note and dispute.deadline_ms == NOW_MS + 7
    assert await database.fetchval("SELECT gone_ms FROM binding") == NOW_MS + 5000


async def test_a_hint_makes_a_task_due_once_also_a_disputed_one_and_never_a_finished_one(
    database, accounts, drainer, life, tasks
):
    names = ["goes on", "disputed", "finished"]
    await life.write([PRICE_ENTRY, *(e for name in names for e in submitted(accounts[0], name))])
    await drainer.run_once()
    await tasks.settle([seen("finished"), seen("finished", FAILED)], DAYS)
    first = await tasks.claim({ONE: 9}, NOW_MS + 5000, NOW_MS + 90_000)
    await tasks.put_off([Later(due, NOW_MS + 300_000) for due in first])
    await tasks.dispute([(due, "silent", NOW_MS + 900_000) for due in first if due.vendor_id == "disputed"])
    assert await tasks.claim({ONE: 9}, NOW_MS + 6000, NOW_MS + 90_000) == []
    calls = [row["id"].hex for row in await database.fetch("SELECT id FROM binding")]
    assert await tasks.hurry([*calls, new_id()], NOW_MS + 6000) == set(calls)
    again = await tasks.claim({ONE: 9}, NOW_MS + 6000, NOW_MS + 90_000)
    assert {due.vendor_id for due in again} == {"goes on", "disputed"}
    await tasks.put_off([Later(due, NOW_MS + 300_000) for due in again])
    assert await rows(database, "SELECT vendor_id, state, next_poll_ms, note FROM binding ORDER BY 1") == [
        ("disputed", "disputed", None, "silent"),
        ("finished", "settled", None, ""),
        ("goes on", "pending", NOW_MS + 300_000, ""),
    ]


async def test_a_disputed_task_that_is_asked_about_once_more_keeps_its_date(
    database, accounts, drainer, life, tasks
):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "resp_1")])
    await drainer.run_once()
    for note, begun in (("first", 1), ("again", 0)):
        await tasks.hurry([await database.fetchval("SELECT id::text FROM binding")], NOW_MS)
        [due] = await tasks.claim({ONE: 1}, NOW_MS, NOW_MS + 9)
        assert await tasks.dispute([(due, note, NOW_MS + len(note))]) == begun
    sql = "SELECT state, note, deadline_ms, next_poll_ms FROM binding"
    assert await rows(database, sql) == [("disputed", "first", NOW_MS + 5, None)]


async def test_deadlines_hold_where_nobody_asks(database, accounts, drainer, life, tasks):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "resp_1")])
    await drainer.run_once()
    await tasks.claim({ONE: 1}, NOW_MS + 5000, NOW_MS + 90_000)  # by a poller that hangs
    assert await tasks.sweep([Deadline(OTHER, NOW_MS + 1, 7), Deadline(ONE, NOW_MS, 7)], 0, 0) == 0
    assert await tasks.sweep([Deadline(ONE, NOW_MS + 1, NOW_MS + 7)], 0, 0) == 1
    assert await rows(database, "SELECT state, deadline_ms, next_poll_ms FROM binding") == [
        ("disputed", NOW_MS + 7, None)
    ]


async def test_an_end_that_cannot_be_posted_is_disputed_and_keeps_no_other_from_it(
    database, accounts, drainer, life, tasks
):
    names = [f"resp_{n}" for n in range(5)]
    await life.write([PRICE_ENTRY, *(e for name in names for e in submitted(accounts[0], name))])
    await drainer.run_once()
    ends = [seen(name) for name in names]
    ends[2] = seen("resp_2", parts=[{
        "id": new_id(), "model": "m", "price": "nobody's", "model_ppm": 1, "tier_ppm": 1, "override": "",
        "usage": {},
    }])  # fmt: skip
    assert await tasks.write(Learned(seen=ends), DAYS) == (4, 0)
    assert await rows(database, "SELECT vendor_id, note FROM binding WHERE state = 'disputed'") == [
        ("resp_2", 'its end (succeeded) cannot be posted: KeyError: "nobody\'s"')
    ]
    assert await audit(database) == []


async def test_what_goes_on_is_noted_and_what_is_due_is_polled_at_once(
    database, accounts, drainer, life, tasks
):
    await life.write([PRICE_ENTRY, *submitted(accounts[0], "resp_1")])
    await drainer.run_once()
    [due] = await tasks.claim({ONE: 1}, NOW_MS + 5000, NOW_MS + 6000)
    await tasks.put_off([Later(due, NOW_MS + 300_000)])
    await life.write([seen("resp_1", RUNNING, content={"status": "in_progress"})])
    await drainer.run_once()
    assert await rows(database, "SELECT next_poll_ms, content->>'status' FROM binding") == [
        (NOW_MS + 300_000, "in_progress")
    ]
    await life.write([seen("resp_1", bindings.DUE)])
    await drainer.run_once()
    assert len(await tasks.claim({ONE: 1}, NOW_MS + 5000, NOW_MS + 6000)) == 1


async def test_a_success_without_figures_is_billed_by_what_the_submit_knew(
    database, accounts, drainer, life, tasks
):
    price = price_from_content({"call": 3_000_000})
    call, bind, deferred = submitted(accounts[0], "task_1")
    call.price = deferred.price = price.id
    await life.write([PriceEntry(price.id, dict(price.content)), call, bind, deferred])
    await drainer.run_once()
    await tasks.settle([seen("task_1", usage={})], DAYS)
    assert await rows(database, "SELECT cost_nanos, provenance FROM usage") == [(1_500_000, "estimated")]
    assert deferred.state == entry.DEFERRED
    assert await audit(database) == []


# -- plans -------------------------------------------------------------------------------------------

OPEN, FINISHED = 40, 4000


@pytest.fixture
async def crowd(database, accounts):
    """A few open tasks among many that are finished, as Postgres' statistics see them."""
    await database.execute(
        "INSERT INTO binding (id, account, key, kind, vendor_id, upstream, mirror, credential, at_ms,"
        " hold_nanos, state, next_poll_ms, incarnation)"
        " SELECT (lpad(to_hex($2::bigint + n), 12, '0') || '7' || lpad(to_hex(n), 19, '0'))::uuid, $1, 1,"
        " CASE WHEN n <= $3 OR n % 2 = 0 THEN 'response' ELSE 'file' END, 't' || n, 'openai', 'direct',"
        " 'main', $2::bigint + n, 0,"
        " CASE WHEN n <= $3 THEN 'pending' WHEN n % 2 = 0 THEN 'settled' ELSE 'bound' END,"
        " CASE WHEN n <= $3 THEN $2::bigint + n END, 'w0' FROM generate_series(1, $3::int + $4::int) n",
        accounts[0], NOW_MS - 10_000, OPEN, FINISHED,
    )  # fmt: skip
    await database.execute("ANALYZE binding")
    return database


async def touched(database, sql: str, *args) -> tuple[int, set[str]]:
    """How many rows of `binding` a statement looks at, and by which ways."""
    async with database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        plan = await connection.fetchval("EXPLAIN (ANALYZE, FORMAT JSON) " + sql, *args)
        await transaction.rollback()
    rows, ways = 0, set()
    nodes = [json.loads(plan)[0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", ())
        if node["Node Type"] == "Bitmap Index Scan" or node.get("Relation Name") == "binding":
            looked = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            rows += int(looked * node["Actual Loops"])
            ways.add(node.get("Index Name") or node["Node Type"])
    return rows, ways


SORTS = (["openai"], ["response"])
ROUND = {
    "claim": (due_sql._CLAIM, *SORTS, [8], NOW_MS, NOW_MS + 9),
    "deadlines": (deadlines._LATE, *SORTS, [NOW_MS - 9_990], [NOW_MS]),
    "what is left": (deadlines._LEFT, NOW_MS - 9_990, NOW_MS),
    "dates of disputes": (deadlines._DATE, NOW_MS),
    "hint": (due_sql._HURRY, [new_id(), new_id(), new_id()], NOW_MS),
}


@pytest.mark.parametrize("name", ROUND)
async def test_a_round_looks_at_what_is_open_however_much_is_finished(crowd, name):
    rows, ways = await touched(crowd, *ROUND[name])
    assert rows <= 4 * OPEN, ways
    assert "Seq Scan" not in ways
    # As much more is finished, it looks at no more.
    await crowd.execute(
        "INSERT INTO binding (id, account, key, kind, vendor_id, upstream, mirror, credential, at_ms, state,"
        " incarnation) SELECT gen_random_uuid(), account, key, kind, vendor_id || '-' || n, upstream,"
        " mirror, credential, at_ms, state, 'w0' FROM binding CROSS JOIN generate_series(1, 3) n"
        " WHERE state <> 'pending'"
    )
    await crowd.execute("ANALYZE binding")
    assert (await touched(crowd, *ROUND[name]))[0] == rows
