"""What counts as a change of a task, and what its owner is sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from proxy.dialects.news import BODY_BYTES_MAX, news_of
from proxy.dialects.owned import ANY, FAILED, SUCCEEDED, Callback, Task

TASK = Task(
    "mj", "fetch", (("status",),), {"SUCCESS": SUCCEEDED, "FAILURE": FAILED},
    callback=Callback(("notifyHook",)), progress=(("progress",), ("clips", ANY, "status")),
)  # fmt: skip


def shown(**members: Any) -> dict[str, Any]:
    return {"id": "t1", "status": "IN_PROGRESS", "progress": "10%", "prompt": "a cat", **members}


def mark(**members: Any) -> str:
    news = news_of(TASK, shown(**members))
    assert news is not None
    return news.mark


def test_state_and_progress_are_changes_and_nothing_else_is():
    marks = [mark(), mark(status="SUBMITTED"), mark(progress="20%"), mark(progress=20), mark(progress=None),
             mark(clips=[{"status": "queued"}]), mark(clips=[{"status": "done"}]),
             mark(clips=[{"status": "done"}, {"status": "queued"}])]  # fmt: skip
    assert len(set(marks)) == len(marks)
    assert mark(prompt="another", buttons=[1, 2], finishTime=7) == mark()


def test_a_state_may_be_a_number():
    assert mark(status=1) != mark(status=2)


def test_the_whole_object_is_sent_in_its_order_or_what_the_table_says_of_it():
    document = shown(properties={"b": 1, "a": "日本"})
    news = news_of(TASK, document)
    assert news is not None and news.body.encode() == orjson.dumps(document)
    part = replace(TASK, callback=Callback(("hook",), ("properties",)))
    news = news_of(part, document)
    assert news is not None and news.body == '{"b":1,"a":"日本"}'
    assert news_of(part, shown()) is None


def test_what_shows_no_task_or_nobody_is_told_of_is_no_news():
    for document in (None, [], "x", {}, {"error": "no"}, shown(status=None), shown(status={})):
        assert news_of(TASK, document) is None
    assert news_of(replace(TASK, callback=None), shown()) is None


def test_what_no_receiver_waits_for_is_not_sent():
    assert news_of(TASK, shown(image="x" * BODY_BYTES_MAX)) is None
