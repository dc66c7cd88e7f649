"""AWS's binary frames: whole, cut anywhere, long, and broken."""

from __future__ import annotations

import base64
import json
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.metering.eventstream import FRAME_BYTES_MAX, FrameSplitter, frame, kind_of
from proxy.metering.scanner import PointerScanner
from tests.dialects.answers import every_byte, two_pieces

WANTED = (("metadata", "usage"), ("contentBlockDelta", "delta", "_"))


def splitter(*, is_wrapped: bool = False) -> FrameSplitter:
    return FrameSplitter(lambda: PointerScanner(WANTED), is_wrapped=is_wrapped)


def event(kind: str, payload: object) -> bytes:
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return frame(headers, json.dumps(payload).encode())


def read(frames: FrameSplitter, *pieces: bytes) -> list[object]:
    found = [one for piece in pieces for one in frames.feed(piece)] + frames.finish()
    return [json.loads(one) if isinstance(one, bytes) else one.document for one in found]


USAGE = {"inputTokens": 3, "outputTokens": 9}
STREAM = (
    event("messageStart", {"role": "assistant"})
    + event("contentBlockDelta", {"delta": {"text": "中文"}})
    + event("messageStop", {"stopReason": "end_turn"})
    + event("metadata", {"usage": USAGE})
)
EVENTS = [
    {"messageStart": {"role": "assistant"}},
    {"contentBlockDelta": {"delta": {"text": "中文"}}},
    {"messageStop": {"stopReason": "end_turn"}},
    {"metadata": {"usage": USAGE}},
]


def test_a_frame_is_as_aws_writes_it():
    # The layout of the documentation's example, with both checksums.
    headers = b"\x0b:event-type\x07\x00\x04ping"
    prelude = (16 + len(headers) + 2).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    prelude += crc32(prelude).to_bytes(4, "big")
    message = prelude + headers + b"{}"
    assert frame({":event-type": "ping"}, b"{}") == message + crc32(message).to_bytes(4, "big")


def test_events_are_named_by_their_type():
    assert read(splitter(), STREAM) == EVENTS
    assert read(splitter(), *every_byte(STREAM)) == EVENTS
    for pieces in two_pieces(STREAM):
        assert read(splitter(), *pieces) == EVENTS


def test_what_a_model_of_invoke_says_is_unwrapped():
    inner = {"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 1}}
    chunk = event("chunk", {"bytes": base64.b64encode(json.dumps(inner).encode()).decode(), "p": "abc"})
    refused = frame({":exception-type": "throttlingException"}, b'{"message":"slow"}')
    assert read(splitter(is_wrapped=True), chunk + refused) == [
        inner,
        {"throttlingException": {"message": "slow"}},
    ]
    assert read(splitter(is_wrapped=True), event("chunk", {"bytes": "%"}) + chunk) == [inner]


@pytest.mark.parametrize("size", [1000, 70_000])
def test_a_long_frame_is_scanned_not_kept(size: int):
    long = event("metadata", {"pad": "x" * (FRAME_BYTES_MAX * 20), "usage": USAGE})
    stream = long + STREAM
    frames = splitter()
    found: list[object] = []
    for at in range(0, len(stream), size):
        found += read(frames, stream[at : at + size])
        assert len(frames._kept) <= FRAME_BYTES_MAX + size
    assert found == [{"metadata": {"usage": USAGE}}, *EVENTS]


def test_a_damaged_payload_hides_no_other_event():
    damaged = bytearray(STREAM)
    damaged[STREAM.index(b"assistant")] ^= 1
    assert read(splitter(), bytes(damaged)) == EVENTS[1:]


@pytest.mark.parametrize("at", range(12))
def test_a_damaged_prelude_ends_the_reading(at: int):
    damaged = bytearray(STREAM)
    damaged[at] ^= 1
    frames = splitter()
    assert read(frames, bytes(damaged)) == [] and frames.failed


def test_headers_of_every_kind_are_skipped():
    values = [
        b"\x00",
        b"\x01",
        b"\x02a",
        b"\x03ab",
        b"\x04abcd",
        b"\x05abcdefgh",
        b"\x06\x00\x02ab",
        b"\x08abcdefgh",
    ]
    fields = b"".join(b"\x01x" + value for value in [*values, b"\x06\x00\x02ab"])
    assert kind_of(fields + b"\x0b:event-type\x07\x00\x04ping") == "ping"
    for cut in range(len(fields)):
        assert kind_of(fields[:cut]) == ""


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_nothing_makes_it_raise(pieces: list[bytes]):
    frames = splitter()
    for piece in pieces:
        frames.feed(piece)
    frames.finish()
