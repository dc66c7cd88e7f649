"""The writer of one life's journal: append, flush with continuations, group fsync, rotation, reserve.

Owns the segment files of one incarnation; knows nothing of what is written. Used from one event loop,
only fdatasync runs in a thread. Reading back is `reader`'s business.

Three promises. A continuation runs only after its frame was written. What a failed sync may have lost is
written again to a new file. When the disk is full, admissions stop while settlements still fit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from proxy.errors import JournalUnavailable
from proxy.journal import directory as folder
from proxy.journal.crashpoint import ARMED, crash_point
from proxy.journal.frame import PAYLOAD_BYTES_MAX, START, Head, Mark
from proxy.journal.reader import read
from proxy.journal.segment import NO_ROOM, Files, Segment, open_segment

__all__ = ["Counters", "Journal", "read"]

log = logging.getLogger("headrace.journal")

SEGMENT_BYTES = 64 << 20
SEGMENT_S = 3600.0
RESERVE_BYTES = 8 << 20  # some 8,000 settlements
UNSYNCED_BYTES_MAX = 64 << 20  # kept in memory to be written again; more means that the disk hangs
PROBE_S = 1.0  # between attempts to get well again
CLOSE_SYNCS_MAX = 3  # a disk that fails this often while we leave will not get better

Continuation = Callable[[BaseException | None], None]
Queued = tuple[bytes, Continuation | None, bool]  # payload, then, is a settlement
_payload = itemgetter(0)


@dataclass(slots=True)
class Counters:
    """What happened in this life, as plain numbers for the metrics."""

    frames: int = 0
    bytes: int = 0
    flushes: int = 0
    segments: int = 0
    syncs: int = 0
    sync_failures: int = 0
    write_failures: int = 0
    refused: int = 0  # admissions turned away because they could not be written
    owed: int = 0  # entries that wait in memory for a place on disk
    sync_ms: float = 0.0  # how long the latest sync took


@dataclass(slots=True)
class _Job:
    """What one fdatasync covers: everything below `offset`, the first `count` unsynced payloads."""

    segment: Segment
    offset: int
    count: int
    error: OSError | None = None


class Journal:
    """The journal of one life of a process; `directory` is named by the incarnation.

    `available` is False while admissions would be refused. Raises OSError when the directory cannot be
    made or another life has its name.
    """

    def __init__(
        self,
        directory: Path,
        *,
        loop: asyncio.AbstractEventLoop,
        fsync_interval_s: float = 0.03,
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
        files: Files | None = None,
    ) -> None:
        self.directory = directory
        self.counters = Counters()
        self.available = True
        self._loop = loop
        self._interval_s = fsync_interval_s
        self._segment_bytes = segment_bytes
        self._files = files or Files()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="journal-sync")
        self._queue: list[Queued] = []
        self._owed: list[bytes] = []  # to be written before anything else: refused by the disk, or moved
        self._sequence = 1  # of the next frame
        self._number = 0  # of the newest segment
        self._segments: list[Segment] = []  # open ones; all but the current wait for their last sync
        self._current: Segment | None = None
        self._unsynced_bytes = 0
        self._stuck = False  # not even a settlement could be written; only the probe tries again
        self._closed = False
        self._sync: asyncio.Future[list[_Job]] | None = None
        self._sync_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._lock = folder.make(directory)
        self._reserve = folder.Reserve(directory, reserve_bytes, self._files.fallocate)
        if not self._reserve.take():
            self._ail()

    # -- append and flush ------------------------------------------------------------------------

    def append(self, payload: bytes, then: Continuation | None = None, *, settle: bool = False) -> None:
        """Queue one frame; all of a loop tick are written at once, then their continuations run in order.

        `then(None)` means written. `then(JournalUnavailable)` means for an admission that it never will
        be, for a settlement (`settle`) not yet: it is kept and written as soon as that works.
        Raises ValueError for an empty payload or one over PAYLOAD_BYTES_MAX.
        """
        if not payload or len(payload) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"a journal payload of {len(payload)} bytes")
        queue = self._queue
        if not queue:
            self._loop.call_soon(self._flush)
        queue.append((payload, then, settle))

    def _flush(self) -> None:
        queue, self._queue = self._queue, []
        if self._closed:
            _run(queue, JournalUnavailable(detail="the journal is closed"), self._loop)
        elif queue:
            self._store(queue)

    def _store(self, queue: list[Queued]) -> None:
        """Write what is owed and what is queued; then exactly one call of each continuation."""
        for _ in range(2):  # the second time in the room of the reserve, or in a new segment
            if not self.available:
                queue = self._turn_away(queue)
            if self._stuck:
                break
            failure = self._put([*map(_payload, queue)])
            if failure is None:
                _run(queue, None, self._loop)
                return
            self._suffer(failure)
        self._stuck = True
        self._ail()
        queue = self._turn_away(queue)
        self._owed += map(_payload, queue)
        self.counters.owed = len(self._owed)
        _run(queue, JournalUnavailable(detail="the journal's disk takes no writes"), self._loop)

    def _turn_away(self, queue: list[Queued]) -> list[Queued]:
        """Refuse the admissions; the settlements that are left."""
        admissions = [entry for entry in queue if not entry[2]]
        if not admissions:
            return queue
        self.counters.refused += len(admissions)
        _run(admissions, JournalUnavailable(detail="the journal takes settlements only"), self._loop)
        return [entry for entry in queue if entry[2]]

    def _put(self, payloads: list[bytes]) -> OSError | None:
        """Write frames in order, those that are owed first. With an error nothing was written."""
        if self._owed:
            payloads = self._owed + payloads
        if not payloads:
            return None
        try:
            segment = self._current or self._open()
            size = segment.put(payloads, self._sequence)
        except OSError as e:
            return e
        ARMED and crash_point("frames-written")
        count, counters = len(payloads), self.counters
        self._owed = []
        self._sequence += count
        self._unsynced_bytes += size
        counters.owed = 0
        counters.flushes += 1
        counters.frames += count
        counters.bytes += size
        if segment.offset >= self._segment_bytes or self._loop.time() - segment.opened_s >= SEGMENT_S:
            self._current = None
        if self._unsynced_bytes > UNSYNCED_BYTES_MAX:
            self._reckon()
        self._schedule_sync()
        return None

    def _open(self) -> Segment:
        self._number += 1
        now_ms = time.time_ns() // 1_000_000
        head = Head(self.directory.name, self._number, self._sequence, now_ms, Mark(0, START))
        segment = open_segment(self.directory, head, self._files, self._loop.time(), self._segment_bytes)
        self._segments.append(segment)
        self._current = segment
        self.counters.segments += 1
        return segment

    # -- bad days --------------------------------------------------------------------------------

    def _suffer(self, failure: OSError) -> None:
        """After a failed write: make room for settlements, or leave the file for a new one."""
        self.counters.write_failures += 1
        log.error("journal write failed: %s", failure)
        if failure.errno in NO_ROOM:
            failure = self._make_room() or failure
        if failure.errno not in NO_ROOM:
            self._abandon()

    def _make_room(self) -> OSError | None:
        """Stop admissions and give the reserve to settlements."""
        try:
            if self._current is not None:
                self._current.undo()
            self._reserve.release()
        except OSError as e:
            return e
        finally:
            self._ail()
        return None

    def _abandon(self) -> None:
        """Leave every open segment where it is known to be on disk, never to be written or synced again;
        what is above is owed, under the same sequence numbers."""
        moved = [payload for segment in self._segments for payload in segment.unsynced]
        self._sequence -= len(moved)
        self._owed = moved + self._owed
        self._unsynced_bytes = 0
        for segment in self._segments:
            if error := segment.abandon():
                log.warning("%s: no last mark: %s", segment.path, error)
        self._let_go(self._segments)
        self._segments = []
        self._current = None

    def _let_go(self, segments: list[Segment]) -> None:
        """Close the files, after a sync that may still be at them."""
        if self._sync is not None:
            self._sync.add_done_callback(lambda _: self._let_go(segments))
            return
        for segment in segments:
            segment.close()

    def _ail(self) -> None:
        """Stop admissions and begin to probe."""
        self._reckon()
        if self._probe_timer is None:
            self._probe_timer = self._loop.call_later(PROBE_S, self._probe)

    def _probe(self) -> None:
        """Try to write what is owed and to have a reserve again."""
        self._probe_timer = None
        self._stuck = False
        self._store([])
        if self._stuck or not (self._reserve.held or self._reserve.take()):
            self._ail()
        else:
            self._reckon()

    def _reckon(self) -> None:
        self.available = (
            self._reserve.held
            and not self._stuck
            and not self._closed
            and self._unsynced_bytes <= UNSYNCED_BYTES_MAX
        )

    # -- sync ------------------------------------------------------------------------------------

    def _schedule_sync(self) -> None:
        if self._sync_timer is None and self._sync is None and not self._closed:
            self._sync_timer = self._loop.call_later(self._interval_s, self._start_sync)

    def _start_sync(self) -> None:
        self._sync_timer = None
        jobs = [_Job(segment, segment.offset, len(segment.unsynced)) for segment in self._segments]
        if jobs:
            self._sync = self._loop.run_in_executor(self._executor, self._sync_all, jobs)
            self._sync.add_done_callback(self._synced)

    def _sync_all(self, jobs: list[_Job]) -> list[_Job]:
        """In the thread. Stops at the first failure: a later segment must not be ahead of an earlier."""
        began_s = time.monotonic()
        for job in jobs:
            try:
                job.segment.sync()
            except OSError as e:
                job.error = e
                break
        self.counters.sync_ms = (time.monotonic() - began_s) * 1000
        return jobs

    def _synced(self, sync: asyncio.Future[list[_Job]]) -> None:
        self._sync = None
        self.counters.syncs += 1
        for job in sync.result():
            if job.segment not in self._segments:
                break  # abandoned while the thread was at it
            if job.error is None:
                job.error = self._advance(job)
            if job.error is not None:
                self.counters.sync_failures += 1
                log.error("%s: sync failed, its rest is written again: %s", job.segment.path, job.error)
                self._abandon()
                self._store([])
                break
        self._reckon()
        if self._unsynced_bytes or any(segment is not self._current for segment in self._segments):
            self._schedule_sync()

    def _advance(self, job: _Job) -> OSError | None:
        """Move a segment's mark to what was synced; one that is complete is closed."""
        segment = job.segment
        closed = (self._closed or segment is not self._current) and job.offset == segment.offset
        gained = job.offset - segment.mark.offset
        try:
            segment.advance(job.offset, job.count, closed=closed)
        except OSError as e:
            return e
        self._unsynced_bytes -= gained
        if closed:
            self._segments.remove(segment)
            self._let_go([segment])
        return None

    # -- the end ---------------------------------------------------------------------------------

    async def close(self) -> None:
        """Write and sync what is there, close the segments, give the lock away. Later appends are refused.

        What cannot be written or synced stays for adoption, as after a crash.
        """
        self._stuck = False
        self._flush()
        self._store([])
        self._closed = True
        self._reckon()
        for _ in range(CLOSE_SYNCS_MAX):
            if self._sync is None:
                self._start_sync()
            if self._sync is None:
                break
            await asyncio.wait({self._sync})
        for timer in (self._sync_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        self._executor.shutdown()
        if self._owed:
            log.critical("%d journal entries were never written", len(self._owed))
        self._let_go(self._segments)
        self._reserve.close()
        os.close(self._lock)


def _run(queue: list[Queued], error: BaseException | None, loop: asyncio.AbstractEventLoop) -> None:
    for _, then, _ in queue:
        if then is not None:
            try:
                then(error)
            except Exception as e:  # noqa: BLE001 - one call's bug must not lose those behind it
                loop.call_exception_handler({"message": "journal continuation", "exception": e})
