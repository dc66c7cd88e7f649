"""OpenAI's pictures and sound: what they consume is tokens, or pictures, characters and seconds.

Owns the reading of transcripts that are no JSON, and what a request for speech tells about its bill.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from proxy.dialects.base import DONE, OperationSpec, Rules
from proxy.dialects.openai_format import NAMED, TOP_USAGE, read_usage
from proxy.dialects.rules import RuledMeter, milliseconds, reading
from proxy.metering.sound import SPEECH_TOKENS_PER_SECOND, Upload, speech_usage
from proxy.metering.usage import Usage

# -- pictures --------------------------------------------------------------------------------------

IMAGES = Rules(
    # The models that report no tokens are billed by the picture.
    counted=(("images", ("data",)),),
    each={"image_generation.completed": "images", "image_edit.completed": "images"},
)

_GENERATIONS = OperationSpec(
    "images",
    "images/generations",
    kind="images",
    streams=True,
    replayable=False,
    guarded=("model", "stream", "n", "size", "quality"),
    meter=TOP_USAGE,
    rules=IMAGES,
)
_EDITS = replace(
    _GENERATIONS, name="images.edits", path="images/edits", api="images", request="form", ids_in=NAMED
)

# -- speech ----------------------------------------------------------------------------------------

SPEECH = Rules(is_text=False, terminal=frozenset({"speech.audio.done"}))


def foretell_speech(
    doc: Mapping[str, Any], price: Mapping[str, Any], header: Callable[[bytes], bytes | None]
) -> Usage:
    """Sound tells nothing: it is billed by the characters of the text, or by the tokens they stand for."""
    return speech_usage(doc, by_character="character" in price)


_SPEECH = OperationSpec(
    "speech",
    "audio/speech",
    kind="speech",
    guarded=("model", "input", "stream_format"),
    meter=TOP_USAGE,
    rules=SPEECH,
    foretold=foretell_speech,
)

# -- transcripts -----------------------------------------------------------------------------------


def read_heard(raw: dict[str, Any]) -> Usage | None:
    """A `usage` of tokens, of seconds, or of both (Mistral)."""
    usage = read_usage(raw) or Usage()
    usage.seconds_ms = milliseconds(raw.get("seconds")) or milliseconds(raw.get("prompt_audio_seconds"))
    return None if usage.is_empty() else usage


def foretell_heard(
    doc: Mapping[str, Any], price: Mapping[str, Any], header: Callable[[bytes], bytes | None]
) -> Usage | None:
    """How long the recording is, as far as its first bytes tell."""
    upload = doc.get("file")
    if not isinstance(upload, Upload):
        return None
    lasts_ms = upload.lasts_ms()
    usage = Usage(seconds_ms=lasts_ms, calls=1)
    if "second" not in price:
        usage.input_audio = lasts_ms * SPEECH_TOKENS_PER_SECOND // 1000
    return usage


HEARD = Rules(
    text=(("delta",), ("text",)),
    terminal=frozenset({"transcript.text.done"}),
    lasting=(("duration",),),
)

_EVENT_BEGINNINGS = (b"data:", b"event:")
_BLANK = b" \t\r\n\xef\xbb\xbf"
_CUE_END = re.compile(rb"-->[ \t]*(?:(\d{1,3}):)?(\d\d):(\d\d)[.,](\d{3})")  # SRT and WebVTT
_CUE_BYTES_MAX = 64


class TranscriptMeter(RuledMeter):
    """A transcript as JSON, as events, or as plain text, whose last cue tells how long it lasts."""

    def __init__(self, operation: OperationSpec, is_event_stream: bool) -> None:
        super().__init__(operation, is_event_stream)
        self._begin = b""  # too short to tell what it is
        self._characters: codecs.IncrementalDecoder | None = None  # of plain text
        self._tail = b""

    def _sniff(self, content: bytes) -> bytes:
        begin = (self._begin + content).lstrip(_BLANK)
        self._begin = b""
        if any(name.startswith(begin) for name in _EVENT_BEGINNINGS):
            self._begin = begin
            return b""
        if begin[:1] not in (b"{", b":") and not begin.startswith(_EVENT_BEGINNINGS):
            self._characters = codecs.getincrementaldecoder("utf-8")("replace")
            self._whole = []
            return begin
        return super()._sniff(begin)

    def _feed_whole(self, content: bytes) -> None:
        if self._characters is None:
            super()._feed_whole(content)
            return
        text = self._tail + content
        for cue in _CUE_END.finditer(text):
            hours, minutes, seconds, thousandths = (int(part or 0) for part in cue.groups())
            self._seconds_ms = ((hours * 60 + minutes) * 60 + seconds) * 1000 + thousandths
        self._tail = text[-_CUE_BYTES_MAX:]
        self._keep_text(self._characters.decode(content))

    def _finish_whole(self) -> None:
        if self._characters is None:
            super()._finish_whole()
        else:
            self.events += 1
            self.complete = True


_TRANSCRIPTIONS = OperationSpec(
    "transcriptions",
    "audio/transcriptions",
    kind="transcription",
    request="form",
    streams=True,
    generates_text=True,
    terminal_hint=DONE,
    guarded=("model", "stream", "response_format"),
    meter=reading(read_heard),
    rules=HEARD,
    own_meter=TranscriptMeter,
    foretold=foretell_heard,
)

SPECS = (
    _GENERATIONS,
    _EDITS,
    replace(_EDITS, name="images.variations", path="images/variations", streams=False),
    _SPEECH,
    _TRANSCRIPTIONS,
    replace(_TRANSCRIPTIONS, name="translations", path="audio/translations", streams=False),
)
