"""Dialects that a file declares: what their tables say of requests, answers and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.dialects.base import Dialect, OperationSpec
from proxy.dialects.declared import filled
from proxy.dialects.naming import Naming
from proxy.dialects.owned import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, state_told
from proxy.errors import ParameterRefused
from proxy.metering.usage import Usage
from proxy.snapshot import Snapshot
from tests.routing.compiling import compile_text

CONFIG = """
upstreams:
  hub:
    dialect: openai
    mirrors: {direct: {url: "https://hub.example"}}
    credentials: {main: "${env:OPENAI_API_KEY}"}
tasks:
  midjourney: {upstream: hub}
  suno: {upstream: hub}
  clips:
    upstream: hub
    task:
      id: [job.id, id]
      accepted: {ok: ["true"], status: [200, 201]}
      state: status
      states: {"2": succeeded, "3": failed, "9": cancelled, "0": queued}
      usage: {output: usage.completion_tokens, seconds: usage.seconds}
      poll: {operation: get, query: job}
    operations:
      make:
        path: "/clips/{model}"
        submits: true
        bill: "{model}-{quality=std}-{options.size}"
        amounts: {seconds: {at: body.seconds, otherwise: 4}}
        names: [body.parent, {at: body.text, before: "/"}]
      get: {path: /clips/job, method: GET, names: [query.job], shows: true}
prices: {"*": {call: 1 USD}}
"""


@pytest.fixture(scope="module")
def dialects() -> dict[str, Dialect]:
    return dict(Snapshot.from_document(compile_text(CONFIG).document).dialects)


@pytest.fixture
def make(dialects: dict[str, Dialect]) -> OperationSpec:
    return dialects["clips"].operations["clips.make"]


# -- what is billed --------------------------------------------------------------------------------


def test_a_name_is_made_of_what_path_and_body_say_or_of_what_is_meant(make):
    assert make.naming is not None
    doc = {"quality": "hd", "options": {"size": 720}}
    assert make.naming.model(doc, {"model": "ray/2"}, {}) == "ray/2-hd-720"
    assert make.naming.model({"options": {"size": "big"}}, {"model": "r"}, {}) == "r-std-big"


@pytest.mark.parametrize("doc", [
    {}, {"options": {"size": None}}, {"options": {"size": ["720"]}}, {"options": {"size": "a b"}},
    {"options": {"size": "*"}}, {"options": {"size": "x" * 65}}, {"options": {"size": ""}},
])  # fmt: skip
def test_what_is_no_word_of_a_name_is_refused(make, doc):
    with pytest.raises(ParameterRefused) as refused:
        make.naming.model(doc, {"model": "r"}, {})
    assert refused.value.param == "options.size"


def test_the_first_case_that_fits_counts_and_a_mode_is_put_around_it():
    naming = Naming(("query", "how"), (("fast*", "f"), ("*", "{kind=any}")), None)
    assert naming.model({}, {}, {"how": "faster"}, "{name}-night") == "f-night"
    assert naming.model({"kind": "k"}, {}, {}) == "k"
    assert list(naming.alternatives("{name}-night")) == [("fast*", "f-night"), ("*", "{kind=any}-night")]
    with pytest.raises(ParameterRefused):
        Naming(("body", "how"), (("fast", "f"),), None).model({"how": "slow"}, {}, {})


@pytest.mark.parametrize(
    ("said", "ms"),
    [({}, 4000), ({"seconds": 8}, 8000), ({"seconds": "2.5s"}, 2500), ({"seconds": None}, 4000)],
)
def test_how_much_is_asked_for_is_told_by_the_request(make, said, ms):
    assert make.amounts(said) == Usage(calls=1, seconds_ms=ms)
    assert make.foretold(said, {}, None) == Usage(calls=1, seconds_ms=ms)


@pytest.mark.parametrize("seconds", ["many", [8], {"a": 1}, True, "NaN", -1, "1e99"])
def test_an_amount_that_is_none_is_refused(make, seconds):
    with pytest.raises(ParameterRefused):
        make.amounts({"seconds": seconds})


# -- whose it is -----------------------------------------------------------------------------------


def test_ids_of_a_request_may_be_numbers_and_have_something_behind_them(make):
    named = make.places.ids_named({"parent": 17, "text": "abc/U2"}, {}, {})
    assert named == {"17": "parent", "abc": "text"}
    assert make.places.ids_named({"parent": None}, {}, {}) == {}


@pytest.mark.parametrize("parent", [["17"], {"id": "17"}, 1.5, True])
def test_ids_of_another_type_are_refused(make, parent):
    with pytest.raises(ParameterRefused):
        make.places.ids_named({"parent": parent}, {}, {})


def test_what_decides_about_money_and_ownership_is_in_a_body_once(make):
    assert set(make.guarded) == {"parent", "text", "seconds", "model", "quality", "options"}


# -- answers ---------------------------------------------------------------------------------------


def meter(dialect: Dialect, operation: str, answer: Any) -> Any:
    read = dialect.make_meter(dialect.operations[operation], False)
    read.feed(answer if type(answer) is bytes else json.dumps(answer).encode())
    read.finish()
    return read


@pytest.mark.parametrize(("answer", "is_accepted"), [
    ({"code": 1, "result": "17"}, True), ({"code": 21, "result": 17}, True),
    ({"code": "22", "result": "17"}, True), ({"code": 24, "result": "17"}, False),
    ({"code": 1}, False), ({"code": 1, "result": None}, False),
    ({"result": "17"}, False), ([{"code": 1}], False), (b"<html>", False), (b"", False),
])  # fmt: skip
def test_a_submit_is_charged_when_its_answer_says_that_it_is_accepted(dialects, answer, is_accepted):
    read = meter(dialects["midjourney"], "midjourney.imagine", answer)
    assert (not read.error) == is_accepted


def test_all_conditions_must_hold_and_any_place_may_have_the_id(dialects):
    for answer, is_accepted in (
        ({"ok": True, "status": 201, "job": {"id": "a"}}, True),
        ({"ok": True, "status": 200, "id": 7}, True),
        ({"ok": False, "status": 200, "id": 7}, False),
        ({"ok": True, "status": 500, "id": 7}, False),
        ({"ok": True, "status": 200}, False),
    ):
        assert (not meter(dialects["clips"], "clips.make", answer).error) == is_accepted


def test_states_are_words_or_numbers(dialects):
    task = dialects["clips"].operations["clips.get"].task
    assert task is not None
    told = [state_told(task, {"status": word}) for word in (0, "2", 3, 9, "else", None)]
    assert told == [QUEUED, SUCCEEDED, FAILED, CANCELLED, RUNNING, None]


def test_a_bill_may_be_told_at_the_end(dialects):
    task = dialects["clips"].operations["clips.get"].task
    assert task is not None and task.usage is not None
    read = task.usage.read
    assert read({"usage": {"completion_tokens": 108}}) == Usage(calls=1, output=108)
    assert read({"usage": {"seconds": 5}}) == Usage(calls=1, seconds_ms=5000)
    assert read({"usage": {}}) is None


# -- what we say -----------------------------------------------------------------------------------


def test_refusals_are_in_the_familys_words(dialects):
    refusal = ("invalid_request_error", "insufficient_quota", "No credit.", None, 429, "id-1")
    assert json.loads(dialects["midjourney"].error_body(*refusal)) == {
        "code": 4, "description": "No credit.", "result": "", "properties": None,
    }  # fmt: skip
    assert json.loads(dialects["suno"].error_body(*refusal)) == {
        "code": "quota_not_enough", "message": "No credit.", "data": None,
    }  # fmt: skip
    assert json.loads(dialects["clips"].error_body(*refusal))["error"]["code"] == "insufficient_quota"


def test_a_brace_alone_becomes_the_value_itself():
    values = {"items": [1, 2], "id": "7", "none": None}
    template = {"a": "{items}", "b": ["x{id}y", "{none}", "-{none}-", 4, "{other}"]}
    assert filled(template, values) == {"a": [1, 2], "b": ["x7y", None, "--", 4, "{other}"]}
