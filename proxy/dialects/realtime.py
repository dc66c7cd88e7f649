"""Read the turns of a session over a WebSocket: each frame is a JSON value, each turn has a usage of its own.

Owns what all families of sessions share; what is particular to one is a row (`base.Session`).
"""

from __future__ import annotations

from typing import Any

from proxy.dialects.answer import look_up
from proxy.dialects.base import OperationSpec
from proxy.dialects.rules import RuledMeter, every
from proxy.metering.usage import Usage

BASE64_CHARS_PER_AUDIO_TOKEN = 3200  # a token is 50 ms of speech at 24 kHz and 16 bit


class TurnMeter(RuledMeter):
    """A `Meter` (base.py) of one turn. A turn that breaks off is worth the sound that was sent so far."""

    def __init__(self, operation: OperationSpec, is_event_stream: bool) -> None:
        super().__init__(operation, is_event_stream)
        assert operation.session is not None
        self._session = operation.session
        self._spoken_chars = 0
        self._added: Usage | None = None
        self.is_transcript = False  # the last event was about the caller's speech, not about this turn
        self.transcriber = ""

    def add(self, usage: Usage) -> None:
        """What belongs to this turn beside what its own events tell."""
        self._added = usage if self._added is None else self._added.plus(usage)

    def usage(self) -> Usage | None:
        usage = self._told()
        if self._added is None:
            return usage
        return self._added if usage is None else usage.plus(self._added)

    def _told(self) -> Usage | None:
        if self._usage is not None or not self._spoken_chars:
            return self._usage
        return Usage(output_audio=-(-self._spoken_chars // BASE64_CHARS_PER_AUDIO_TOKEN), calls=1)

    def usage_is_final(self) -> bool:
        return self._usage is not None and self.finished

    def _on_event(self, doc: dict[str, Any]) -> None:
        session, kind = self._session, look_up(doc, self._rules.kind)
        self.is_transcript = bool(session.transcribed) and kind == session.transcribed
        if self.is_transcript:
            return
        for place in session.transcriber:
            model = look_up(doc, place)
            self.transcriber = model if type(model) is str else self.transcriber
        if kind is None or (type(kind) is str and kind.endswith("audio.delta")):
            self._spoken_chars += sum(
                len(sound) for place in session.spoken for sound in every(doc, place) if type(sound) is str
            )
            if kind is not None:
                return  # its delta is sound, not text
        super()._on_event(doc)
        self.complete |= self.finished and self._usage is not None

    _on_whole = _on_event
