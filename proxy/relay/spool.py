"""Files for what is too long for memory: part of an upload that has to wait for what comes behind it.

Owns the disk that uploads of one worker may take. A file has no name from its first moment on, so that a
process that dies leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from proxy.errors import Overloaded

SPOOL_BYTES_MAX = 4 << 30  # of all uploads of a worker together
SPARE_BYTES = 1 << 30  # of the disk, which is the journal's too
READ_BYTES = 256 << 10


class Spool:
    """Where a worker's uploads wait."""

    def __init__(self, directory: Path, quota: int = SPOOL_BYTES_MAX, spare: int = SPARE_BYTES) -> None:
        self.directory = directory
        self.spare = spare
        self._left = quota

    def take(self, size: int) -> None:
        """Raises Overloaded when there is not so much left."""
        if size > self._left:
            raise Overloaded(retry_after_s=5.0, detail="spool quota")
        self._left -= size

    def give_back(self, size: int) -> None:
        self._left += size


class SpoolFile:
    """One upload on disk. Reads and writes happen in threads."""

    def __init__(self, spool: Spool) -> None:
        self.size = 0
        self._spool = spool
        self._file: FileIO | None = None
        self._lock = threading.Lock()  # a thread may still write when the call is over
        self._is_closed = False

    async def append(self, pieces: Sequence[bytes]) -> None:
        """Raises Overloaded when the quota or the disk has no room."""
        size = sum(map(len, pieces))
        self._spool.take(size)
        self.size += size
        try:
            await asyncio.to_thread(self._write, b"".join(pieces))
        except OSError as e:
            raise Overloaded(retry_after_s=5.0, detail=f"spool: {e.strerror}") from e

    def _write(self, data: bytes) -> None:
        with self._lock:
            if self._is_closed:
                return
            if self._file is None:
                self._spool.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._spool.directory, buffering=0)  # noqa: SIM115
            if shutil.disk_usage(self._spool.directory).free < self._spool.spare:
                raise OSError(errno.ENOSPC, "the disk is nearly full")
            while data:
                data = data[self._file.write(data) :]

    async def read(self, at: int) -> bytes:
        """At most READ_BYTES from the given offset on."""
        return await asyncio.to_thread(self._read, at)

    def _read(self, at: int) -> bytes:
        with self._lock:
            assert self._file is not None
            return b"" if self._is_closed else os.pread(self._file.fileno(), READ_BYTES, at)

    def close(self) -> None:
        """Forget it, also while something is written or read."""
        if self._is_closed:
            return
        self._is_closed = True
        self._spool.give_back(self.size)
        asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
