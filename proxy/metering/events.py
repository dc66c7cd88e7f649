"""Cut a stream into its events, and leave the injected usage event out of one.

Owns the incremental reading of server-sent events (WHATWG HTML 9.2.6) and of streams of JSON values
for the meter, and the one declared change to a stream's bytes. Everything is bounded, whatever
arrives; nothing raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from proxy.metering.scanner import PointerScanner

EVENT_BYTES_MAX = 32 << 10  # an event that does not end within this goes through the scanner
LINE_OVERHEAD = 48  # bytes that a data line of an event costs besides its own
HELD_BYTES_MAX = 16 << 10  # a longer event cannot be the usage event

_LF, _CR = b"\n\r"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_EVENT_END = re.compile(rb"\n\n|\n\r\n|\r\r")
EVENT_END = b"\n\n"
EVENT_ENDS = (EVENT_END, b"\n\r\n", b"\r\r")
USAGE = b'"usage"'
NULL_AND_END = b":null}\n\n"  # behind it in events that tell in themselves that theirs is null
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_OPENING = re.compile(rb"[\[{]")
# Everything up to the next bracket or open string. Possessive: a match keeps no way back, however long.
_UP_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_QUOTE = 0x22


class Splitter(Protocol):
    """What cuts one kind of stream."""

    def one(self, content: bytes) -> bytes | None: ...
    def most(self, content: bytes) -> int:
        """How many values there can be in a read."""
        ...

    def feed(self, content: bytes) -> list[bytes | PointerScanner]: ...
    def finish(self) -> list[bytes | PointerScanner]: ...


class UnreadSplitter:
    """Of a stream that is not looked at any more: tells how much there is of it."""

    def __init__(self, pass_by: Callable[[int], None]) -> None:
        self._pass_by = pass_by

    def one(self, content: bytes) -> bytes | None:
        return None

    def most(self, content: bytes) -> int:
        return 0

    def feed(self, content: bytes) -> list[bytes | PointerScanner]:
        self._pass_by(len(content))
        return []

    def finish(self) -> list[bytes | PointerScanner]:
        return []


class SseSplitter:
    """Bytes in, the data of whole events out; comments and other fields are dropped.

    An event that is longer than EVENT_BYTES_MAX and was cut between reads is not kept: it comes out
    as what a scanner from `new_scanner` made of it.
    """

    def __init__(self, new_scanner: Callable[[], PointerScanner]) -> None:
        self._new_scanner = new_scanner
        self.is_between = True  # events: nothing of one is kept
        self._line = bytearray()  # the line at hand, without its end
        self._data: list[bytes] = []  # data lines of the event at hand
        self._size = 0
        self._scanner: PointerScanner | None = None
        self._in_long_line = False  # the line at hand is passed on as it comes
        self._swallow_lf = False  # the last read ended in CR

    def one(self, content: bytes) -> bytes | None:
        """The data of a read that is exactly one event, as most are. None: ask `feed`."""
        at = 0
        if not content.startswith(b"data: "):
            at = content.find(b"\n") + 1
            if not (content.startswith(b"event:") and content.startswith(b"data: ", at)):
                return None
        size = len(content)
        first_end = content.find(b"\n", at)
        if first_end == size - 2 and content[-1] == _LF and self.is_between:
            return content[at + 6 :]
        if first_end == size - 3 and content.endswith(b"\r\n\r\n") and self.is_between:
            return content[at + 6 : -4] if content.find(b"\r", at) == size - 4 else None
        return None

    def most(self, content: bytes) -> int:
        return content.count(b"\n") + content.count(b"\r")

    def feed(self, content: bytes) -> list[bytes | PointerScanner]:
        """The next bytes, cut anywhere; what they completed."""
        if _CR in content:
            with_lf = content.replace(b"\r\n", b"\n")
            if _CR in with_lf or not self.is_between:
                return self._feed_lines(content)
            content = with_lf
        last = content.rfind(b"\n\n") + 2  # behind the last event that is whole
        if last < 2:
            return self._feed_lines(content)
        first = 0 if self.is_between else content.find(b"\n\n") + 2
        out = self._feed_lines(content[:first]) if first else []
        for block in content[first : last - 2].split(b"\n\n") if first < last else ():
            if block.startswith(b"data: ") and b"\n" not in block:
                out.append(block[6:])
            else:
                for line in block.split(b"\n"):
                    self._line_over(line, out)
                self._dispatch(out)
        return out + self._feed_lines(content[last:]) if last < len(content) else out

    def finish(self) -> list[bytes | PointerScanner]:
        """The stream ended: an event without its blank line counts too (seen from real vendors)."""
        out: list[bytes | PointerScanner] = []
        if self._line or self._in_long_line:
            self._line_over(bytes(self._line), out)
            self._line.clear()
        self._dispatch(out)
        return out

    def _feed_lines(self, content: bytes) -> list[bytes | PointerScanner]:
        out: list[bytes | PointerScanner] = []
        if self._swallow_lf and content:
            content = content.removeprefix(b"\n")
            self._swallow_lf = False
        self._swallow_lf |= content.endswith(b"\r")
        at = 0
        for end in _LINE_END.finditer(content):
            piece = content[at : end.start()]
            at = end.end()
            if self._in_long_line:
                self._scan(piece)
                piece = b""
            elif self._line:
                self._line += piece
                piece = bytes(self._line)
                self._line.clear()
            self._line_over(piece, out)
        self._keep(content[at:])
        self.is_between = not (
            self._line or self._data or self._scanner or self._in_long_line or self._swallow_lf
        )
        return out

    def _keep(self, rest: bytes) -> None:
        """The beginning of a line. Beyond the bound its data goes to the scanner as it comes."""
        if self._in_long_line:
            self._scan(rest)
            return
        self._line += rest
        if len(self._line) + self._size <= EVENT_BYTES_MAX:
            return
        line = bytes(self._line)
        self._line.clear()
        self._in_long_line = True
        if line.startswith(b"data:"):
            self._become_long()
            self._scan(line[5:])

    def _become_long(self) -> None:
        if self._scanner is None:
            self._scanner = self._new_scanner()
        for data in self._data:
            self._scanner.feed(data + b"\n")
        self._data.clear()
        self._size = 0

    def _scan(self, data: bytes) -> None:
        if self._scanner is not None:
            self._scanner.feed(data)

    def _line_over(self, line: bytes, out: list[bytes | PointerScanner]) -> None:
        if self._in_long_line:
            self._in_long_line = False
            return
        if not line:
            self._dispatch(out)
        elif line.startswith(b"data:"):
            data = line[6:] if line.startswith(b"data: ") else line[5:]
            if self._scanner is not None:
                self._scanner.feed(b"\n" + data)
                return
            self._data.append(data)
            self._size += len(data) + LINE_OVERHEAD
            if self._size > EVENT_BYTES_MAX and len(self._data) > 1:
                self._become_long()

    def _dispatch(self, out: list[bytes | PointerScanner]) -> None:
        if self._scanner is not None:
            self._scanner.finish()
            out.append(self._scanner)
            self._scanner = None
        elif self._data:
            out.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
            self._data.clear()
        self._size = 0


class JsonSplitter:
    """Bytes in, whole JSON values out: the lines of NDJSON, the elements of one array, or a single one.

    What stands between values is dropped, and so are values that are neither object nor array. One that
    is longer than EVENT_BYTES_MAX and was cut between reads comes out as what a scanner made of it, and
    so does one that the stream's end cut short.
    """

    def __init__(self, new_scanner: Callable[[], PointerScanner]) -> None:
        self._new_scanner = new_scanner
        self._in_array = False
        self._depth = 0  # of brackets within the value at hand; 0: between values
        self._quoted = False
        self._escaped = False  # the last read ended in the backslash of an escape
        self._kept = bytearray()
        self._scanner: PointerScanner | None = None

    def one(self, content: bytes) -> bytes | None:
        """See SseSplitter. Brackets must be counted here: there is no shorter way."""
        return None

    def most(self, content: bytes) -> int:
        return content.count(b"{") + content.count(b"[")

    def feed(self, content: bytes) -> list[bytes | PointerScanner]:
        """The next bytes, cut anywhere; the values that they completed."""
        out: list[bytes | PointerScanner] = []
        start = at = 0  # where the value at hand begins in this read; how far it was read
        while at < len(content):
            if self._depth:
                at = self._within(content, at)
                if not self._depth:
                    out.append(self._over(content[start:at]))
                continue
            opening = _OPENING.search(content, at)
            if opening is None:
                break
            start, at = opening.span()
            if content[start] == 0x5B and not self._in_array:
                self._in_array = True  # the array around the values
            else:
                self._depth = 1
        if self._depth:
            self._keep(content[start:])
        return out

    def finish(self) -> list[bytes | PointerScanner]:
        """The stream ended: a value that has no end may still tell something."""
        if not self._depth:
            return []
        self._scanner = self._scanner or self._new_scanner()
        self._depth = 0
        return [self._over(b"")]

    def _within(self, content: bytes, at: int) -> int:
        """Go on in the value at hand, up to its end or the content's."""
        size = len(content)
        if self._escaped:
            self._escaped = False
            at += 1
        while at < size:
            found = (_STRING_REST if self._quoted else _UP_TO_BRACKET).match(content, at)
            at = found.end() if found else size
            if at == size:
                break
            char = content[at]
            at += 1
            if self._quoted:
                self._quoted = char != _QUOTE
                self._escaped = self._quoted  # a backslash, and behind it nothing yet
            elif char == _QUOTE:
                self._quoted = True
            else:
                self._depth += 1 if char in b"{[" else -1
                if not self._depth:
                    break
        return at

    def _keep(self, piece: bytes) -> None:
        if self._scanner is not None:
            self._scanner.feed(piece)
            return
        self._kept += piece
        if len(self._kept) > EVENT_BYTES_MAX:
            self._scanner = self._new_scanner()
            self._scanner.feed(bytes(self._kept))
            self._kept.clear()

    def _over(self, piece: bytes) -> bytes | PointerScanner:
        scanner = self._scanner
        if scanner is None:
            value = bytes(self._kept) + piece if self._kept else piece
            self._kept.clear()
            return value
        scanner.feed(bytes(self._kept) + piece)
        scanner.finish()
        self._kept.clear()
        self._scanner = None
        return scanner


class UsageEventFilter:
    """Leaves the usage event out of a stream whose caller did not ask for it.

    That is the event with `choices: []` and a usage that is not null. All other bytes pass as they
    came. An event that is cut between reads waits for its end, at most HELD_BYTES_MAX.
    """

    def __init__(self) -> None:
        self._held = b""
        self._passing = False  # within an event that is too long to be it

    @property
    def is_between(self) -> bool:
        """Events: as long as whole ones of others follow it need not be asked."""
        return not (self._held or self._passing)

    def feed(self, pieces: Sequence[bytes]) -> list[bytes]:
        """What may go out now, in order."""
        out: list[bytes] = []
        for piece in pieces:
            self._piece(piece, out)
        return out

    def finish(self) -> list[bytes]:
        """The stream ended: what is still held, unless it is the usage event."""
        held, self._held = self._held, b""
        return [held] if held and not is_usage_event(held) else []

    def _piece(self, piece: bytes, out: list[bytes]) -> None:
        if self._held:
            piece = self._held + piece
            self._held = b""
        if is_whole_and_other(piece):
            self._passing = False
            out.append(piece)
            return
        at = kept_from = 0
        for end in _EVENT_END.finditer(piece):
            if self._passing:
                self._passing = False
            elif is_usage_event(piece[at : end.end()]):
                if kept_from < at:
                    out.append(piece[kept_from:at])
                kept_from = end.end()
            at = end.end()
        if self._passing or len(piece) - at > HELD_BYTES_MAX:
            self._passing = True
            at = max(at, len(piece.rstrip(b"\r\n")))  # a line end may be the first half of an event's
        if kept_from < at:
            out.append(piece if at - kept_from == len(piece) else piece[kept_from:at])
        self._held = piece[at:]


def is_whole_and_other(piece: bytes) -> bool:
    """Does a piece end with an event, and is none of its events the usage event?"""
    # To find is quicker than `in`, which first asks whether bytes are a number.
    return piece.endswith(EVENT_ENDS) and (piece.find(USAGE) < 0 or _NO_CHOICES.search(piece) is None)


def is_usage_event(event: bytes) -> bool:
    """True for the bytes of an event that holds nothing but the usage that was asked for by us."""
    if event.find(USAGE) < 0 or _NO_CHOICES.search(event) is None:
        return False
    splitter = SseSplitter(lambda: PointerScanner(()))
    for data in (*splitter.feed(event), *splitter.finish()):
        try:
            doc: Any = orjson.loads(data) if type(data) is bytes else None
        except ValueError:
            return False
        if (
            type(doc) is dict
            and doc.get("choices") == []
            and doc.get("usage") is not None
            and not doc.get("error")
        ):
            return True
    return False
