"""Each quirk of the wire formats has a small answer of its own: cut anywhere, with any line ends.

`expected.json` of a folder names the operation and everything that the meter must make of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dialects.answers import every_byte, metered, said, two_pieces

STREAMS = Path(__file__).resolve().parents[1] / "golden" / "streams"


def answers() -> Iterator[Any]:
    for folder in sorted(STREAMS.iterdir()):
        for name, expected in json.loads((folder / "expected.json").read_text()).items():
            yield pytest.param(
                folder.name, (folder / name).read_bytes(), expected, id=f"{folder.name}/{name}"
            )


def split(expected: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    said = dict(expected)
    return said.pop("operation"), said


ANSWERS = list(answers())
LF_STREAMS = [
    p
    for p in ANSWERS
    if p.values[1].startswith((b"data", b"event", b":", b"\n")) and b"\r" not in p.values[1]
]

each_answer = pytest.mark.parametrize(("dialect", "body", "expected"), ANSWERS)


@each_answer
@pytest.mark.parametrize("is_event_stream", [True, False])
def test_whole(dialect: str, body: bytes, expected: dict[str, Any], is_event_stream: bool):
    operation, wanted = split(expected)
    assert said(metered(dialect, operation, [body], is_event_stream=is_event_stream)) == wanted


@each_answer
def test_byte_by_byte(dialect: str, body: bytes, expected: dict[str, Any]):
    operation, wanted = split(expected)
    assert said(metered(dialect, operation, every_byte(body))) == wanted


@each_answer
def test_every_cut_in_two(dialect: str, body: bytes, expected: dict[str, Any]):
    operation, wanted = split(expected)
    for pieces in two_pieces(body):
        assert said(metered(dialect, operation, pieces)) == wanted, len(pieces[0])


@pytest.mark.parametrize(("dialect", "body", "expected"), LF_STREAMS)
@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
def test_with_other_line_ends(dialect: str, body: bytes, expected: dict[str, Any], line_end: bytes):
    operation, wanted = split(expected)
    other = body.replace(b"\n", line_end)
    assert said(metered(dialect, operation, [other])) == wanted
    assert said(metered(dialect, operation, every_byte(other))) == wanted


def test_every_file_is_expected():
    for folder in STREAMS.iterdir():
        expected = json.loads((folder / "expected.json").read_text())
        assert {path.name for path in folder.iterdir()} == {"expected.json", *expected}
