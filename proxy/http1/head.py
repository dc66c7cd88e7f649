"""Parse the head of an upstream's answer and decide how its body ends.

Owns the status line, the fields and the framing (RFC 9112, sections 4, 5 and 6.3). Pure: bytes in, facts
out. Repairs nothing: what one reader mends and the next one takes literally is how answers get smuggled.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from operator import itemgetter
from typing import Literal, NamedTuple

import msgspec

from proxy.errors import UpstreamGarbage

HEAD_BYTES_MAX = 64 * 1024  # far above any vendor's; a longer head is an attack or a bug
FIELDS_MAX = 128
NAME_BYTES_MAX = 256
NAMES_REMEMBERED_MAX = 1024  # with the limit above at most half a megabyte, whatever upstreams invent
LINES_REMEMBERED_MAX = 512
LINE_REMEMBERED_BYTES_MAX = 256
SHAPES_REMEMBERED_MAX = 256
CONTENT_LENGTH_DIGITS_MAX = 18  # below 2**63

CRLF = b"\r\n"
END_OF_HEAD = b"\r\n\r\n"
# RFC 9110 5.5: HTAB, SP, VCHAR and obs-text. Everything else ends a line or smuggles one.
FIELD_BYTES = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_VERSIONS: dict[bytes, tuple[int, int]] = {b"HTTP/1.1 ": (1, 1), b"HTTP/1.0 ": (1, 0)}
_PREFIX = b"HTTP/1."
_NO_BODY_STATUSES = frozenset({204, 304})

Field = tuple[bytes, bytes]
Kind = Literal["none", "length", "chunked", "eof"]


class _LowerNames(dict[bytes, bytes]):
    """Raw field name -> checked and lowered. Upstreams send the same thirty names for ever."""

    def __missing__(self, name: bytes) -> bytes:
        if not name or len(name) > NAME_BYTES_MAX or name.translate(None, TOKEN_BYTES):
            raise UpstreamGarbage(detail="field name")
        lower = name.lower()
        if len(self) < NAMES_REMEMBERED_MAX:
            self[name] = lower
        return lower


_LOWER_NAMES = _LowerNames()


class Line(NamedTuple):
    """One field: its name in lower case, its value, and how it is written."""

    name: bytes
    value: bytes | None
    written: bytes


class _Lines(dict[bytes, Line]):
    """Line of a head -> what was read of it. Of twenty lines of a vendor's head fifteen are the same each
    time; those that never come again make room now and then."""

    def __missing__(self, line: bytes) -> Line:
        _check_bytes(line)
        name, colon, value = line.partition(b":")
        if not colon:
            raise UpstreamGarbage(detail="field without colon")
        read = _line(_LOWER_NAMES[name], value.strip())
        if len(line) <= LINE_REMEMBERED_BYTES_MAX:
            if len(self) == LINES_REMEMBERED_MAX:
                self.clear()
            self[line] = read
        return read


def _line(name: bytes, value: bytes) -> Line:
    return Line(name, value, b"%b: %b\r\n" % (name, value))


def _check_bytes(line: bytes) -> None:
    """One pass in C finds every bare CR, bare LF, NUL and control byte."""
    if line.translate(None, FIELD_BYTES):
        raise UpstreamGarbage(detail="control byte in head")


_LINES = _Lines()
_NO_LINE = Line(b"", None, b"")  # behind the last of a head: there a field is found that it does not have

_LENGTH, _CODING, _CONNECTION = b"content-length", b"transfer-encoding", b"connection"
_FRAMING = (_LENGTH, _CODING, _CONNECTION, b"keep-alive")


class Shape:
    """What the names of a head decide, in their order: a vendor's heads have few shapes."""

    __slots__ = ("at", "framing", "names", "repeats_framing")

    def __init__(self, names: tuple[bytes, ...]) -> None:
        self.names = names
        self.at = {name: at for at, name in reversed([*enumerate(names)])}  # where each is first
        # Of a head's values: those that tell how its body ends.
        self.framing = itemgetter(*(self.at.get(name, -1) for name in _FRAMING))
        self.repeats_framing = any(names.count(name) > 1 for name in _FRAMING)


class _Shapes(dict[tuple[bytes, ...], Shape]):
    def __missing__(self, names: tuple[bytes, ...]) -> Shape:
        shape = Shape(names)
        if len(self) == SHAPES_REMEMBERED_MAX:
            self.clear()
        self[names] = shape
        return shape


_SHAPES = _Shapes()


class Head(msgspec.Struct):
    """The head of one answer. `end` is the offset of the first body byte."""

    status: int
    reason: bytes
    version: tuple[int, int]
    shape: Shape
    values: tuple[bytes | None, ...]  # those of its fields, then None
    lines: tuple[bytes, ...]  # its fields as they are written: `name: value` and the line's end
    end: int

    @classmethod
    def of(cls, status: int, fields: Iterable[Field] = ()) -> Head:
        """One that never was on the wire. Names are lower-case."""
        return _head(status, b"", (1, 1), [_line(*field) for field in fields], 0)

    @property
    def fields(self) -> list[Field]:
        """Names are lower-case."""
        named = zip(self.shape.names, self.values, strict=True)
        return [(name, value) for name, value in named if value is not None]

    def value(self, name: bytes) -> bytes | None:
        """The value of the first field called `name` (lower-case), or None."""
        return self.values[self.shape.at.get(name, -1)]

    def joined(self, name: bytes) -> bytes | None:
        """Those of all fields called `name` as one list (RFC 9110 5.3), or None."""
        values = [value for field_name, value in self.fields if field_name == name]
        return b", ".join(values) if values else None


def _head(status: int, reason: bytes, version: tuple[int, int], lines: Iterable[Line], end: int) -> Head:
    names, values, written = zip(*lines, _NO_LINE, strict=True)
    return Head(status, reason, version, _SHAPES[names], values, written, end)


class Framing(msgspec.Struct, frozen=True):
    """How a body ends, and whether its connection lasts.

    `length` is what Content-Length declares, also where there is no body (HEAD, 304). `idle_s` is how long
    the server says that it keeps an idle connection; None: it does not say.
    """

    kind: Kind
    length: int | None
    keep_alive: bool
    idle_s: int | None = None


def parse(data: bytes | bytearray, scanned: int = 0) -> Head | None:
    """Parse a response head from the start of `data`; None when it is not complete yet.

    `scanned` is the number of bytes that an earlier call has already seen: a head that drips in is not
    searched again and again. Raises UpstreamGarbage.
    """
    end = data.find(END_OF_HEAD, scanned - 3 if scanned > 3 else 0)
    if end < 0:
        _refuse_early(data, scanned)
        return None
    if end > HEAD_BYTES_MAX:
        raise UpstreamGarbage(detail="head too long")
    first, *lines = bytes(data[:end]).split(CRLF)
    if len(lines) > FIELDS_MAX:
        raise UpstreamGarbage(detail="too many fields")
    status, reason, version = _status_line(first)
    return _head(status, reason, version, map(_LINES.__getitem__, lines), end + 4)


def framing(head: Head, method: str) -> Framing:
    """Decide how the body of `head`, the answer to a `method` request, ends (RFC 9112 6.3).

    Raises UpstreamGarbage where two readers could disagree: length and chunked together, a repeated length,
    another coding than chunked, chunked in HTTP/1.0.
    """
    said, coding, connection, idle = head.shape.framing(head.values)
    if head.shape.repeats_framing:  # several fields are one list, also where there must be but one value
        said, coding, connection = map(head.joined, (_LENGTH, _CODING, _CONNECTION))
    length = None if said is None else _content_length(said)
    has_body = method != "HEAD" and head.status not in _NO_BODY_STATUSES
    kind, keep_alive, idle_s = _ending(head.version, has_body, length is not None, coding, connection, idle)
    return Framing(kind, length, keep_alive, idle_s)


@lru_cache(maxsize=128)  # servers say the same each time
def _ending(
    version: tuple[int, int],
    has_body: bool,
    has_length: bool,
    coding: bytes | None,
    connection: bytes | None,
    idle: bytes | None,
) -> tuple[Kind, bool, int | None]:
    keep_alive = _keeps_alive(version, connection)
    idle_s = None if idle is None else _idle_s(idle)
    if not has_body:
        return "none", keep_alive, idle_s
    if coding is not None:
        if has_length or version == (1, 0) or coding.lower() != b"chunked":
            raise UpstreamGarbage(detail="transfer-encoding that cannot be trusted")
        return "chunked", keep_alive, idle_s
    if has_length:
        return "length", keep_alive, idle_s
    return "eof", False, None


def _refuse_early(data: bytes | bytearray, scanned: int) -> None:
    """Refuse what can no longer become a head, so that a client is not kept waiting for the rest of it."""
    if len(data) > HEAD_BYTES_MAX:
        raise UpstreamGarbage(detail="head too long")
    if not _PREFIX.startswith(data[: len(_PREFIX)]):
        raise UpstreamGarbage(detail="not an HTTP/1 status line")
    fresh = data[scanned - 1 if scanned and data[scanned - 1] == 0x0D else scanned :]
    if fresh.count(b"\n") != fresh.count(CRLF):
        raise UpstreamGarbage(detail="bare LF in head")


@lru_cache(maxsize=16)  # the same few for ever: 0.1 us in place of 0.4
def _status_line(line: bytes) -> tuple[int, bytes, tuple[int, int]]:
    version = _VERSIONS.get(line[:9])
    digits = line[9:12]
    # The space after the code may be missing: many servers leave it out together with the reason.
    if version is None or len(digits) != 3 or not digits.isdigit() or line[12:13] not in (b" ", b""):
        raise UpstreamGarbage(detail="status line")
    _check_bytes(line)
    status = int(digits)
    if not 100 <= status <= 599:
        raise UpstreamGarbage(detail="status out of range")
    return status, line[13:], version


def _content_length(value: bytes) -> int:
    if not value.isdigit() or len(value) > CONTENT_LENGTH_DIGITS_MAX:
        raise UpstreamGarbage(detail="content-length")
    return int(value)


def _idle_s(value: bytes) -> int | None:
    """`timeout=5, max=100` -> 5. Only a hint: what cannot be read says nothing."""
    for parameter in value.split(b","):
        name, _, seconds = parameter.partition(b"=")
        seconds = seconds.strip()
        if name.strip().lower() == b"timeout" and seconds.isdigit() and len(seconds) < 10:
            return int(seconds)
    return None


def _keeps_alive(version: tuple[int, int], options: bytes | None) -> bool:
    tokens = {token.strip(b" \t").lower() for token in (options or b"").split(b",")}
    return b"close" not in tokens and (version == (1, 1) or b"keep-alive" in tokens)
