"""Parse long JSON in parts: while a parser runs, the interpreter does nothing else, in no thread.

Owns the cutting of a text into parts that take a millisecond or two each. What comes out is what the parser
would have made of the whole, but for strings that are longer than a part: their beginning and their length.
Pure; for a thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

# How a JSON text can spell any character, and what is looked for first: `in` finds a number ten times as fast
# as bytes, of which it first asks, with an exception, whether they are one. Most texts have none.
ESCAPE = b"\\u"
BACKSLASH = 0x5C

PART_BYTES = 256 << 10
FOUND_BYTES = 1 << 20  # looked through at once
DEPTH_MAX = 64  # of arrays and objects that are longer than a part
BEGIN_CHARS = 1024  # kept of a string that is longer than a part

_SPACE = re.compile(rb"[ \t\r\n]*+")
# A short string, or the beginning of another one, or what a value consists of.
_TOKEN = re.compile(rb'"[^"\\]{0,256}"|["\[\]{},]')
_WHOLE_CHARS = re.compile(rb'(?:[^"\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+')
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_BRACKETS = {b"[": b"]", b"{": b"}"}


class LongText(str):
    """The beginning of a long string; its length is that of the whole, in characters."""

    length: int
    size: int  # bytes of the whole, in UTF-8
    span: tuple[int, int]  # where it stands in the text, without its quotes

    def __len__(self) -> int:
        return self.length


def loads(text: bytes) -> Any:
    """Raises ValueError where orjson.loads does, and for long arrays within each other."""
    return orjson.loads(text) if len(text) <= PART_BYTES else _value(text, 0, len(text), DEPTH_MAX)


def find(text: bytes, what: bytes, start: int = 0) -> int:
    """As bytes.find, of something short in a long text."""
    while start < len(text):
        found = text.find(what, start, start + FOUND_BYTES + len(what))
        if found >= 0:
            return found
        start += FOUND_BYTES
    return -1


def pieces(text: bytes, string: LongText) -> Iterator[str]:
    """All of a long string of a text, in parts."""
    return _pieces(text, *string.span)


def _value(text: bytes, start: int, end: int, depth: int) -> Any:
    """The one value between `start` and `end`."""
    start, end = _stripped(text, start, end)
    first = text[start : start + 1]
    if end - start <= PART_BYTES or first not in b'"[{':
        return orjson.loads(text[start:end])
    if first == b'"':
        return _string(text, start + 1, end - 1)
    if not depth or text[end - 1 : end] != _BRACKETS[first]:
        raise ValueError("it is too deep, or has no end")
    return (_array if first == b"[" else _object)(text, start + 1, end - 1, depth - 1)


def _array(text: bytes, start: int, end: int, depth: int) -> list[Any]:
    found: list[Any] = []
    for begin, over, is_long in _parts(text, start, end):
        found += [_value(text, begin, over, depth)] if is_long else _parsed(b"[%b]", text, begin, over)
    return found


def _object(text: bytes, start: int, end: int, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for begin, over, is_long in _parts(text, start, end):
        if not is_long:
            found |= _parsed(b"{%b}", text, begin, over)
            continue
        begin, _ = _stripped(text, begin, over)
        name_end = _string_end(text, begin, over)
        colon = _stripped(text, name_end, over)[0]
        if text[colon : colon + 1] != b":":
            raise ValueError("a member without a value")
        found[orjson.loads(text[begin:name_end])] = _value(text, colon + 1, over, depth)
    return found


def _parsed(form: bytes, text: bytes, begin: int, end: int) -> Any:
    found = orjson.loads(form % text[begin:end])
    if not found:  # between two commas there is something, and this is no short text
        raise ValueError("nothing where a value should be")
    return found


def _parts(text: bytes, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """What is between the brackets of an array or object, in its order: (begin, end, True) of one element or
    member that is too long for a part, (..., False) of several."""
    group = begin = start
    for comma in _commas(text, start, end):
        if comma - begin > PART_BYTES:
            if begin > group:
                yield group, begin - 1, False
            yield begin, comma, True
            group = comma + 1
        elif comma - group > PART_BYTES:
            yield group, begin - 1, False
            group = begin
        begin = comma + 1
    if group <= end:
        yield group, end, False


def _commas(text: bytes, start: int, end: int) -> Iterator[int]:
    """Where the elements end that are between `start` and `end`: the last one there."""
    depth, at = 0, start
    while at < end:
        token = _TOKEN.search(text, at, min(at + PART_BYTES, end))
        if token is None:
            at += PART_BYTES
            continue
        sign, at = token.group(), token.end()
        if sign == b",":
            if not depth:
                yield at - 1
        elif sign == b'"':
            at = _string_end(text, at - 1, end)
        elif len(sign) == 1:
            depth += 1 if sign in b"[{" else -1
            if depth < 0:
                raise ValueError("a bracket closes what is not open")
    if depth:
        raise ValueError("a bracket is not closed")
    yield end


def _string_end(text: bytes, start: int, end: int) -> int:
    """Behind the quote that ends the string whose quote is at `start`."""
    if text[start : start + 1] != b'"':
        raise ValueError("a member without a name")
    at = start
    while (at := text.find(b'"', at + 1, end)) >= 0:
        before = at - 1
        while text[before] == 0x5C:
            before -= 1
        if (at - before) % 2:  # each backslash in front of it belongs to another one
            return at + 1
    raise ValueError("a string has no end")


def _string(text: bytes, start: int, end: int) -> LongText:
    begin, length, size = "", 0, 0
    for piece in _pieces(text, start, end):
        begin = begin or piece[:BEGIN_CHARS]
        length += len(piece)
        size += len(piece.encode())
    found = LongText(begin)
    found.length, found.size, found.span = length, size, (start, end)
    return found


def _pieces(text: bytes, start: int, end: int) -> Iterator[str]:
    while start < end:
        cut = _cut(text, start, end)
        piece: str = orjson.loads(b'"%b"' % text[start:cut])
        yield piece
        start = cut


def _cut(text: bytes, start: int, end: int) -> int:
    """Where a string can be cut: not within a character, however that is written."""
    if end - start <= PART_BYTES:
        return end
    whole = _WHOLE_CHARS.match(text, start, start + PART_BYTES)
    cut = whole.end() if whole else start
    while cut > start and text[cut] & 0xC0 == 0x80:
        cut -= 1
    if _HIGH_SURROGATE.search(text, max(cut - 6, start), cut):
        cut -= 6
    if cut <= start:
        raise ValueError("what is no text stands in a string")
    return cut


def _stripped(text: bytes, start: int, end: int) -> tuple[int, int]:
    found = _SPACE.match(text, start, end)
    start = found.end() if found else start
    while end > start and text[end - 1] in b" \t\r\n":
        end -= 1
    return start, end
