"""The meter reads what was compressed; a bomb or broken data ends metering, never the process."""

from __future__ import annotations

import gzip
import zlib

import brotli
import pytest
from backports import zstd

from proxy.metering.decode import CODINGS, PIECE_BYTES, STEP_BYTES_MAX, Decoder, TooLong, Undecodable, decode

TEXT = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n' * 200


def bare(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


CODED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    " GZip ": gzip.compress(TEXT[:300]) + gzip.compress(TEXT[300:]),
    "br": brotli.compress(TEXT),
    "zstd": zstd.compress(TEXT),
    "ZSTD": zstd.compress(TEXT[:300]) + zstd.compress(TEXT[300:]),
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


def flushed_gzip(events: list[bytes]) -> list[bytes]:
    stream = zlib.compressobj(wbits=31)
    return [stream.compress(event) + stream.flush(zlib.Z_SYNC_FLUSH) for event in events]


def flushed_br(events: list[bytes]) -> list[bytes]:
    stream = brotli.Compressor()
    return [stream.process(event) + stream.flush() for event in events]


def flushed_zstd(events: list[bytes]) -> list[bytes]:
    stream = zstd.ZstdCompressor()
    return [stream.compress(event, mode=stream.FLUSH_BLOCK) for event in events]


@pytest.mark.parametrize(
    ("coding", "flushed"), [("gzip", flushed_gzip), ("br", flushed_br), ("zstd", flushed_zstd)]
)
def test_each_flushed_event_comes_out_at_once(coding, flushed):
    events = [b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"]
    decoder = Decoder(coding)
    assert [decoder.feed(piece) for piece in flushed(events)] == events


BROKEN = {
    "gzip": gzip.compress(TEXT)[:40] + b"\xff" * 40,
    "deflate": zlib.compress(TEXT)[:40] + b"\xff" * 40,
    "br": brotli.compress(TEXT)[:20] + b"\xff" * 40,
    "zstd": zstd.compress(TEXT)[:40] + b"\xff" * 40,
}


@pytest.mark.parametrize("coding", CODINGS)
def test_broken_data_degrades(coding: str):
    decoder = Decoder(coding)
    decoder.feed(BROKEN[coding])
    assert decoder.degraded
    assert decoder.feed(b"more") == b""


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_text_that_is_only_said_to_be_coded_is_read_as_it_is(coding: str, size: int):
    decoder = Decoder(coding)
    assert b"".join(decoder.feed(TEXT[at : at + size]) for at in range(0, len(TEXT), size)) == TEXT
    assert not decoder.degraded


def test_what_is_neither_coded_nor_text_degrades():
    decoder = Decoder("gzip")
    assert decoder.feed(b"\x00\x01\x02\x03" * 8) == b""
    assert decoder.degraded


def test_an_unknown_coding_degrades_from_the_start():
    assert Decoder("gzip, br").degraded
    assert Decoder("compress").feed(b"abc") == b""


BOMB = b"\0" * (64 << 20)
BOMBS = {
    "gzip": gzip.compress(BOMB, 9), "deflate": zlib.compress(BOMB, 9),
    "br": brotli.compress(BOMB, quality=5), "zstd": zstd.compress(BOMB),
}  # fmt: skip


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_is_never_in_memory_at_once(coding: str):
    decoder = Decoder(coding)
    sizes = [len(piece) for piece in decoder.pieces(BOMBS[coding])]
    assert sum(sizes) <= STEP_BYTES_MAX
    assert max(sizes) <= 2 * PIECE_BYTES
    assert decoder.degraded
    assert decoder.feed(BOMBS[coding]) == b""


def test_a_window_that_nobody_has_to_hold_is_not_made():
    coded = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    huge = coded.compress(TEXT) + coded.flush()
    decoder = Decoder("zstd")
    assert decoder.feed(huge) == b""
    assert decoder.degraded


# -- whole requests --------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "br", "zstd"])
def test_a_whole_body_is_decoded(coding: str):
    assert decode(CODED[coding], coding, len(TEXT)) == TEXT


def test_a_whole_body_may_be_deflated_without_a_header():
    assert decode(bare(TEXT), "deflate", len(TEXT)) == TEXT


@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_that_decodes_to_too_much_is_refused_early(coding: str):
    with pytest.raises(TooLong):
        decode(BOMBS[coding], coding, 1 << 20)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("damage", ["cut", "broken", "followed", "no code at all", "empty"])
def test_a_body_that_is_not_what_its_coding_says_is_refused(coding: str, damage: str):
    body = {
        "cut": CODED[coding][:-5], "broken": BROKEN[coding], "followed": CODED[coding] + b"more",
        "no code at all": b'{"model":"m"}', "empty": b"",
    }[damage]  # fmt: skip
    with pytest.raises(Undecodable):
        decode(body, coding, 1 << 20)


@pytest.mark.parametrize("coding", ["gzip, br", "compress", "identity"])
def test_a_coding_that_is_not_read_is_refused(coding: str):
    with pytest.raises(Undecodable):
        decode(b"", coding, 1 << 20)
