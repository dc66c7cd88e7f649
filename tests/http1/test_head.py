"""A response head: what is read, what is refused, and how the body behind it ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.errors import UpstreamGarbage
from proxy.http1.head import FIELDS_MAX, HEAD_BYTES_MAX, Head, parse

HELLO = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream; charset=utf-8\r\n"
    b"X-Request-ID:req_1\r\n"
    b"x-empty:\r\n"
    b"X-Padded: \t two  words \t \r\n"
    b"X-Latin: caf\xe9\r\n"
    b"transfer-encoding: chunked\r\n"
    b"\r\n"
)
FIELDS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-request-id", b"req_1"),
    (b"x-empty", b""),
    (b"x-padded", b"two  words"),
    (b"x-latin", b"caf\xe9"),
    (b"transfer-encoding", b"chunked"),
]


def head_of(*fields: bytes, first: bytes = b"HTTP/1.1 200 OK", method: str = "POST") -> Head:
    head = parse(b"\r\n".join((first, *fields, b"", b"")), method)
    assert head is not None
    return head


def framing(head: Head) -> tuple[str, int | None, bool]:
    """How its body ends, and whether the connection lasts."""
    return head.kind, head.length, head.keep_alive


def test_a_head_is_read():
    head = parse(HELLO)
    assert (head.status, head.shape.reason, head.shape.version) == (200, b"OK", (1, 1))
    assert (head.fields, head.rest) == (FIELDS, b"")
    assert head.value(b"x-request-id") == b"req_1"
    assert head.value(b"x-other") is None


def test_what_follows_a_head_is_left_alone():
    for rest in (b"d", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\0" * 100_000):
        head = parse(HELLO + rest)
        assert head is not None
        assert head.rest == rest
        assert head.fields == FIELDS


def test_no_prefix_of_a_head_is_a_head():
    for cut in range(len(HELLO)):
        assert parse(HELLO[:cut]) is None


def test_a_head_that_drips_in_is_found_wherever_it_was_cut():
    for first in range(len(HELLO)):
        for second in range(first, len(HELLO)):
            assert parse(HELLO[:second], scanned=first) is None
        assert parse(HELLO, scanned=first) == parse(HELLO)


@pytest.mark.parametrize("first", [b"HTTP/1.1 204", b"HTTP/1.1 204 ", b"HTTP/1.0 204 No Content"])
def test_status_lines_as_servers_write_them(first):
    assert head_of(first=first).status == 204


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"HTTP/1.1",
        b"HTTP/1.1 ",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 2O0 OK",
        b"HTTP/1.1 +20 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 600 OK",
        b"HTTP/1.1 \xb2\xb2\xb2 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/2 200 OK",
        b"HTTP/2.0 200 OK",
        b"http/1.1 200 OK",
        b" HTTP/1.1 200 OK",
        b"\r\nHTTP/1.1 200 OK",
        b"HTTP/1.1 200 O\0K",
        b"HTTP/1.1 200 O\rK",
        b"SSH-2.0-OpenSSH_9.2",
    ],
)
def test_other_status_lines_are_refused(first):
    with pytest.raises(UpstreamGarbage):
        head_of(first=first)


@pytest.mark.parametrize(
    "field",
    [
        b"no colon",
        b": no name",
        b"x-space : 1",
        b" x-folded: 1",
        b"\tx-folded: 1",
        b"x y: 1",
        b"x(y): 1",
        b"x\xe9: 1",
        b"x" * 257 + b": 1",
        b"x-nul: a\0b",
        b"x-cr: a\rb",
        b"x-lf: a\nb",
        b"x-bell: \x07",
        b"x-del: \x7f",
        b"x\0: 1",
        b"x-cr-at-end: a\r",
        b"\rx: 1",
        b"\nx: 1",
    ],
)
def test_fields_that_two_readers_may_see_differently_are_refused(field):
    for fields in ((field,), (b"x-a: 1", field), (field, b"x-b: 1")):
        with pytest.raises(UpstreamGarbage):
            head_of(*fields)


def test_a_folded_field_is_refused():
    with pytest.raises(UpstreamGarbage):
        head_of(b"x-note: a", b" b")


def test_there_may_be_so_many_fields_and_no_more():
    assert len(head_of(*[b"x: 1"] * FIELDS_MAX).fields) == FIELDS_MAX
    with pytest.raises(UpstreamGarbage):
        head_of(*[b"x: 1"] * (FIELDS_MAX + 1))


def test_a_head_may_be_so_long_and_no_longer():
    room = HEAD_BYTES_MAX - len(b"HTTP/1.1 200 OK\r\nx: ")
    assert head_of(b"x: " + b"a" * room).value(b"x") == b"a" * room
    with pytest.raises(UpstreamGarbage):
        head_of(b"x: " + b"a" * (room + 1))


@pytest.mark.parametrize(
    "beginning",
    [
        b"SSH-2.0",
        b"\0",
        b"HTTP/2",
        b"HTTP/1.1 200 OK\n",
        b"HTTP/1.1 200 OK\r\nx: 1\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: 1\r\n" * 12_000,
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * HEAD_BYTES_MAX,
    ],
)
def test_what_cannot_become_a_head_is_refused_before_it_ends(beginning):
    with pytest.raises(UpstreamGarbage):
        parse(beginning)


def test_a_line_end_between_two_reads_is_not_a_bare_one():
    data = b"HTTP/1.1 200 OK\r\nx: 1\r\n"
    for cut in range(len(data)):
        assert parse(data, scanned=cut) is None


PIECES = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.",
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b":",
    b" ",
    b"x: 1",
    b"\r\n\r\n",
    b"a",
    b"\xe9",
]


def outcome(data: bytes, cuts: list[int]) -> Head | type[UpstreamGarbage] | None:
    """What a connection makes of these bytes when they come in these pieces."""
    scanned = 0
    for end in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        try:
            head = parse(data[:end], scanned=scanned)
        except UpstreamGarbage:
            return UpstreamGarbage
        if head is not None:
            return replace(head, rest=head.rest + data[end:])
        scanned = end
    return None


@given(
    st.lists(st.sampled_from(PIECES), max_size=30).map(lambda rest: b"HTTP/1.1 200 OK\r\n" + b"".join(rest)),
    st.lists(st.integers(0, 200)),
)
def test_any_bytes_give_the_same_in_any_pieces(data, cuts):
    whole, pieced = outcome(data, []), outcome(data, cuts)
    assert pieced == whole


@given(st.binary(max_size=60))
def test_no_bytes_do_any_other_harm(data):
    outcome(data, list(range(60)))


# -- framing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([b"content-length: 5"], ("length", 5, True)),
        ([b"Content-Length: 005"], ("length", 5, True)),
        ([b"content-length: 0"], ("length", 0, True)),
        ([b"transfer-encoding: chunked"], ("chunked", None, True)),
        ([b"Transfer-Encoding: Chunked"], ("chunked", None, True)),
        ([], ("eof", None, False)),
        ([b"content-length: 5", b"connection: close"], ("length", 5, False)),
        ([b"content-length: 5", b"connection: x-a, Close"], ("length", 5, False)),
        ([b"content-length: 5", b"connection: x-a", b"connection: close"], ("length", 5, False)),
        ([b"content-length: 5", b"connection: keep-alive"], ("length", 5, True)),
        ([b"connection: keep-alive"], ("eof", None, False)),
    ],
)
def test_how_a_body_ends(fields, expected):
    assert framing(head_of(*fields)) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([b"content-length: 5"], ("length", 5, False)),
        ([b"content-length: 5", b"connection: Keep-Alive"], ("length", 5, True)),
        ([], ("eof", None, False)),
    ],
)
def test_http_1_0_closes_unless_it_says_otherwise(fields, expected):
    assert framing(head_of(*fields, first=b"HTTP/1.0 200 OK")) == expected


@pytest.mark.parametrize(
    ("value", "idle_s"),
    [
        (b"timeout=5", 5),
        (b"max=100, Timeout = 0", 0),
        (b"max=100", None),
        (b"timeout=", None),
        (b"timeout=-1", None),
        (b"timeout=1e9", None),
        (b"timeout=9999999999", None),
        (b"", None),
    ],
)
def test_a_server_may_say_how_long_it_keeps_an_idle_connection(value, idle_s):
    head = head_of(b"content-length: 5", b"keep-alive: " + value)
    assert (framing(head), head.idle_s) == (("length", 5, True), idle_s)


@pytest.mark.parametrize(
    ("first", "method"),
    [(b"HTTP/1.1 200 OK", "HEAD"), (b"HTTP/1.1 204 No Content", "POST"), (b"HTTP/1.1 304 Same", "GET")],
)
def test_some_answers_have_no_body_whatever_they_declare(first, method):
    assert framing(head_of(b"content-length: 5", first=first, method=method)) == ("none", 5, True)
    assert framing(head_of(b"transfer-encoding: chunked", first=first, method=method)) == ("none", None, True)
    assert framing(head_of(first=first, method=method)) == ("none", None, True)


@pytest.mark.parametrize(
    "fields",
    [
        [b"content-length: 5", b"content-length: 6"],
        [b"content-length: 5", b"content-length: 5"],
        [b"content-length: 5, 5"],
        [b"content-length:"],
        [b"content-length: -5"],
        [b"content-length: +5"],
        [b"content-length: 5 "[:-1] + b"a"],
        [b"content-length: 0x5"],
        [b"content-length: 5_0"],
        [b"content-length: \xb2"],
        [b"content-length: 9999999999999999999"],
        [b"content-length: 5", b"transfer-encoding: chunked"],
        [b"transfer-encoding: chunked", b"transfer-encoding: chunked"],
        [b"transfer-encoding: gzip, chunked"],
        [b"transfer-encoding: chunked, identity"],
        [b"transfer-encoding: identity"],
        [b"transfer-encoding: xchunked"],
        [b"transfer-encoding:"],
    ],
)
def test_framing_that_cannot_be_trusted_is_refused(fields):
    with pytest.raises(UpstreamGarbage):
        framing(head_of(*fields))


def test_an_interim_head_has_no_body_whatever_it_declares():
    head = head_of(b"content-length: a", b"transfer-encoding: b", first=b"HTTP/1.1 103 Early Hints")
    assert framing(head) == ("none", None, True)


def test_chunked_is_refused_in_http_1_0():
    with pytest.raises(UpstreamGarbage):
        framing(head_of(b"transfer-encoding: chunked", first=b"HTTP/1.0 200 OK"))
