"""What a worker asks before a submit, and what it tells once its call is over."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.channel import ChannelDown
from proxy.dialects.base import Once, OperationSpec
from proxy.dialects.owned import Task
from proxy.errors import (
    KeyReused,
    MalformedRequest,
    SubmissionLookupUnavailable,
    SubmitInProgress,
    SubmitLost,
)
from proxy.ledger import entry
from proxy.ledger.submissions import Turn
from proxy.relay.submissions import Submissions
from tests.waiting import until

NOW_MS = 1_800_000_000_000
TASK = Task("job", "get", (("status",),), {})
SUBMIT = OperationSpec("make", task=TASK)
PRESS = OperationSpec("press", task=TASK, once=Once((("button",),), 10.0))


class Channel:
    """Control, as far as this module talks to it."""

    def __init__(self) -> None:
        self.turn: str = Turn.OWN
        self.asked: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        self.failures = 0

    async def call_again(self, op: str, args: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if self.failures:
            self.failures -= 1
            raise ChannelDown
        (self.asked if op == "submit" else self.told).append(args)
        return {"turn": self.turn, "answer": {"id": "t1"}} if op == "submit" else {}


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def desk(channel, monkeypatch) -> Submissions:
    monkeypatch.setattr("proxy.relay.submissions.TELL_PAUSE_S", 0.001)
    return Submissions(channel, lambda: NOW_MS)  # type: ignore[arg-type]


def call(operation: OperationSpec = SUBMIT, key: str = "", **doc: Any) -> Any:
    return SimpleNamespace(
        id="0" * 32, operation=operation, headers={"idempotency-key": key} if key else {}, doc=doc,
        path="/make", content=repr(doc).encode(), upload=None, key=SimpleNamespace(account_id=7),
        submission=None, sighting=None, outcome="", hosting=None,
    )  # fmt: skip


async def test_what_names_no_other_submit_is_nobodys_business(desk, channel):
    free = OperationSpec("look", task=TASK, billed=False, once=Once())
    asked = OperationSpec("respond", task=Task("job", "get", (), {}, asked="background"))
    assert not await desk.claim(call())
    assert not await desk.claim(call(free, "k"))
    assert not await desk.claim(call(asked, "k", background=False))
    assert channel.asked == []
    assert not await desk.claim(call(asked, "k", background=True))
    assert len(channel.asked) == 1
    with pytest.raises(MalformedRequest):
        await desk.claim(call(key="k" * 256))


@pytest.mark.parametrize(
    ("turn", "error"),
    [(Turn.WAITING, SubmitInProgress), (Turn.DIFFERENT, KeyReused), (Turn.LOST, SubmitLost)],
)
async def test_what_is_not_its_turn_is_refused_in_words(desk, channel, turn, error):
    channel.turn, x = turn, call(key="k")
    with pytest.raises(error):
        await desk.claim(x)
    assert x.submission is None  # it has nothing to tell


async def test_a_key_waits_for_control_and_a_click_does_not(desk, channel):
    channel.failures, x = 1, call(key="k")
    with pytest.raises(SubmissionLookupUnavailable):
        await desk.claim(x)
    channel.failures = 1
    x.submission.over(x, 0)  # the claim may have been made: it is told until it is heard
    await until(lambda: channel.told)
    assert channel.told == [{"call": x.id, "answer": None, "until_ms": None}]
    channel.failures = 1
    assert not await desk.claim(call(PRESS, button="U1"))


async def test_what_became_of_it_is_told_once_its_call_is_over(desk, channel):
    def told(**changes: Any) -> Any:
        x.__dict__.update(changes)
        return x.submission.over(x, changes.get("cost", 0))

    x = call(PRESS, button="U1")
    assert not await desk.claim(x)
    started = SimpleNamespace(task=TASK, ids={"t1": "job"}, whole={"id": "t1"})
    told(sighting=started, outcome=entry.COMPLETE)
    told(sighting=SimpleNamespace(task=TASK, ids={}, whole={"why": "no"}), outcome=entry.COMPLETE)
    told(sighting=started, outcome=entry.UPSTREAM_ERROR)
    told(sighting=None, outcome=entry.INTERRUPTED_CLIENT, cost=7)  # charged: not free for the next
    told(sighting=SimpleNamespace(task=TASK, ids={"t1": "job"}, whole=None), outcome=entry.COMPLETE, cost=7)
    await until(lambda: len(channel.told) == 4)
    await asyncio.sleep(0)
    assert [args["answer"] for args in channel.told] == [{"id": "t1"}, None, None, {}]
    assert {args["until_ms"] for args in channel.told} == {NOW_MS + 10_000}
