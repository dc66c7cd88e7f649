"""How long a recording lasts, from its first bytes and its size."""

from __future__ import annotations

import io
import wave

import pytest

from proxy.metering.sound import BYTES_PER_SECOND, OPUS_BYTES_PER_SECOND, Upload, speech_usage


def wav(seconds: int, rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * rate * seconds))
    return out.getvalue()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_wav_tells_its_rate(rate: int):
    sound = wav(7, rate)
    assert 7000 <= Upload(sound[:4096], len(sound)).lasts_ms() <= 7010


def test_flac_tells_its_samples():
    info = (44_100 << 44 | 1 << 41 | 15 << 36 | 44_100 * 5).to_bytes(8, "big")
    head = b"fLaC" + b"\x00\x00\x00\x22" + bytes(10) + info
    assert Upload(head, 12345).lasts_ms() == 5000


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)])
def test_mp3_tells_its_bit_rate(tag: bytes):
    head = tag + b"\xff\xfb\x90\x00"  # MPEG 1 layer III, 128 kbit/s
    assert Upload(head, 160_000).lasts_ms() == 10_000
    slow = tag + b"\xff\xf3\x40\x00"  # MPEG 2, 32 kbit/s
    assert Upload(slow, 40_000).lasts_ms() == 10_000


def test_what_tells_nothing_is_taken_by_the_declared_figures():
    assert Upload(b"OggS", OPUS_BYTES_PER_SECOND * 3).lasts_ms() == 3000
    assert Upload(b"\x1aE\xdf\xa3", OPUS_BYTES_PER_SECOND).lasts_ms() == 1000
    for head in (b"", b"RIFF", b"fLaC", b"ID3", b"\xff\xfb", b"....ftypM4A "):
        assert Upload(head, BYTES_PER_SECOND * 2).lasts_ms() == 2000


def test_speech_has_characters_not_bytes():
    usage = speech_usage({"input": "a中🎉"}, by_character=True)
    assert usage.as_dict() == {"characters": 3, "calls": 1}


def test_speech_that_is_sold_by_tokens_has_those_of_what_is_read_and_said():
    usage = speech_usage({"input": "x" * 100, "instructions": "y" * 20}, by_character=False)
    assert usage.as_dict() == {"characters": 100, "input": 30, "output_audio": 150, "calls": 1}
    assert speech_usage({"input": 5}, by_character=False).as_dict() == {"calls": 1}
