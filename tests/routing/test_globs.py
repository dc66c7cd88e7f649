"""Globs in model names: exact first, then the most literal characters; a tie is told."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.globs import MEMO_ENTRIES_MAX, Globs, matches, overlap, ties

NAMES = st.text("ab-", max_size=6)
PATTERNS = st.text("ab-*", max_size=6)


@given(PATTERNS, NAMES)
def test_a_star_stands_for_any_run_of_characters(pattern, name):
    assert matches(pattern, name) == fnmatchcase(name, pattern)


@given(PATTERNS, PATTERNS, NAMES)
def test_patterns_that_share_a_name_overlap(a, b, name):
    if matches(a, name) and matches(b, name):
        assert overlap(a, b)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("gpt-4*", "*-mini", True), ("gpt-4*", "claude-*", False), ("a*b", "a*c", False), ("*", "x", True)],
)
def test_overlap(a, b, expected):
    assert overlap(a, b) is overlap(b, a) is expected


def test_a_question_mark_and_brackets_are_themselves():
    assert not matches("gpt-?", "gpt-4")
    assert not matches("gpt-[4]*", "gpt-4o")


def test_the_exact_name_comes_first_then_the_most_literal_glob():
    globs = Globs(["*", "gpt-*", "gpt-4*", "gpt-4o"])
    assert [globs.find(n) for n in ("gpt-4o", "gpt-4-turbo", "gpt-3.5", "claude")] == [
        "gpt-4o", "gpt-4*", "gpt-*", "*",
    ]  # fmt: skip


def test_a_name_that_is_written_like_a_pattern_does_not_stand_for_it():
    assert Globs(["gpt-4*", "x"]).find("gpt-*") is None
    assert Globs(["x"]).find("*") is None


def test_hostile_names_do_not_fill_the_memory():
    globs = Globs(["gpt-*"])
    for i in range(3 * MEMO_ENTRIES_MAX):
        globs.find(f"gpt-{i}")
    assert len(globs._memo) <= MEMO_ENTRIES_MAX
    assert globs.find("gpt-" + "x" * 10_000) is None


def test_globs_of_the_same_length_tie_only_when_a_name_meets_both():
    assert ties(["gpt-4*", "gpt-5*", "claude-*", "x"]) == []
    assert ties(["gpt-4*", "claude-*", "*-mini"]) == [("gpt-4*", "*-mini")]
