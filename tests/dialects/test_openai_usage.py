"""OpenAI's ordinary answers are read on a short way: it must say what the long one says."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.dialects import DIALECTS
from proxy.dialects.answer import AnswerMeter
from proxy.dialects.openai_format import COUNT_MAX, CompletionMeter, _read_any, _read_ordinary, read_usage
from tests.dialects.answers import said

COUNT = st.integers(-2, 20) | st.sampled_from([None, 3.0, "4", True, COUNT_MAX, COUNT_MAX + 1])
INS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["cached_tokens", "audio_tokens", "image_tokens", "text_tokens"], COUNT)
)
OUTS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["reasoning_tokens", "audio_tokens", "image_tokens", "other"], COUNT)
)
USAGE = st.fixed_dictionaries(
    {"prompt_tokens": COUNT, "completion_tokens": COUNT},
    optional={
        "total_tokens": COUNT,
        "prompt_tokens_details": INS | st.sampled_from([None, [], 7]),
        "completion_tokens_details": OUTS | st.sampled_from([None, [], 7]),
        "cached_tokens": COUNT,
        "reasoning_tokens": COUNT,
    },
)
OPENAI: dict[str, Any] = {
    "prompt_tokens": 200,
    "completion_tokens": 100,
    "total_tokens": 300,
    "prompt_tokens_details": {"cached_tokens": 20, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 0, "rejected_prediction_tokens": 0},
}
CHAT: dict[str, Any] = {
    "id": "c",
    "object": "chat.completion",
    "model": "gpt-4o",
    "service_tier": "default",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"},
    ],
    "usage": OPENAI,
}


def test_what_openai_sends_takes_the_short_way():
    usage = _read_ordinary(OPENAI)
    assert usage is not None
    assert usage.as_dict() == {"input": 180, "cache_read": 20, "output": 100, "reasoning": 64}


@given(USAGE, st.booleans())
@example(OPENAI, False)
def test_both_ways_read_the_same(raw: dict[str, Any], adds_up: bool):
    if adds_up and type(raw["prompt_tokens"]) is type(raw["completion_tokens"]) is int:
        raw["total_tokens"] = raw["prompt_tokens"] + raw["completion_tokens"]
    assert read_usage(raw) == _read_any(raw)


ODD = st.sampled_from([None, None, "", "m", "x" * 300, 0, 7, [], {}, {"message": "m"}, OPENAI])
CHOICE = st.fixed_dictionaries(
    {"message": st.sampled_from([{"role": "assistant", "content": "hello"}, {"content": None}, None])},
    optional={"finish_reason": ODD, "usage": ODD, "error": ODD, "text": ODD},
)
ANSWER = st.fixed_dictionaries(
    {
        "object": st.sampled_from(["chat.completion", "chat.completion", "text_completion", "error", None]),
        "choices": st.lists(CHOICE | st.just(CHAT["choices"][0]), max_size=2) | ODD,
        "usage": st.just(OPENAI) | USAGE | ODD,
    },
    optional=dict.fromkeys(["id", "model", "service_tier", "error", "code", "error_code", "x_groq"], ODD),
)


def read(operation: str, body: bytes) -> dict[str, Any]:
    meter = DIALECTS["openai"].make_meter(DIALECTS["openai"].operations[operation], False)
    meter.read_all(body)
    return {**said(meter), "events": meter.events}


def test_what_openai_answers_takes_the_short_way():
    with patch.object(CompletionMeter, "_on_event", side_effect=AssertionError("the long way")):
        told = read("chat", json.dumps(CHAT).encode())
    assert told["usage"] == {"input": 180, "cache_read": 20, "output": 100, "reasoning": 64, "calls": 1}
    assert (told["model"], told["id"], told["tier"]) == ("gpt-4o", "c", "default")
    assert told["flags"] == ["complete", "finished"]


@given(ANSWER, st.sampled_from(["chat", "completions", "embeddings", "moderations"]), st.integers(0, 40_000))
@example(CHAT, "chat", 0)
@example({**CHAT, "service_tier": None}, "chat", 40_000)
@example({**CHAT, "usage": {**OPENAI, "completion_tokens": 0, "total_tokens": 200}}, "chat", 0)
def test_answers_are_read_the_same_on_both_ways(answer: dict[str, Any], operation: str, pad: int):
    body = json.dumps({**answer, "pad": "x" * pad}).encode()
    told = read(operation, body)
    with patch.object(CompletionMeter, "read_all", AnswerMeter.read_all):
        assert read(operation, body) == told


@pytest.mark.parametrize(
    "odd",
    [
        b'"\xff"',
        b'"\xe4\xbd\xa0"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"\n"',
        b"NaN",
        b"1e999",
        b"01",
        b"[1,]",
    ],
)
def test_what_is_passed_over_is_as_valid_as_what_is_read(odd: bytes):
    body = json.dumps(CHAT).encode().replace(b"{", b'{"created": %b, ' % odd, 1)
    told = read("chat", body)
    with patch.object(CompletionMeter, "read_all", AnswerMeter.read_all):
        assert read("chat", body) == told
