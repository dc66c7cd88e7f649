"""OpenAI's ordinary usage object is read on a short way: it must say what the long one says."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from proxy.dialects.openai_format import COUNT_MAX, _read_any, _read_ordinary, read_usage

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
