"""The folder of one life: its name, its lock, its segment files and the room kept back for bad days.

Owns names and locks; reads and writes no frame.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

SUFFIX = ".seg"
LOCK = "lock"
RESERVE = "reserve"


def segment_path(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}{SUFFIX}"


def segments(directory: Path) -> list[Path]:
    """The segment files of one incarnation in the order they were written."""
    return sorted((p for p in directory.glob(f"*{SUFFIX}") if p.stem.isdigit()), key=lambda p: int(p.stem))


def incarnations(journal: Path) -> list[Path]:
    """The directories of all lives below `journal`; one that is still being made does not count."""
    if not journal.is_dir():
        return []
    return sorted(p for p in journal.iterdir() if p.is_dir() and not p.name.startswith("."))


def claim(directory: Path) -> int | None:
    """The lock of a life as an open descriptor, or None while another process holds it.

    Held until the descriptor is closed or the process ends, however it ends. The reserve of a dead life
    goes: nobody will settle out of it.
    """
    fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    (directory / RESERVE).unlink(missing_ok=True)
    return fd


def make(directory: Path) -> int:
    """Make the directory of a new life and hold its lock; the lock's descriptor.

    It gets its name only once it is locked: seen without a lock, it would be taken for dead and adopted.
    Raises FileExistsError when another life had this name.
    """
    if directory.exists():
        lock = None if segments(directory) else claim(directory)
    else:
        unnamed = directory.with_name(f".{directory.name}")
        unnamed.mkdir(parents=True, mode=0o700)
        lock = claim(unnamed)
        unnamed.rename(directory)
        sync(directory.parent)
    if lock is None:
        raise FileExistsError(f"{directory} belongs to another life")
    return lock


def sync(directory: Path) -> None:
    """Put the names in a directory on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Reserve:
    """Room on disk that nothing uses, so that it can be given to settlements when the disk is full."""

    def __init__(self, directory: Path, size: int, fallocate: Callable[[int, int, int], None]) -> None:
        self._fd = os.open(directory / RESERVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._path = directory / RESERVE
        self._size = size
        self._fallocate = fallocate
        self.held = False

    def take(self) -> bool:
        """Try to set the room aside. False: the disk is too full."""
        try:
            self._fallocate(self._fd, 0, self._size)
        except OSError:
            os.ftruncate(self._fd, 0)  # a part of it may have been taken
            return False
        self.held = True
        return True

    def release(self) -> None:
        """Give the room back to the file system."""
        os.ftruncate(self._fd, 0)
        self.held = False

    def close(self) -> None:
        os.close(self._fd)
        self._path.unlink(missing_ok=True)
