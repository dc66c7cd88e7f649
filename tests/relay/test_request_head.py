"""A head is read once for all requests with the same bytes; what is no head is refused at once."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.http_parser import HttpRequestParser

from proxy.errors import MalformedRequest
from proxy.relay import request_head
from proxy.relay.request_head import HEAD_BYTES_MAX, HEAD_END, Found, HeadReader

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nX-Title: a\r\n\r\n"


@pytest.fixture
async def reader() -> HeadReader:
    return HeadReader(asyncio.get_running_loop())


def found(reader: HeadReader, data: bytes) -> Found:
    got = reader.find(data)
    assert got is not None
    return got


def test_the_parser_that_is_relied_upon_is_there() -> None:
    request_head.assert_c_parser()
    assert HttpRequestParser.__module__ == "aiohttp._http_parser"


async def test_what_a_head_says(reader: HeadReader) -> None:
    it = found(reader, HEAD + b"hello")
    head, length, end = it
    assert (head.method, head.target, head.version) == ("POST", "/v1/chat/completions", (1, 1))
    assert head.headers["host"] == "a.test" and (b"X-Title", b"a") in head.fields
    assert (length, end) == (5, len(HEAD))
    assert head.keep_alive and not head.is_chunked and not head.expects_continue and not head.is_http10


@pytest.mark.parametrize("name", [b"Content-Length", b"content-length"])
async def test_only_the_length_may_differ(reader: HeadReader, name: bytes) -> None:
    of = HEAD.replace(b"Content-Length", name)
    first = found(reader, of)
    again = found(reader, of.replace(b": 5", b": 123456"))
    assert again[0] is first[0]
    assert (first[1], again[1]) == (5, 123456)
    assert found(reader, of.replace(b"a.test", b"b.test"))[0] is not first[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"X-Title: a", b"X-Title: b"), (b"X-Title", b"x-title"), (b"X-Title: a", b"X-Title: a\r\nX-More: b"),
     (b"/v1/chat", b"/v2/chat"), (b"POST", b"PUT"), (b"HTTP/1.1", b"HTTP/1.0")],
    ids=["value", "spelling", "one more", "path", "method", "version"],
)  # fmt: skip
async def test_another_head_is_another(reader: HeadReader, old: bytes, new: bytes) -> None:
    assert found(reader, HEAD)[0] is not found(reader, HEAD.replace(old, new))[0]


@pytest.mark.parametrize("spelling", [b"CONTENT-LENGTH: 7", b"Content-Length:7", b"Content-Length:  7"])
async def test_a_length_in_any_spelling_is_read(reader: HeadReader, spelling: bytes) -> None:
    for _ in range(2):
        assert found(reader, HEAD.replace(b"Content-Length: 5", spelling))[1] == 7


@pytest.mark.parametrize(
    "length", [b"5\r\ncontent-length: 5", b"+5", b"5_0", b"0x5", b"-1", b"5, 5", b"", b"18446744073709551621"]
)
async def test_a_length_that_parsers_disagree_about_is_refused_also_beside_a_known_head(
    reader: HeadReader, length: bytes
) -> None:
    found(reader, HEAD)
    with pytest.raises(MalformedRequest):
        reader.find(HEAD.replace(b": 5", b": " + length))


@pytest.mark.parametrize(
    "data",
    [HEAD, HEAD + b"hello!", HEAD.replace(b": 5", b":  5"), HEAD.replace(b": 5", b": 5 "),
     HEAD.replace(b": 5", b": "), HEAD.replace(b": 5", b": +5"), HEAD.replace(b": 5", b": 05"),
     HEAD.replace(b": 5", b": 5\r\nContent-Length: 5"), HEAD.replace(b": 5", b": 5\r\n X"),
     HEAD.replace(b"X-Title: a", b"X-Title: b"), HEAD[:-1], HEAD[:-2], HEAD[: HEAD.index(b"5")],
     HEAD.replace(b"X-Title: a", b"X-Title: a\r\nX-More: b"), HEAD.replace(b"X-Title: a\r\n", b""),
     HEAD.replace(b"5\r\n", b"5\r\n\r\n"), b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n" + HEAD,
     b"5\r\n\r\nhello", b"%d\r\n\r\nhello", b"\r\n" + HEAD],
)  # fmt: skip
async def test_a_form_is_that_of_no_other_head_and_of_no_other_length(
    reader: HeadReader, data: bytes
) -> None:
    for last in (HEAD, HEAD.replace(b"Content-Length: 5\r\n", b"")):
        for more in (b"", b"hello"):
            block, _, content = (data + more).partition(HEAD_END)
            is_the_last = data + more == last + b"hello" and last is HEAD
            assert (block == found(reader, last)[0].form % len(content)) is is_the_last


@pytest.mark.parametrize(
    "of",
    [HEAD, HEAD.replace(b"/v1", b"/%d1%%"), HEAD.replace(b"Title: a", b"Title: %s"),
     HEAD.replace(b"X-Title: a\r\n", b"")],
    ids=["in the middle", "a sign in front", "a sign behind", "at the end"],
)  # fmt: skip
async def test_a_form_with_a_length_is_the_head_with_that_length(reader: HeadReader, of: bytes) -> None:
    form = found(reader, of)[0].form
    for length in (0, 5, 123456, 10**15 - 1):
        data = of.replace(b": 5", b": %d" % length)
        assert form % length + HEAD_END == data
        assert found(reader, data) == (found(reader, of)[0], length, len(data))


async def test_a_head_that_comes_in_pieces_is_the_same_head(reader: HeadReader) -> None:
    whole = found(reader, HEAD)[0]
    for cut in range(1, len(HEAD)):
        assert reader.find(HEAD[:cut]) is None
        got = reader.find(HEAD, cut)
        assert got is not None and got[0] is whole


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GET / HTTP/1.1\nhost: a", b"GET / HTTP/1.1\r\nho st: a\r\n",
     b"get / HTTP/1.1\r\n", b"GET / HTP/1.1\r\n", b"SSH-2.0-OpenSSH_9\r\n"],
    ids=["tls", "bare LF", "a space in a name", "lower case", "no HTTP", "ssh"],
)  # fmt: skip
async def test_what_cannot_become_a_head_is_refused_before_it_ends(reader: HeadReader, data: bytes) -> None:
    with pytest.raises(MalformedRequest):
        reader.find(data)


async def test_a_head_without_an_end_is_refused(reader: HeadReader) -> None:
    with pytest.raises(MalformedRequest):
        reader.find(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (HEAD_BYTES_MAX // 6))


async def test_a_form_has_a_boundary_of_its_own_and_is_not_remembered(reader: HeadReader) -> None:
    form = HEAD.replace(b"X-Title: a", b"Content-Type: multipart/form-data; boundary=b")
    assert found(reader, form)[0] is not found(reader, form)[0]


async def test_long_heads_are_not_remembered_and_the_memory_is_bounded(
    reader: HeadReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_head, "MEMO_MAX", 3)
    long = HEAD.replace(b"X-Title: a", b"X-Title: " + b"a" * 9000)
    assert found(reader, long)[0] is not found(reader, long)[0]
    for n in range(9):
        found(reader, HEAD.replace(b"X-Title: a", b"X-Title: %d" % n))
    assert len(reader._memo) <= 3


async def test_chunked_with_a_length_is_refused(reader: HeadReader) -> None:
    chunked = HEAD.replace(b"X-Title: a", b"Transfer-Encoding: chunked")
    with pytest.raises(MalformedRequest):
        reader.find(chunked)
    assert found(reader, chunked.replace(b"Content-Length: 5\r\n", b""))[0].is_chunked


@pytest.mark.parametrize(
    ("line", "version", "keeps"),
    [(b"Connection: close", b"1.1", False), (b"Upgrade: x\r\nConnection: upgrade", b"1.1", False),
     (b"X: y", b"1.1", True), (b"Connection: keep-alive", b"1.0", False)],
)  # fmt: skip
async def test_which_connections_serve_another_request(
    reader: HeadReader, line: bytes, version: bytes, keeps: bool
) -> None:
    head = HEAD.replace(b"X-Title: a", line).replace(b"1.1", version)
    assert found(reader, head)[0].keep_alive is keeps
