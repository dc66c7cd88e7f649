"""Events that differ in their text only are not parsed each: what is read is what parsing each gives."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import DIALECTS, answer
from proxy.dialects.answer import TEXT_CHARS_MAX
from proxy.dialects.base import Meter, OperationSpec, Rules, UsagePointers
from proxy.dialects.rules import meter_of
from proxy.metering.alike import EVENTS_MAX, Alike
from proxy.metering.usage import Usage
from tests.dialects.answers import said
from tests.dialects.test_recordings import STREAMS, Recording

COMMON = settings(max_examples=300, deadline=None)

# (dialect, operation, what one event of it looks like, the lines in front of its data)
SHAPES = {
    "chat": (
        "openai",
        "chat",
        {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "%"}}]},
        b"",
    ),
    "reasoning": (
        "openai",
        "chat",
        {"choices": [{"delta": {"content": None, "reasoning_content": "%"}}]},
        b"",
    ),
    "role": (
        "openai",
        "chat",
        {"choices": [{"delta": {"role": "assistant", "content": "%"}}], "usage": None},
        b"",
    ),
    "completions": ("openai", "completions", {"model": "%m", "choices": [{"text": "%"}]}, b""),
    "messages": (
        "anthropic",
        "messages",
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "%"}},
        b"event: content_block_delta\n",
    ),
    "complete": (
        "anthropic",
        "complete",
        {"type": "completion", "completion": "%", "stop_reason": None},
        b"",
    ),
    "cohere": (
        "cohere",
        "cohere.chat",
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "%"}}}},
        b"event: content-delta\n",
    ),
    "responses": ("openai", "responses", {"type": "response.output_text.delta", "delta": "%"}, b""),
    "gemini": (
        "gemini",
        "stream_generate_content",
        {"candidates": [{"content": {"parts": [{"text": "%"}]}}], "modelVersion": "m"},
        b"",
    ),
}
ODD = [
    b": a comment\n\n",
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9}}\n\n',
    b'data: {"choices":[{"delta":{"content":"hello"}}],"usage":{"prompt_tokens":7,"total_tokens":7}}\n\n',
    b'data: {"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"m"},"x":"m"}],"service_tier":"m"}\n\n',
    b'data: {"choices":[{"delta":{"content":[{"text":"","thinking":"t"}]}}]}\n\n',
    b'data: {"error":{"message":"m"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":3}}\n\n',
    b"data: [DONE]\n\n",
    b"data: {broken\n\n",
    b'data: {"a":1,\ndata: "b":2}\n\n',
    b"\n\n",
    b"\r\n",
]
# As they stand in the stream: what is no JSON string among them too.
spelled = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda t: json.dumps(t)[1:-1].encode()),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(
        lambda t: json.dumps(t, ensure_ascii=False)[1:-1].encode()
    ),
    st.sampled_from([b"hello", b" you", b"a", b"m", b"", b"stop", b"\\n", b"text", b"content", b":", b","]),
    st.sampled_from([
        b"\\", b'"', b'","', b'",\\n"', b'\\",\\n\\"', b"\xff", b"\xc3", b"\xa4", b"\x00", b"\\ud83d", b"\n",
        b"\r",
        b'"}}]}\n\ndata: {"choices":[{"delta":{"content":"',
        b'x"}}],"usage":{"prompt_tokens":1},"y":[{"z":{"u":"',
    ]),
)  # fmt: skip


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, str, list[bytes]]:
    """A stream of one shape with odd events in between, in reads of whole events or cut anywhere."""
    dialect, operation, shape, lines = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
    form = json.dumps(shape, separators=draw(st.sampled_from([(",", ":"), (", ", ": ")])))
    begin, end = form.encode().split(b'"%"')
    texts = draw(st.lists(spelled, min_size=1, max_size=25))
    padding = draw(st.sampled_from(["", "", "blanks", "obfuscation", "p"]))
    events = []
    for text in texts:
        event = b'%bdata: %b"%b"%b' % (lines, begin, text, end)
        pad = draw(st.sampled_from([b"", b"x", b"aB3", b"text", b"x" * 40, b"%b", b'"', b"\xff"]))
        if padding == "blanks":
            event = event[:-1] + b" " * len(pad) + b"}"
        elif padding:
            event = event[:-1] + b',"%b":"%b"}' % (padding.encode(), pad)
        events.append(event + b"\n\n")
    for odd in draw(st.lists(st.sampled_from(ODD), max_size=3)):
        events.insert(draw(st.integers(0, len(events))), odd)
    if draw(st.integers(0, 3)) == 0:
        events = [event.replace(b"\n", b"\r\n") for event in events]
    size = draw(st.integers(1, 6))
    reads = [b"".join(events[at : at + size]) for at in range(0, len(events), size)]
    if draw(st.integers(0, 3)) == 0:
        body = b"".join(events)
        places = sorted(draw(st.sets(st.integers(0, len(body)), max_size=8)) | {0, len(body)})
        reads = [body[a:b] for a, b in pairwise(places)]
    return dialect, operation, reads


def read(dialect: str, operation: str, reads: Iterable[bytes], *, take: bool) -> list[dict[str, Any]]:
    """What a meter says, in the end or after each read."""
    meter: Meter = DIALECTS[dialect].make_meter(DIALECTS[dialect].operations[operation], True)
    told = []
    for content in reads:
        meter.feed(content)
        if take:
            told.append({**said(meter), "events": meter.events})
    meter.finish()
    return [*told, {**said(meter), "events": meter.events}]


def read_each(dialect: str, operation: str, reads: Iterable[bytes], *, take: bool) -> list[dict[str, Any]]:
    with patch.object(answer, "like", lambda *_: None):
        return read(dialect, operation, reads, take=take)


@COMMON
@given(streams(), st.booleans())
def test_what_is_alike_is_read_as_if_each_were_parsed(case: tuple[str, str, list[bytes]], take: bool):
    assert read(*case, take=take) == read_each(*case, take=take)


@pytest.mark.skipif(not STREAMS, reason="HEADRACE_RECORDINGS names no folder of recordings")
@pytest.mark.parametrize("recording", STREAMS, ids=lambda r: r.name)
@pytest.mark.parametrize("size", [1, 4, 15])
def test_recordings_are_read_as_if_each_event_were_parsed(recording: Recording, size: int):
    blank = b"\r\n\r\n" if b"\r\n\r\n" in recording.body else b"\n\n"
    events = recording.body.split(blank)
    events = [event + blank for event in events[:-1]] + events[-1:]
    reads = [b"".join(events[at : at + size]) for at in range(0, len(events), size)]
    case = (recording.dialect, recording.operation, reads)
    assert read(*case, take=True) == read_each(*case, take=True)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("shape", ["chat", "reasoning", "completions", "messages", "complete", "cohere"])
def test_a_stream_of_text_is_parsed_once(shape: str, end: bytes):
    dialect, operation, form, lines = SHAPES[shape]
    words = [b"Hello", b' \\"you\\"', "ä中🎉".encode(), b"\\n", b"."]
    begin, behind = json.dumps(form).encode().split(b'"%"')
    events = [b'%bdata: %b"%b"%b\n\n' % (lines, begin, word, behind) for word in words]
    first, *rest = (event.replace(b"\n", end) for event in events)
    meter = DIALECTS[dialect].make_meter(DIALECTS[dialect].operations[operation], True)
    meter.feed(first)
    meter.feed(first)  # the first one tells the model too
    with patch.object(answer, "loads", side_effect=AssertionError("parsed")):
        meter.feed(b"".join(rest))
        meter.feed(rest[1])
    assert (meter.events, meter.degraded) == (7, False)
    assert "".join(meter.take_text()) == 'HelloHello "you"ä中🎉\n.ä中🎉'


def chat(*words: bytes) -> bytes:
    return b"".join(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % word for word in words)


def padded(*words: bytes) -> bytes:
    events = chat(*words).split(b"\n\n")[:-1]
    return b"".join(b'%b,"obfuscation":"x2%b"}\n\n' % (e[:-1], b"y" * at) for at, e in enumerate(events))


@pytest.mark.parametrize("pad", ['%s,"obfuscation":"%s"}', '%s,"p":"%s","usage":null}', "%s%s}"])
def test_padding_makes_no_difference(pad: str):
    form = '{"choices":[{"delta":{"content":"word"}}]'
    sizes = [3, 0, 17, 1]
    letters = " " if pad == "%s%s}" else "x"
    events = [f"data: {pad % (form, letters * size)}\n\n".encode() for size in sizes]
    meter = DIALECTS["openai"].make_meter(DIALECTS["openai"].operations["chat"], True)
    meter.feed(events[0])
    with patch.object(answer, "loads", side_effect=AssertionError("parsed")):
        meter.feed(b"".join(events))
    assert (meter.events, meter.degraded) == (5, False)
    assert "".join(meter.take_text()) == "word" * 5


def test_text_that_nobody_takes_is_measured_as_if_each_were_parsed():
    reads = [chat(b"x"), chat(*[b"y" * 900] * 13), chat(*[b"z" * 100] * 9), chat(b"w")]
    assert read("openai", "chat", reads, take=False) == read_each("openai", "chat", reads, take=False)
    assert 12_000 < TEXT_CHARS_MAX < 12_600  # the texts above are just too many


@pytest.mark.parametrize("count", [EVENTS_MAX - 1, EVENTS_MAX, EVENTS_MAX + 1, 9000])
def test_many_events_in_one_read_are_read_as_if_each_were_parsed(count: int):
    reads = [chat(b"x"), chat(*[b"y"] * count), chat(b"z")]
    assert read("openai", "chat", reads, take=True) == read_each("openai", "chat", reads, take=True)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"delta":{"content":"%b"}}],"note":"%b"}\n\n' % (b"one", b"one"),
        b'data: {"choices":[{"delta":{"content":"one","role":"\\u0061"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"one"}}],"pad":"%b"}\n\n' % (b"x" * 5000),
        b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"one"}}]}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"one"}}]}\ndata:\n\n',
        b'data: {"choices":[{"delta":{"content":"one"}}],\r"a":1}\n\n',
        b'data:{"choices":[{"delta":{"content":"one"}}]}\n\n',
    ],
)
def test_of_what_is_not_plain_nothing_is_kept_to_compare_with(event: bytes):
    meter = DIALECTS["openai"].make_meter(DIALECTS["openai"].operations["chat"], True)
    meter.feed(event)
    meter.feed(event)
    assert "".join(meter.take_text()) == "oneone"
    assert not any(isinstance(value, Alike) for value in vars(meter).values())


@pytest.mark.parametrize(
    "reads",
    [
        [chat(b'a","b')],
        [chat(b'a","b', b"c")],
        [chat(b"a\\", b',"b')],
        [chat(b"a\\", b"b")],
        [chat(b"a", b"", b"b")],
        [chat(b"a", b"\xc3"), chat(b"\xa4", b"b")],
        [chat(b"\xc3", b"\xa4")],
        [chat(b"\\ud83d", b"\\ude00")],
        [b"data: 5\n", chat(b"a")],
        [b"data", chat(b"a")],
        [b"\r", chat(b"a")],
        [chat(b"a")[:-1], b"\n" + chat(b"b")],
        [chat(b"a") + chat(b"b")[:-1], b"\n", chat(b"c")],
        [chat(b"a") + b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n' + chat(b"b"), chat(b"c")],
        [padded(b"a", b"b")],
        [padded(b"a", b"b") + chat(b"c")],
        [padded(b"a", b"b"), padded(b'b","obfuscation":"xx')],
        [padded(b"a", b"b"), padded(b"c").replace(b"2", b"\xff"), padded(b"d").replace(b"2", b"\\u0041")],
        [padded(b"a", b"b").replace(b',"obf', b',"x":{"obfuscation":"m"},"obf'), padded(b"c")],
        [chat(b"a", b'b"}}]}\n\ndata: {"choices":[{"delta":{"content":"c')],
    ],
)
def test_what_only_looks_alike_is_parsed(reads: list[bytes]):
    for take in (True, False):
        assert read("openai", "chat", [chat(b"one"), *reads], take=take) == read_each(
            "openai", "chat", [chat(b"one"), *reads], take=take
        )


def test_events_that_tell_more_than_their_text_are_parsed():
    operation = OperationSpec(
        "chat",
        generates_text=True,
        meter=UsagePointers((("usage",),), lambda raw: Usage(input=raw["in"]), adds_up=True),
        rules=Rules(text=(("text",),)),
    )
    meter = meter_of(operation)(operation, True)
    for word in (b"a", b"b", b"c"):
        meter.feed(b'data: {"text":"%b","usage":{"in":2}}\n\n' % word)
    usage = meter.usage()
    assert usage is not None and usage.input == 6
    assert meter.take_text() == ["a", "b", "c"]
