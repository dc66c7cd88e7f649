"""Read and write AWS's binary event streams (`application/vnd.amazon.eventstream`), as Bedrock sends them.

Owns the framing: bytes in, cut anywhere, events out, each as a JSON text whose one member is named by the
event's type, so that pointers find their way in it: `{"metadata": {"usage": ...}}`. Bounded, never raises.

A frame: length (4 bytes, all of it), length of its headers (4), CRC-32 of these eight bytes (4), headers,
payload, CRC-32 of everything before (4). A header: length of its name (1), name, type of its value (1),
value; strings have their length (2) in front.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from zlib import crc32

import orjson

from proxy.metering.scanner import PointerScanner

FRAME_BYTES_MAX = 32 << 10  # a longer frame goes through the scanner, as long events do
FRAME_BYTES_LIMIT = 32 << 20  # a longer one is no frame: AWS's limit is 16 MiB
HEADER_BYTES_MAX = 8 << 10

_PRELUDE = struct.Struct(">III")
_CRC_BYTES = 4
_STRING = 7
# Type of a header's value -> its size in bytes; those of byte arrays and strings stand in front of them.
_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


class FrameSplitter:
    """Bytes in, events out, like `events.SseSplitter`.

    `is_wrapped`: payloads hold the event of a model as base64 in `bytes` (invoke-with-response-stream); it
    comes out as it is. `failed`: the bytes are no event stream; nothing more comes out.
    """

    def __init__(self, new_scanner: Callable[[], PointerScanner], *, is_wrapped: bool = False) -> None:
        self._new_scanner = new_scanner
        self._is_wrapped = is_wrapped
        self._kept = bytearray()
        self._scanner: PointerScanner | None = None  # of a long frame
        self._left = 0  # bytes of its payload that are still to come
        self._skipped = 0  # bytes behind it that mean nothing to us
        self.failed = False

    def one(self, content: bytes) -> None:
        """Frames are never taken as they are."""

    def feed(self, content: bytes) -> list[bytes | PointerScanner]:
        """The next bytes; the events that they complete."""
        out: list[bytes | PointerScanner] = []
        if self._kept:
            self._kept += content
        data, at = self._kept or content, 0
        while at < len(data) and not self.failed:
            end = self._pass(data, at, out) if self._left or self._skipped else self._frame(data, at, out)
            if end == at:
                break  # the rest is yet to come
            at = end
        self._kept = bytearray() if self.failed else bytearray(data[at:])
        return out

    def finish(self) -> list[bytes | PointerScanner]:
        """The stream ended: half a frame says nothing."""
        return []

    def _frame(self, data: bytes | bytearray, at: int, out: list[bytes | PointerScanner]) -> int:
        """Where the frame at `at` ends, or the head of a long one; `at` itself while it is not here."""
        here = len(data) - at
        if here < _PRELUDE.size:
            return at
        size: int
        header_size: int
        size, header_size, crc = _PRELUDE.unpack_from(data, at)
        start = _PRELUDE.size + header_size
        is_odd = header_size > HEADER_BYTES_MAX or not start + _CRC_BYTES <= size <= FRAME_BYTES_LIMIT
        if is_odd or crc32(data[at : at + 8]) != crc:
            self.failed = True
            return at
        if size > FRAME_BYTES_MAX and here >= start:
            self._begin_long(bytes(data[at + _PRELUDE.size : at + start]), size - start - _CRC_BYTES)
            return at + start
        if here < size:
            return at
        event = self._event(bytes(data[at : at + size]), start)
        if event is not None:
            out.append(event)
        return at + size

    def _event(self, frame: bytes, start: int) -> bytes | None:
        if crc32(frame[:-_CRC_BYTES]) != int.from_bytes(frame[-_CRC_BYTES:], "big"):
            return None
        payload, kind = frame[start:-_CRC_BYTES], kind_of(frame[_PRELUDE.size : start])
        if not self._is_wrapped or kind != "chunk":
            return b"{%b:%b}" % (orjson.dumps(kind), payload or b"null")
        try:
            return base64.b64decode(orjson.loads(payload)["bytes"], validate=True)
        except (ValueError, KeyError, TypeError):
            return None

    def _begin_long(self, headers: bytes, size: int) -> None:
        self._left, self._skipped = size, _CRC_BYTES
        self._scanner = self._new_scanner()
        self._scanner.feed(b"{%b:" % orjson.dumps(kind_of(headers)))

    def _pass(self, data: bytes | bytearray, at: int, out: list[bytes | PointerScanner]) -> int:
        """The payload of a long frame goes to its scanner, the CRC behind it nowhere."""
        if not self._left or self._scanner is None:
            end = min(at + self._skipped, len(data))
            self._skipped -= end - at
            return end
        end = min(at + self._left, len(data))
        self._left -= end - at
        self._scanner.feed(bytes(data[at:end]))
        if not self._left:
            self._scanner.feed(b"}")
            self._scanner.finish()
            out.append(self._scanner)
            self._scanner = None
        return end


def kind_of(headers: bytes) -> str:
    """The type of an event, or of the exception that a frame tells."""
    told = dict(_strings(headers))
    return told.get(":event-type") or told.get(":exception-type") or told.get(":error-code") or ""


def _strings(headers: bytes) -> Iterator[tuple[str, str]]:
    """The headers whose values are strings, as far as they can be read."""
    at = 0
    while at < len(headers):
        name_end = at + 1 + headers[at]
        name, at = headers[at + 1 : name_end], name_end + 1
        if at > len(headers):
            return
        value_type = headers[name_end]
        size = _SIZES.get(value_type)
        if size is None:
            size = int.from_bytes(headers[at : at + 2], "big")
            at += 2
        if value_type == _STRING:
            yield name.decode("utf-8", "replace"), headers[at : at + size].decode("utf-8", "replace")
        at += size


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One frame with headers whose values are strings."""
    fields = b"".join(
        b"%c%b%c%b%b" % (len(name), name.encode(), _STRING, len(value).to_bytes(2, "big"), value.encode())
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", _PRELUDE.size + len(fields) + len(payload) + _CRC_BYTES, len(fields))
    message = prelude + struct.pack(">I", crc32(prelude)) + fields + payload
    return message + struct.pack(">I", crc32(message))
