"""What holds for every answer, also for those that nobody would send."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import DIALECTS
from proxy.dialects.answer import DOCUMENTS_MAX, LOOK_BYTES
from proxy.dialects.base import Dialect, Meter
from proxy.metering.usage import Usage
from tests.dialects import reference
from tests.dialects.answers import metered, said

COMMON = settings(max_examples=150, deadline=None)

counts = st.none() | st.integers(0, 3000) | st.integers(0, 10).map(float)
openai_usage = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": counts,
        "completion_tokens": counts,
        "total_tokens": counts,
        "prompt_tokens_details": st.none() | st.fixed_dictionaries({}, optional={"cached_tokens": counts}),
        "completion_tokens_details": st.none()
        | st.fixed_dictionaries({}, optional={"reasoning_tokens": counts}),
        "cost": st.floats(0, 1),
    },
)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ['"usage":{"prompt_tokens":9}', "data: [DONE]", "\n\n", "\\", '"']
)
choices = st.lists(
    st.fixed_dictionaries(
        {"delta": st.fixed_dictionaries({}, optional={"content": st.none() | words})},
        optional={"finish_reason": st.none() | st.just("stop"), "usage": st.none() | openai_usage},
    ),
    max_size=2,
)
openai_events = st.fixed_dictionaries(
    {},
    optional={
        "choices": choices,
        "usage": st.none() | openai_usage,
        "x_groq": st.fixed_dictionaries({}, optional={"usage": openai_usage}),
        "model": words,
        "pad": words,
    },
)
anthropic_usage = st.fixed_dictionaries(
    {},
    optional={
        "input_tokens": counts,
        "output_tokens": counts,
        "cache_read_input_tokens": counts,
        "cache_creation_input_tokens": counts,
        "cache_creation": st.none() | st.fixed_dictionaries({"ephemeral_1h_input_tokens": counts}),
        "server_tool_use": st.none() | st.fixed_dictionaries({"web_search_requests": counts}),
    },
)
anthropic_events = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("message_start"), "message": st.fixed_dictionaries({"usage": anthropic_usage})}
    ),
    st.fixed_dictionaries({"type": st.just("message_delta"), "usage": anthropic_usage}),
    st.fixed_dictionaries(
        {"type": st.just("content_block_delta"), "delta": st.fixed_dictionaries({"text": words})}
    ),
    st.just({"type": "ping"}),
)
BROKEN = (
    "data: {",
    "data: {'a': 1}",
    'data: {"choices": 5}',
    'data: {"choices": [5]}',
    "data: 5",
    'data: {"delta": 1}',
)
line_ends = st.sampled_from(["\n", "\n", "\r\n", "\r"])
noise = st.sampled_from(["", ": comment", "id: 7", "data", "retry: 3", "datatype: x"])


@st.composite
def streams(draw: st.DrawFn, events: st.SearchStrategy[dict[str, Any]]) -> bytes:
    """A stream with noise between its lines, as text/event-stream allows it."""
    lines: list[str] = []
    for event in draw(st.lists(events, min_size=1, max_size=6)):
        if draw(st.booleans()):
            lines += [draw(noise), ""]
        lines.append(
            draw(st.sampled_from(["data: ", "data:"])) + json.dumps(event, ensure_ascii=draw(st.booleans()))
        )
        if draw(st.booleans()):
            lines.append(draw(noise))
        lines.append("")
        if draw(st.integers(0, 4)) == 0:
            lines += [draw(st.sampled_from(BROKEN)), ""]
    if draw(st.booleans()):
        lines += ["data: [DONE]", ""]
    return ("data: {}\n\n" + "".join(line + draw(line_ends) for line in lines)).encode()


@st.composite
def cut(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """A body and some way to cut it."""
    body = draw(bodies)
    places = sorted(draw(st.sets(st.integers(0, len(body)), max_size=8)) | {0, len(body)})
    return body, [body[a:b] for a, b in pairwise(places)]


@COMMON
@given(cut(streams(openai_events)))
def test_any_chunking_of_a_completion_stream_gives_what_a_slow_reader_finds(case: tuple[bytes, list[bytes]]):
    body, pieces = case
    wanted = reference.usage(body, DIALECTS["openai"].operations["chat"].meter)
    meter = metered("openai", "chat", pieces)
    assert meter.usage() == wanted
    assert said(meter) == said(metered("openai", "chat", [body]))


@COMMON
@given(cut(streams(anthropic_events)))
def test_any_chunking_of_a_messages_stream_gives_what_a_slow_reader_finds(case: tuple[bytes, list[bytes]]):
    body, pieces = case
    wanted = reference.usage(body, DIALECTS["anthropic"].operations["messages"].meter)
    meter = metered("anthropic", "messages", pieces)
    assert meter.usage() == wanted
    assert said(meter) == said(metered("anthropic", "messages", [body]))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["usage", "choices", "delta", "message", "type", "error", "data", "iterations", "x_groq"]
            )
            | st.sampled_from(
                ["prompt_tokens", "input_tokens", "content", "tool_calls", "prompt_tokens_details"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
OPERATIONS = [(name, operation) for name, dialect in DIALECTS.items() for operation in dialect.operations]


@pytest.mark.parametrize(("dialect", "operation"), OPERATIONS)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.binary(max_size=40) | anything.map(lambda v: b"data: " + json.dumps(v).encode() + b"\n\n"),
        max_size=5,
    )
)
def test_nothing_makes_a_meter_raise(dialect: str, operation: str, pieces: list[bytes]):
    meter = metered(dialect, operation, pieces)
    usage = meter.usage()
    assert usage is None or all(v >= 0 for v in (usage.input_tokens_all(), usage.output_tokens_all()))
    said(meter)


@settings(max_examples=40, deadline=None)
@given(anything)
def test_no_document_makes_a_meter_raise(value: object):
    body = json.dumps(value).encode()
    for dialect, operation in OPERATIONS:
        at_once = DIALECTS[dialect].make_meter(DIALECTS[dialect].operations[operation], True)
        at_once.read_all(body)
        assert said(at_once) == said(metered(dialect, operation, [body]))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(openai_events, min_size=1, max_size=1).map(lambda events: json.dumps(events[0]).encode())
    | st.sampled_from([b"", b"{", b' {"usage":{}}', b'{"model":NaN}', b"[DONE]", b"{}x"]),
    st.booleans(),
)
def test_an_answer_that_is_read_at_once_is_read_as_one_that_comes_in_pieces(
    body: bytes, is_event_stream: bool
):
    for operation in ("chat", "embeddings"):
        at_once = DIALECTS["openai"].make_meter(DIALECTS["openai"].operations[operation], is_event_stream)
        at_once.read_all(body)
        pieces = metered("openai", operation, [body[:5], body[5:]], is_event_stream=is_event_stream)
        assert (said(at_once), at_once.events) == (said(pieces), pieces.events)


def test_half_of_a_surrogate_pair_hides_no_usage():
    told = b'"usage":{"prompt_tokens":3,"completion_tokens":NaN}'
    body = b'data: {"choices":[{"delta":{"content":"\\ud83c"}}],%b}\n\n' % told
    meter = metered("openai", "chat", [body])
    usage = meter.usage()
    assert usage is not None and usage.input == 3
    assert not meter.degraded
    assert metered("openai", "chat", [body[6:]]).usage() == usage


@pytest.mark.parametrize("figure", [10**13, -5, "12", True, [1], {"a": 1}, 1e300])
def test_what_cannot_be_a_count_is_none(figure: object):
    body = json.dumps({"choices": [], "usage": {"prompt_tokens": figure, "completion_tokens": 3}}).encode()
    usage = metered("openai", "chat", [body]).usage()
    assert usage is not None
    assert (usage.input, usage.output) == (0, 3)


# -- long answers --------------------------------------------------------------------------------

LONG = 20 << 20


def image_answer() -> bytes:
    usage = {"input_tokens": 10, "output_tokens": 272, "total_tokens": 282}
    return json.dumps({"created": 1, "data": [{"b64_json": "iVBO" * (LONG // 4)}], "usage": usage}).encode()


def reads(body: bytes, size: int = 256 << 10) -> Iterator[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))


def held_bytes(meter: Meter) -> int:
    """Memory of all that the meter refers to and that is its own."""
    seen: set[int] = set()
    shared = {id(o) for o in (*DIALECTS.values(), *(d.operations for d in DIALECTS.values()))}
    todo: list[Any] = [meter]
    total = 0
    while todo:
        item = todo.pop()
        if id(item) in seen or id(item) in shared or isinstance(item, type) or callable(item):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        todo += [other for other in gc.get_referents(item) if type(other).__name__ != "UsagePointers"]
    return total


def test_the_usage_behind_an_image_of_20_mb_is_found():
    meter = metered("openai", "images", reads(image_answer()))
    usage = meter.usage()
    assert usage is not None
    assert usage.as_dict() == {"input": 10, "output": 272, "images": 1, "calls": 1}
    assert not meter.degraded


def test_the_usage_in_one_event_of_20_mb_is_found():
    event = {
        "type": "image_generation.completed",
        "b64_json": "A" * LONG,
        "usage": {"input_tokens": 5, "output_tokens": 7},
    }
    body = b"event: image_generation.completed\ndata: " + json.dumps(event).encode() + b"\n\n"
    meter = metered("openai", "images", reads(body))
    usage = meter.usage()
    assert usage is not None
    assert usage.as_dict() == {"input": 5, "output": 7, "images": 1, "calls": 1}
    assert meter.usage_is_final() and not meter.degraded


@pytest.mark.parametrize("form", ["data: %b\r\n\r\n", "[%b\n]", "%b"])
def test_a_picture_of_20_mb_by_gemini_hides_no_usage(form: str):
    picture = {"parts": [{"inlineData": {"mimeType": "image/png", "data": "iVBO" * (LONG // 4)}}]}
    told = {"promptTokenCount": 5, "candidatesTokenCount": 1290, "totalTokenCount": 1295}
    told["candidatesTokensDetails"] = [{"modality": "IMAGE", "tokenCount": 1290}]
    doc = {"candidates": [{"content": picture, "finishReason": "STOP"}], "usageMetadata": told}
    meter = metered("gemini", "stream_generate_content", reads(form.encode() % json.dumps(doc).encode()))
    usage = meter.usage()
    assert usage is not None
    assert usage.as_dict() == {"input": 5, "output_image": 1290, "calls": 1}
    assert meter.usage_is_final() and not meter.degraded


def test_a_stream_of_edited_images_of_several_mb_each_is_read_in_bounded_memory():
    events = []
    for kind in ("partial_image", "partial_image", "completed"):
        event = {"type": f"image_edit.{kind}", "b64_json": "iVBO" * (1 << 20)}
        if kind == "completed":
            event["usage"] = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}
        events.append(b"event: image_edit.%b\ndata: %b\n\n" % (kind.encode(), json.dumps(event).encode()))
    meter = DIALECTS["openai"].make_meter(DIALECTS["openai"].operations["images.edits"], True)
    for piece in reads(b"".join(events), 64 << 10):
        meter.feed(piece)
        assert held_bytes(meter) < 140 << 10  # one read and what is kept
    meter.finish()
    assert said(meter)["usage"] == {"input": 5, "output": 7, "images": 1, "calls": 1}
    assert meter.usage_is_final() and not meter.degraded


def speech(*pieces: bytes, is_event_stream: bool, foretold: Usage | None = None) -> Meter:
    meter = DIALECTS["openai"].make_meter(DIALECTS["openai"].operations["speech"], is_event_stream)
    meter.foretell(foretold)
    for piece in pieces:
        meter.feed(piece)
    meter.finish()
    return meter


@pytest.mark.parametrize("sound", [b"ID3\x04", b'{"not": json', b"data: \x00\x01\n\n", b""])
def test_sound_is_billed_by_what_its_text_foretold(sound: bytes):
    meter = speech(*(sound[at : at + 1] for at in range(len(sound))), is_event_stream=False)
    assert meter.usage() is None and not meter.degraded
    meter = speech(sound, is_event_stream=False, foretold=Usage(characters=12, calls=1))
    assert said(meter)["usage"] == {"characters": 12, "calls": 1}
    assert meter.usage_is_final() and not meter.error


def test_speech_as_events_tells_its_own_usage():
    told = b'data: {"type":"speech.audio.done","usage":{"input_tokens":14,"output_tokens":101}}\n\n'
    meter = speech(
        b'data: {"type":"speech.audio.delta","audio":"SUQz"}\n\n',
        told,
        is_event_stream=True,
        foretold=Usage(characters=12, input=3, output_audio=40, calls=1),
    )
    assert said(meter)["usage"] == {"input": 14, "output": 101, "calls": 1}
    assert meter.complete


def test_a_transcript_as_text_is_billed_by_its_cues_before_what_was_foretold():
    for body, seconds_ms in ((b"plain words", 9000), (b"WEBVTT\n\n00:00.000 --> 00:03.250\nhi\n", 3250)):
        meter = DIALECTS["openai"].make_meter(DIALECTS["openai"].operations["transcriptions"], False)
        meter.foretell(Usage(seconds_ms=9000, calls=1))
        meter.feed(body)
        meter.finish()
        assert said(meter)["usage"] == {"seconds_ms": seconds_ms, "calls": 1}
        assert meter.usage_is_final()


@pytest.mark.parametrize("size", [100, 4096, 65536])
def test_a_long_answer_is_read_as_a_short_one_is(size: int):
    text = 'a "quoted" \\ word, 中文 ' * 8000
    usage = {"prompt_tokens": 9, "completion_tokens": 4000, "total_tokens": 4009}
    answer = {"id": "x", "model": "m", "choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    body = json.dumps({**answer, "usage": usage}).encode()
    meter = metered("openai", "chat", reads(body, size))
    assert meter.usage().as_dict() == {"input": 9, "output": 4000, "calls": 1}
    assert (meter.model, meter.vendor_id, meter.finished, meter.degraded) == ("m", "x", True, False)
    assert meter.unread_bytes == 0  # nothing is to be counted


def test_text_that_is_too_long_to_keep_is_measured():
    answer = {"choices": [{"message": {"content": "x" * 100_000}, "finish_reason": "stop"}]}
    meter = metered("openai", "chat", reads(json.dumps(answer).encode(), 5000))
    assert meter.usage() is None
    assert meter.unread_bytes == 100_002  # and its quotes


def test_text_that_nobody_takes_is_measured_too():
    event = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"y" * 1000)
    meter = metered("openai", "chat", [event] * 50)
    assert sum(map(len, meter.take_text())) + meter.unread_bytes == 50_000


BOMBS = {
    "one line": lambda: b"data: " + b"x" * 300_000,
    "one comment": lambda: b": " + b"x" * 300_000,
    "many data lines": lambda: b"data: [\n" * 60_000,
    "one word of json": lambda: b'{"model":"' + b"x" * 300_000,
    "many choices": lambda: b'{"choices":[' + b'{"finish_reason":"%b"},' % (b"x" * 1000) * 300,
    "deep": lambda: b"[" * 300_000,
    "deep in an event": lambda: b'data: {"choices":' + b"[" * 300_000,
    "a usage of lists": lambda: b'data: {"usage":{"prompt_tokens":1,"x":[' + b"[]," * 5000 + b"[]]}}\n\n",
    "a long usage": lambda: b'{"usage":{"x":"' + b"x" * 300_000,
    "a long key": lambda: b'{"' + b"x" * 300_000,
    "much text": lambda: b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % ("🎉" * 100).encode() * 800,
    "an array of much": lambda: b'[{"candidates":[{"content":{"parts":[{"text":"%b"' % (b"x" * 300_000),
    "lines of much": lambda: b'{"message":{"content":"%b"}}\n' % (b"y" * 3000) * 100,
    "a line without end": lambda: b'{"response":"' + b"\\\\" * 150_000,
    "many small events": lambda: b"data: {}\n\n" * 30_000,
    "long names": lambda: b'data: {"model":"%b","id":"%b"}\n\n' % (b"m" * 20_000, b"i" * 20_000) * 3,
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("size", [997, 70_000])
@pytest.mark.parametrize(
    ("dialect", "operation"),
    [
        ("openai", "chat"),
        ("openai", "images"),
        ("anthropic", "messages"),
        ("gemini", "stream_generate_content"),
        ("ollama", "ollama.chat"),
        ("cohere", "cohere.chat"),
    ],
)
def test_a_meter_keeps_at_most_64_kib(dialect: str, operation: str, size: int, bomb: str):
    meter = DIALECTS[dialect].make_meter(DIALECTS[dialect].operations[operation], True)
    for piece in reads(BOMBS[bomb](), size):
        meter.feed(piece)
        assert held_bytes(meter) < 72 << 10  # 64 KiB and the objects around them
    meter.finish()
    said(meter)


@pytest.mark.parametrize(
    ("dialect", "operation", "begin", "document"),
    [
        ("gemini", "stream_generate_content", b"[", b"{},"),
        ("ollama", "ollama.chat", b"", b"{}\n"),
        ("gemini", "live", b"", b"{}"),
        ("openai", "chat", b"", b"data:{}\n\n"),
    ],
)
def test_of_a_read_that_is_all_small_documents_few_are_looked_at_and_the_rest_is_an_estimate(
    dialect: str, operation: str, begin: bytes, document: bytes
):
    meter = DIALECTS[dialect].make_meter(DIALECTS[dialect].operations[operation], True)
    content = begin + document * 200_000
    meter.feed(content)
    assert DOCUMENTS_MAX <= meter.events <= DOCUMENTS_MAX + LOOK_BYTES // len(document) + 1
    assert meter.degraded
    assert meter.unread_bytes > len(content) - (meter.events + 2) * len(document) - LOOK_BYTES
    before = meter.unread_bytes
    meter.feed(document)
    assert (meter.unread_bytes, meter.usage()) == (before + len(document), None)


def test_a_long_read_of_documents_as_vendors_send_them_is_read_whole():
    event = b'data: {"choices":[{"delta":{"content":"hello you"}}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9}}\n\ndata: [DONE]\n\n'
    meter = metered("openai", "chat", [event * 6000 + usage])
    assert (meter.complete, meter.degraded, meter.events) == (True, False, 6002)
    found = meter.usage()
    assert found is not None and (found.input, found.output) == (7, 9)


@pytest.mark.parametrize("content", [b'data: {"a":1}\n\n', b"{", b'[{"a":1},', b"\0\0\0\x10\0\0\0\0"])
@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=[*DIALECTS])
def test_a_meter_is_gone_with_its_call(dialect: Dialect, content: bytes):
    """What is a cycle waits for the collector, and everybody else waits while that looks for it."""
    gc.disable()
    try:
        for operation in dialect.operations.values():
            meter = dialect.make_meter(operation, True)
            meter.feed(content)
            seen = weakref.ref(meter)
            del meter
            assert seen() is None, operation.name
    finally:
        gc.enable()
