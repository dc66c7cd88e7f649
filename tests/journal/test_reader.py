"""Damage, reopen, count, append, reopen, count: nothing bad is accepted, nothing synced is missed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.journal import directory as folder
from proxy.journal import frame, reader
from proxy.journal.frame import OVERHEAD, START, Head, Mark
from proxy.journal.reader import JournalDamageError, read
from tests.journal.disk import living, payloads

RECORDS = [b"record-%d" % n + b"." * (n % 5) for n in range(9)]
SYNCED = 5  # of the nine


def make_segment(
    directory: Path, records: list[bytes], synced: int, *, number: int = 1, first: int = 1
) -> Path:
    """A segment as a life leaves it that was killed: `synced` records are below the watermark."""
    directory.mkdir(parents=True, exist_ok=True)
    head = Head(directory.name, number, first, 0, Mark(0, START))
    data, _ = frame.encode(records, first, head.seed)
    mark = Mark(1, START + sum(len(r) + OVERHEAD for r in records[:synced]))
    head = Head(directory.name, number, first, 0, mark)
    path = folder.segment_path(directory, number)
    path.write_bytes((frame.encode_head(head) + data).ljust(START + 1024, b"\0"))
    return path


def attempt(path: Path, upto: str = "end") -> tuple[list[bytes], int | None]:
    """(frames read, place of the damage or None)"""
    found = []
    try:
        for payload, _ in read(path, upto=upto):
            found.append(payload)
    except JournalDamageError as e:
        return found, e.position
    return found, None


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    return make_segment(tmp_path / "w0-1", RECORDS, SYNCED)


def test_a_living_life_is_read_below_its_watermark(segment):
    assert attempt(segment, "watermark") == (RECORDS[:SYNCED], None)


def test_a_dead_one_is_read_to_its_last_frame(segment):
    assert attempt(segment) == (RECORDS, None)


def test_every_offset_that_was_given_is_a_place_to_go_on_from(segment):
    offsets = [START, *(offset for _, offset in read(segment, upto="end"))]
    for n, offset in enumerate(offsets):
        assert [p for p, _ in read(segment, offset, upto="end")] == RECORDS[n:]
        if n <= SYNCED:
            assert [p for p, _ in read(segment, offset)] == RECORDS[n:SYNCED]


def check_damage(path: Path, place: int) -> None:
    """Whatever happened at `place`: a prefix is read, and less than was synced only with an alarm."""
    for upto, least in (("end", SYNCED), ("watermark", SYNCED)):
        found, damage = attempt(path, upto)
        assert found == RECORDS[: len(found)], place
        if damage is None and upto == "end":
            assert len(found) >= least, place
        if damage is not None:
            assert len(found) < SYNCED, place


def test_a_cut_at_every_byte_is_a_torn_tail_or_an_alarm(segment):
    whole = segment.read_bytes()
    for cut in range(len(whole) - 1, 0, -1):
        os.truncate(segment, cut)
        check_damage(segment, cut)


def test_a_flip_of_every_byte_is_a_torn_tail_or_an_alarm(segment):
    whole = segment.read_bytes()
    with segment.open("r+b", buffering=0) as file:
        for at in range(len(whole)):
            os.pwrite(file.fileno(), bytes([whole[at] ^ 0x41]), at)
            check_damage(segment, at)
            os.pwrite(file.fileno(), whole[at : at + 1], at)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=12), st.data())
@settings(deadline=None, max_examples=60)
def test_any_records_with_any_damage(tmp_path_factory, records, data):
    path = make_segment(
        tmp_path_factory.mktemp("j") / "w0-1", records, synced := data.draw(st.integers(0, len(records)))
    )
    whole = bytearray(path.read_bytes())
    start = data.draw(st.integers(START, len(whole) - 1))
    garbage = data.draw(st.binary(min_size=1, max_size=80))
    whole[start : start + len(garbage)] = garbage
    path.write_bytes(whole)
    found, damage = attempt(path)
    assert found == records[: len(found)]
    assert damage is not None or len(found) >= synced


def test_the_alarm_names_the_place_behind_the_last_good_frame(segment):
    ends = [end for _, end in read(segment)]
    whole = bytearray(segment.read_bytes())
    whole[ends[2] + 14] ^= 1
    segment.write_bytes(whole)
    assert attempt(segment) == (RECORDS[:3], ends[2])


def test_one_bad_byte_costs_one_record_and_at_most_the_one_behind(segment):
    ends = [START, *(end for _, end in read(segment))]
    whole = segment.read_bytes()
    with segment.open("r+b", buffering=0) as file:
        for at in range(START, ends[-1]):
            os.pwrite(file.fileno(), bytes([whole[at] ^ 0x41]), at)
            hit = next(n for n, end in enumerate(ends[1:]) if at < end)
            found, offset = [], START
            while offset is not None:
                try:
                    for payload, _ in read(segment, offset, upto="end"):
                        found.append(payload)
                    offset = None
                except JournalDamageError as e:
                    assert e.position == ends[hit]
                    offset = e.resume_at
            lost = [record for record in RECORDS if record not in found]
            crc_is_hit = at >= ends[hit + 1] - 4  # it seeds the frame behind, which is lost as well
            if hit == SYNCED - 1 and crc_is_hit:
                assert lost == RECORDS[hit:]  # above the watermark that is a torn tail
            else:
                assert lost == RECORDS[hit : hit + 1 + crc_is_hit]
            os.pwrite(file.fileno(), whole[at : at + 1], at)


def test_a_cursor_beyond_the_end_is_an_alarm(segment):
    last = [end for _, end in read(segment, upto="end")][-1]
    for offset in (last + 1, last + 100, 1 << 30):
        for upto in ("end", "watermark"):
            with pytest.raises(JournalDamageError, match="beyond"):
                list(read(segment, offset, upto=upto))


def test_an_unfinished_segment_is_empty_and_a_cursor_into_it_is_an_alarm(tmp_path):
    path = tmp_path / "w0-1" / "000001.seg"
    path.parent.mkdir()
    for content in (b"", bytes(START), bytes(START * 2)):
        path.write_bytes(content)
        assert reader.head(path) is None
        assert attempt(path) == ([], None)
        with pytest.raises(JournalDamageError, match="beyond"):
            list(read(path, START + 20, upto="end"))


def test_a_copied_segment_does_not_count_twice(segment):
    copy = segment.with_name("000002.seg")
    copy.write_bytes(segment.read_bytes())
    assert attempt(segment) == (RECORDS, None)
    assert attempt(copy) == ([], 0)


def test_frames_that_were_written_again_are_read_once(tmp_path):
    directory = tmp_path / "w0-1"
    abandoned = make_segment(directory, RECORDS[:7], SYNCED)
    again = make_segment(directory, RECORDS[SYNCED:], 0, number=2, first=SYNCED + 1)
    assert attempt(abandoned) == (RECORDS[:SYNCED], None)
    assert attempt(again) == (RECORDS[SYNCED:], None)


def test_unfinished_rewriting_leaves_the_first_copy_to_be_read(tmp_path):
    directory = tmp_path / "w0-1"
    abandoned = make_segment(directory, RECORDS, SYNCED)
    again = make_segment(directory, RECORDS[SYNCED:], 0, number=2, first=SYNCED + 1)
    with again.open("r+b") as file:
        file.write(bytes(START))  # the head comes last
    assert payloads(directory) == RECORDS
    assert attempt(abandoned) == (RECORDS, None)


def test_a_frame_longer_than_the_window_is_read(tmp_path):
    records = [b"a", b"b" * (reader.WINDOW_BYTES + 7), b"c", b"d" * (3 * reader.WINDOW_BYTES), b"e"]
    assert attempt(make_segment(tmp_path / "w0-1", records, 5)) == (records, None)


@pytest.mark.parametrize("spare", range(20))
def test_frames_at_the_edge_of_the_window_are_read(tmp_path, monkeypatch, spare):
    monkeypatch.setattr(reader, "WINDOW_BYTES", 3 * (8 + OVERHEAD) - spare)
    records = [b"%08d" % n for n in range(20)]
    assert attempt(make_segment(tmp_path / "w0-1", records, 20)) == (records, None)


DAMAGES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    # what happens to the last segment of nine records -> how many are read then
    "nothing": (lambda path, end: None, 9),
    "torn in the last frame": (lambda path, end: os.truncate(path, end - 4), 8),
    "torn in its length": (lambda path, end: os.truncate(path, end - len(RECORDS[8]) - OVERHEAD + 2), 8),
    "zeros where the last frame was": (lambda path, end: os.truncate(path, end - 40), 7),
    "all that was preallocated is gone": (os.truncate, 9),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_reopen_count_append_reopen_count(tmp_path, name):
    damage, survivors = DAMAGES[name]
    first, second = tmp_path / "w0-1", tmp_path / "w0-2"
    with living(first) as life:
        for record in RECORDS:
            life.append(record)
        life.loop.tick()
    path = folder.segments(first)[0]
    damage(path, [end for _, end in read(path, upto="end")][-1])
    assert payloads(first) == RECORDS[:survivors]
    with living(second) as life:
        life.append(b"afterwards")
        life.loop.tick()
    assert payloads(first) == RECORDS[:survivors]
    assert payloads(second) == [b"afterwards"]


def test_another_process_reads_a_living_journal_and_cannot_claim_it(tmp_path):
    program = (
        "import sys; from pathlib import Path; from proxy.journal import directory as d;"
        "from proxy.journal.reader import read; p = Path(sys.argv[1]);"
        "print(d.claim(p), [x for s in d.segments(p) for x, _ in read(s)])"
    )

    def look() -> str:
        ran = subprocess.run(
            [sys.executable, "-c", program, directory], capture_output=True, text=True, check=True
        )
        return ran.stdout.strip()

    directory = tmp_path / "w0-1"
    with living(directory) as life:
        life.append(b"one")
        life.loop.tick()
        assert look() == "None []"
        life.loop.pass_s(0.1)
        assert look() == "None [b'one']"
    claimed, _, found = look().partition(" ")
    assert claimed.isdigit()
    assert found == "[b'one']"
