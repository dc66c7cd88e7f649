"""Read journals back: of a living process below its fsync watermark, of a dead one to the last valid frame.

Owns the difference between a torn tail (a clean stop) and damage (raised with its place). Writes nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from proxy.journal import frame
from proxy.journal.directory import segment_path
from proxy.journal.frame import CRC_BYTES, START, Frame, Head, Verdict

WINDOW_BYTES = 1 << 20  # read at once; a longer frame gets a longer window
SEARCH_BYTES = 1 << 20  # behind damage for the next frame: 0.3 s at worst

UpTo = Literal["watermark", "end"]


class JournalDamageError(Exception):
    """A segment does not hold what it promised: bytes below its watermark that are no frame, or a
    cursor that points beyond its end. Frames before `position` are good. `resume_at` is where the next
    good frame may begin, so that one bad byte costs one record; None: there is nothing behind."""

    def __init__(self, path: Path, position: int, what: str, resume_at: int | None = None) -> None:
        super().__init__(f"{path}: byte {position}: {what}")
        self.path = path
        self.position = position
        self.resume_at = resume_at


def head(path: Path) -> Head | None:
    """The head of a segment; None if its creation was never finished, so nothing was promised.

    Raises JournalDamageError.
    """
    with _opened(path) as fd:
        return _head(path, fd)


def read(path: Path, offset: int = START, *, upto: UpTo = "watermark") -> Iterator[tuple[bytes, int]]:
    """The valid frames of a segment from `offset` on, each as (payload, offset of the next one).

    "watermark" stops where the writer last synced: the only safe view of a living process. "end" is for
    a dead one: it syncs the file, then reads to the last valid frame; an unreadable rest above the
    watermark is a torn tail. Frames that were written again to the next segment, because a sync failed
    here, are left to that one, so no sequence number is read twice.
    `offset` is START or what an earlier read gave. Raises JournalDamageError (after the frames before the
    damage) and OSError.
    """
    with _opened(path) as fd:
        if upto == "end":
            os.fdatasync(fd)  # what is about to be settled must not vanish with a power failure
        found = _head(path, fd)
        if found is None:
            if offset > START:
                raise JournalDamageError(path, offset, "the cursor is beyond the end")
            return
        mark = found.mark.offset
        if upto == "watermark" and offset > mark:
            raise JournalDamageError(path, offset, "the cursor is beyond the watermark")
        at = min(offset, mark)
        size = os.fstat(fd).st_size
        expected = found.first_sequence if at == START else None
        moved = None
        for record in _frames(fd, at, mark if upto == "watermark" else size):
            if isinstance(record, Verdict) or record.sequence != (expected or record.sequence):
                break
            if record.end > mark:
                moved = moved or _first_sequence_behind(path)
                if record.sequence >= moved:
                    return
            expected = record.sequence + 1
            at = record.end
            if at > offset:
                yield record.payload, at
        if at < mark or size < mark:
            behind = _next_frame(fd, at, mark) if size >= mark else None
            raise JournalDamageError(path, at, "no valid frame below the watermark", behind)
        if at < offset:
            raise JournalDamageError(path, offset, "the cursor is beyond the end")


def read_past_damage(
    path: Path, offset: int, on_damage: Callable[[JournalDamageError], None], *, upto: UpTo = "watermark"
) -> Iterator[tuple[bytes, int]]:
    """As `read`, but damage costs only what is damaged: `on_damage` is told, and reading goes on at its
    `resume_at`. Raises JournalDamageError where there is nothing behind."""
    at: int | None = offset
    while at is not None:
        try:
            yield from read(path, at, upto=upto)
            return
        except JournalDamageError as e:
            at = e.resume_at
            if at is None:
                raise
            on_damage(e)


def _frames(fd: int, at: int, limit: int) -> Iterator[Frame | Verdict]:
    """Frames with `end` as a file offset, from `at` below `limit`; the last thing is why it stopped."""
    want = WINDOW_BYTES
    while True:
        base = at - CRC_BYTES  # the CRC before a frame is its seed
        window = os.pread(fd, CRC_BYTES + min(want, max(0, limit - at)), base)
        crc = frame.seed_before(window, CRC_BYTES)
        here = CRC_BYTES
        while isinstance(record := frame.decode(window, here, crc), Frame):
            here, crc = record.end, record.crc
            at = base + here
            yield Frame(record.sequence, record.payload, at, crc)
        if record is not Verdict.SHORT or len(window) < CRC_BYTES + want:
            yield record
            return
        if here == CRC_BYTES:
            want += frame.PAYLOAD_BYTES_MAX  # one frame is longer than the window


def _next_frame(fd: int, damaged: int, mark: int) -> int:
    """Where behind a damaged place the next frame begins, whatever became of the lengths between.

    A frame proves itself by its CRC, seeded with the four bytes before it. At the latest it is the mark.
    """
    base = damaged - CRC_BYTES
    data = os.pread(fd, min(mark - base, SEARCH_BYTES), base)
    for at in range(CRC_BYTES + 1, len(data) - frame.OVERHEAD):
        if isinstance(frame.decode(data, at, frame.seed_before(data, at)), Frame):
            return base + at
    return mark


def _first_sequence_behind(path: Path) -> float:
    """The lowest sequence number that the segments behind this one begin with; infinite: there are none."""
    first = math.inf
    number = int(path.stem) + 1
    while (follower := segment_path(path.parent, number)).exists():
        with _opened(follower) as fd:
            found = frame.decode_head(os.pread(fd, START, 0))
        if isinstance(found, Head) and _is_at_home(found, follower):  # else never finished, or a copy
            first = min(first, found.first_sequence)
        number += 1
    return first


def _head(path: Path, fd: int) -> Head | None:
    page = os.pread(fd, START, 0)
    found = frame.decode_head(page) if page else Verdict.END
    if isinstance(found, Head):
        if not _is_at_home(found, path):
            raise JournalDamageError(path, 0, f"this is segment {found.number} of {found.incarnation}")
        return found
    if found is Verdict.END and len(page) in (0, START):
        return None
    raise JournalDamageError(path, 0, "the head is damaged")


def _is_at_home(head: Head, path: Path) -> bool:
    """A copy under another name must not count twice."""
    return head.number == int(path.stem) and head.incarnation == path.parent.name


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
