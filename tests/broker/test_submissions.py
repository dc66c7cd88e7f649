"""The second submit waits for the first; who gave up waiting takes no turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.broker import submissions
from proxy.broker.submissions import SubmissionDesk
from proxy.ledger.submissions import Submission, Turn
from proxy.store.submissions import Submissions
from tests.store.journals import NOW_MS, new_id
from tests.waiting import until

ANSWER = {"id": "t1"}


@pytest.fixture
async def account(database) -> int:
    return int(await database.fetchval("INSERT INTO account (name) VALUES ('ada') RETURNING id"))


@pytest.fixture
def desk(database):
    return SubmissionDesk(lambda: Submissions(database), lambda: NOW_MS)


def ask(account: int, call: str, request: bytes = b"r") -> dict[str, Any]:
    return {
        "account": account, "name": b"n".hex(), "request": request.hex(), "call": call,
        "until_ms": NOW_MS + 1000,
    }  # fmt: skip


async def test_the_second_gets_the_answer_that_the_first_is_told(desk, account):
    first, second = new_id(), new_id()
    assert await desk.submit("w0", ask(account, first)) == {"turn": Turn.OWN, "answer": {}}
    waiting = asyncio.ensure_future(desk.submit("w1", ask(account, second)))
    assert (await desk.submit("w1", ask(account, new_id(), b"other")))["turn"] == Turn.DIFFERENT
    await desk.submitted({"call": first, "answer": ANSWER})
    assert await waiting == {"turn": Turn.ANSWERED, "answer": ANSWER}


async def test_the_second_goes_when_the_first_came_to_nothing(desk, account):
    first = new_id()
    await desk.submit("w0", ask(account, first))
    waiting = asyncio.ensure_future(desk.submit("w1", ask(account, new_id())))
    await desk.submitted({"call": first})
    assert (await waiting)["turn"] == Turn.OWN


async def test_who_gave_up_waiting_takes_no_turn(desk, account, database):
    first, given_up, third = new_id(), new_id(), new_id()
    await desk.submit("w0", ask(account, first))
    waiting = asyncio.ensure_future(desk.submit("w0", ask(account, given_up)))
    await until(lambda: given_up in desk._asking)
    await desk.submitted({"call": given_up})  # its client left
    assert (await waiting)["turn"] == Turn.WAITING
    await desk.submitted({"call": first})
    assert (await desk.submit("w1", ask(account, third)))["turn"] == Turn.OWN


async def test_a_turn_that_comes_while_its_caller_gives_up_is_given_back(database, account):
    """The claim is under way when the caller is gone."""

    class Slow(Submissions):
        async def claim(self, it: Submission, incarnation: str, now_ms: int) -> tuple[Turn, dict[str, Any]]:
            found = await super().claim(it, incarnation, now_ms)
            await desk.submitted({"call": it.call})
            return found

    desk = SubmissionDesk(lambda: Slow(database), lambda: NOW_MS)
    await desk.submit("w0", ask(account, new_id()))
    assert await database.fetch("SELECT FROM submission") == []


async def test_waiting_ends(desk, account, monkeypatch):
    monkeypatch.setattr(submissions, "WAIT_S", 0.0)
    await desk.submit("w0", ask(account, new_id()))
    assert (await desk.submit("w1", ask(account, new_id())))["turn"] == Turn.WAITING
