"""Read a few values out of JSON text of any size, in bounded memory. Knows no vendor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import orjson

Pointer = tuple[str | int, ...]

ANY = -1  # in a pointer: every element of an array

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
