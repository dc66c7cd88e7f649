"""Tokens are counted as the vendor's own tokenizer counts them, whatever text comes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering.count import SLICE_CHARS, count_tokens, encoding_for, is_exact, load_vocabulary


@pytest.fixture(scope="module", autouse=True)
def vocabularies():
    for model in ("gpt-4", "gpt-4o", "qwen-max", "gpt-oss-20b"):
        load_vocabulary(model)


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("gpt-4.1", "o200k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("openai/gpt-oss-120b", "o200k_harmony"),
        ("o3-mini", "o200k_base"),
        ("gpt-5.6-sol", "o200k_base"),
        ("Qwen/Qwen3-32B", "qwen3.5"),
        ("claude-sonnet-4-5", "o200k_base"),
        ("", "o200k_base"),
    ],
)
def test_the_vocabulary_is_the_models(model: str, encoding: str):
    assert encoding_for(model) == encoding


# Published with the tokenizers' own documentation and reproducible with any of them.
@pytest.mark.parametrize(
    ("text", "model", "tokens"),
    [
        ("hello world", "gpt-4", 2),
        ("how many tokens?", "gpt-4", 4),
        ("antidisestablishmentarianism", "gpt-4", 6),
        ("", "gpt-4", 0),
    ],
)
def test_counts_are_the_known_ones(text: str, model: str, tokens: int):
    assert count_tokens([text], model) == tokens


def test_pieces_count_as_the_text_that_they_are_together():
    assert count_tokens(["hel", "lo wor", "ld"], "gpt-4") == count_tokens(["hello world"], "gpt-4")


def test_lone_surrogates_count_and_do_not_raise():
    assert count_tokens(["\ud83d", "a\udc00b"], "gpt-4o") > 0


def test_a_surrogate_pair_in_two_pieces_is_one_character():
    assert count_tokens(["\ud83c", "\udf89"], "gpt-4o") == count_tokens(["🎉"], "gpt-4o")


def test_a_long_text_is_counted_in_slices_with_little_difference():
    text = "word " * (SLICE_CHARS // 2)
    assert abs(count_tokens([text], "gpt-4o") - len(text) // 5) <= 4


def test_a_vocabulary_that_nobody_loaded_is_not_loaded_by_counting():
    program = (
        "from proxy.metering.count import count_tokens, is_exact, load_vocabulary\n"
        "load_vocabulary()\n"
        "usual = count_tokens(['antidisestablishmentarianism'], 'gpt-4o')\n"
        "assert count_tokens(['antidisestablishmentarianism'], 'qwen-max') == usual\n"
        "assert is_exact('gpt-4o') and not is_exact('qwen-max') and not is_exact('gpt-4')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert is_exact("gpt-4")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(max_size=30), max_size=5),
    st.sampled_from(["gpt-4", "gpt-4o", "qwen-max", "gpt-oss-20b"]),
)
def test_any_text_has_at_most_as_many_tokens_as_bytes(texts: list[str], model: str):
    size = len("".join(texts).encode("utf-8", "replace"))
    assert (1 if size else 0) <= count_tokens(texts, model) <= size
