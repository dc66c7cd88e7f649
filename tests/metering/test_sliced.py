"""Long JSON is parsed in parts: the same values, the same refusals."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering import sliced
from proxy.metering.sliced import LongText, loads, pieces

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=40,
)


def outcome(parse: Any, text: bytes) -> Any:
    try:
        return parse(text)
    except ValueError:
        return ValueError


def whole(text: bytes, value: Any) -> Any:
    """With all of each long string, as far as its length and its parts say."""
    if isinstance(value, LongText):
        string = "".join(pieces(text, value))
        assert len(string) == len(value) and string.startswith(str(value)[: sliced.BEGIN_CHARS])
        return string
    if isinstance(value, dict):
        return {name: whole(text, inner) for name, inner in value.items()}
    return [whole(text, inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(params=[1, 2, 7, 20, 1000])
def part(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    size: int = request.param
    monkeypatch.setattr(sliced, "PART_BYTES", max(size, 13))  # an escaped surrogate pair has twelve
    monkeypatch.setattr(sliced, "BEGIN_CHARS", 3)
    return size


@settings(max_examples=150, deadline=None, derandomize=True)
@given(value=json_values, escape=st.booleans(), indent=st.sampled_from([None, 2]), size=st.integers(13, 60))
def test_any_document_is_what_the_parser_says(
    value: Any, escape: bool, indent: int | None, size: int
) -> None:
    text = json.dumps(value, ensure_ascii=escape, indent=indent).encode("utf-8", "surrogatepass")
    before = sliced.PART_BYTES
    sliced.PART_BYTES = size
    try:
        found = outcome(loads, text)
        assert (found if found is ValueError else whole(text, found)) == outcome(orjson.loads, text)
    finally:
        sliced.PART_BYTES = before


WRONG = (
    b"[1,]", b"[,1]", b"[1,,2]", b'{"a":1,}', b'{,"a":1}', b'{"a" 1}', b'{"a":}', b"{1:2}", b"[1 2]", b"[[1]",
    b"[1]]", b'["a]', b'{"a":1]', b"[1}", b"", b"  ", b"[1] 2", b'"a" "b"', b'"\\"', b'"\\u12"', b'"\\ud800"',
    b'"\xff"', b'"\x01"',
    b"[NaN]", b'{"a":1,"a":', b'{"a"}', b'{"name of a member":"value","other name":"other value" "third"}',
)  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_json_is_refused_wherever_it_is_cut(part: int, wrong: bytes) -> None:
    with pytest.raises(ValueError):
        loads(wrong)
    for around in (b'{"x":[%b],"y":[1,2,3,4,5,6,7,8]}', b'[[1,2,3,4,5,6,7,8],"abcdefghijkl",%b]'):
        text = around % (wrong or b"1,")
        assert outcome(loads, text) == outcome(orjson.loads, text)


@pytest.mark.parametrize(
    "string", ["a" * 99, "é" * 50, "你好" * 30, "😀" * 20, 'quote " and \\ and \n' * 9, "\x7f\u2028" * 20]
)
@pytest.mark.parametrize("escape", [True, False])
def test_a_long_string_is_cut_between_its_characters_only(part: int, string: str, escape: bool) -> None:
    text = json.dumps({"a": [string, 1], "b": string}, ensure_ascii=escape).encode()
    assert whole(text, loads(text)) == {"a": [string, 1], "b": string}


def test_of_members_of_one_name_the_last_counts(part: int) -> None:
    text = b'{"a": 1, "bbbbbbbbbbbbbbbbbbbbb": [1, 2, 3, 4, 5, 6, 7, 8, 9], "a": 2}'
    assert loads(text) == orjson.loads(text)


def test_long_arrays_within_each_other_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "PART_BYTES", 100)
    assert outcome(loads, b"[" * 200 + b"]" * 200) is ValueError


def test_no_part_of_thirty_megabytes_keeps_the_interpreter_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    class Parser:
        @staticmethod
        def loads(text: bytes) -> Any:
            sizes.append(len(text))
            return orjson.loads(text)

    image = b'{"messages":[{"content":[{"image_url":{"url":"data:image/png;base64,%b"}}]}],"model":"m"}'
    text = image % (b"A" * (30 << 20))
    monkeypatch.setattr(sliced, "orjson", Parser)
    found = loads(text)
    url = found["messages"][0]["content"][0]["image_url"]["url"]
    assert (found["model"], len(url), url[:5]) == ("m", (30 << 20) + 22, "data:")
    assert max(sizes) <= sliced.PART_BYTES + 64
