"""Google's Gemini: the model and the verb are in the path, the usage is told by every event.

Owns the wire format of the Gemini API, which Vertex AI serves too. A stream is server-sent events where
`alt=sse` asks for them, else one JSON array whose elements arrive one by one; neither has a terminal event.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from proxy.dialects import headers
from proxy.dialects.answer import known_int
from proxy.dialects.base import ANY, Dialect, OperationSpec, Rules, Session
from proxy.dialects.gemini_resources import FILE_OPERATIONS, NAMED, UPLOAD_PATH, cached_contents
from proxy.dialects.realtime import TurnMeter
from proxy.dialects.rules import meter_of, reading
from proxy.metering.usage import Usage

# -- usage -----------------------------------------------------------------------------------------

# As names, and as numbers for clients that ask for `$alt=json;enum-encoding=int`. Video and documents
# are priced as text is.
_AUDIO: tuple[str | int, ...] = ("AUDIO", 4)
_IMAGE: tuple[str | int, ...] = ("IMAGE", 2)


def read_usage(raw: dict[str, Any]) -> Usage | None:
    """A `usageMetadata` object. What is zero is left out of it.

    The prompt includes what came from the cache; the candidates exclude what was thought. Prompts of
    built-in tools are apart. A total that exceeds the sum holds thinking that is not listed.
    """
    prompt, total = raw.get("promptTokenCount"), known_int(raw.get("totalTokenCount"))
    output = known_int(raw.get("candidatesTokenCount")) or known_int(raw.get("responseTokenCount"))
    if prompt is None and not output and not total:
        return None
    input_ = known_int(prompt) + known_int(raw.get("toolUsePromptTokenCount"))
    thoughts = known_int(raw.get("thoughtsTokenCount"))
    excess = max(0, total - input_ - output - thoughts)
    if prompt is None:
        input_ += excess
    else:
        output += excess
    cached = min(known_int(raw.get("cachedContentTokenCount")), input_)
    cached_audio = min(_of(raw, ("cacheTokensDetails",), _AUDIO), cached)
    ins = ("promptTokensDetails", "toolUsePromptTokensDetails", "promptTokenDetails")
    audio = min(max(0, _of(raw, ins, _AUDIO) - cached_audio), input_ - cached)
    cached_image = _of(raw, ("cacheTokensDetails",), _IMAGE)
    image = min(max(0, _of(raw, ins, _IMAGE) - cached_image), input_ - cached - audio)
    outs = ("candidatesTokensDetails", "responseTokensDetails")
    spoken = min(_of(raw, outs, _AUDIO), output)
    drawn = min(_of(raw, outs, _IMAGE), output - spoken)
    return Usage(
        input=input_ - cached - audio - image,
        cache_read=cached - cached_audio,
        cached_audio=cached_audio,
        input_audio=audio,
        input_image=image,
        output=output - spoken - drawn + thoughts,
        output_audio=spoken,
        output_image=drawn,
        reasoning=thoughts,
    )


def _of(raw: dict[str, Any], names: tuple[str, ...], modality: tuple[str | int, ...]) -> int:
    """Tokens of a modality in lists of `{"modality": ..., "tokenCount": ...}`."""
    return sum(
        known_int(part.get("tokenCount"))
        for name in names
        for part in raw.get(name) or ()
        if type(part) is dict and part.get("modality") in modality
    )


def _read_prediction(raw: dict[str, Any]) -> Usage | None:
    """The statistics of one text that was embedded by Vertex."""
    return Usage(input=known_int(raw.get("token_count"))) if raw.get("token_count") is not None else None


USAGE = reading(read_usage, ("usageMetadata",))

# -- operations ------------------------------------------------------------------------------------

# What the meter reads; `alt=proto` would be an answer without a bill.
_QUERY_FORMATS: dict[str, frozenset[str]] = {
    "alt": frozenset({"sse", "json"}),
    "$alt": frozenset({"json", "sse", "json;enum-encoding=int"}),
}
_SEARCHES = ("candidates", ANY, "groundingMetadata", "webSearchQueries")
_PARTS = ("candidates", ANY, "content", "parts", ANY)

_GENERATE = OperationSpec(
    "generate_content",
    "models/{model}:generateContent",
    model_at="path",
    generates_text=True,
    guarded=("contents", "generationConfig", "generation_config", "tools"),
    ids_in=NAMED,
    meter=USAGE,
    rules=Rules(
        values=b"[",
        model=(("modelVersion",),),
        vendor_id=(("responseId",),),
        tier=(("usageMetadata", "serviceTier"),),
        finished=(("candidates", ANY, "finishReason"), ("promptFeedback", "blockReason")),
        counted=(("tools.grounding", _SEARCHES), ("tools.web_search", (*_SEARCHES, ANY))),
        text=((*_PARTS, "text"), (*_PARTS, "functionCall", "args"), (*_PARTS, "executableCode", "code")),
    ),
)
_EMBED = OperationSpec(
    "embed_content",
    "models/{model}:embedContent",
    kind="embeddings",
    model_at="path",
    guarded=(),
    meter=USAGE,
    rules=Rules(),
)

# https://ai.google.dev/api/live; frames are JSON in text or in binary messages.
_LIVE_PATH = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
_LIVE = OperationSpec(
    "live",
    _LIVE_PATH,
    ("GET",),
    request="socket",
    model_at="session",
    generates_text=True,
    replayable=False,
    guarded=(),
    meter=USAGE,
    rules=Rules(
        values=b"{",
        finished=(("serverContent", "turnComplete"),),
        text=(
            ("serverContent", "modelTurn", "parts", ANY, "text"),
            ("serverContent", "outputTranscription", "text"),
            ("toolCall", "functionCalls", ANY, "args"),
        ),
    ),
    own_meter=TurnMeter,
    session=Session(
        model_in_first=("setup", "model"),
        spoken=(("serverContent", "modelTurn", "parts", ANY, "inlineData", "data"),),
    ),
)

# The names are Google's verbs; one that another family has too has more of a name.
OPERATIONS: dict[str, OperationSpec] = {
    spec.name: spec
    for spec in (
        _GENERATE,
        replace(
            _GENERATE,
            name="stream_generate_content",
            path="models/{model}:streamGenerateContent",
            streams=True,
            streams_unasked=True,
            sse_query=tuple(_QUERY_FORMATS),
        ),
        OperationSpec(
            "count_content_tokens",
            "models/{model}:countTokens",
            model_at="path",
            guarded=(),
            billed=False,
            rules=Rules(),
        ),
        _EMBED,
        replace(_EMBED, name="batch_embed_contents", path="models/{model}:batchEmbedContents"),
        OperationSpec(  # Imagen's pictures, Vertex's embeddings of text
            "predict",
            "models/{model}:predict",
            kind="predictions",
            model_at="path",
            replayable=False,
            guarded=("instances", "parameters"),
            meter=replace(
                reading(_read_prediction, ("predictions", ANY, "embeddings", "statistics")), adds_up=True
            ),
            rules=Rules(counted=(("images", ("predictions", ANY, "mimeType")),)),
        ),
        OperationSpec(  # whose result nobody could fetch without a route: a file declares both
            "predict_long_running",
            kind="calls",
            model_at="path",
            replayable=False,
            guarded=("instances", "parameters"),
            rules=Rules(vendor_id=(("name",),)),
        ),
        _LIVE,
        *cached_contents("cachedContents"),
        *FILE_OPERATIONS,
    )
}

# -- errors ----------------------------------------------------------------------------------------

# https://cloud.google.com/apis/design/errors#handling_errors
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "PERMISSION_DENIED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_body(kind: str, code: str, message: str, param: str | None, status: int, request_id: str) -> bytes:
    """`{"error": {...}}` as google.rpc.Status in JSON; our own code is the reason in its details."""
    name = _STATUSES.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code.upper()}
    return orjson.dumps({"error": {"code": status, "message": message, "status": name, "details": [info]}})


def stream_error(*refusal: Any) -> bytes:
    """The same as an event of a running stream."""
    return b"data: %b\r\n\r\n" % error_body(*refusal)


# -- the dialect -----------------------------------------------------------------------------------

# Not x-goog-user-project: who is billed at Google stays our affair.
_REQUEST_PASS = headers.REQUEST | {b"x-goog-api-client", b"x-goog-upload-protocol", b"x-server-timeout"}
_QUERY = _QUERY_FORMATS | {
    "updateMask": frozenset(),
    "uploadType": frozenset(),
    "upload_protocol": frozenset(),
}

GEMINI = Dialect(
    name="gemini",
    operations=OPERATIONS,
    paths=dict.fromkeys(OPERATIONS, "/v1beta/{operation_path}")
    | {
        "predict_long_running": "/v1beta/models/{model}:predictLongRunning",
        "live": _LIVE_PATH,
        "gemini_files.upload": UPLOAD_PATH,
    },
    auth=(b"x-goog-api-key", b""),
    request_pass=_REQUEST_PASS,
    response_pass=headers.RESPONSE,
    query_pass=_QUERY,
    error_body=error_body,
    stream_error=stream_error,
    heartbeat=b"\r\n\r\n",  # nothing dispatches nothing; a comment is what google-genai takes for an error
    meter_of=meter_of,
)
