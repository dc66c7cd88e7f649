"""Undo a Content-Encoding: of an answer for the meter, of a request for its routing. What was coded goes on
to the other side as it came.

Owns the codings of HTTP that we read (RFC 9110 8.4.1, RFC 7932, RFC 8878): bounded per piece, per step and in
total. Two codings on top of each other are not read.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import brotli

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
except ImportError:
    from backports import zstd

PIECE_BYTES = 64 << 10  # what is decoded is handed on in pieces of about this size
STEP_BYTES_MAX = 8 << 20  # out of one read (at most 256 KiB): beyond 32:1 it is a bomb, not an answer
UNDECIDED_BYTES_MAX = 4 << 10  # kept until it is clear that the data is what its coding says
WINDOW_LOG_MAX = 23  # RFC 9659: what a decoder of "zstd" must hold, and all it has to: 8 MiB

_TEXT_FIRST = b'{["deir:'  # of JSON and of events


class Undecodable(ValueError):
    """The data is not what its coding says, or not all of it."""


class TooLong(Undecodable):
    """It decodes to more than is allowed."""


class Engine(Protocol):
    """One library's decompressor."""

    def decompress(self, data: bytes, most: int) -> bytes:
        """At most about `most` bytes of what `data`, and what is kept of earlier data, decodes to."""

    @property
    def is_hungry(self) -> bool:
        """Nothing more comes without more data."""

    @property
    def is_done(self) -> bool:
        """The data may end here."""


class _Inflate:
    """gzip with any number of members (RFC 1952 2.2), and deflate with or without zlib's header."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._stream = zlib.decompressobj(wbits)
        self._kept = b""
        self._is_dry = True

    def decompress(self, data: bytes, most: int) -> bytes:
        data = self._kept + data
        if self._stream.eof and data:
            self._stream = zlib.decompressobj(self._wbits)
        out = self._stream.decompress(data, most)
        self._kept = self._stream.unused_data or self._stream.unconsumed_tail
        self._is_dry = len(out) < most  # else output may wait although all input was taken
        return out

    @property
    def is_hungry(self) -> bool:
        return self._is_dry and not self._kept

    @property
    def is_done(self) -> bool:
        return self._stream.eof and not self._kept


class _Brotli:
    def __init__(self) -> None:
        self._stream = brotli.Decompressor()
        self._is_dry = True

    def decompress(self, data: bytes, most: int) -> bytes:
        out: bytes = self._stream.process(data, output_buffer_limit=most)
        self._is_dry = len(out) < most  # else output may wait although all input was taken
        return out

    @property
    def is_hungry(self) -> bool:
        return self._is_dry and bool(self._stream.can_accept_more_data())

    @property
    def is_done(self) -> bool:
        return bool(self._stream.is_finished())


class _Zstandard:
    """Any number of frames, each with a window that is bounded."""

    def __init__(self) -> None:
        self._kept = b""
        self._start()

    def _start(self) -> None:
        self._stream = zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX}
        )

    def decompress(self, data: bytes, most: int) -> bytes:
        data = self._kept + data
        if self._stream.eof and data:
            self._start()
        out: bytes = self._stream.decompress(data, most)
        self._kept = self._stream.unused_data
        return out

    @property
    def is_hungry(self) -> bool:
        return not self._kept and (self._stream.eof or self._stream.needs_input)

    @property
    def is_done(self) -> bool:
        return self._stream.eof and not self._kept


class _Plain:
    """Text that was only said to be coded."""

    is_hungry = True
    is_done = True

    def decompress(self, data: bytes, most: int) -> bytes:
        return data


def _gzip() -> Engine:
    return _Inflate(16 + zlib.MAX_WBITS)


def _zlib() -> Engine:
    return _Inflate(zlib.MAX_WBITS)


def _bare() -> Engine:
    return _Inflate(-zlib.MAX_WBITS)


# deflate is zlib by RFC 9110 8.4.1.2, but some send it without zlib's header.
_ENGINES: dict[str, tuple[Callable[[], Engine], ...]] = {
    "gzip": (_gzip,), "x-gzip": (_gzip,), "deflate": (_zlib, _bare), "br": (_Brotli,), "zstd": (_Zstandard,),
}  # fmt: skip
CODINGS = ("gzip", "deflate", "br", "zstd")  # what is offered to upstreams and read in requests
_BROKEN = (zlib.error, brotli.error, zstd.ZstdError)


def is_plain(encoding: str) -> bool:
    """Is a Content-Encoding of this value none?"""
    return encoding.strip().lower() in ("", "identity")


class Decoder:
    """Decodes one answer. Never raises; `degraded`: the coding is unknown, the data broken or a bomb.

    Text that is only said to be coded, as some upstreams' errors are, is taken as it is.
    """

    def __init__(self, encoding: str) -> None:
        engines = _ENGINES.get(encoding.strip().lower(), ())
        self._is_identity = is_plain(encoding)
        self.degraded = not engines and not self._is_identity
        self._others = [*engines[1:], _Plain]
        self._engine: Engine = engines[0]() if engines else _Plain()
        self._undecided = b""  # all data so far, as long as nothing came out of it
        self._has_begun = False

    def feed(self, data: bytes) -> bytes:
        """What the next bytes decode to; identity: the data itself."""
        return data if self._is_identity else b"".join(self.pieces(data))

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """The same in pieces, so that what decodes to much is never in memory at once."""
        if self._is_identity:
            yield data
            return
        if self.degraded or not data:
            return
        if not self._has_begun:
            self._undecided += data
        left = STEP_BYTES_MAX
        while True:
            try:
                piece = self._engine.decompress(data, PIECE_BYTES)
            except _BROKEN:
                if not self._take_other():
                    self.degraded = True
                    return
                data = self._undecided
                continue
            data = b""
            if piece:
                self._decide()
                left -= len(piece)
                if left < 0:
                    self.degraded = True
                    return
                yield piece
            if self._engine.is_hungry:
                if len(self._undecided) > UNDECIDED_BYTES_MAX:
                    self._decide()
                return

    def _decide(self) -> None:
        self._has_begun = True
        self._undecided = b""

    def _take_other(self) -> bool:
        if self._has_begun or not self._others:
            return False
        make = self._others.pop(0)
        self._engine = make()
        return make is not _Plain or self._undecided[:1] in _TEXT_FIRST


def decode(data: bytes, encoding: str, most: int) -> bytes:
    """What a whole body decodes to, at most `most` bytes. Raises TooLong, Undecodable."""
    for make in _ENGINES.get(encoding.strip().lower(), ()):
        try:
            return _decoded(make(), data, most)
        except _BROKEN:
            continue
    raise Undecodable


def _decoded(engine: Engine, data: bytes, most: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        pieces.append(engine.decompress(data, PIECE_BYTES))
        data = b""
        size += len(pieces[-1])
        if size > most:
            raise TooLong
        if engine.is_hungry:
            break
    if not engine.is_done:
        raise Undecodable
    return b"".join(pieces)
