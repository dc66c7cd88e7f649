"""Parse the head of an upstream's answer and decide how its body ends.

Owns the status line, the fields and the framing (RFC 9112, sections 4, 5 and 6.3). Pure: bytes in, facts
out. Repairs nothing: what one reader mends and the next one takes literally is how answers get smuggled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from proxy.errors import UpstreamGarbage

HEAD_BYTES_MAX = 64 * 1024  # far above any vendor's; a longer head is an attack or a bug
FIELDS_MAX = 128
NAME_BYTES_MAX = 256
NAMES_REMEMBERED_MAX = 1024  # with the limit above at most half a megabyte, whatever upstreams invent
LINES_REMEMBERED_MAX = 512
LINE_REMEMBERED_BYTES_MAX = 256
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


class _Lines(dict[bytes, Field]):
    """Line of a head -> its field. Of twenty lines of a vendor's head fifteen are the same each time; those
    that never come again make room now and then."""

    def __missing__(self, line: bytes) -> Field:
        name, colon, value = line.partition(b":")
        if not colon:
            raise UpstreamGarbage(detail="field without colon")
        read = _LOWER_NAMES[name], value.strip()
        if len(line) <= LINE_REMEMBERED_BYTES_MAX:
            if len(self) == LINES_REMEMBERED_MAX:
                self.clear()
            self[line] = read
        return read


_LINES = _Lines()


@dataclass(slots=True)
class Head:
    """The head of one answer. Names are lower-case; `end` is the offset of the first body byte."""

    status: int
    reason: bytes
    version: tuple[int, int]
    headers: list[Field]
    end: int
    _first: dict[bytes, bytes] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._first = dict(reversed(self.headers))

    def value(self, name: bytes) -> bytes | None:
        """The value of the first field called `name` (lower-case), or None."""
        return self._first.get(name)

    def values(self, name: bytes) -> Sequence[bytes]:
        """Those of all fields called `name`."""
        first = self._first.get(name)
        if first is None:
            return ()
        if len(self._first) == len(self.headers):
            return (first,)
        return [value for field_name, value in self.headers if field_name == name]


class Framing(NamedTuple):
    """How a body ends, and whether its connection lasts.

    `length` is what Content-Length declares, also where there is no body (HEAD, 304). `idle_s` is how long
    the server says that it keeps an idle connection; None: it does not say.
    """

    kind: Literal["none", "length", "chunked", "eof"]
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
    block = bytes(data[:end])
    lines = block.split(CRLF)
    if len(lines) > FIELDS_MAX + 1:
        raise UpstreamGarbage(detail="too many fields")
    # One pass in C finds every bare CR, bare LF, NUL and control byte: nothing but the line ends may be left.
    if block.translate(None, FIELD_BYTES) != CRLF * (len(lines) - 1):
        raise UpstreamGarbage(detail="control byte in head")
    status, reason, version = _status_line(lines[0])
    del lines[0]
    return Head(status, reason, version, [_LINES[line] for line in lines], end + 4)


def framing(head: Head, method: str) -> Framing:
    """Decide how the body of `head`, the answer to a `method` request, ends (RFC 9112 6.3).

    Raises UpstreamGarbage where two readers could disagree: length and chunked together, a repeated length,
    another coding than chunked, chunked in HTTP/1.0.
    """
    lengths, codings = head.values(b"content-length"), head.values(b"transfer-encoding")
    keep_alive = _keeps_alive(head.version, head.values(b"connection"))
    says = head.value(b"keep-alive")
    idle_s = None if says is None else _idle_s(says)
    length = _content_length(lengths) if lengths else None
    if method == "HEAD" or head.status in _NO_BODY_STATUSES:
        return Framing("none", length, keep_alive, idle_s)
    if codings:
        if (
            length is not None
            or head.version == (1, 0)
            or len(codings) > 1
            or codings[0].lower() != b"chunked"
        ):
            raise UpstreamGarbage(detail="transfer-encoding that cannot be trusted")
        return Framing("chunked", None, keep_alive, idle_s)
    if length is not None:
        return Framing("length", length, keep_alive, idle_s)
    return Framing("eof", None, False)


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
    status = int(digits)
    if not 100 <= status <= 599:
        raise UpstreamGarbage(detail="status out of range")
    return status, line[13:], version


def _content_length(values: Sequence[bytes]) -> int:
    value = values[0]
    if len(values) > 1 or not value.isdigit() or len(value) > CONTENT_LENGTH_DIGITS_MAX:
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


def _keeps_alive(version: tuple[int, int], options: Sequence[bytes]) -> bool:
    if not options:
        return version == (1, 1)
    if options == (b"keep-alive",):  # as nearly all who say anything say it
        return True
    tokens = {token.strip(b" \t").lower() for value in options for token in value.split(b",")}
    return b"close" not in tokens and (version == (1, 1) or b"keep-alive" in tokens)
