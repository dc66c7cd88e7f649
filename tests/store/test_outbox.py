"""Changes of tasks become events once, in order; one sender has an event at a time."""

from __future__ import annotations

from uuid import UUID

import pytest

from proxy.dialects.owned import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED
from proxy.errors import StateError
from proxy.store.audit import audit
from proxy.store.due import DueTasks, Later
from proxy.store.outbox import DELIVERED, EVENTS_MAX, KEPT_MS, PER_KEY, Change, Outbox
from proxy.store.outbox import FAILED as GIVEN_UP
from tests.store.journals import NOW_MS, PRICE_ENTRY, Life, end, new_id
from tests.store.tasks import COST, DAYS, HOLD
from tests.store.told import HOOK, hooked, look

ONE = ("openai", "response")
MINUTE_MS = 60_000


@pytest.fixture
async def life(journal_dir):
    life = Life(journal_dir)
    yield life
    await life.die()


@pytest.fixture
def tasks(database) -> DueTasks:
    return DueTasks(database, "c-1")


@pytest.fixture
def outbox(database) -> Outbox:
    return Outbox(database)


@pytest.fixture
async def submit(life, drainer, accounts):
    """A task whose owner wants to be told of it; the id of its call."""

    async def submit(vendor_id: str = "t1", hook: str = HOOK, *, key: int = 1) -> str:
        entries = hooked(accounts[0], vendor_id, hook, key=key)
        await life.write([PRICE_ENTRY, *entries])
        await drainer.run_once()
        return entries[0].id

    return submit


async def events(database) -> list[tuple[int, str]]:
    return [
        (row["sequence"], row["body"])
        for row in await database.fetch("SELECT sequence, body FROM outbox ORDER BY binding, sequence")
    ]


async def claim(outbox, after_ms: int = MINUTE_MS, under_way=()):
    return await outbox.claim(under_way, NOW_MS + after_ms, NOW_MS + after_ms + 30_000)


# -- what becomes an event ---------------------------------------------------------------------------


async def test_each_change_is_an_event_once_and_in_the_order_in_which_it_was_seen(database, tasks, submit):
    await submit()
    await tasks.settle([look(QUEUED, "1", 1000), look(RUNNING, "2", 2000), look(RUNNING, "2", 3000)], DAYS)
    await tasks.settle([look(SUCCEEDED, "3", 4000)], DAYS)
    await tasks.settle([look(SUCCEEDED, "3", 5000)], DAYS)
    assert await events(database) == [(1, '{"mark":"1"}'), (2, '{"mark":"2"}'), (3, '{"mark":"3"}')]
    assert await audit(database) == []


async def test_who_did_not_ask_is_not_told(database, tasks, submit):
    await submit(hook="")
    await tasks.settle([look(RUNNING, "1"), look(SUCCEEDED, "2")], DAYS)
    assert await events(database) == []


async def test_a_look_that_comes_late_is_no_news(database, tasks, submit):
    await submit()
    await tasks.settle([look(RUNNING, "60%", 2000)], DAYS)
    await tasks.settle([look(RUNNING, "50%", 1000)], DAYS)
    await tasks.settle([look(FAILED, "failure", 3000), look(RUNNING, "70%", 4000)], DAYS)
    assert await events(database) == [(1, '{"mark":"60%"}'), (2, '{"mark":"failure"}')]


async def test_only_an_end_that_counts_is_told(database, tasks, submit):
    """A late success is believed after a failure, a late failure after a success is not."""
    await submit()
    await tasks.settle([look(FAILED, "failure", 1000)], DAYS)
    await tasks.settle([look(SUCCEEDED, "success", 2000)], DAYS)
    await tasks.settle([look(CANCELLED, "cancel", 3000), look(FAILED, "failure", 4000)], DAYS)
    assert await events(database) == [(1, '{"mark":"failure"}'), (2, '{"mark":"success"}')]


async def test_an_end_is_told_also_where_its_word_was_not_known_as_one_before(database, tasks, submit):
    await submit()
    await tasks.settle([look(RUNNING, "partial", 1000)], DAYS)
    await tasks.settle([look(SUCCEEDED, "partial", 2000)], DAYS)  # the file was put right
    assert await events(database) == [(1, '{"mark":"partial"}'), (2, '{"mark":"partial"}')]


async def test_an_end_whose_submit_is_not_drained_is_told_when_it_counts(
    database, tasks, life, drainer, accounts
):
    _, bind, deferred = hooked(accounts[0], "t1")
    await life.write([PRICE_ENTRY, bind])
    await drainer.run_once()
    await tasks.settle([look(SUCCEEDED, "success", 1000)], DAYS)
    assert await events(database) == []
    await life.write([deferred])
    await drainer.run_once()
    await tasks.settle([look(SUCCEEDED, "success", 2000)], DAYS)
    assert await events(database) == [(1, '{"mark":"success"}')]


async def test_a_poll_that_puts_a_task_off_tells_of_its_progress_in_the_same_transaction(
    database, tasks, submit
):
    call = await submit()
    [due] = await tasks.claim({ONE: 9}, NOW_MS + 5000, NOW_MS + 90_000)
    assert due.told_mark == ""
    change = Change(new_id(), call, NOW_MS + 5000, "30%", '{"progress":"30%"}', is_end=False)
    await tasks.put_off([Later(due, NOW_MS + 6000, change=change)])
    await tasks.put_off([Later(due, NOW_MS + 6000, change=change)])  # the connection was lost at the commit
    assert await events(database) == [(1, '{"progress":"30%"}')]
    [due] = await tasks.claim({ONE: 9}, NOW_MS + 6000, NOW_MS + 90_000)
    assert due.told_mark == "30%"


def free(account: int, vendor_id: str = "t1"):
    """A call that costs nothing and whose owner wants to be told: it is closed, its task goes on."""
    begin, bind, _ = hooked(account, vendor_id)
    begin.hold_nanos = bind.hold_nanos = 0
    return begin, bind, end(account, id=begin.id, hold_nanos=0, cost_nanos=0, state="void", usage={})


async def test_a_task_that_nobody_pays_for_is_asked_about_where_somebody_wants_to_hear_of_it(
    database, tasks, life, drainer, accounts
):
    await life.write([PRICE_ENTRY, *free(accounts[0])])
    await drainer.run_once()
    before = await database.fetch("SELECT id, state, cost_nanos FROM usage")
    assert len(await tasks.claim({ONE: 9}, NOW_MS + 5000, NOW_MS + 90_000)) == 1
    await tasks.settle([look(RUNNING, "50%", 1000), look(SUCCEEDED, "success", 2000)], DAYS)
    assert await events(database) == [(1, '{"mark":"50%"}'), (2, '{"mark":"success"}')]
    assert await database.fetch("SELECT id, state, cost_nanos FROM usage") == before
    assert await database.fetchval("SELECT state FROM binding") == "settled"


async def test_who_pays_later_for_a_task_that_was_free_so_far_has_it_and_its_hook_stays(
    database, tasks, life, drainer, accounts
):
    """Midjourney: an action that only opens a window costs nothing, the modal behind it does."""
    _, modal, deferred = hooked(accounts[0], "t1", "")
    await life.write([PRICE_ENTRY, *free(accounts[0]), modal, deferred])
    await drainer.run_once()
    sql = "SELECT id, state, hold_nanos, hook FROM binding"
    assert [tuple(row) for row in await database.fetch(sql)] == [(UUID(modal.id), "pending", HOLD, HOOK)]
    await tasks.settle([look(SUCCEEDED, "success", 2000)], DAYS)
    assert await database.fetchval("SELECT cost_nanos FROM usage WHERE id = $1", modal.id) == COST
    assert await events(database) == [(1, '{"mark":"success"}')]


async def test_an_end_that_was_seen_by_who_did_not_know_that_somebody_is_told_is_asked_for(
    database, tasks, submit
):
    await submit()
    unaware = look(SUCCEEDED, "", 1000)
    unaware.body = ""
    await tasks.settle([unaware], DAYS)
    assert await database.fetchval("SELECT state FROM binding") == "pending"
    [due] = await tasks.claim({ONE: 9}, NOW_MS + 1000, NOW_MS + 90_000)
    untold = look(SUCCEEDED, "-", 2000)
    untold.body = ""
    await tasks.settle([untold], DAYS)
    assert (due.vendor_id, await database.fetchval("SELECT state FROM binding")) == ("t1", "settled")
    assert await events(database) == []


async def test_a_task_that_flickers_is_told_a_thousand_times_and_then_its_end(database, tasks, submit):
    await submit()
    await database.execute("UPDATE binding SET told = $1", EVENTS_MAX)
    await tasks.settle([look(RUNNING, "50%", 1000), look(SUCCEEDED, "success", 2000)], DAYS)
    assert await events(database) == [(EVENTS_MAX + 1, '{"mark":"success"}')]


# -- who sends what ----------------------------------------------------------------------------------


@pytest.fixture
def told(tasks, submit):
    """Tasks with so many events each."""

    async def told(count: int, *names: str, **more) -> None:
        for name in names:
            await submit(name, **more)
            looks = [look(RUNNING, str(n), n * 1000, name) for n in range(1, count + 1)]
            await tasks.settle(looks, DAYS)

    return told


async def test_events_of_a_task_are_had_one_after_the_other(outbox, told):
    await told(3, "t1")
    got = []
    for n in range(3):
        [event] = await claim(outbox, MINUTE_MS + n)
        assert await claim(outbox, MINUTE_MS + n) == []
        assert await outbox.close(event, DELIVERED, NOW_MS + MINUTE_MS, status=200)
        got.append(event.sequence)
    assert got == [1, 2, 3]
    assert await claim(outbox) == []


async def test_what_follows_waits_with_what_was_not_taken_and_goes_on_with_it(outbox, told):
    await told(2, "t1")
    [event] = await claim(outbox)
    await outbox.put_off(event, NOW_MS + 5 * MINUTE_MS, status=503, note="answered 503")
    assert await claim(outbox, 4 * MINUTE_MS) == []
    [event] = await claim(outbox, 5 * MINUTE_MS)
    assert (event.sequence, event.tries) == (1, 2)
    await outbox.close(event, GIVEN_UP, NOW_MS + 5 * MINUTE_MS, note="no")
    [event] = await claim(outbox, 5 * MINUTE_MS)
    assert event.sequence == 2


async def test_an_event_that_comes_behind_one_that_was_not_taken_waits_with_it(database, outbox, told, tasks):
    await told(1, "t1")
    [event] = await claim(outbox)
    await outbox.put_off(event, NOW_MS + 5 * MINUTE_MS, note="answered 503")
    await tasks.settle([look(RUNNING, "next", 2 * MINUTE_MS)], DAYS)
    sql = "SELECT next_try_ms FROM outbox ORDER BY sequence"
    assert [row["next_try_ms"] for row in await database.fetch(sql)] == [NOW_MS + 5 * MINUTE_MS] * 2


async def test_a_claim_that_ran_out_is_anothers_and_the_late_one_changes_nothing(outbox, told):
    await told(1, "t1")
    [late] = await claim(outbox)
    assert await claim(outbox, MINUTE_MS + 29_999) == []
    [event] = await claim(outbox, MINUTE_MS + 30_000)
    assert (event.id, event.tries) == (late.id, 2)
    await outbox.put_off(late, NOW_MS + 60 * MINUTE_MS, note="late")
    assert not await outbox.close(late, GIVEN_UP, NOW_MS)
    assert await outbox.close(event, DELIVERED, NOW_MS, status=200)
    assert (await outbox.event(event.id))["state"] == DELIVERED


async def test_a_receiver_gets_a_few_at_once_and_keeps_no_other_waiting(outbox, told):
    await told(1, *(f"a{n}" for n in range(6)))
    await told(1, "b1", hook="http://other.example:8080/", key=2)
    first = await claim(outbox)
    assert sorted(e.host for e in first) == ["hooks.example.com"] * 4 + ["other.example:8080"]
    assert await claim(outbox, under_way=first) == []
    assert len(await claim(outbox, under_way=first[:3])) == 1


async def test_one_key_does_not_take_all_turns(outbox, told):
    for n in range(PER_KEY + 3):
        await told(1, f"a{n}", hook=f"https://h{n}.example/")
    await told(1, "b", hook="https://b.example/", key=2)
    got = await claim(outbox)
    assert len(got) == PER_KEY + 1
    assert await claim(outbox, under_way=got) == []
    assert len(await claim(outbox, under_way=got[3:])) == 3
    assert "b.example" in {event.host for event in got}


# -- looking -----------------------------------------------------------------------------------------


async def test_events_are_shown_to_their_account_and_sent_again_when_asked(outbox, told, accounts):
    await told(2, "t1")
    [event] = await claim(outbox)
    await outbox.close(event, GIVEN_UP, NOW_MS, status=410, note="answered 410")
    assert [e["sequence"] for e in await outbox.events(10, account=accounts[0])] == [2, 1]
    assert await outbox.events(10, account=accounts[1]) == []
    assert [e["status"] for e in await outbox.events(10, state="failed", call=event.call)] == [410]
    shown = await outbox.event(f"evt_{event.id}", accounts[0])
    assert (shown["body"], shown["note"], shown["account"]) == ('{"mark":"1"}', "answered 410", "ada")
    with pytest.raises(LookupError):
        await outbox.event(event.id, accounts[1])
    with pytest.raises(LookupError):
        await outbox.event("nonsense")
    assert await outbox.resend([event.id], NOW_MS + MINUTE_MS, accounts[1]) == 0
    assert await outbox.resend([event.id], NOW_MS + MINUTE_MS, accounts[0]) == 1
    [again] = await claim(outbox)
    assert (again.id, again.sequence) == (event.id, 1)


async def test_what_was_closed_long_ago_is_forgotten_and_what_waits_is_not(outbox, told):
    await told(2, "t1")
    [event] = await claim(outbox)
    await outbox.close(event, DELIVERED, NOW_MS, status=200)
    assert await outbox.forget(NOW_MS + KEPT_MS) == 0
    assert await outbox.forget(NOW_MS + KEPT_MS + 1) == 1
    assert await outbox.waiting() == 1


async def test_a_secret_is_made_once_and_the_one_before_signs_for_a_day(outbox, accounts):
    first = await outbox.secrets(accounts[0])
    assert await outbox.secrets(accounts[0]) == first
    assert (await outbox.secrets(accounts[1])).secret != first.secret
    second = await outbox.rotate(accounts[0], NOW_MS)
    assert second.in_force(NOW_MS) == [second.secret, first.secret]
    assert second.in_force(NOW_MS + 25 * 60 * MINUTE_MS) == [second.secret]
    with pytest.raises(StateError):  # the first would be forgotten, and receivers may use it still
        await outbox.rotate(accounts[0], NOW_MS + 23 * 60 * MINUTE_MS)
    third = await outbox.rotate(accounts[0], NOW_MS + 24 * 60 * MINUTE_MS)
    assert third.in_force(NOW_MS + 24 * 60 * MINUTE_MS) == [third.secret, second.secret]


async def test_a_secret_that_leaked_signs_no_more(outbox, accounts):
    for _ in range(2):
        new = await outbox.rotate(accounts[0], NOW_MS, revoke=True)
        assert new.in_force(NOW_MS) == [new.secret]
