"""OpenAI's Realtime, which Azure and xAI speak too. Data only.

https://developers.openai.com/api/reference/resources/realtime
"""

from __future__ import annotations

import orjson

from proxy.dialects.base import OperationSpec, Rules, Session
from proxy.dialects.openai_format import error_object, read_usage
from proxy.dialects.openai_media import read_heard
from proxy.dialects.realtime import TurnMeter
from proxy.dialects.rules import RuledMeter, reading


def error_event(kind: str, code: str, message: str) -> bytes:
    """The `error` event of a session."""
    error = error_object(kind, code, message, None)
    return orjson.dumps({"type": "error", "error": {**error, "event_id": None}})


SESSION = Session(
    model_in_query=("model", "deployment"),
    error=error_event,
    spoken=(("delta",),),
    transcriber=(
        ("session", "audio", "input", "transcription", "model"),
        ("session", "input_audio_transcription", "model"),
    ),
    transcribed="conversation.item.input_audio_transcription.completed",
    transcript="realtime.transcript",
)

SPECS = (
    OperationSpec(
        "realtime",
        "realtime",
        ("GET",),
        request="socket",
        model_at="session",
        generates_text=True,
        replayable=False,
        guarded=(),
        meter=reading(read_usage, ("response", "usage"), ("usage",)),  # xAI has it beside the response
        rules=Rules(
            values=b"{",
            model=(("session", "model"), ("response", "model")),
            vendor_id=(("response", "id"),),
            error=(("response", "status_details", "error"),),
            failing=frozenset(),  # an `error` is a client's mistake, which the session outlives
            text=(("delta",),),  # of text, of what is said, of arguments
            terminal=frozenset({"response.done"}),
        ),
        own_meter=TurnMeter,
        session=SESSION,
    ),
    OperationSpec(  # what was heard within a session: a call of its own, at the transcriber's price
        "realtime.transcript",
        "",
        kind="transcription",
        request="none",
        guarded=(),
        meter=reading(read_heard),
        rules=Rules(vendor_id=(("item_id",),)),
        own_meter=RuledMeter,
    ),
)
