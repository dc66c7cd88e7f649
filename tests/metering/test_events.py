"""Events are what the standard says they are, and the injected one leaves no other byte changed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering.events import (
    EVENT_BYTES_MAX,
    HELD_BYTES_MAX,
    JsonSplitter,
    SseSplitter,
    UsageEventFilter,
)
from proxy.metering.scanner import PointerScanner
from tests.dialects.reference import events

POINTERS = (("usage",), ("type",))

lines = st.sampled_from(
    [
        b"",
        b"",
        b"data: {}",
        b"data:x",
        b"data:  two",
        b"data",
        b"data:",
        b": note",
        b"event: ping",
        b"id: 1",
        b"datax: 1",
        b"\xff",
    ]
)
bodies = st.lists(st.tuples(lines, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=14).map(
    lambda pairs: b"".join(line + end for line, end in pairs)
)


def cut(body: bytes, places: set[int]) -> list[bytes]:
    at = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[a:b] for a, b in pairwise(at)]


def found(pieces: list[bytes]) -> list[bytes | PointerScanner]:
    splitter = SseSplitter(lambda: PointerScanner(POINTERS))
    out = [event for piece in pieces for event in splitter.feed(piece)]
    return out + splitter.finish()


@settings(max_examples=300, deadline=None)
@given(bodies, st.sets(st.integers(0, 200), max_size=6))
def test_events_are_those_of_the_standard_however_they_are_cut(body: bytes, places: set[int]):
    assert found(cut(body, places)) == list(events(body))


@settings(max_examples=500, deadline=None)
@given(
    bodies,
    st.lists(st.sampled_from([b"data: {}", b"data: ", b"event: x", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n"])),
)
def test_a_read_that_is_taken_for_one_event_is_one(before: bytes, read: list[bytes]):
    quick, standard = (SseSplitter(lambda: PointerScanner(POINTERS)) for _ in range(2))
    quick.feed(before)
    standard.feed(before)
    one = quick.one(b"".join(read))
    if one is not None:
        assert standard.feed(b"".join(read)) == [one.rstrip(b"\r\n")]
        assert standard.one(b"data: x\n\n") is not None  # nothing of an event is kept


@pytest.mark.parametrize("size", [1000, 60_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_that_is_too_long_comes_out_as_its_pruned_document(size: int, end: bytes):
    event = json.dumps({"type": "done", "image": "x" * (5 * EVENT_BYTES_MAX), "usage": {"a": 1}}).encode()
    body = b"data: {}" + end * 2 + b"event: e" + end + b"data: " + event + end * 2 + b"data: 7" + end * 2
    first, long, last = found([body[at : at + size] for at in range(0, len(body), size)])
    assert (first, last) == (b"{}", b"7")
    assert isinstance(long, PointerScanner)
    assert long.document == {"type": "done", "usage": {"a": 1}}
    assert not long.failed


def test_a_long_comment_is_dropped():
    body = b": " + b"x" * (4 * EVENT_BYTES_MAX) + b"\ndata: 1\n\n"
    assert found([body[at : at + 5000] for at in range(0, len(body), 5000)]) == [b"1"]


def test_a_long_event_of_many_lines_is_scanned_as_one():
    parts = (
        json.dumps({"type": "t", "pad": ["x" * 60] * 3000, "usage": {"a": 1}}, indent=0).encode().split(b"\n")
    )
    body = b"".join(b"data: " + part + b"\n" for part in parts) + b"\n"
    (event,) = found([body[at : at + 999] for at in range(0, len(body), 999)])
    assert isinstance(event, PointerScanner)
    assert event.document == {"type": "t", "usage": {"a": 1}}


# -- the injected event ----------------------------------------------------------------------------

USAGE = b'{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}'
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}],"usage":null}\n\n'
INJECTED = b'data: {"id":"c","choices":[],"usage":%b}\n\n' % USAGE
DONE = b"data: [DONE]\n\n"
AZURE_FIRST = b'data: {"choices":[],"model":"","prompt_filter_results":[{}]}\n\n'
KEPT = (
    CHUNK,
    AZURE_FIRST,
    DONE,
    b": a comment\n\n",
    b'data: {"choices":[],"moderation":{},"usage":null}\n\n',
    b'data: {"choices":[{"delta":{"content":"\\"choices\\":[],\\"usage\\":{}"}}],"usage":%b}\n\n' % USAGE,
    b'data: {"choices": [], "error": {"message":"x"}, "usage":%b}\n\n' % USAGE,
    b'data: {"inner":{"choices":[],"usage":{"a":1}}}\n\n',
    b'data: {"choices":[],"usage":{"a":1},broken\n\n',
)
DROPPED = (
    INJECTED,
    b'data:{"choices" : [ ],"usage" : {"prompt_tokens":1}}\n\n',
    b'event: message\nid: 3\ndata: {"choices":[],\ndata: "usage":{"prompt_tokens":1}}\n\n',
)


def filtered(pieces: list[bytes]) -> bytes:
    usage_filter = UsageEventFilter()
    return b"".join([*usage_filter.feed(pieces), *usage_filter.finish()])


stream_events = st.lists(st.sampled_from(KEPT + DROPPED), max_size=8)


@settings(max_examples=300, deadline=None)
@given(stream_events, st.sets(st.integers(0, 2000), max_size=6), st.sampled_from([b"\n", b"\r\n"]))
def test_the_usage_event_goes_and_every_other_byte_stays(sent: list[bytes], places: set[int], end: bytes):
    body = b"".join(sent).replace(b"\n", end)
    wanted = b"".join(event for event in sent if event in KEPT).replace(b"\n", end)
    pieces = cut(body, places)
    assert filtered(pieces) == wanted
    one_by_one = UsageEventFilter()
    out = [part for piece in pieces for part in one_by_one.feed([piece])]
    assert b"".join([*out, *one_by_one.finish()]) == wanted


def test_every_cut_in_two_gives_the_same_bytes():
    body = AZURE_FIRST + CHUNK + CHUNK + INJECTED + DONE
    for at in range(len(body)):
        assert filtered([body[:at], body[at:]]) == AZURE_FIRST + CHUNK + CHUNK + DONE


def test_an_event_that_is_whole_goes_out_at_once():
    usage_filter = UsageEventFilter()
    for event in (CHUNK, b": ping\n\n", CHUNK.replace(b"\n", b"\r\n")):
        assert usage_filter.feed([event]) == [event]


def test_what_is_not_cut_is_passed_on_by_reference():
    usage_filter = UsageEventFilter()
    piece = CHUNK + CHUNK
    (out,) = usage_filter.feed([piece])
    assert out is piece


def test_the_beginning_of_an_event_waits_for_its_end():
    usage_filter = UsageEventFilter()
    assert usage_filter.feed([CHUNK + INJECTED[:20]]) == [CHUNK]
    assert usage_filter.feed([INJECTED[20:]]) == []
    assert usage_filter.feed([DONE]) == [DONE]


def test_an_event_longer_than_what_waits_passes_as_it_comes():
    usage_filter = UsageEventFilter()
    long = b'data: {"choices":[{"delta":{"content":"' + b"x" * HELD_BYTES_MAX
    assert usage_filter.feed([long]) == [long]
    assert usage_filter.feed([b"yy"]) == [b"yy"]
    assert usage_filter.feed([b'"}}]}\n\n' + INJECTED + DONE]) == [b'"}}]}\n\n', DONE]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_the_end_of_a_long_event_is_seen_however_it_is_cut(end: bytes):
    begin = b'data: {"choices":[{"delta":{"content":"' + b"x" * HELD_BYTES_MAX
    rest = (b'yy"}}]}\n\n' + INJECTED + DONE).replace(b"\n", end)
    for at in range(1, len(rest)):
        assert filtered([begin, rest[:at], rest[at:]]) == begin + rest.replace(
            INJECTED.replace(b"\n", end), b""
        )


def test_a_last_event_without_its_blank_line_is_judged_too():
    assert filtered([CHUNK + INJECTED.rstrip()]) == CHUNK
    assert filtered([CHUNK + b'data: {"half']) == CHUNK + b'data: {"half'


def test_recorded_shapes_lose_only_their_usage_event():
    body = (Path(__file__).parents[1] / "golden/streams/openai/usage_event.sse").read_bytes()
    events_ = body.split(b"\n\n")
    assert filtered([body]) == b"\n\n".join(e for e in events_ if b'"choices":[]' not in e)


# -- streams of JSON values ------------------------------------------------------------------------

texts = st.text(max_size=6) | st.sampled_from(['"', "\\", '\\"}', "{", "]}[{", "\n", "\ud83d"])
documents = st.lists(
    st.dictionaries(
        texts,
        st.recursive(texts | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=2)),
        max_size=3,
    ),
    max_size=4,
)


def values(pieces: list[bytes]) -> list[bytes | PointerScanner]:
    splitter = JsonSplitter(lambda: PointerScanner(POINTERS))
    out = [value for piece in pieces for value in splitter.feed(piece)]
    return out + splitter.finish()


@settings(max_examples=300, deadline=None)
@given(documents, st.sampled_from([None, 1]), st.booleans(), st.sets(st.integers(0, 400), max_size=8))
def test_lines_and_elements_of_an_array_come_out_as_they_were_however_they_are_cut(
    wanted: list[dict[str, object]], indent: int | None, is_array: bool, places: set[int]
):
    body = (json.dumps(wanted, indent=indent) if is_array else "\r\n".join(map(json.dumps, wanted))).encode()
    assert [json.loads(value) for value in values(cut(body, places))] == wanted


def test_what_is_no_value_between_values_is_dropped():
    # Chunk sizes of a recording that kept its framing, and a page that is none.
    assert values([b'16\r\n{"a":1}\n\r\n0\r\n\r\n']) == [b'{"a":1}']
    assert values([b"<html>upstream is away</html>"]) == []


@pytest.mark.parametrize("size", [1000, 60_000])
@pytest.mark.parametrize("form", ["[%b,\r\n%b]", "%b\n%b\n"])
def test_a_value_that_is_too_long_comes_out_as_its_pruned_document(size: int, form: str):
    long = json.dumps({"type": "done", "image": "x{" * (3 * EVENT_BYTES_MAX), "usage": {"a": 1}}).encode()
    body = form.encode() % (long, b'{"b":2}')
    pruned, last = values([body[at : at + size] for at in range(0, len(body), size)])
    assert isinstance(pruned, PointerScanner)
    assert (pruned.document, pruned.failed) == ({"type": "done", "usage": {"a": 1}}, False)
    assert last == b'{"b":2}'


def test_a_value_that_was_cut_short_tells_what_it_can():
    (rest,) = values([b'[{"usage": {"a": 1}, "candidates": [{"text": "Hel'])
    assert isinstance(rest, PointerScanner)
    assert (rest.document, rest.failed) == ({"usage": {"a": 1}}, True)


@pytest.mark.parametrize("bomb", [b"[" * 1000, b'{"a":', b'"' * 1000, b"\\" * 1000, b"}" * 1000, b"[{" * 500])
def test_what_is_no_json_is_bounded(bomb: bytes):
    splitter = JsonSplitter(lambda: PointerScanner(POINTERS))
    for _ in range(200):
        splitter.feed(bomb)
    splitter.finish()
    assert len(splitter._kept) <= EVENT_BYTES_MAX
