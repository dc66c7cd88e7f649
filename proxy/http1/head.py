"""Parse the head of an upstream's answer and decide how its body ends.

Owns the status line, the fields and the framing (RFC 9112, sections 4, 5 and 6.3). Pure: bytes in, facts
out. Repairs nothing: what one reader mends and the next one takes literally is how answers get smuggled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from proxy.errors import UpstreamGarbage

HEAD_BYTES_MAX = 64 * 1024  # far above any vendor's; a longer head is an attack or a bug
FIELDS_MAX = 128
NAME_BYTES_MAX = 256
NAMES_REMEMBERED_MAX = 1024  # with the limit above at most half a megabyte, whatever upstreams invent
LINES_REMEMBERED_MAX = 512
LINE_REMEMBERED_BYTES_MAX = 256
SHAPES_REMEMBERED_MAX = 256
SHAPE_REMEMBERED_BYTES_MAX = 4096
CONTENT_LENGTH_DIGITS_MAX = 18  # below 2**63

CRLF = b"\r\n"
END_OF_HEAD = b"\r\n\r\n"
# RFC 9110 5.5: HTAB, SP, VCHAR and obs-text. Everything else ends a line or smuggles one.
FIELD_BYTES = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_VERSIONS: dict[bytes, tuple[int, int]] = {b"HTTP/1.1 ": (1, 1), b"HTTP/1.0 ": (1, 0)}
_PREFIX = b"HTTP/1."
_NO_BODY_STATUSES = frozenset({*range(100, 200), 204, 304})
_DECIDING = frozenset({b"connection", b"content-encoding", b"content-type", b"transfer-encoding"})

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


# One field: what it decides (its name in lower case; of _DECIDING with the value), its value, how it is
# written. No NamedTuple: six lines of a head are new each time, and a plain tuple costs a fifth.
Line = tuple[bytes, bytes | None, bytes]


class _Lines(dict[bytes, Line]):
    """Line of a head -> what was read of it. Of twenty lines of a vendor's head fifteen are the same each
    time; those that never come again make room now and then."""

    def __missing__(self, line: bytes) -> Line:
        if line.translate(None, FIELD_BYTES):
            raise UpstreamGarbage(detail="control byte in head")
        name, colon, value = line.partition(b":")
        if not colon:
            raise UpstreamGarbage(detail="field without colon")
        name, value = _LOWER_NAMES[name], value.strip()
        written = b"%b: %b\r\n" % (name, value)
        read = written if name in _DECIDING else name, value, written
        if len(line) <= LINE_REMEMBERED_BYTES_MAX:
            if len(self) == LINES_REMEMBERED_MAX:
                self.clear()
            self[line] = read
        return read


_LINES = _Lines()
_NO_LINE: Line = (b"", None, b"")  # behind the last of a head: there a field is found that it does not have
ABSENT = -1


class Shape:
    """What heads have in common with the same status line and fields of the same names, those of _DECIDING
    also with the same values: a vendor's have few shapes."""

    __slots__ = (
        "at", "coding", "connection", "idle_at", "is_remembered", "keep_alive", "kind", "length_at", "names",
        "reason", "repeats_length", "status", "version",
    )  # fmt: skip

    def __init__(self, first: bytes, keys: Sequence[bytes]) -> None:
        self.status, self.reason, self.version = _status_line(first)
        self.is_remembered = sum(map(len, keys)) <= SHAPE_REMEMBERED_BYTES_MAX
        self.names = tuple(key.partition(b":")[0] for key in keys)
        self.at = {name: at for at, name in reversed([*enumerate(self.names)])}  # where each is first
        # An interim head may say what it likes: it has no body.
        self.length_at = self.at.get(b"content-length", ABSENT) if self.status >= 200 else ABSENT
        self.idle_at = self.at.get(b"keep-alive", ABSENT)
        self.repeats_length = self.names.count(b"content-length") > 1
        # What must be undone before the content can be read: the first Content-Encoding, None for identity.
        coding = next((key[18:-2] for key in keys if key.startswith(b"content-encoding: ")), b"identity")
        self.coding = None if coding == b"identity" else coding.decode("latin-1")
        self.connection = _joined(b"connection", keys)
        self.keep_alive = _keeps_alive(self.version, self.connection)
        # How the body ends where there may be one; None: two readers could disagree.
        self.kind = self._kind(_joined(b"transfer-encoding", keys))

    def _kind(self, coding: bytes | None) -> Kind | None:
        has_length = self.length_at != ABSENT
        if self.status in _NO_BODY_STATUSES:
            return "none"
        if coding is not None:
            is_sound = not has_length and self.version != (1, 0) and coding.lower() == b"chunked"
            return "chunked" if is_sound else None
        return "length" if has_length else "eof"


def _joined(name: bytes, keys: Sequence[bytes]) -> bytes | None:
    """The values of all fields called `name`, one of _DECIDING, as one list (RFC 9110 5.3), or None."""
    values = [key[len(name) + 2 : -2] for key in keys if key.startswith(name + b": ")]
    return b", ".join(values) if values else None


class _Shapes(dict[tuple[bytes, tuple[bytes, ...]], Shape]):
    def __missing__(self, key: tuple[bytes, tuple[bytes, ...]]) -> Shape:
        shape = Shape(*key)
        if shape.is_remembered:
            if len(self) == SHAPES_REMEMBERED_MAX:
                self.clear()
            self[key] = shape
        return shape


_SHAPES = _Shapes()


class Head(msgspec.Struct, gc=False):
    """The head of one answer, and what was received behind it."""

    status: int
    shape: Shape
    values: tuple[bytes | None, ...]  # those of its fields, then None
    lines: tuple[bytes, ...]  # its fields as they are written: `name: value` and the line's end
    rest: bytes
    kind: Kind  # how its body ends
    length: int | None  # what Content-Length declares, also where there is no body (HEAD, 304)
    keep_alive: bool  # the connection lasts
    idle_s: int | None  # how long the server says that it keeps an idle connection; None: it does not say

    @classmethod
    def of(cls, status: int, fields: Iterable[Field] = ()) -> Head:
        """One that never was on the wire, and that no body follows. Names are lower-case."""
        lines = [b"%b: %b" % field for field in fields]
        keys, values, written = zip(*map(_LINES.__getitem__, lines), _NO_LINE)  # noqa: B905
        shape = _SHAPES[b"HTTP/1.1 %d " % status, keys]
        return cls(status, shape, values, written, b"", "none", None, shape.keep_alive, None)

    @property
    def fields(self) -> list[Field]:
        """Names are lower-case."""
        named = zip(self.shape.names, self.values, strict=True)
        return [(name, value) for name, value in named if value is not None]

    def value(self, name: bytes) -> bytes | None:
        """The value of the first field called `name` (lower-case), or None."""
        return self.values[self.shape.at.get(name, ABSENT)]


def parse(data: bytes, method: str = "GET", scanned: int = 0) -> Head | None:
    """Parse the head of the answer to a `method` request from the start of `data`; None when it is not
    complete yet.

    `scanned` is the number of bytes that an earlier call has already seen: a head that drips in is not
    searched again and again. Raises UpstreamGarbage, also where two readers could disagree how the body ends
    (RFC 9112 6.3): length and chunked together, a repeated length, another coding than chunked, chunked in
    HTTP/1.0.
    """
    drips = scanned and data.find(END_OF_HEAD, max(scanned - 3, 0)) < 0
    block, end, rest = (b"", b"", b"") if drips else data.partition(END_OF_HEAD)
    if not end:
        _refuse_early(data, scanned)
        return None
    if len(block) > HEAD_BYTES_MAX:
        raise UpstreamGarbage(detail="head too long")
    first, *lines = block.split(CRLF)
    if len(lines) > FIELDS_MAX:
        raise UpstreamGarbage(detail="too many fields")
    # Not strict, which costs a tenth of a head: a Line is three things.
    keys, values, written = zip(*map(_LINES.__getitem__, lines), _NO_LINE)  # noqa: B905
    shape = _SHAPES[first, keys]
    length, said = None, values[shape.length_at]
    if said is not None:
        if not said.isdigit() or len(said) > CONTENT_LENGTH_DIGITS_MAX or shape.repeats_length:
            raise UpstreamGarbage(detail="content-length")
        length = int(said)
    kind = shape.kind if method != "HEAD" else "none"
    if kind is None:
        raise UpstreamGarbage(detail="transfer-encoding that cannot be trusted")
    keep_alive = shape.keep_alive and kind != "eof"
    idle = values[shape.idle_at]
    idle_s = None if idle is None else _idle_s(idle)
    return Head(shape.status, shape, values, written, rest, kind, length, keep_alive, idle_s)


def _refuse_early(data: bytes, scanned: int) -> None:
    """Refuse what can no longer become a head, so that a client is not kept waiting for the rest of it."""
    if len(data) > HEAD_BYTES_MAX:
        raise UpstreamGarbage(detail="head too long")
    if not _PREFIX.startswith(data[: len(_PREFIX)]):
        raise UpstreamGarbage(detail="not an HTTP/1 status line")
    fresh = data[scanned - 1 if scanned and data[scanned - 1] == 0x0D else scanned :]
    if fresh.count(b"\n") != fresh.count(CRLF):
        raise UpstreamGarbage(detail="bare LF in head")


def _status_line(line: bytes) -> tuple[int, bytes, tuple[int, int]]:
    version = _VERSIONS.get(line[:9])
    digits = line[9:12]
    # The space after the code may be missing: many servers leave it out together with the reason.
    if version is None or len(digits) != 3 or not digits.isdigit() or line[12:13] not in (b" ", b""):
        raise UpstreamGarbage(detail="status line")
    if line.translate(None, FIELD_BYTES):
        raise UpstreamGarbage(detail="control byte in head")
    status = int(digits)
    if not 100 <= status <= 599:
        raise UpstreamGarbage(detail="status out of range")
    return status, line[13:], version


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
