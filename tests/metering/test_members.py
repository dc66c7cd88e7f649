"""Members are found where a parser finds them, and only they change."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings

from proxy.errors import BodyNotJson, BodyTooLarge, DuplicateMember
from proxy.metering.members import (
    VALUES_MAX,
    check_values,
    insert_member,
    read_document,
    read_members,
    remove_member,
    splice,
)
from tests.metering.test_scanner import documents, dump, layouts, values

GUARDED = ("model", "stream", "n", "stream_options")


@settings(max_examples=200, deadline=None)
@given(documents, layouts)
def test_a_span_is_the_value_that_the_parser_sees(doc: dict[str, Any], layout: tuple[int | None, bool]):
    body = dump(doc, layout)
    found = read_members(body, GUARDED)
    assert found.doc == doc
    assert set(found.spans) == set(doc) & set(GUARDED) == set(found.members)
    for name, (start, end) in found.spans.items():
        assert json.loads(body[start:end]) == doc[name]
        at, member_end = found.members[name]
        assert json.loads(b"{%b}" % body[at:member_end]) == {name: doc[name]}


@settings(max_examples=200, deadline=None)
@given(documents, layouts, values)
def test_only_the_member_changes(doc: dict[str, Any], layout: tuple[int | None, bool], new: Any):
    body = dump(doc, layout)
    found = read_members(body, GUARDED)
    for name in found.spans:
        assert json.loads(splice(body, found.spans[name], json.dumps(new).encode())) == {**doc, name: new}
        without = {k: v for k, v in doc.items() if k != name}
        assert json.loads(remove_member(body, found.members[name])) == without
    assert json.loads(insert_member(body, "brand new", json.dumps(new).encode())) == {"brand new": new, **doc}


def test_a_splice_moves_nothing_else():
    body = b'{ "messages" : [ ] ,\n "model":"gpt-4o" , "x":1.50e2 }'
    span = read_members(body, ("model",)).spans["model"]
    assert splice(body, span, b'"other"') == b'{ "messages" : [ ] ,\n "model":"other" , "x":1.50e2 }'


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"cheap","model":"dear"}',
        b'{"model":"cheap","mod\\u0065l":"dear"}',
        b'{"\\u006dodel":"cheap","x":{"model":1},"model":"dear"}',
        b'{"n":1,"messages":[],"n":100}',
        b'{"stream":false,"\\u0073tream":true}',
    ],
)
def test_a_guarded_member_in_two_spellings_is_refused(body: bytes):
    with pytest.raises(DuplicateMember):
        read_members(body, GUARDED)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","x":{"model":"b"}}',
        b'{"model":"a","x":"\\"model\\":"}',
        b'{"model":"model","tools":[{"model":1}]}',
        b'{"x":1,"x":2,"model":"a"}',  # nobody guards x
        b'{"\\u006dodel":"a"}',
    ],
)
def test_a_name_that_only_occurs_elsewhere_is_no_duplicate(body: bytes):
    start, end = read_members(body, GUARDED).spans["model"]
    assert body[start:end] in (b'"a"', b'"model"')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b'"x"',
        b"{",
        b'{"a":}',
        b'{"a":NaN}',
        b'{"a":1}x',
        b'\xff{"a":1}',
        b'{"a":"\xff"}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes):
    with pytest.raises(BodyNotJson):
        read_members(body, GUARDED)


def test_a_body_that_nests_too_deep_is_refused():
    with pytest.raises(BodyNotJson):
        read_members(b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}", GUARDED)


LONG = "x" * 300 + '\\"\\' * 50 + "中" * 300


@settings(max_examples=50, deadline=None)
@given(documents, layouts)
def test_long_strings_end_where_a_parser_ends_them(doc: dict[str, Any], layout: tuple[int | None, bool]):
    doc = {"messages": [LONG, {LONG: LONG + "\\"}], **doc, "model": LONG}
    body = dump(doc, layout)
    found = read_members(body, GUARDED)
    assert {name: orjson.loads(body[slice(*span)]) for name, span in found.spans.items()} == {
        name: doc[name] for name in GUARDED if name in doc
    }


@pytest.mark.parametrize("value", [b"[],", b"{},", b"1,", b'"",', b'[{"a":1},', b"[", b'"\\"",'], ids=str)
def test_a_body_of_nothing_but_values_is_not_parsed(value: bytes):
    with pytest.raises(BodyTooLarge):
        check_values(b'{"x":[' + value * (VALUES_MAX + 1))


def test_a_text_may_hold_as_many_signs_as_it_likes():
    text = {"messages": [{"content": '[{"code": 1}, ' * 400_000}], "input": list(range(300_000))}
    check_values(orjson.dumps(text))


@pytest.mark.parametrize("space", [b"", b" "])
def test_a_document_is_read_however_it_is_written(space: bytes):
    for body in (
        b'{"model":%b"a","messages":[{"content":"\\u00e9\\n"}],"x":1.50}' % space,
        b'{"model":%b"a","x":{"model":"b"}}' % space,
        b'{"model":%b"a","deep":%b%b}' % (space, b"[" * 600, b"]" * 600),
        b'{"x":%b1,"x":2,"model":"a"}' % space,
    ):
        assert read_document(body, GUARDED) == orjson.loads(body)
    for body in (
        b'{"model":%b"cheap","model":"dear"}' % space,
        b'{"model":%b"cheap","mod\\u0065l":"dear"}' % space,
        b'{"n":%b1,"messages":[],"n":1}' % space,
    ):
        with pytest.raises(DuplicateMember):
            read_document(body, GUARDED)
