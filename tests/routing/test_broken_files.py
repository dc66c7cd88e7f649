"""Broken files: what is wrong, where, and what was meant, to the column.

Each file of `broken/` ends with the mistakes that are told of it, as comments.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import ConfigError
from tests.routing.compiling import MINIMAL, compile_text, mistakes

BROKEN = sorted((Path(__file__).parent / "broken").glob("*.yaml"))
EXPECTED = "# expected: "


@pytest.mark.parametrize("file", BROKEN, ids=lambda file: file.stem)
def test_each_mistake_is_told_with_its_line_and_column(file):
    text = file.read_text()
    expected = [line.removeprefix(EXPECTED) for line in text.splitlines() if line.startswith(EXPECTED)]
    assert expected
    assert mistakes(text) == expected


def test_more_than_thirty_kinds_of_broken_file_are_known():
    assert len(BROKEN) > 30


def test_no_mistake_repeats_a_secret():
    secret = "sk-canary-5f2d"
    reference = "${env:OPENAI_API_KEY}"
    text = MINIMAL.replace("api.openai.com", reference).replace("dialect: openai", f"dialect: '{reference}'")
    text += f"tiers: {{'{reference}': {{rank: '{reference}', hold: '{reference}'}}}}\n"
    told = mistakes(text, {"OPENAI_API_KEY": f"{secret}\n{secret}"})
    assert len(told) > 3
    assert not any(secret in line for line in told)


def test_an_empty_file_is_a_mistake_of_its_first_line():
    assert mistakes("") == ["1:1: the file is empty"]
    assert mistakes("# nothing but a comment\n") == ["1:1: the file is empty"]


def test_a_byte_order_mark_is_no_mistake():
    assert mistakes("\ufeff" + MINIMAL) == []


def test_a_file_of_another_kind_does_not_fill_the_terminal():
    told = mistakes("upstreams: {" + ", ".join(f"u{i}: x" for i in range(1000)) + "}\n")
    assert len(told) == 201
    assert told[-1] == " and 800 more"


@pytest.mark.parametrize(
    "bomb",
    ["[" * 200_000, "{a: " * 200_000, "- " * 200_000, "? " * 200_000, "a: [" + "x, " * 300_000 + "]"],
    ids=["lists", "mappings", "block lists", "keys", "width"],
)
def test_a_bomb_is_refused_before_it_goes_off(bomb):
    assert len(mistakes(bomb)) >= 1


def test_a_file_that_is_too_large_is_not_parsed():
    assert mistakes("#" * (3 << 20)) == ["1:1: the file is larger than 2 MiB"]


def test_every_section_is_checked_when_another_one_is_broken():
    text = MINIMAL + "station: {currency: yuan}\nroutes:\n  - {path: /v1/files, operation: filez}\n  - path\n"
    assert mistakes(text) == [
        "8:21: station.currency: must be a currency code of three capital letters such as USD",
        "10:34: routes[0].operation: operation 'filez' is not known (did you mean 'files'?)",
        "11:5: routes[1]: must be a mapping",
    ]


def test_a_good_file_compiles():
    assert compile_text(MINIMAL).warnings == []


TOKENS = [
    "{",
    "}",
    "[",
    "]",
    ": ",
    ", ",
    "\n",
    "  ",
    "- ",
    "*a",
    "&a ",
    "!t ",
    "~",
    "''",
    "-1",
    "${env:X?}",
    "${",
    "\t",
    "#",
    "<<",
]
CORPUS = [file.read_text() for file in BROKEN]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_typed_ends_in_a_table_or_in_mistakes(data):
    text = data.draw(st.sampled_from(CORPUS))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        token = data.draw(st.sampled_from(TOKENS) | st.text(max_size=3))
        text = text[:start] + token + text[start + data.draw(st.integers(0, 20)) :]
    try:
        compile_text(text)
    except ConfigError as e:
        assert e.mistakes
        assert all(line.isprintable() for line in e.mistakes)
