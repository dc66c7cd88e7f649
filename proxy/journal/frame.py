"""The journal's bytes: frames with a chained CRC, and the head of a segment. Pure: no IO.

A segment file is a head of `START` bytes and frames behind it, in space allocated ahead (zeros).

    frame:  length u32 | sequence u64 | payload | crc u32
    head:   identity at 0 | watermark slots at 512 and 1024 | crc u32 of the identity at START - 4

A frame's CRC runs over its length, sequence and payload, seeded with the CRC before it. As that is the
four bytes in front of the frame (the head ends with one too), a reader can start at any frame and no
frame is valid at another place. Length 0 is the end. Numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple
from zlib import crc32

START = 4096  # one page: head and frames never share a sector
CRC_BYTES = 4
PAYLOAD_BYTES_MAX = 16 << 20  # a checkpoint of 20,000 streams is about 2 MiB; more is a broken length

_FRAME = struct.Struct("<IQ")
_pack_head, _pack_crc = _FRAME.pack, struct.Struct("<I").pack
OVERHEAD = _FRAME.size + CRC_BYTES

_MAGIC = b"HRJRNL\r\n"  # the line end shows a transfer in text mode
_VERSION = 1
_IDENTITY = struct.Struct("<8sHIQQ64s")  # magic, version, number, first sequence, created ms, incarnation
_MARK = struct.Struct("<QQB")  # serial, offset, closed
SLOTS = (512, 1024)  # one sector each: a torn write spoils one, the other still holds


class Verdict(Enum):
    """What is at a place that holds no valid frame."""

    END = "end"  # length 0: nothing was written here
    SHORT = "short"  # begins like a frame, but the bytes given end before it does
    BAD = "bad"  # not a frame that belongs here


class Frame(NamedTuple):
    """One valid frame. `end` is its offset behind in the bytes given, `crc` seeds the next one."""

    sequence: int
    payload: bytes
    end: int
    crc: int


def encode(payloads: Iterable[bytes], sequence: int, crc: int) -> tuple[bytes, int]:
    """The frames of a run of payloads with consecutive sequence numbers, and the CRC for the next.

    A payload has 1 to PAYLOAD_BYTES_MAX bytes: an empty one would read as the end.
    """
    parts: list[bytes] = []
    for number, payload in enumerate(payloads, sequence):
        covered = _pack_head(len(payload), number) + payload
        crc = crc32(covered, crc)
        parts += (covered, _pack_crc(crc))
    return b"".join(parts), crc


def decode(data: bytes, at: int, crc: int) -> Frame | Verdict:
    """The frame at `at`, whose predecessor's CRC is `crc`."""
    body = at + _FRAME.size
    head = data[at:body]
    if head[:4] == b"\0\0\0\0":
        return Verdict.END
    if len(head) < _FRAME.size:
        return Verdict.SHORT
    length, sequence = _FRAME.unpack(head)
    if length > PAYLOAD_BYTES_MAX:
        return Verdict.BAD
    tail = body + length
    end = tail + CRC_BYTES
    if len(data) < end:
        return Verdict.SHORT
    payload = data[body:tail]
    crc = crc32(payload, crc32(head, crc))
    if crc != seed_before(data, end):
        return Verdict.BAD
    return Frame(sequence, payload, end, crc)


def seed_before(data: bytes, at: int) -> int:
    """The CRC that ends at `at`: the seed of the frame that begins there."""
    return int.from_bytes(data[at - CRC_BYTES : at], "little")


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a segment is known to be on disk: everything below `offset` was synced.

    `closed`: nothing will be added, and whatever is above was written again to the next segment.
    """

    serial: int
    offset: int
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """Which segment this is, of which life, and its newest readable mark."""

    incarnation: str
    number: int
    first_sequence: int
    created_ms: int
    mark: Mark

    @property
    def seed(self) -> int:
        """The CRC that seeds the first frame."""
        return crc32(_pack_identity(self))


def _pack_identity(head: Head) -> bytes:
    name = head.incarnation.encode()
    if len(name) > 64:
        raise ValueError(f"incarnation id of {len(name)} bytes")
    return _IDENTITY.pack(_MAGIC, _VERSION, head.number, head.first_sequence, head.created_ms, name)


def encode_head(head: Head) -> bytes:
    """The whole head page with its mark in the slot that the serial selects."""
    page = bytearray(START)
    identity = _pack_identity(head)
    page[: len(identity)] = identity
    slot, mark = encode_mark(head.mark)
    page[slot : slot + len(mark)] = mark
    page[-CRC_BYTES:] = crc32(identity).to_bytes(CRC_BYTES, "little")
    return bytes(page)


def encode_mark(mark: Mark) -> tuple[int, bytes]:
    """(offset in the file, bytes) of a mark; serials alternate between the two slots."""
    packed = _MARK.pack(mark.serial, mark.offset, mark.closed)
    return SLOTS[mark.serial % len(SLOTS)], packed + crc32(packed).to_bytes(CRC_BYTES, "little")


def decode_head(page: bytes) -> Head | Verdict:
    """The head, or END when the segment was never finished to be created, or BAD when it is damaged.

    Nothing was ever promised about a segment whose head does not check and has no mark above START.
    """
    marks = [mark for slot in SLOTS if (mark := _decode_mark(page, slot)) is not None]
    mark = max(marks, key=lambda m: m.serial, default=Mark(0, START))
    identity = page[: _IDENTITY.size]
    if len(page) < START or seed_before(page, START) != crc32(identity) or identity[:8] != _MAGIC:
        return Verdict.BAD if mark.offset > START else Verdict.END
    _, version, number, first, created_ms, name = _IDENTITY.unpack(identity)
    if version != _VERSION:
        return Verdict.BAD
    return Head(name.rstrip(b"\0").decode(), number, first, created_ms, mark)


def _decode_mark(page: bytes, slot: int) -> Mark | None:
    end = slot + _MARK.size + CRC_BYTES
    packed = page[slot : slot + _MARK.size]
    if len(page) < end or seed_before(page, end) != crc32(packed):
        return None
    serial, offset, closed = _MARK.unpack(packed)
    return Mark(serial, offset, bool(closed)) if offset >= START else None
