"""Sound without a usage: how long a recording lasts, and how many tokens a spoken text has.

Owns the look at the head of an upload, and the declared figures where a head does not tell. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.metering.sliced import LongText
from proxy.metering.usage import Usage

SPEECH_TOKENS_PER_SECOND = 12  # of recorded speech; 37 of 3.25 s were seen

# What one second takes where the head does not say: speech as phones, browsers and podcasts record it.
# Smaller figures would be on the side of the station, larger ones on that of the key holder.
BYTES_PER_SECOND = 16_000  # 128 kbit/s
OPUS_BYTES_PER_SECOND = 4_000
_OPUS = (b"OggS", b"\x1aE\xdf\xa3")  # Ogg, and WebM or Matroska

_MP3_KBITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1 layer III
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5
    0: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True, slots=True)
class Upload:
    """The file of a form as far as the bill is concerned: its first bytes and its size in bytes."""

    head: bytes
    size: int

    def lasts_ms(self) -> int:
        """How long it plays, in ms: exact for WAV and FLAC, near for MP3, else by the declared figures."""
        exact = _flac_ms(self.head)
        if exact:
            return exact
        rate = _wav_rate(self.head) or _mp3_rate(self.head)
        if not rate:
            rate = OPUS_BYTES_PER_SECOND if self.head.startswith(_OPUS) else BYTES_PER_SECOND
        return self.size * 1000 // rate


def _wav_rate(head: bytes) -> int:
    """Bytes of a second, from the `fmt ` chunk; 0: it is no WAV."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return 0
    at = head.find(b"fmt ", 12)
    return int.from_bytes(head[at + 16 : at + 20], "little") if at >= 0 else 0


def _flac_ms(head: bytes) -> int:
    """From STREAMINFO (RFC 9639 8.2): 20 bits of sample rate, 36 bits of samples; 0: it is no FLAC."""
    if head[:4] != b"fLaC" or len(head) < 26:
        return 0
    packed = int.from_bytes(head[18:26], "big")
    rate, samples = packed >> 44, packed & ((1 << 36) - 1)
    return samples * 1000 // rate if rate else 0


def _mp3_rate(head: bytes) -> int:
    """Bytes of a second at the bit rate of the first frame; 0: it is no MP3."""
    at = 0
    if head[:3] == b"ID3" and len(head) > 10:  # a tag in front; its length has 7 bits in each byte
        size = head[6:10]
        at = 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
    frame = head[at : at + 3]
    if len(frame) < 3 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:  # frame sync, layer III
        return 0
    kbits = _MP3_KBITS.get(frame[1] >> 3 & 3, ())
    index = frame[2] >> 4
    return kbits[index] * 125 if index < len(kbits) else 0


# One UTF-8 byte of any language is spoken in about 1/14 of a second: 15 letters of English, 5 characters
# of Chinese. A second of generated speech has about 20 tokens.
_SPOKEN_TOKENS_PER_10_BYTES = 15
_TEXT_BYTES_PER_TOKEN = 4


def speech_usage(doc: Mapping[str, Any], *, by_character: bool) -> Usage:
    """What speech consumes, from its request: characters (code points), or the tokens that they stand for."""
    text = doc.get("input")
    text = text if isinstance(text, str) else ""
    usage = Usage(characters=len(text), calls=1)
    if not by_character:
        told = doc.get("instructions")
        spoken = text.size if isinstance(text, LongText) else len(text.encode("utf-8", "replace"))
        read = spoken + len(told.encode("utf-8", "replace") if type(told) is str else b"")
        usage.input = -(-read // _TEXT_BYTES_PER_TOKEN)
        usage.output_audio = -(-spoken * _SPOKEN_TOKENS_PER_10_BYTES // 10)
    return usage
