"""Find and change single members of JSON text without rebuilding it, and read a few values out of JSON
text of any size.

Owns the top-level member scan of request bodies (what the model splice stands on) and `PointerScanner`,
which reads an answer of any length in bounded memory. Knows no vendor; never re-serialises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from proxy.errors import BodyNotJson, DuplicateMember

Pointer = tuple[str | int, ...]
Span = tuple[int, int]

ANY = -1  # in a pointer: every element of an array

_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]} \t\r\n]+")
# What follows a key whose value is a string without escapes, a number or a word.
_SCALAR_MEMBER = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*("[^"\\]*"|[^][{}" ,\t\r\n]+)')


# -- request bodies --------------------------------------------------------------------------------


class Members(NamedTuple):
    """A request body as parsed, and where its guarded members are.

    `spans` are the byte ranges of the values, `members` of the whole `"name": value`.
    """

    doc: dict[str, Any]
    spans: dict[str, Span]
    members: dict[str, Span]


def read_members(body: bytes, guarded: tuple[str, ...]) -> Members:
    """Parse a body and locate the guarded top-level members in it.

    Raises BodyNotJson when it is not a JSON object (UTF-8, no NaN, nesting as orjson allows), and
    DuplicateMember when a guarded member appears twice, in any spelling: parsers differ about which
    of the two counts, so that one could be billed and another executed.
    """
    try:
        doc = orjson.loads(body)
    except ValueError as e:
        raise BodyNotJson(detail=str(e)) from e
    if type(doc) is not dict:
        raise BodyNotJson(detail=f"top level is {type(doc).__name__}")
    found = _locate_unique(body, guarded, doc)
    if found is not None:
        return found
    found = Members(doc, {}, {})
    for name, key_start, start, end in top_level(body):
        if name not in guarded:
            continue
        if name in found.spans:
            raise DuplicateMember(param=name)
        found.spans[name] = (start, end)
        found.members[name] = (key_start, end)
    return found


def _locate_unique(body: bytes, guarded: tuple[str, ...], doc: dict[str, Any]) -> Members | None:
    """Find the members without a scan if the text proves that no guarded name occurs twice.

    A key is a quoted name. Without `\\u` no other spelling of these names exists, so a quoted name
    that occurs once in the whole body is the key that the parser saw. None: scan.
    """
    # One character is looked for six times as fast as two (0.15 us per KB), and most bodies have none.
    if b"\\" in body and b"\\u" in body:
        return None
    spans: dict[str, Span] = {}
    members: dict[str, Span] = {}
    for name, quoted in _quoted(guarded):
        if name not in doc:
            continue
        at = body.find(quoted)
        after = at + len(quoted)
        if at < 0 or body.find(quoted, after) >= 0:
            return None
        scalar = _SCALAR_MEMBER.match(body, after)
        if scalar is not None:
            span = scalar.span(1)
        else:
            start = _after_colon(body, after)
            span = start, _value_end(body, start)
        spans[name] = span
        members[name] = at, span[1]
    return Members(doc, spans, members)


@lru_cache(maxsize=256)
def _quoted(names: tuple[str, ...]) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, orjson.dumps(name)) for name in names)


def top_level(body: bytes) -> Iterator[tuple[str, int, int, int]]:
    """(name, key start, value start, value end) of each member of an object that a parser has accepted."""
    at = _space_end(body, 0) + 1
    while True:
        at = _space_end(body, at)
        key = _STRING.match(body, at)
        if key is None:  # "}" of an empty object
            return
        start = _after_colon(body, key.end())
        end = _value_end(body, start)
        yield orjson.loads(key.group()), at, start, end
        at = _space_end(body, end)
        if body[at : at + 1] != b",":
            return
        at += 1


def splice(body: bytes, span: Span, new: bytes) -> bytes:
    """The body with the bytes of `span` exchanged; nothing else moves."""
    return b"%b%b%b" % (body[: span[0]], new, body[span[1] :])


def insert_member(body: bytes, name: str, value_json: bytes) -> bytes:
    """The body with one more member, at the front. `value_json` is JSON text."""
    at = body.index(b"{") + 1
    comma = b"" if body[_space_end(body, at) :].startswith(b"}") else b","
    return b"%b%b:%b%b%b" % (body[:at], orjson.dumps(name), value_json, comma, body[at:])


def remove_member(body: bytes, member: Span) -> bytes:
    """The body without one member (a span of `Members.members`) and one comma beside it."""
    start, end = member
    after = _space_end(body, end)
    if body[after : after + 1] == b",":
        return body[:start] + body[_space_end(body, after + 1) :]
    before = body[:start].rstrip(b" \t\r\n")
    return before.removesuffix(b",") + body[end:]


def _space_end(body: bytes, at: int) -> int:
    found = _SPACE.match(body, at)
    return found.end() if found else at


def _after_colon(body: bytes, at: int) -> int:
    return _space_end(body, _space_end(body, at) + 1)


def _value_end(body: bytes, start: int) -> int:
    """Where the value ends that begins at `start`, in text that a parser has accepted."""
    first = body[start : start + 1]
    if first not in (b"{", b"["):
        found = (_STRING if first == b'"' else _SCALAR).match(body, start)
        return found.end() if found else start
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(body, start):
        text = token.group()
        if text in b"{[":
            depth += 1
        elif text in b"}]":
            depth -= 1
            if depth == 0:
                return token.end()
    return len(body)


# -- answers of any length -------------------------------------------------------------------------

CAPTURE_BYTES_MAX = 24 << 10  # of wanted values together; a usage object with fifty iterations is 15 KiB
KEY_BYTES_MAX = 256  # a longer key is none of ours
NODES_MAX = 256  # pruned containers kept; an answer has at most some ten images or choices

_SKIP_TOKEN = re.compile(rb'["\[\]{}]')
_STRING_STOP = re.compile(rb'["\\]')
_SCALAR_STOP = re.compile(rb"[,\]} \t\r\n]")
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")

_VALUE, _KEY, _KEY_REST, _COLON, _AFTER, _CAPTURE, _SKIP, _DONE = range(8)


class PointerScanner:
    """Reads the values at a few pointers out of one JSON text that arrives in pieces of any size.

    Everything else is skipped in O(1) memory, however long or deep: a 20 MB image costs nothing.
    `document` is the text's own document, pruned to the wanted pointers (arrays on the way are lists
    whose other elements are None), `measured` the bytes of the values at the pointers in `measure`.
    `failed`: the text is not JSON, or the wanted values are larger than CAPTURE_BYTES_MAX; what was
    found before stays. Never raises.
    """

    def __init__(self, pointers: Iterable[Pointer], measure: Iterable[Pointer] = ()) -> None:
        self._wanted = frozenset(pointers)
        self._measure = frozenset(measure)
        self._inner = frozenset(p[:n] for p in self._wanted | self._measure for n in range(len(p)))
        self._state = _VALUE
        self._path: list[str | int] = []  # pattern of the value at hand; array elements are ANY
        self._stack: list[dict[str, Any] | list[Any]] = []
        self._nodes = 0
        self._budget = CAPTURE_BYTES_MAX
        self._is_measured = False
        self._kept = bytearray()  # of the key or value at hand
        self._depth = 0  # of brackets within a skipped or captured value
        self._quoted = False
        self._escaped = False
        self._scalar = False
        self.document: Any = None
        self.failed = False
        self.measured = 0

    @property
    def done(self) -> bool:
        """The text's value is complete; what follows is ignored."""
        return self._state == _DONE

    def feed(self, data: bytes) -> None:
        """The next bytes, cut anywhere."""
        at = 0
        size = len(data)
        while at < size and self._state != _DONE:
            if self._state == _SKIP or self._state == _CAPTURE:
                at = self._within_value(data, at)
            elif self._state == _KEY_REST:
                at = self._key_rest(data, at)
            else:
                found = _NOT_SPACE.search(data, at)
                if found is None:
                    return
                at = self._token(data, found.start())

    def finish(self) -> None:
        """No more bytes come: a number at the very end is complete."""
        if self._state in (_SKIP, _CAPTURE) and self._scalar:
            self._value_over()
        if self._state != _DONE:
            self.failed = True

    def _fail(self, size: int) -> int:
        self.failed = True
        self._state = _DONE
        return size

    def _token(self, data: bytes, at: int) -> int:
        char = data[at : at + 1]
        if self._state == _AFTER:
            if char == b",":
                self._state = _KEY if type(self._stack[-1]) is dict else _VALUE
                if self._state == _VALUE:
                    self._path[-1] = ANY
                return at + 1
            if char in (b"}", b"]"):
                return self._leave(at)
        elif self._state == _COLON and char == b":":
            self._state = _VALUE
            return at + 1
        elif self._state == _KEY:
            if char == b'"':
                self._state = _KEY_REST
                return at + 1
            if char == b"}":
                return self._leave(at)
        elif self._state == _VALUE:
            if char == b"]" and self._stack and type(self._stack[-1]) is list:
                return self._leave(at)
            return self._value_begins(char, at)
        return self._fail(len(data))

    def _value_begins(self, char: bytes, at: int) -> int:
        path = tuple(self._path)
        if path in self._wanted:
            self._state = _CAPTURE
            self._kept.clear()
        elif char in (b"{", b"[") and path in self._inner and self._nodes < NODES_MAX:
            self._nodes += 1
            node: dict[str, Any] | list[Any] = {} if char == b"{" else []
            self._place(node)
            self._stack.append(node)
            self._path.append("" if char == b"{" else ANY)
            self._state = _KEY if char == b"{" else _VALUE
            return at + 1
        elif not self._stack and char not in (b"{", b"["):  # a page, a word: not what we read
            return self._fail(at + 1)
        else:
            self._state = _SKIP
            self._is_measured = path in self._measure
        self._depth = 0
        self._quoted = self._escaped = False
        self._scalar = char not in (b"{", b"[", b'"')
        return at

    def _place(self, value: Any) -> None:
        if not self._stack:
            self.document = value
            return
        parent = self._stack[-1]
        if type(parent) is dict:
            parent[str(self._path[-1])] = value
        elif type(parent) is list and len(parent) < NODES_MAX:
            parent.append(value)

    def _leave(self, at: int) -> int:
        self._stack.pop()
        self._path.pop()
        self._state = _AFTER if self._stack else _DONE
        return at + 1

    def _key_rest(self, data: bytes, at: int) -> int:
        end = self._string_end(data, at)
        if len(self._kept) <= KEY_BYTES_MAX:
            self._kept += data[at : min(end, at + KEY_BYTES_MAX + 1)]
        if self._quoted:  # still open; _string_end sets it
            return end
        key = bytes(self._kept)
        self._kept.clear()
        self._state = _COLON
        name: Any = None
        if len(key) <= KEY_BYTES_MAX:
            try:
                name = orjson.loads(b'"' + key)
            except ValueError:
                return self._fail(len(data))
        self._path[-1] = name if type(name) is str else ANY
        return end

    def _string_end(self, data: bytes, at: int) -> int:
        """Where the open string goes on to: behind its quote (`_quoted` False) or the data's end."""
        if self._escaped:
            self._escaped = False
            at += 1
        while True:
            stop = _STRING_STOP.search(data, at)
            if stop is None:
                self._quoted = True
                return len(data)
            at = stop.end()
            if data[at - 1] == 0x22:
                self._quoted = False
                return at
            if at == len(data):
                self._quoted = self._escaped = True
                return at
            at += 1

    def _within_value(self, data: bytes, at: int) -> int:
        """Walk over the skipped or captured value at hand; the bytes of a captured one are kept."""
        end, over = self._walk(data, at)
        if self._state == _SKIP:
            self.measured += end - at if self._is_measured else 0
        elif len(self._kept) + end - at > self._budget:
            self.failed = True
            self._state = _SKIP
            self._is_measured = False
        else:
            self._kept += data[at:end]
        if over:
            self._value_over()
        return end

    def _walk(self, data: bytes, at: int) -> tuple[int, bool]:
        if self._scalar:
            stop = _SCALAR_STOP.search(data, at)
            return (len(data), False) if stop is None else (stop.start(), True)
        while True:
            if self._quoted:
                at = self._string_end(data, at)
                if self._quoted:
                    return at, False
                if self._depth == 0:
                    return at, True
            token = _SKIP_TOKEN.search(data, at)
            if token is None:
                return len(data), False
            at = token.end()
            char = data[at - 1]
            if char == 0x22:
                self._quoted = True
            elif char in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    return at, True

    def _value_over(self) -> None:
        value: Any = None
        if self._state == _CAPTURE:
            try:
                value = orjson.loads(self._kept)
            except ValueError:
                self.failed = True
            self._budget -= len(self._kept)
            self._kept.clear()
        if self._state == _CAPTURE or (self._stack and type(self._stack[-1]) is list):
            self._place(value)
        self._state = _AFTER if self._stack else _DONE
