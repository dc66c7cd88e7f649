"""The meter reads what was compressed; a bomb or broken data ends metering, never the process."""

from __future__ import annotations

import gzip
import zlib

import pytest

from proxy.metering.decode import STEP_BYTES_MAX, Decoder

TEXT = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n' * 200


def bare(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


CODED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    " GZip ": gzip.compress(TEXT[:300]) + gzip.compress(TEXT[300:]),
    "identity": TEXT,
    "": TEXT,
}


@pytest.mark.parametrize("encoding", CODED)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_what_was_coded_comes_out_however_it_is_cut(encoding: str, size: int):
    body = CODED[encoding]
    decoder = Decoder(encoding)
    assert b"".join(decoder.feed(body[at : at + size]) for at in range(0, len(body), size)) == TEXT
    assert not decoder.degraded


@pytest.mark.parametrize("size", [1, 2, 1 << 20])
def test_deflate_without_a_header_is_understood(size: int):
    body = bare(TEXT)
    decoder = Decoder("deflate")
    assert b"".join(decoder.feed(body[at : at + size]) for at in range(0, len(body), size)) == TEXT


def test_each_flushed_event_comes_out_at_once():
    deflate = zlib.compressobj(wbits=31)
    decoder = Decoder("gzip")
    for event in (b"data: 1\n\n", b"data: 2\n\n"):
        assert decoder.feed(deflate.compress(event) + deflate.flush(zlib.Z_SYNC_FLUSH)) == event


@pytest.mark.parametrize(
    "body", [b"not gzip at all", gzip.compress(TEXT)[:40] + b"\xff" * 40], ids=["no gzip", "cut gzip"]
)
def test_broken_data_degrades(body: bytes):
    decoder = Decoder("gzip")
    decoder.feed(body)
    assert decoder.degraded
    assert decoder.feed(b"more") == b""


def test_an_unknown_coding_degrades_from_the_start():
    assert Decoder("br").degraded
    assert Decoder("br").feed(b"abc") == b""


def test_a_bomb_is_never_in_memory_at_once():
    bomb = gzip.compress(b"\0" * (64 << 20))
    decoder = Decoder("gzip")
    assert len(decoder.feed(bomb)) <= STEP_BYTES_MAX
    assert decoder.degraded
    assert decoder.feed(bomb) == b""
