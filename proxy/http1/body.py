"""Walk the body of an answer: where its content is, and where it ends.

Owns the framings of RFC 9112 section 6. Pure: each walker takes what was received, cut anywhere, and gives
back the content in it, by reference where it can. It never looks into the content and never adds a byte.

A walker does not raise: content in front of a broken frame is real and was paid for, so it is returned, and
`broken` says why nothing may follow. What a walker does thus does not depend on how the bytes were cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from proxy.errors import UpstreamGarbage
from proxy.http1.head import CRLF, FIELD_BYTES, FIELDS_MAX, HEAD_BYTES_MAX, Kind

CHUNK_LINE_BYTES_MAX = 1024  # a size and its extensions, which nobody sends
CHUNK_SIZE_DIGITS_MAX = 15  # below 2**60 bytes, so that no sum can overflow anybody's 64 bits
HEX_DIGITS = b"0123456789abcdefABCDEF"

NOTHING: tuple[bytes, ...] = ()


class Walker(Protocol):
    """`done`: the framing is complete. `excess`: bytes behind the end, no content. `broken`: not a frame.

    `is_between`: the next byte begins a chunk, or the end. A read that is exactly one plain chunk, as most
    of a stream, need not be walked then: see PLAIN_CHUNKS.
    """

    is_between: bool
    done: bool
    excess: int
    broken: UpstreamGarbage | None

    def feed(self, data: bytes) -> Sequence[bytes]:
        """Return the content pieces of the next received bytes."""


class LengthWalker:
    """A body of `length` bytes; 0 is done at once."""

    __slots__ = ("_left", "broken", "done", "excess", "is_between")

    def __init__(self, length: int) -> None:
        self._left = length
        self.is_between = False  # it has no chunks
        self.done = length == 0
        self.excess = 0
        self.broken: UpstreamGarbage | None = None

    def feed(self, data: bytes) -> Sequence[bytes]:
        """Return the content in `data`: all of it, but for bytes behind the end."""
        left = self._left - len(data)
        if left > 0:
            self._left = left
            return (data,)
        content = data if left == 0 else data[: self._left]
        self.excess -= left
        self._left = 0
        self.done = True
        return (content,) if content else NOTHING


NO_BODY: Walker = LengthWalker(0)  # done: it is asked nothing, so one will do for all


class EofWalker:
    """A body that ends with its connection. `finish` is called once the end is known to be a clean one."""

    __slots__ = ("broken", "done", "excess", "is_between")

    def __init__(self) -> None:
        self.is_between = False  # it has no chunks
        self.done = False
        self.excess = 0
        self.broken: UpstreamGarbage | None = None

    def feed(self, data: bytes) -> Sequence[bytes]:
        """Return `data`: everything is content."""
        return (data,)

    def finish(self) -> None:
        """The connection ended cleanly (over TLS: with close_notify)."""
        self.done = True


SIZE_LINES_REMEMBERED_MAX = 4096


class _PlainChunks(dict[int, tuple[slice, tuple[bytes, ...], slice]]):
    """Bytes of a plain chunk with its framing -> where its first line is and what that says, as vendors
    write it, and where its content is; it ends in CRLF. There is no chunk of some lengths."""

    def __missing__(self, length: int) -> tuple[slice, tuple[bytes, ...], slice]:
        found: tuple[slice, tuple[bytes, ...], slice] = slice(0), (), slice(0)
        for digits in range(1, CHUNK_SIZE_DIGITS_MAX):
            size = length - digits - 4  # two line ends
            line = b"%x\r\n" % max(size, 0)
            if size > 0 and len(line) == digits + 2:
                found = slice(len(line)), (line, line.upper()), slice(len(line), -2)
        if len(self) < SIZE_LINES_REMEMBERED_MAX:
            self[length] = found
        return found


PLAIN_CHUNKS = _PlainChunks()
LAST_TWO = slice(-2, None)

# What the next line of a chunked body is, and how long it may be. Plain numbers: they are compared per chunk.
_SIZE, _DATA_END, _TRAILER = range(3)
_LINE_BYTES_MAX = (CHUNK_LINE_BYTES_MAX, 0, HEAD_BYTES_MAX)


class ChunkedWalker:
    """A chunked body (RFC 9112 7.1). Extensions and trailers are checked and dropped."""

    __slots__ = (
        "_carry",
        "_expect",
        "_left",
        "_trailer_bytes",
        "_trailers",
        "broken",
        "done",
        "excess",
        "is_between",
    )

    def __init__(self) -> None:
        self._left = 0  # bytes of the current chunk's data that are still to come
        self._expect = _SIZE
        self.is_between = True
        self._carry = b""  # a line that has begun
        self._trailers = 0
        self._trailer_bytes = 0
        self.done = False
        self.excess = 0
        self.broken: UpstreamGarbage | None = None

    def feed(self, data: bytes) -> Sequence[bytes]:
        """Return the content pieces in `data`, in order, none of them empty."""
        pieces: list[bytes] = []
        position, end = 0, len(data)
        try:
            while position < end:
                if self._left:
                    stop = position + self._left
                    if stop > end:
                        pieces.append(data[position:])
                        self._left = stop - end
                        break
                    pieces.append(data[position:stop])
                    self._left = 0
                    position = stop
                    if data.startswith(CRLF, stop):  # as nearly always; _take_line does the same, slowly
                        self._expect = _SIZE
                        position = stop + 2
                elif self.done:
                    self.excess += end - position
                    break
                else:
                    position = self._take_line(data, position)
        except UpstreamGarbage as error:
            self.broken = error.with_traceback(None)  # its frames would hold us, and we hold it
        self.is_between = self._expect == _SIZE and not self._carry
        return pieces

    def _take_line(self, data: bytes, position: int) -> int:
        """Take one line, whole or as far as it has come; return where it ends."""
        stop = data.find(CRLF, position)
        carry = self._carry
        if not carry:
            if stop >= 0:
                self._take(data[position:stop])
                return stop + 2
        elif carry[-1] == 0x0D and data[position] == 0x0A:
            self._carry = b""
            self._take(carry[:-1])
            return position + 1
        elif stop >= 0:
            self._carry = b""
            self._take(carry + data[position:stop])
            return stop + 2
        self._carry = carry = carry + data[position:]
        # Refused while still incomplete: a frame that cannot become right must not keep a client waiting.
        started = carry[:-1] if carry[-1] == 0x0D else carry
        if len(started) > _LINE_BYTES_MAX[self._expect]:
            raise UpstreamGarbage(detail="line too long in chunked body")
        if started.translate(None, FIELD_BYTES):
            raise UpstreamGarbage(detail="control byte in chunked body")
        if self._expect == _SIZE and started:
            _chunk_size(started)
        return len(data)

    def _take(self, line: bytes) -> None:
        """Act on one whole line."""
        if self._expect == _SIZE:
            self._left = _chunk_size(line)
            self._expect = _DATA_END if self._left else _TRAILER
        elif self._expect == _DATA_END:
            if line:
                raise UpstreamGarbage(detail="chunk longer than its size")
            self._expect = _SIZE
        elif line:
            self._count_trailer(line)
        else:
            self.done = True

    def _count_trailer(self, line: bytes) -> None:
        self._trailers += 1
        self._trailer_bytes += len(line)
        if self._trailers > FIELDS_MAX or self._trailer_bytes > HEAD_BYTES_MAX:
            raise UpstreamGarbage(detail="too many trailers")
        if b":" not in line or line.translate(None, FIELD_BYTES):
            raise UpstreamGarbage(detail="not a trailer field")


def walker_for(kind: Kind, length: int | None) -> Walker:
    """Return a fresh walker for a body that ends like this."""
    if kind == "chunked":
        return ChunkedWalker()
    if kind == "eof":
        return EofWalker()
    return LengthWalker(length or 0 if kind == "length" else 0)


# What plain size lines say: a stream has few of them. Never 0: what follows the last chunk is no data.
_SIZES: dict[bytes, int] = {}
_SIZES_MAX = 512


def _chunk_size(line: bytes) -> int:
    """Read `1A` or `1A;extension`. Raises UpstreamGarbage."""
    known = _SIZES.get(line)
    return _read_chunk_size(line) if known is None else known


def _read_chunk_size(line: bytes) -> int:
    digits = line
    if line.translate(None, HEX_DIGITS):
        digits, semicolon, extension = line.partition(b";")
        if not semicolon or len(line) > CHUNK_LINE_BYTES_MAX or extension.translate(None, FIELD_BYTES):
            raise UpstreamGarbage(detail="chunk size")
        if digits.translate(None, HEX_DIGITS):
            raise UpstreamGarbage(detail="chunk size")
    if not 0 < len(digits) <= CHUNK_SIZE_DIGITS_MAX:
        raise UpstreamGarbage(detail="chunk size")
    size = int(digits, 16)
    if size and digits is line and len(_SIZES) < _SIZES_MAX:
        _SIZES[line] = size
    return size
