"""Undo a Content-Encoding for the meter. The client is sent the bytes as they came.

Owns gzip and deflate (what requests to upstreams are narrowed to), bounded per step and in total.
Never raises: what cannot be decoded sets `degraded` and yields nothing more.
"""

from __future__ import annotations

import zlib

STEP_BYTES_MAX = 4 << 20  # out of one read (at most 256 KiB): beyond 16:1 it is a bomb, not an answer
ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_BARE = -zlib.MAX_WBITS


class Decoder:
    """Decodes one body. `degraded`: the encoding is unknown, or the data is broken or a bomb."""

    def __init__(self, encoding: str) -> None:
        name = encoding.strip().lower()
        self.degraded = name not in ENCODINGS
        self._is_identity = name in ("", "identity")
        self._may_be_bare = name == "deflate"  # zlib by RFC 9110 8.4.1.2, but some send it without a header
        self._head = b""
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)

    def feed(self, data: bytes) -> bytes:
        """What the next bytes decode to; identity: the data itself."""
        if self._is_identity:
            return data
        if self.degraded or not data:
            return b""
        if self._may_be_bare:
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return b""
            self._may_be_bare = False
            if data[0] & 15 != 8 or (data[0] << 8 | data[1]) % 31:  # no zlib header (RFC 1950 2.2)
                self._inflate = zlib.decompressobj(_BARE)
        try:
            return self._decompress(data)
        except zlib.error:
            self.degraded = True
            return b""

    def _decompress(self, data: bytes) -> bytes:
        out = self._inflate.decompress(data, STEP_BYTES_MAX)
        size = len(out)
        pieces = [out]
        while self._inflate.eof and self._inflate.unused_data:  # another gzip member (RFC 1952 2.2)
            rest = self._inflate.unused_data
            self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
            pieces.append(self._inflate.decompress(rest, STEP_BYTES_MAX))
            size += len(pieces[-1])
            if size >= STEP_BYTES_MAX:
                break
        if size >= STEP_BYTES_MAX:
            self.degraded = True
        return out if len(pieces) == 1 else b"".join(pieces)
