"""Long texts are read like short ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering.scanner import (
    ANY,
    CAPTURE_BYTES_MAX,
    NODES_MAX,
    PointerScanner,
)

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
NAMES = ("model", "stream", "n", "stream_options", "messages", "x", "\\", '"', "")
documents = st.dictionaries(st.sampled_from(NAMES), values, max_size=6)
layouts = st.tuples(st.sampled_from([None, 0, 2]), st.booleans())


def dump(doc: Any, layout: tuple[int | None, bool]) -> bytes:
    indent, ascii_only = layout
    return json.dumps(doc, indent=indent, ensure_ascii=ascii_only).encode()


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
