"""Submits that are one: the first goes, the others learn what became of it, whoever died meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.dialects.base import Once
from proxy.ledger import entry
from proxy.ledger.submissions import CLICK_MS, KEY_MS, Request, Submission, Turn, by_click, by_key
from proxy.store.submissions import Submissions
from tests.store.journals import NOW_MS, PRICE_ENTRY, Life, begin, end, new_id
from tests.store.tasks import submitted

ANSWER = {"code": 1, "result": "t1"}


@pytest.fixture
def desk(database):
    return Submissions(database)


@pytest.fixture
async def life(journal_dir):
    life = Life(journal_dir)
    yield life
    await life.die()


def submit(account: int, call: str = "", **changes) -> Submission:
    it = by_key(account, "k", Request("/draw", b"{}", {}), call or new_id(), NOW_MS)
    return replace(it, **changes)


async def turn(desk, it, life="w0", at_ms=NOW_MS):
    return await desk.claim(it, life, at_ms)


async def test_the_first_goes_the_next_wait_and_then_get_its_answer(desk, accounts):
    first, second = submit(accounts[0]), submit(accounts[0])
    assert await turn(desk, first) == (Turn.OWN, {})
    assert await turn(desk, first) == (Turn.OWN, {})  # its control was replaced before it answered
    assert await turn(desk, second) == (Turn.WAITING, {})
    assert await turn(desk, submit(accounts[0], request=b"other")) == (Turn.DIFFERENT, {})
    assert await turn(desk, submit(accounts[1])) == (Turn.OWN, {})
    await desk.answered(first.call, ANSWER, None)
    assert await turn(desk, second) == (Turn.ANSWERED, ANSWER)
    await desk.release(first.call)  # told late, and wrongly
    assert await turn(desk, second) == (Turn.ANSWERED, ANSWER)
    assert await turn(desk, second, at_ms=NOW_MS + KEY_MS) == (Turn.OWN, {})


async def test_what_came_to_nothing_is_free_for_the_next(desk, accounts):
    first, second = submit(accounts[0]), submit(accounts[0])
    await turn(desk, first)
    await desk.release(first.call)
    assert await turn(desk, second) == (Turn.OWN, {})


async def test_an_answer_that_cannot_be_kept_is_not_made_up(desk, accounts):
    first = submit(accounts[0])
    await turn(desk, first)
    await desk.answered(first.call, {}, None)
    assert await turn(desk, submit(accounts[0])) == (Turn.LOST, {})


async def test_a_window_of_clicks_is_over_in_time(desk, database, accounts):
    first, second = submit(accounts[0], until_ms=NOW_MS + CLICK_MS), submit(accounts[0])
    await turn(desk, first)
    await desk.answered(first.call, ANSWER, NOW_MS + 10)
    assert await turn(desk, second, at_ms=NOW_MS + 9) == (Turn.ANSWERED, ANSWER)
    assert await turn(desk, second, at_ms=NOW_MS + 10) == (Turn.OWN, {})
    await desk.forget(NOW_MS + KEY_MS)
    assert await database.fetch("SELECT FROM submission") == []


@pytest.mark.parametrize(
    ("state", "outcome", "cost", "found"),
    [
        (entry.VOID, entry.UPSTREAM_ERROR, 0, Turn.OWN),
        (entry.VOID, entry.FAILED, 0, Turn.OWN),
        (entry.VOID, entry.INTERRUPTED_RELAY, 0, Turn.LOST),  # the vendor may have it
        (entry.SETTLED, entry.INTERRUPTED_CLIENT, 90_000, Turn.LOST),
    ],
)
async def test_the_books_tell_of_a_worker_that_told_nothing(
    desk, accounts, life, drainer, state, outcome, cost, found
):
    first = submit(accounts[0])
    await turn(desk, first, life.name)
    usage = {"input": 10, "output": 20} if cost else {}
    call = end(
        accounts[0], id=first.call, state=state, outcome=outcome, cost_nanos=cost, usage=usage,
        provenance="final" if cost else "none",
    )  # fmt: skip
    await life.write([PRICE_ENTRY, begin(accounts[0], id=first.call), call])
    await drainer.run_once()
    assert (await turn(desk, submit(accounts[0])))[0] is found


async def test_the_answer_of_a_worker_that_died_is_in_its_journal(desk, accounts, life, drainer):
    entries = submitted(accounts[0], "t1")
    first = submit(accounts[0], entries[0].id)
    await turn(desk, first, life.name)
    await life.write([PRICE_ENTRY, *entries])
    await drainer.run_once()
    assert await turn(desk, submit(accounts[0])) == (Turn.ANSWERED, entries[1].content)


async def test_a_call_that_never_began_went_nowhere(desk, accounts, journal_dir, adopter):
    first, second, life = submit(accounts[0]), submit(accounts[0]), Life(journal_dir)
    await turn(desk, first, life.name)
    await life.write([PRICE_ENTRY])
    assert await turn(desk, second) == (Turn.WAITING, {})
    await life.die()
    await adopter.run_once()
    assert await turn(desk, second) == (Turn.OWN, {})


def test_clicks_are_one_by_what_they_have_in_common():
    once = Once((("taskId",), ("customId",)))

    def name(path="/action", **doc) -> bytes:
        return by_click(1, once, Request(path, repr(doc).encode(), doc), new_id(), NOW_MS).name

    pressed = name(taskId="t", customId="U1", state="a")
    assert pressed == name(taskId="t", customId="U1", state="b")
    others = [name(taskId="t", customId="V1"), name(taskId="u", customId="U1"), name("/x", taskId="t")]
    assert len({pressed, *others, name(content="t U1"), name(content="t U2")}) == 6
