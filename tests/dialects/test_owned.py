"""Where requests and answers name what lives at a vendor."""

from __future__ import annotations

import json

import orjson
import pytest

from proxy.dialects import DIALECTS
from proxy.dialects.owned import (
    ANY,
    DEEP,
    FAILED,
    IDS_MAX,
    RUNNING,
    SUCCEEDED,
    IdIn,
    IdOut,
    Places,
    Task,
    ids_told,
    starts,
    state_told,
)

PLACES = (
    IdIn(("path", "id")),
    IdIn(("query", "after")),
    IdIn(("body", "previous_response_id")),
    IdIn(("body", DEEP, "file_id")),
    IdIn(("body", DEEP, "file_ids", ANY)),
    IdIn(("body", "conversation", "id")),
)


def test_an_id_is_found_in_path_query_and_body_at_any_depth():
    doc = {
        "previous_response_id": "resp_1",
        "conversation": "conv_is_not_at_this_pointer",
        "input": [{"content": [{"type": "input_file", "file_id": "file-1"}]}],
        "tools": [{"container": {"file_ids": ["file-2", "file-3", 7, None]}}],
    }
    named = Places(PLACES).ids_named(doc, {"id": "batch_1"}, {"after": "file-0", "limit": "5"})
    assert named == {
        "batch_1": "id", "file-0": "after", "resp_1": "previous_response_id",
        "file-1": "file_id", "file-2": "file_ids", "file-3": "file_ids",
    }  # fmt: skip


def test_a_request_that_names_nothing_names_nothing():
    assert Places(PLACES).ids_named({"messages": [{"content": "file_id"}], "file_id": None}, {}, {}) == {}


def test_what_is_in_the_callers_own_words_names_nothing():
    doc = {
        "metadata": {"file_id": "mine"},
        "messages": [{"content": [{"type": "tool_use", "input": {"file_id": "mine"}}]}],
        "tools": [{"input_schema": {"properties": {"file_id": {"type": "string", "file_id": "mine"}}}}],
        "input": [{"content": [{"file_id": "file-1"}]}],
    }
    assert set(Places(PLACES).ids_named(doc, {}, {})) == {"file-1"}


def test_what_begins_otherwise_is_no_id_and_a_prefix_is_added_once():
    places = (IdIn(("body", DEEP, "fileUri"), only="https://vendor/"), IdIn(("path", "id"), prefix="files/"))
    doc = {"parts": [{"fileUri": "https://vendor/files/a"}, {"fileUri": "https://youtu.be/x"}]}
    assert set(Places(places).ids_named(doc, {"id": "b"}, {})) == {"https://vendor/files/a", "files/b"}
    assert set(Places(places).ids_named({}, {"id": "files/b"}, {})) == {"files/b"}


def test_deep_documents_and_many_ids_are_bounded():
    deep = doc = {}
    for _ in range(50_000):
        doc["a"] = {}
        doc = doc["a"]
    doc["file_id"] = "file-1"
    assert set(Places(PLACES).ids_named(deep, {}, {})) == {"file-1"}
    many = {"file_ids": [f"file-{n}" for n in range(10_000)]}
    assert len(Places(PLACES).ids_named(many, {}, {})) == IDS_MAX + 1


def test_a_name_that_is_written_in_escapes_is_the_same_name():
    doc = json.loads(rb'{"input":[{"file\u005fid":"file-1"}]}')
    assert set(Places(PLACES).ids_named(doc, {}, {})) == {"file-1"}


OUT = (
    IdOut("response", (("id",), ("response", "id")), asked="store"),
    IdOut("file", (("output_file_id",), ("parts", ANY, "file"))),
)


def test_an_answer_tells_what_is_the_callers_unless_the_vendor_was_asked_not_to_keep_it():
    doc = {"id": "resp_1", "output_file_id": None, "parts": [{"file": "file-1"}, {"file": "file-2"}]}
    assert list(ids_told(OUT, doc, {})) == [("response", "resp_1"), ("file", "file-1"), ("file", "file-2")]
    assert list(ids_told(OUT, {"response": {"id": "resp_1"}}, {"store": True})) == [("response", "resp_1")]
    assert list(ids_told(OUT, {"id": "resp_1"}, {"store": False})) == []
    unless_asked = (IdOut("chat", (("id",),), asked="store", by_default=False),)
    assert list(ids_told(unless_asked, {"id": "x"}, {})) == []
    assert list(ids_told((IdOut("task", (("result",),)),), {"result": 1714}, {})) == [("task", "1714")]


def test_the_state_of_a_task_is_the_tables_word_for_the_vendors():
    task = Task(
        "response", "response", (("status",), ("response", "status")),
        {"completed": SUCCEEDED, "failed": FAILED}, asked="background",
    )  # fmt: skip
    assert state_told(task, {"status": "completed"}) == SUCCEEDED
    assert state_told(task, {"response": {"status": "failed"}}) == FAILED
    assert state_told(task, {"status": "a word of next year"}) == RUNNING
    assert state_told(task, {"error": {}}) is None
    assert starts(task, {"background": True})
    assert not starts(task, {}) and not starts(task, {"background": "true"}) and not starts(None, {})


SPECS = [
    pytest.param(dialect, spec, id=f"{dialect.name}-{spec.name}")
    for dialect in DIALECTS.values()
    for spec in dialect.operations.values()
    if spec.owns
]


@pytest.mark.parametrize(("dialect", "spec"), SPECS)
def test_a_task_can_be_asked_about_and_is_named_by_the_answer_that_starts_it(dialect, spec):
    if spec.task is None:
        return
    task = spec.task
    for name in (task.poll, *(r.operation for r in (task.results, task.many) if r is not None)):
        assert name in dialect.operations, name
    assert "{id}" in dialect.operations[task.poll].path
    assert set(task.states.values()) <= {SUCCEEDED, FAILED}
    if spec.billed:
        assert task.kind in {place.kind for place in spec.ids_out}


@pytest.mark.parametrize(("dialect", "spec"), SPECS)
def test_an_id_in_a_path_is_looked_at_wherever_there_is_one(dialect, spec):
    if "{id}" in spec.path:
        assert any(place.at == ("path", "id") for place in spec.ids_in)


FILES = {
    "openai": {"chat", "responses", "images.edits"}, "azure": {"chat", "images.edits"}, "azure_v1": {"chat"},
    "mistral": {"chat", "ocr"}, "anthropic": {"messages", "count_tokens"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("dialect", "operation"), [(d, o) for d, some in FILES.items() for o in sorted(some)]
)
def test_a_file_of_another_account_is_found_in_every_request_that_may_name_files(dialect, operation):
    spec = DIALECTS[dialect].operations[operation]
    doc = {"messages": [{"content": [{"type": "document", "source": {"file_id": "file-1"}}]}]}
    assert set(Places(spec.ids_in).ids_named(doc, {}, {})) == {"file-1"}


def _are_free(places: Places, content: bytes) -> bool:
    return places.are_free_of(content, orjson.loads(content))


def test_a_request_without_a_name_of_a_place_is_not_searched():
    places = Places((IdIn(("body", DEEP, "file_id")), IdIn(("body", DEEP, "file_ids", ANY))))
    assert not _are_free(places, b'{"messages": [{"content": "file_id"}]}')  # quoted: looked at, to be sure
    assert _are_free(places, b'{"messages": [{"content": "a file_id in a text"}]}')
    for spelled in (b'{"file_id": "x"}', b'{"file\\u005fid": "x"}', b'{"a": [{"file_ids": []}]}'):
        assert not _are_free(places, spelled)
    assert not _are_free(Places((IdIn(("body", "conversation")),)), b"{}")


def test_names_of_places_are_found_whatever_they_have_in_common():
    places = Places(tuple(IdIn(("body", DEEP, name)) for name in ("file_id", "container", "x")))
    assert _are_free(places, b'{"model": "gpt"}')
    for name in ("file_id", "container", "x"):
        assert not _are_free(places, orjson.dumps({"a": [{name: "1"}]}))


def test_a_member_that_may_name_something_is_looked_at_itself():
    places = Places((IdIn(("body", "model"), only=("ft:",)),))
    assert _are_free(places, b'{"model": "gpt", "x": "ft:gpt"}')
    for spelled in (b'{"model": "ft:gpt"}', b'{"model": "FT:gpt"}', b'{"model": "f\\u0074:gpt"}'):
        assert not _are_free(places, spelled)
