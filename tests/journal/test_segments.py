"""The writer: order, batching, rotation, and what becomes of entries on a disk that fails."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import JournalUnavailable
from proxy.journal import directory as folder
from proxy.journal import reader
from proxy.journal.reader import read
from proxy.journal.segments import PROBE_S, UNSYNCED_BYTES_MAX, Journal
from tests.journal.disk import EIO, ENOSPC, Disk, living, once, payloads

SYNCED_S = 0.1  # longer than an interval and a sync


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal" / "w0-1"


# -- a good disk ---------------------------------------------------------------------------------


def test_all_appends_of_a_tick_are_one_write_and_their_continuations_run_in_order(directory):
    with living(directory) as life:
        life.append(b"first")
        life.loop.tick()
        before = life.disk.writes
        for n in range(50):
            life.append(b"%d" % n)
        assert life.disk.writes == before
        life.loop.tick()
        assert life.disk.writes == before + 1
        assert life.written == [b"first", *(b"%d" % n for n in range(50))]


def test_a_continuation_runs_only_after_its_frame_can_be_read(directory):
    with living(directory) as life:
        seen = []
        life.journal.append(b"begin", lambda error: seen.append((error, payloads(directory))))
        life.loop.tick()
        assert seen == [(None, [b"begin"])]


def test_what_a_continuation_appends_goes_out_with_the_next_tick(directory):
    with living(directory) as life:
        life.journal.append(b"begin", lambda _: life.append(b"end"))
        life.loop.tick()
        assert life.written == [b"end"]
        assert payloads(directory) == [b"begin", b"end"]


def test_a_continuation_that_raises_does_not_lose_the_next_one(directory):
    with living(directory) as life:
        life.journal.append(b"a", lambda _: 1 // 0)
        life.append(b"b")
        life.loop.tick()
        assert life.written == [b"b"]
        assert [type(f["exception"]) for f in life.loop.failures] == [ZeroDivisionError]


def test_nothing_is_synced_while_nothing_is_written(directory):
    with living(directory) as life:
        life.append(b"a")
        life.loop.pass_s(SYNCED_S)
        syncs = life.disk.syncs
        life.loop.pass_s(60)
        assert life.disk.syncs == syncs == 1


def test_a_sync_moves_the_watermark(directory):
    with living(directory) as life:
        life.append(b"a")
        life.loop.tick()
        assert payloads(directory, "watermark") == []
        life.loop.pass_s(SYNCED_S)
        life.append(b"b")
        life.loop.tick()
        assert payloads(directory, "watermark") == [b"a"]
        life.loop.pass_s(SYNCED_S)
        assert payloads(directory, "watermark") == [b"a", b"b"]


def test_a_full_segment_is_closed_and_cut_to_its_frames(directory):
    with living(directory, segment_bytes=8192) as life:
        records = [b"%04d" % n * 100 for n in range(62)]
        for record in records:
            life.append(record)
            life.loop.tick()
        life.loop.pass_s(SYNCED_S)
        *full, current = folder.segments(directory)
        assert len(full) >= 2
        for path in full:
            mark = reader.head(path).mark
            assert mark.closed
            assert mark.offset == path.stat().st_size >= 8192
        assert not reader.head(current).mark.closed
        assert payloads(directory, "watermark") == records


def test_a_segment_does_not_grow_older_than_an_hour(directory):
    with living(directory) as life:
        life.append(b"a")
        life.loop.pass_s(3600)
        life.append(b"b")
        life.loop.tick()
        life.append(b"c")
        life.loop.tick()
        first, second = folder.segments(directory)
        assert [p for p, _ in read(first, upto="end")] == [b"a", b"b"]
        assert [p for p, _ in read(second, upto="end")] == [b"c"]


def test_the_file_is_allocated_ahead(directory):
    with living(directory) as life:
        allocations = 0
        allocate = life.disk.fallocate

        def counted(*args: int) -> None:
            nonlocal allocations
            allocations += 1
            allocate(*args)

        life.disk.fallocate = counted
        for n in range(1000):
            life.append(b"%03d" % n * 100)
            life.loop.tick()
        assert allocations == 1


def test_closing_leaves_everything_synced_and_the_lock_free(directory):
    with living(directory) as life:
        life.append(b"a")
        life.loop.tick()
        life.append(b"b")
        life.close()
        assert payloads(directory, "watermark") == [b"a", b"b"]
        assert [reader.head(p).mark.closed for p in folder.segments(directory)] == [True]
        assert sorted(os.listdir(directory)) == ["000001.seg", "lock"]
        life.append(b"too late", settle=True)
        life.loop.tick()
        assert life.kept == [b"too late"]
        assert not life.journal.available
        os.close(folder.claim(directory))


def test_a_life_that_wrote_nothing_leaves_no_segment(directory):
    with living(directory) as life:
        life.close()
        assert folder.segments(directory) == []


def test_a_name_is_used_by_one_life_only(directory):
    with living(directory) as life:
        life.append(b"a")
        life.loop.tick()
        with pytest.raises(FileExistsError):
            Journal(directory, loop=life.loop)
    with pytest.raises(FileExistsError):
        Journal(directory, loop=life.loop)


def test_the_reserve_of_a_dead_life_does_not_stay(directory):
    with living(directory):
        assert (directory / folder.RESERVE).stat().st_size == 65536
    os.close(folder.claim(directory))
    assert not (directory / folder.RESERVE).exists()


def test_a_directory_is_never_seen_without_its_lock(directory, monkeypatch):
    unlocked = []
    rename = Path.rename

    def look_then_rename(path: Path, target: Path) -> Path:
        unlocked.extend(p for p in folder.incarnations(target.parent))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", look_then_rename)
    with living(directory):
        assert unlocked == []
        assert folder.incarnations(directory.parent) == [directory]
        assert folder.claim(directory) is None


@pytest.mark.parametrize("payload", [b"", bytes((16 << 20) + 1)])
def test_what_could_not_be_read_back_is_not_taken(directory, payload):
    with living(directory) as life, pytest.raises(ValueError, match="payload of"):
        life.journal.append(payload)


async def test_on_a_real_loop_with_a_real_thread(directory):
    journal = Journal(
        directory, loop=asyncio.get_running_loop(), fsync_interval_s=0.005, segment_bytes=1 << 16
    )
    records = [b"%05d" % n * 20 for n in range(3000)]
    for at in range(0, len(records), 10):
        written = asyncio.get_running_loop().create_future()
        for record in records[at : at + 10]:
            journal.append(record)
        journal.append(b"last of tick", written.set_result)
        assert await written is None
    await journal.close()
    assert [p for p in payloads(directory, "watermark") if p != b"last of tick"] == records


# -- a full disk ---------------------------------------------------------------------------------


class SmallDisk(Disk):
    """Has `room` bytes for everything in the directory."""

    def __init__(self, directory: Path, room: int) -> None:
        super().__init__()
        self.directory = directory
        self.room = room

    def fallocate(self, fd: int, offset: int, length: int) -> None:
        used = sum(path.stat().st_blocks * 512 for path in self.directory.iterdir())
        if used + length > self.room:
            raise OSError(ENOSPC, "no room")
        super().fallocate(fd, offset, length)


def test_on_a_full_disk_admissions_stop_and_settlements_go_on(directory):
    disk = SmallDisk(directory, 1 << 20)
    with living(directory, disk, reserve_bytes=400_000, segment_bytes=128 << 10) as life:
        begun = 0
        while life.journal.available:
            begun += 1
            life.append(b"begin %05d" % begun * 100)
            life.loop.tick()
            assert begun < 10_000
        assert life.refused == [b"begin %05d" % begun * 100]
        ends = [b"end %05d" % n * 50 for n in range(begun - 1)]
        assert len(ends) > 200
        for end in ends:
            life.append(end, settle=True)
            life.append(b"a new call")
            life.loop.tick()
        assert life.kept == []
        assert life.refused[1:] == [b"a new call"] * len(ends)
        assert payloads(directory) == life.written
        assert life.written[begun - 1 :] == ends


def test_admissions_come_back_when_there_is_room_for_a_reserve_again(directory):
    disk = SmallDisk(directory, 600_000)
    with living(directory, disk, reserve_bytes=300_000, segment_bytes=128 << 10) as life:
        while life.journal.available:
            life.append(b"begin" * 100)
            life.loop.tick()
        disk.room = 300_000  # others fill it up
        life.loop.pass_s(PROBE_S * 3)
        assert not life.journal.available
        disk.room = 10 << 20
        life.loop.pass_s(PROBE_S * 1.1)
        assert life.journal.available
        life.append(b"again")
        life.loop.tick()
        assert life.written[-1] == b"again"


def test_settlements_that_find_no_room_at_all_wait_and_are_written_later(directory):
    with living(directory) as life:
        life.append(b"begin")
        life.loop.pass_s(SYNCED_S)
        life.disk.on_write = lambda: ENOSPC
        life.append(b"end", settle=True)
        life.append(b"another begin")
        life.loop.tick()
        assert (life.kept, life.refused) == ([b"end"], [b"another begin"])
        assert life.journal.counters.owed == 1
        life.loop.pass_s(PROBE_S * 5)
        life.append(b"end 2", settle=True)
        life.loop.tick()
        assert life.journal.counters.owed == 2
        life.disk.on_write = lambda: 0
        life.loop.pass_s(PROBE_S * 1.1)
        assert life.journal.counters.owed == 0
        assert life.journal.available
        assert payloads(directory) == [b"begin", b"end", b"end 2"]


def test_without_room_for_a_reserve_nothing_is_admitted_from_the_start(directory):
    disk = Disk()
    disk.on_fallocate = lambda: ENOSPC
    with living(directory, disk) as life:
        assert not life.journal.available
        life.append(b"begin")
        life.loop.tick()
        assert life.refused == [b"begin"]


def test_a_short_write_is_completed(directory):
    with living(directory) as life:
        life.disk.on_write = lambda: -7
        life.append(b"a" * 100)
        life.append(b"b" * 100)
        life.loop.tick()
        assert payloads(directory) == life.written == [b"a" * 100, b"b" * 100]


def test_what_a_half_write_left_behind_is_never_taken_for_a_frame(directory):
    with living(directory) as life:
        life.append(b"begin")
        life.loop.tick()
        answers = iter([-150, ENOSPC])
        life.disk.on_write = lambda: next(answers, 0)
        life.append(b"admission" * 20)
        life.append(b"end", settle=True)
        life.loop.tick()
        assert payloads(directory) == life.written == [b"begin", b"end"]


# -- a broken disk -------------------------------------------------------------------------------


def test_a_write_error_moves_everything_unsynced_to_a_new_segment(directory):
    with living(directory) as life:
        life.append(b"synced")
        life.loop.pass_s(SYNCED_S)
        life.append(b"written")
        life.loop.tick()
        life.disk.on_write = once(1, EIO)
        life.append(b"next")
        life.loop.tick()
        assert life.written == [b"synced", b"written", b"next"]
        assert life.journal.available
        first, second = folder.segments(directory)
        assert [p for p, _ in read(first, upto="end")] == [b"synced"]
        assert [p for p, _ in read(second, upto="end")] == [b"written", b"next"]
        assert reader.head(first).mark.closed


def test_a_failed_sync_abandons_the_segment_for_good(directory):
    with living(directory) as life:
        life.append(b"synced")
        life.loop.pass_s(SYNCED_S)
        life.disk.on_sync = once(1, EIO)
        life.append(b"lost by the kernel")
        life.loop.tick()
        life.loop.pass_s(SYNCED_S)
        life.append(b"afterwards")
        life.loop.pass_s(SYNCED_S)
        assert life.disk.synced_again == []
        assert payloads(directory, "watermark") == [b"synced", b"lost by the kernel", b"afterwards"]
        second = folder.segments(directory)[1]
        assert reader.head(second).first_sequence == 2
        life.disk.lose_power(directory, lambda at: False)
    assert payloads(directory) == [b"synced", b"lost by the kernel", b"afterwards"]


def test_a_failed_sync_of_a_rotated_segment_moves_the_newer_one_as_well(directory):
    with living(directory, segment_bytes=4096 + 300) as life:
        life.disk.on_sync = once(1, EIO)
        for n in range(5):
            life.append(b"%d" % n * 200)
            life.loop.tick()
        life.loop.pass_s(SYNCED_S * 2)
        assert payloads(directory, "watermark") == life.written
        assert life.disk.synced_again == []


def test_a_disk_that_hangs_stops_admissions(directory, monkeypatch):
    with living(directory) as life:
        hanging = life.loop.create_future()
        monkeypatch.setattr(life.loop, "run_in_executor", lambda *_: hanging)
        for _ in range(UNSYNCED_BYTES_MAX // (8 << 20)):
            life.append(bytes(8 << 20))
            life.loop.pass_s(SYNCED_S)
        assert not life.journal.available
        life.append(b"begin")
        life.append(b"end", settle=True)
        life.loop.tick()
        assert (life.refused, life.written[-1]) == ([b"begin"], b"end")
        hanging.set_result([])
        monkeypatch.undo()
        life.loop.pass_s(SYNCED_S * 3)
        assert life.journal.available


# -- any disk ------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 700), st.booleans()),
        st.tuples(st.just("tick"), st.just(0), st.just(False)),
        st.tuples(st.just("pass"), st.sampled_from([20, 100, 1100]), st.just(False)),
    ),
    max_size=40,
)
TROUBLE = st.lists(st.sampled_from([0, 0, 0, 0, -1, -9, EIO, ENOSPC]), max_size=30)
SYNC_TROUBLE = st.lists(st.sampled_from([0, 0, EIO]), max_size=10)


@given(STEPS, TROUBLE, SYNC_TROUBLE, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_whatever_the_disk_does_nothing_synced_is_lost_and_nothing_refused_is_found(
    tmp_path_factory, steps, trouble, sync_trouble, dice
):
    directory = tmp_path_factory.mktemp("j") / "w0-1"
    disk = Disk()
    writes, syncs = iter(trouble), iter(sync_trouble)
    disk.on_write = lambda: next(writes, 0)
    disk.on_sync = lambda: next(syncs, 0)
    given: list[bytes] = []
    with living(directory, disk, segment_bytes=6000, reserve_bytes=8192) as life:
        for step, amount, settle in steps:
            if step == "append":
                given.append(b"%04d" % len(given) + b"." * amount)
                life.append(given[-1], settle=settle)
            elif step == "tick":
                life.loop.tick()
            else:
                life.loop.pass_s(amount / 1000)
        life.loop.tick()
        assert life.loop.failures == []
        assert sorted(life.written + life.kept + life.refused) == given
        promised = payloads(directory, "watermark")
        killed = payloads(directory)
        disk.lose_power(directory, lambda at: dice.random() < 0.5)
    without_power = payloads(directory)
    owed = life.journal._owed
    assert disk.synced_again == []
    for found in (promised, killed, without_power):
        assert len(set(found)) == len(found)
        assert found == sorted(found, key=killed.index)
        assert not set(found) & set(life.refused)
    assert set(promised) <= set(without_power) <= set(killed)
    assert set(life.written) <= set(killed) | set(owed)
    assert set(life.written) | set(life.kept) == set(killed) | set(owed)


def test_a_refusal_says_so_in_the_words_of_the_api(directory):
    with living(directory) as life:
        life.disk.on_write = lambda: EIO
        told = []
        life.journal.append(b"begin", told.append)
        life.loop.tick()
        assert [type(error) for error in told] == [JournalUnavailable]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_on_a_real_full_disk_all_calls_that_began_can_still_end(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        with living(small / "w0-1", reserve_bytes=1 << 20, segment_bytes=512 << 10) as life:
            begun = 0
            while life.journal.available:
                begun += 1
                life.append(b"begin" * 60)
                life.loop.tick()
            ends = [b"end %05d" % n * 30 for n in range(2000)]
            for end in ends:
                life.append(end, settle=True)
                life.loop.tick()
            assert life.kept == []
            assert payloads(small / "w0-1") == life.written
            assert life.written[-2000:] == ends
    finally:
        subprocess.run(["umount", small], check=True)
