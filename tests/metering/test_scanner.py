"""Members are found where a parser finds them, and long texts are read like short ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BodyNotJson, DuplicateMember
from proxy.metering.scanner import (
    ANY,
    CAPTURE_BYTES_MAX,
    NODES_MAX,
    PointerScanner,
    insert_member,
    read_members,
    remove_member,
    splice,
)

GUARDED = ("model", "stream", "n", "stream_options")

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text(max_size=8)
    | st.sampled_from(["model", '"model"', "\\", "é"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "stream", "n", "x", "é", "a b"]), inner, max_size=3)
    ),
    max_leaves=8,
)
documents = st.dictionaries(st.sampled_from([*GUARDED, "messages", "x", "\\", '"', ""]), values, max_size=6)
layouts = st.tuples(st.sampled_from([None, 0, 2]), st.booleans())


def dump(doc: Any, layout: tuple[int | None, bool]) -> bytes:
    indent, ascii_only = layout
    return json.dumps(doc, indent=indent, ensure_ascii=ascii_only).encode()


# -- members -------------------------------------------------------------------------------------


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


# -- long texts ----------------------------------------------------------------------------------

POINTERS = (("usage",), ("model",), ("choices", ANY, "n"), ("x", "model"), ("stream", "n", "x"))


def prune(value: Any, path: tuple[str | int, ...], wanted: frozenset[tuple[str | int, ...]]) -> Any:
    """What is left of a document when only wanted values stay."""
    if path in wanted:
        return value
    inner = {w[:k] for w in wanted for k in range(len(w))}
    if path not in inner:
        return None
    if isinstance(value, dict):
        kept = {k: prune(v, (*path, k), wanted) for k, v in value.items()}
        return {
            k: kept[k]
            for k, v in value.items()
            if (*path, k) in wanted or ((*path, k) in inner and isinstance(v, dict | list))
        }
    if isinstance(value, list):
        return [prune(v, (*path, ANY), wanted) for v in value]
    return None


def scan(pieces: list[bytes], pointers: Any = POINTERS) -> PointerScanner:
    scanner = PointerScanner(pointers)
    for piece in pieces:
        scanner.feed(piece)
    scanner.finish()
    return scanner


texts = st.dictionaries(
    st.sampled_from(["usage", "model", "choices", "x", "stream", "é\\"]), values, max_size=5
)


@settings(max_examples=200, deadline=None)
@given(texts, layouts, st.integers(1, 9))
def test_a_scanner_keeps_what_is_wanted_however_it_is_cut(
    doc: Any, layout: tuple[int | None, bool], size: int
):
    body = dump(doc, layout)
    for pieces in ([body], [body[at : at + size] for at in range(0, len(body), size)]):
        scanner = scan(pieces)
        assert not scanner.failed and scanner.done
        assert scanner.document == prune(doc, (), frozenset(POINTERS))


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"usage"', b'{"usage":{"a":1}', b'{"usage" 1}', b"nonsense", b"<html>"]
)
def test_what_is_cut_short_or_no_json_fails_and_keeps_what_was_there(body: bytes):
    scanner = scan([body])
    assert scanner.failed


def test_what_was_complete_before_the_cut_stays():
    scanner = scan([b'{"model":"m","usage":{"a":1},"choices":[{"n":2},{"n'])
    assert scanner.document == {"model": "m", "usage": {"a": 1}, "choices": [{"n": 2}, {}]}
    assert scanner.failed


def test_the_last_of_two_counts():
    assert scan([b'{"usage":1,"usage":2}']).document == {"usage": 2}


def test_escaped_keys_are_keys():
    assert scan([b'{"us\\u0061', b'ge":5}']).document == {"usage": 5}


def test_a_value_that_is_too_large_is_skipped_and_said():
    scanner = scan([b'{"model":"%b","usage":7}' % (b"x" * CAPTURE_BYTES_MAX)])
    assert scanner.document == {"usage": 7}
    assert scanner.failed


def test_a_list_of_any_length_is_kept_short():
    scanner = scan([b'{"choices":[' + b'{"n":1},' * 5000 + b"{}]}"])
    assert len(scanner.document["choices"]) <= NODES_MAX


def test_measured_values_are_counted_and_not_kept():
    scanner = PointerScanner((("usage",),), [("choices", ANY, "text")])
    body = b'{"choices":[{"text":"%b"},{"text":"yy"}],"usage":3}' % (b"x" * 5000)
    for at in range(0, len(body), 700):
        scanner.feed(body[at : at + 700])
    assert scanner.document == {"choices": [{}, {}], "usage": 3}
    assert scanner.measured == 5002 + 4
