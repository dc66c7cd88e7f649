"""A response body: its content comes out whole, however it was cut, and nothing else does."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http1.body import LAST_TWO, PLAIN_CHUNKS, ChunkedWalker, EofWalker, LengthWalker, walker_for
from proxy.http1.head import CRLF, FIELDS_MAX, HEAD_BYTES_MAX

CONTENT = b'data: {"a": "b"}\r\n\r\ndata: [DONE]\n\n'
CHUNKED = (
    b"5\r\ndata:\r\n"
    b'00d;name="a;b"\r\n {"a": "b"}\r\n\r\n'
    b"10\r\n\r\ndata: [DONE]\n\n\r\n"
    b"000;last\r\n"
    b"X-Trailer: 1\r\n"
    b"x-other:\r\n"
    b"\r\n"
)

Walker = LengthWalker | ChunkedWalker | EofWalker


def one_of(walker: Walker, data: bytes) -> bytes | None:
    """The content of a read that is exactly one plain chunk, as a connection finds it."""
    first, lines, content = PLAIN_CHUNKS[len(data)]
    is_one = walker.is_between and data[first] in lines and data[LAST_TWO] == CRLF
    return data[content] if is_one else None


def walk(walker: Walker, data: bytes, cuts: tuple[int, ...] = ()) -> bytes:
    """Feed `data` cut at the given offsets; the content up to the end or to what is broken."""
    content = b""
    for start, stop in pairwise((0, *cuts, len(data))):
        if walker.broken is None and start < stop:
            one = one_of(walker, data[start:stop])
            pieces = walker.feed(data[start:stop]) if one is None else (one,)
            assert all(pieces), "no empty piece"
            content += b"".join(pieces)
    return content


def dripped(data: bytes) -> tuple[int, ...]:
    return tuple(range(1, len(data)))


def test_chunks_are_walked_whole_and_byte_by_byte():
    for cuts in ((), dripped(CHUNKED)):
        walker = ChunkedWalker()
        assert walk(walker, CHUNKED, cuts) == CONTENT
        assert (walker.done, walker.excess, walker.broken) == (True, 0, None)


def test_chunks_are_walked_wherever_they_are_cut():
    for first in range(1, len(CHUNKED)):
        for second in range(first, len(CHUNKED)):
            walker = ChunkedWalker()
            assert walk(walker, CHUNKED, (first, second)) == CONTENT
            assert walker.done


def test_no_prefix_of_a_chunked_body_is_complete():
    for cut in range(len(CHUNKED)):
        walker = ChunkedWalker()
        assert CONTENT.startswith(walk(walker, CHUNKED[:cut]))
        assert not walker.done
        assert walker.broken is None


@given(st.lists(st.binary(min_size=1, max_size=40)), st.lists(st.integers(0, 500)), st.binary(max_size=10))
def test_any_chunks_in_any_pieces_give_the_content(chunks, cuts, rest):
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    data = body + rest
    walker = ChunkedWalker()
    assert walk(walker, data, tuple(sorted(cut for cut in cuts if cut < len(data)))) == b"".join(chunks)
    assert (walker.done, walker.excess) == (True, len(rest))


BROKEN = [
    b"5\r\nhello\r\n",
    b"0\r\n",
    b"\r\n",
    b"\r",
    b"\n",
    b"5",
    b";a",
    b"hello",
    b"x: 1\r\n",
    b"\0",
    b"z",
    b"F" * 9,
]


@given(st.lists(st.sampled_from(BROKEN), max_size=12).map(b"".join), st.lists(st.integers(0, 150)))
def test_any_bytes_give_the_same_in_any_pieces(data, cuts):
    whole, pieced = ChunkedWalker(), ChunkedWalker()
    content = walk(whole, data)
    assert walk(pieced, data, tuple(sorted(cut for cut in cuts if cut < len(data)))) == content
    assert (whole.done, whole.excess, whole.broken is None) == (
        pieced.done,
        pieced.excess,
        pieced.broken is None,
    )


def test_a_read_that_is_one_plain_chunk_is_told_as_such():
    walker = ChunkedWalker()
    assert walk(walker, b"5\r\nhello\r\n5\r\nworld\r\n") == b"helloworld"
    assert one_of(walker, b"5\r\nagain\r\n") == b"again"
    for size in (1, 9, 10, 15, 16, 17, 250, 255, 256, 4095, 4096, 70_000):
        content = b"x" * size
        assert one_of(walker, b"%x\r\n%b\r\n" % (size, content)) == content
        assert one_of(walker, b"%X\r\n%b\r\n" % (size, content)) == content
        assert one_of(walker, b"%x\r\n%b\r\n" % (size, content + b"x")) is None
        assert one_of(walker, b"%x\r\n%b\r\n" % (size + 1, content)) is None
    others = b"5;a=b\r\nagain\r\n", b"5\r\nagain", b"5\r\nagain\r\n0\r\n\r\n", b"5\r\nag\r\n", b"\r\n"
    for other in others:
        assert one_of(walker, other) is None
    walker.feed(b"5\r\nag")
    assert one_of(walker, b"5\r\nain\r\n\r\n") is None, "within a chunk nothing is another"
    walker.feed(b"ain\r\n0\r\n")
    assert one_of(walker, b"5\r\nagain\r\n") is None, "nor behind the last"


def test_a_read_that_is_all_content_is_handed_on_as_it_is():
    data = b"x" * 1000
    chunked = ChunkedWalker()
    chunked.feed(b"FFFF\r\n")
    for walker in (LengthWalker(1000), LengthWalker(1001), EofWalker()):
        assert walker.feed(data)[0] is data
    assert chunked.feed(data)[0] == data


@pytest.mark.parametrize(
    "line",
    [
        b"", b"z", b"-5", b"+5", b"0x5", b" 5", b"5 ", b"5_0", b"5\t", b"5 ;a", b";a", b"5,5", b"\xb2",
        b"5\n", b"5\r", b"5\0", b"5;a\n", b"5;a\rb", b"5;\0", b"5;\x7f",
        b"1000000000000000", b"FFFFFFFFFFFFFFFF", b"0" * 16, b"5;" + b"a" * 1024,
    ],
)  # fmt: skip
def test_a_chunk_size_that_is_none_breaks_the_body(line):
    data = b"2\r\nhi\r\n" + line + b"\r\nhello\r\n0\r\n\r\n"
    for cuts in ((), dripped(data), (len(data) - 18,)):
        walker = ChunkedWalker()
        assert walk(walker, data, cuts) == b"hi"
        assert walker.broken is not None
        assert not walker.done


@pytest.mark.parametrize("end", [b"!\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r\n", b" \r\n", b"0\r\n\r\n"])
def test_a_chunk_that_does_not_end_where_it_should_breaks_the_body(end):
    data = b"2\r\nhi" + end + b"5\r\nhello\r\n0\r\n\r\n"
    for cuts in ((), dripped(data)):
        walker = ChunkedWalker()
        assert walk(walker, data, cuts) == b"hi"
        assert walker.broken is not None


@pytest.mark.parametrize(
    "beginning", [b"z", b"5x", b"5\n", b"\n", b"1000000000000000", b"5;\n", b"5;" + b"a" * 2000, b"\r\r"]
)
def test_what_cannot_become_a_chunk_is_refused_before_its_line_ends(beginning):
    for cuts in ((), dripped(beginning)):
        walker = ChunkedWalker()
        walk(walker, beginning, cuts)
        assert walker.broken is not None


@pytest.mark.parametrize(
    "trailers",
    [
        b"no colon\r\n",
        b"x: \0\r\n",
        b"x: a\nb\r\n",
        b"x: a\rb\r\n",
        b"x: 1\r\n" * (FIELDS_MAX + 1),
        b"x: " + b"a" * HEAD_BYTES_MAX,
        b"x: %b\r\n" % (b"a" * (HEAD_BYTES_MAX // 2)) * 3,
    ],
)
def test_trailers_are_bounded_and_checked(trailers):
    walker = ChunkedWalker()
    assert walk(walker, b"2\r\nhi\r\n0\r\n" + trailers) == b"hi"
    assert walker.broken is not None
    assert not walker.done


def test_trailers_may_be_so_many():
    walker = ChunkedWalker()
    walk(walker, b"0\r\n" + b"x: 1\r\n" * FIELDS_MAX + b"\r\n")
    assert walker.done


def test_a_chunk_of_four_gigabytes_needs_no_memory():
    walker = ChunkedWalker()
    piece = bytes(1 << 20)
    assert walker.feed(b"100000000\r\n") == []
    for _ in range(4096):
        (content,) = walker.feed(piece)
        assert content == piece
    assert walker.feed(b"\r\n0\r\n\r\n") == []
    assert walker.done


def test_a_length_is_walked_wherever_it_is_cut():
    for cut in range(len(CONTENT)):
        walker = LengthWalker(len(CONTENT))
        assert walk(walker, CONTENT[:cut]) == CONTENT[:cut]
        assert not walker.done
        assert walk(walker, CONTENT[cut:]) == CONTENT[cut:]
        assert (walker.done, walker.excess) == (True, 0)


def test_bytes_behind_a_length_are_counted_and_never_content():
    for length in range(len(CONTENT)):
        for cuts in ((), dripped(CONTENT)):
            walker = LengthWalker(length)
            assert walk(walker, CONTENT, cuts) == CONTENT[:length]
            assert (walker.done, walker.excess) == (True, len(CONTENT) - length)


def test_no_length_is_done_at_once():
    walker = LengthWalker(0)
    assert walker.done
    assert list(walker.feed(b"EVIL")) == []
    assert walker.excess == 4


def test_a_body_without_length_ends_when_it_is_told_so():
    walker = EofWalker()
    assert walk(walker, CONTENT, dripped(CONTENT)) == CONTENT
    assert not walker.done
    walker.finish()
    assert walker.done


def test_each_framing_has_its_walker():
    assert isinstance(walker_for("chunked", None), ChunkedWalker)
    assert isinstance(walker_for("eof", None), EofWalker)
    assert walker_for("none", 5).done
    assert walker_for("length", 0).done
    assert list(walker_for("length", 2).feed(b"hi!")) == [b"hi"]
