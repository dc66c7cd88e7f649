"""One segment file while it is written: its place, its room on disk, its mark.

Owns the order in which a file comes to be: frames before the head, marks only after a sync. Whoever
calls decides when, and what follows from an OSError.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from proxy.journal import directory as folder
from proxy.journal import frame
from proxy.journal.crashpoint import crash_point
from proxy.journal.frame import START, Head, Mark

ALLOCATE_BYTES = 4 << 20  # allocated ahead at once: one call per some 10,000 frames
ALLOCATE_TIGHT_BYTES = 64 << 10  # on a full disk: little more than is needed
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Files:
    """The system calls that can fail. A test injects its own."""

    pwrite = staticmethod(os.pwrite)  # (fd, data, offset) -> how much was written
    fdatasync = staticmethod(os.fdatasync)  # (fd)
    fallocate = staticmethod(os.posix_fallocate)  # (fd, offset, length)


@dataclass(slots=True, eq=False)
class Segment:
    """One open file. `unsynced`: the payloads above the mark, to be written elsewhere if a sync fails."""

    path: Path
    fd: int
    files: Files
    head: Head
    mark: Mark
    crc: int  # of the last frame
    opened_s: float
    allocate_bytes: int
    offset: int = START
    allocated: int = 0
    unsynced: list[bytes] = field(default_factory=list)

    def put(self, payloads: list[bytes], sequence: int) -> int:
        """Write frames at the end; how many bytes. After an OSError nothing of them counts."""
        data, crc = frame.encode(payloads, sequence, self.crc)
        end = self.offset + len(data)
        if end > self.allocated:
            self._allocate(end - self.allocated)
        self._write(data, self.offset)
        if self.offset == START:  # last: until then the frames of a failed segment count where they were
            self._write(frame.encode_head(self.head), 0)
        self.crc = crc
        self.offset = end
        self.unsynced += payloads
        return len(data)

    def _allocate(self, least: int) -> None:
        """Room for `least` more bytes, and some ahead, so that a write rarely grows the file."""
        length = max(least, self.allocate_bytes)
        try:
            self.files.fallocate(self.fd, self.allocated, length)
        except OSError as e:
            if e.errno not in NO_ROOM:
                raise
            length = max(least, ALLOCATE_TIGHT_BYTES)
            self.files.fallocate(self.fd, self.allocated, length)
        self.allocated += length

    def _write(self, data: bytes, offset: int) -> None:
        written = self.files.pwrite(self.fd, data, offset)
        while written < len(data):
            more = self.files.pwrite(self.fd, memoryview(data)[written:], offset + written)
            if more == 0:
                raise OSError(errno.EIO, "nothing written")
            written += more

    def undo(self) -> None:
        """Take away what a failed write left behind the end, and room that was allocated there."""
        os.ftruncate(self.fd, self.offset)
        self.allocated = self.offset

    def sync(self) -> None:
        """Put all that is written on disk; may take long, for a thread."""
        crash_point("before-fsync")
        self.files.fdatasync(self.fd)
        if self.mark.offset == START:
            folder.sync(self.path.parent)  # the file's name must survive as well
        crash_point("after-fsync")

    def advance(self, offset: int, count: int, *, closed: bool) -> None:
        """A sync reached `offset` and so the first `count` unsynced payloads."""
        if offset > self.mark.offset or closed:
            self._write_mark(offset, closed)
            crash_point("watermark-written")
        del self.unsynced[:count]
        if closed:
            with suppress(OSError):  # only gives back what was allocated ahead
                os.ftruncate(self.fd, offset)

    def abandon(self) -> OSError | None:
        """Say that what is above the mark is to be looked for elsewhere. Failing at it loses nothing."""
        try:
            self._write_mark(self.mark.offset, closed=True)
        except OSError as e:
            return e
        return None

    def close(self) -> None:
        with suppress(OSError):  # whatever it says, the descriptor is gone, and what counts was synced
            os.close(self.fd)

    def _write_mark(self, offset: int, closed: bool) -> None:
        mark = Mark(self.mark.serial + 1, offset, closed)
        slot, data = frame.encode_mark(mark)
        self._write(data, slot)
        self.mark = mark


def open_segment(directory: Path, head: Head, files: Files, now_s: float, size: int) -> Segment:
    """A new, still empty file that is meant to grow to `size` bytes. Raises OSError."""
    path = folder.segment_path(directory, head.number)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    crash_point("segment-opened")
    return Segment(path, fd, files, head, head.mark, head.seed, now_s, min(ALLOCATE_BYTES, size))
