"""The codec: what was encoded comes back, anything else does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.journal import frame
from proxy.journal.frame import START, Frame, Head, Mark, Verdict

PAYLOADS = st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=8)
SEED = st.integers(0, 2**32 - 1)


def decoded(data: bytes, crc: int) -> list[Frame]:
    frames, at = [], 0
    while isinstance(found := frame.decode(data, at, crc), Frame):
        frames.append(found)
        at, crc = found.end, found.crc
    return frames


@given(PAYLOADS, SEED, st.integers(1, 2**60))
def test_frames_come_back_with_consecutive_sequence_numbers(payloads, seed, sequence):
    data, crc = frame.encode(payloads, sequence, seed)
    frames = decoded(data, seed)
    assert [f.payload for f in frames] == payloads
    assert [f.sequence for f in frames] == list(range(sequence, sequence + len(payloads)))
    assert frames[-1].crc == crc == frame.seed_before(data, len(data))


@given(PAYLOADS, PAYLOADS, SEED)
def test_two_runs_are_one_chain(first, second, seed):
    one, crc = frame.encode(first, 1, seed)
    two, _ = frame.encode(second, 1 + len(first), crc)
    assert one + two == frame.encode(first + second, 1, seed)[0]


@given(PAYLOADS, SEED, st.data())
def test_a_cut_leaves_the_frames_before_it(payloads, seed, data):
    encoded, _ = frame.encode(payloads, 1, seed)
    cut = data.draw(st.integers(0, len(encoded)))
    whole = [f for f in decoded(encoded, seed) if f.end <= cut]
    assert decoded(encoded[:cut], seed) == whole


@given(PAYLOADS, SEED, st.data())
def test_a_flipped_bit_ends_the_chain_where_it_is(payloads, seed, data):
    encoded, _ = frame.encode(payloads, 1, seed)
    at = data.draw(st.integers(0, len(encoded) - 1))
    damaged = bytearray(encoded)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    untouched = [f for f in decoded(encoded, seed) if f.end <= at]
    assert decoded(bytes(damaged), seed) == untouched


@given(PAYLOADS, SEED, SEED)
def test_frames_of_another_segment_are_not_accepted(payloads, seed, other):
    encoded, _ = frame.encode(payloads, 1, seed)
    assert seed == other or decoded(encoded, other) == []


def test_zeros_are_the_end():
    assert frame.decode(bytes(100), 0, 1) is Verdict.END


def test_an_impossible_length_is_no_frame_that_is_still_arriving():
    assert frame.decode(b"\xff" * 12, 0, 1) is Verdict.BAD


HEAD = Head("w0-0199", 3, 77, 1_700_000_000_000, Mark(5, 9000))


def test_a_head_comes_back():
    page = frame.encode_head(HEAD)
    assert len(page) == START
    assert frame.decode_head(page) == HEAD
    assert frame.seed_before(page, START) == HEAD.seed


def test_the_newer_mark_counts():
    page = bytearray(frame.encode_head(HEAD))
    slot, mark = frame.encode_mark(Mark(6, 9500, closed=True))
    page[slot : slot + len(mark)] = mark
    assert frame.decode_head(bytes(page)).mark == Mark(6, 9500, closed=True)


def test_a_torn_mark_leaves_the_one_before():
    page = bytearray(frame.encode_head(HEAD))
    slot, mark = frame.encode_mark(Mark(6, 9500))
    for torn in range(len(mark)):
        page[slot : slot + torn] = mark[:torn]
        assert frame.decode_head(bytes(page)) == HEAD


def test_a_head_with_a_promise_is_damaged_by_any_flip_in_its_identity():
    good = frame.encode_head(HEAD)
    for at in [*range(frame._IDENTITY.size), *range(START - 4, START)]:
        page = bytearray(good)
        page[at] ^= 0x10
        assert frame.decode_head(bytes(page)) is Verdict.BAD


def test_a_head_that_was_never_finished_promised_nothing():
    fresh = frame.encode_head(Head("w0-0199", 3, 77, 0, Mark(0, START)))
    assert frame.decode_head(bytes(START)) is Verdict.END
    assert frame.decode_head(fresh[:512] + bytes(START - 512)) is Verdict.END
