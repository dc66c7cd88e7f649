"""A disk that fails on command and a loop whose clock jumps, for the journal's tests."""

from __future__ import annotations

import asyncio
import errno
import os
import selectors
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from proxy.journal import directory as folder
from proxy.journal.reader import read
from proxy.journal.segment import Files
from proxy.journal.segments import Journal

SECTOR = 512


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting it moves the clock."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list:
        if timeout:
            self.now += timeout
        return super().select(0 if timeout is not None else None)


class JumpingLoop(asyncio.SelectorEventLoop):
    """No test waits: timers are due at once in their order, and the sync thread is a plain call."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        self.failures: list[dict] = []
        super().__init__(self._jumping)
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(self, executor, func, *args) -> asyncio.Future:
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except BaseException as e:
            done.set_exception(e)
        return done

    def tick(self) -> None:
        """All that was queued in this tick, and what it called for."""
        self.run_until_complete(_two_ticks())

    def pass_s(self, seconds: float) -> None:
        self.run_until_complete(asyncio.sleep(seconds))


async def _two_ticks() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


class Disk(Files):
    """Fails where it is told to and remembers what a power failure would leave.

    `on_write`, `on_sync` and `on_fallocate` are asked at each call and return an errno, 0 for success
    or, for a write, minus the number of bytes that it takes.
    """

    def __init__(self) -> None:
        self.on_write: Callable[[], int] = lambda: 0
        self.on_sync: Callable[[], int] = lambda: 0
        self.on_fallocate: Callable[[], int] = lambda: 0
        self.durable: dict[str, bytes] = {}
        self.poisoned: set[str] = set()
        self.synced_again: list[str] = []
        self.writes = 0
        self.syncs = 0

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.writes += 1
        what = self.on_write()
        if what > 0:
            raise OSError(what, os.strerror(what))
        return super().pwrite(fd, data[: -what or len(data)], offset)

    def fdatasync(self, fd: int) -> None:
        self.syncs += 1
        name = os.readlink(f"/proc/self/fd/{fd}")
        if name in self.poisoned:
            self.synced_again.append(name)  # it would say "fine" and lose the pages (fsyncgate)
        what = self.on_sync()
        if what:
            self.poisoned.add(name)
            raise OSError(what, os.strerror(what))
        self.durable[name] = os.pread(fd, os.fstat(fd).st_size, 0)

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        what = self.on_fallocate()
        if what:
            raise OSError(what, os.strerror(what))
        super().fallocate(fd, offset, length)

    def lose_power(self, directory: Path, keeps: Callable[[int], bool]) -> None:
        """What was not synced is there or not, sector by sector, as `keeps` says."""
        for path in folder.segments(directory):
            now, safe = path.read_bytes(), self.durable.get(str(path), b"")
            size = len(now) if keeps(-1) else len(safe)
            safe = safe.ljust(size, b"\0")
            sectors = range(0, size, SECTOR)
            path.write_bytes(
                b"".join((now if keeps(at) else safe)[at : at + SECTOR] for at in sectors)[:size]
            )


class OneLife:
    """A journal on a loop of its own, and what became of every payload given to it."""

    def __init__(self, directory: Path, files: Files | None = None, **settings: int | float) -> None:
        self.loop = JumpingLoop()
        self.disk = files or Disk()
        self.journal = Journal(
            directory, loop=self.loop, files=self.disk, **{"reserve_bytes": 65536, **settings}
        )
        self.written: list[bytes] = []
        self.refused: list[bytes] = []
        self.kept: list[bytes] = []  # settlements that are not written yet, as far as their caller knows

    def append(self, payload: bytes, *, settle: bool = False) -> None:
        def then(error: BaseException | None) -> None:
            fate = self.written if error is None else self.kept if settle else self.refused
            fate.append(payload)

        self.journal.append(payload, then, settle=settle)

    def close(self) -> None:
        self.loop.run_until_complete(self.journal.close())

    def die(self) -> None:
        """As kill -9: nothing is flushed, the descriptors are gone."""
        journal = self.journal
        if journal._closed:
            self.loop.close()
            return
        for segment in journal._segments:
            os.close(segment.fd)
        os.close(journal._reserve._fd)
        os.close(journal._lock)
        self.loop.close()


@contextmanager
def living(directory: Path, disk: Disk | None = None, **settings: int | float) -> Iterator[OneLife]:
    life = OneLife(directory, disk, **settings)
    try:
        yield life
    finally:
        life.die()


def payloads(directory: Path, upto: str = "end") -> list[bytes]:
    """All that a reader finds of one life."""
    return [payload for path in folder.segments(directory) for payload, _ in read(path, upto=upto)]


def every(nth: int, what: int) -> Callable[[], int]:
    """An answer for `Disk.on_...`: every nth call."""
    calls = 0

    def answer() -> int:
        nonlocal calls
        calls += 1
        return what if calls % nth == 0 else 0

    return answer


def once(nth: int, what: int) -> Callable[[], int]:
    """An answer for `Disk.on_...`: the nth call only."""
    calls = 0

    def answer() -> int:
        nonlocal calls
        calls += 1
        return what if calls == nth else 0

    return answer


EIO, ENOSPC = errno.EIO, errno.ENOSPC
