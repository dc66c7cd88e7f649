"""Amazon Bedrock: models of many makers behind two sets of verbs, signed requests, binary streams.

Owns its two readings of usage (converse has one for all models, invoke each model's own) and its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import orjson

from proxy.dialects import anthropic_format
from proxy.dialects.answer import known_int
from proxy.dialects.base import ANY, Dialect, OperationSpec, Pointer, Rules, UsagePointers
from proxy.dialects.rules import NOTHING, RuledMeter, meter_of, reading
from proxy.metering.events import SseSplitter
from proxy.metering.eventstream import FrameSplitter, frame
from proxy.metering.usage import Usage
from proxy.routing.sigv4 import signed

# -- usage -----------------------------------------------------------------------------------------


def read_converse(raw: dict[str, Any]) -> Usage | None:
    """A `usage` of converse. Input excludes what was read from or written to the cache."""
    if raw.get("inputTokens") is None and raw.get("outputTokens") is None:
        return None
    usage = Usage(input=known_int(raw.get("inputTokens")), output=known_int(raw.get("outputTokens")))
    usage.cache_read = known_int(raw.get("cacheReadInputTokens"))
    written = known_int(raw.get("cacheWriteInputTokens"))
    for detail in raw.get("cacheDetails") or ():
        if type(detail) is dict and detail.get("ttl") == "1h":
            usage.cache_write_1h += known_int(detail.get("inputTokens"))
    usage.cache_write_5m = max(0, written - usage.cache_write_1h)
    return usage


def read_invoked(raw: dict[str, Any]) -> Usage | None:
    """A usage of invoke: the model's own, Claude's or Nova's, else the metrics at the end of its stream."""
    usage = anthropic_format.read_usage(raw) or read_converse(raw)
    if usage is None and raw.get("inputTokenCount") is not None:
        usage = Usage(input=known_int(raw["inputTokenCount"]), output=known_int(raw.get("outputTokenCount")))
    return usage


def foretell_invoked(
    doc: Mapping[str, Any], price: Mapping[str, Any], header: Callable[[bytes], bytes | None]
) -> Usage | None:
    """The head of a whole answer tells the tokens, whatever its model writes into the body."""
    counts = [header(b"x-amzn-bedrock-%b-token-count" % side) for side in (b"input", b"output")]
    if None in counts:
        return None
    input_, output = (int(count) if count and count.isdigit() else 0 for count in counts)
    return Usage(input=input_, output=output, calls=1)


# -- answers ---------------------------------------------------------------------------------------


class FramedMeter(RuledMeter):
    """Answers that are frames (a stream) or one JSON text."""

    def __init__(self, operation: OperationSpec, is_event_stream: bool, *, is_wrapped: bool = False) -> None:
        super().__init__(operation, is_event_stream)
        self._is_wrapped = is_wrapped
        self._frames: FrameSplitter | None = None

    def _sniff(self, content: bytes) -> bytes:
        if content[:1] != b"\0":  # of a length that is below 16 MiB
            return super()._sniff(content)
        self._frames = FrameSplitter(self._scanners(), is_wrapped=self._is_wrapped)
        self._splitter = cast(SseSplitter, self._frames)
        return content

    def feed(self, content: bytes) -> None:
        super().feed(content)
        self.degraded |= self._frames is not None and self._frames.failed


_EXCEPTIONS: tuple[Pointer, ...] = tuple(
    (name,)
    for name in (
        "internalServerException", "modelStreamErrorException", "modelTimeoutException",
        "serviceUnavailableException", "throttlingException", "validationException",
    )
)  # fmt: skip

_CONVERSE = OperationSpec(
    "converse",
    "model/{model}/converse",
    model_at="path",
    generates_text=True,
    guarded=(),
    meter=reading(read_converse, ("usage",), ("metadata", "usage")),
    rules=Rules(
        model=(),
        vendor_id=(),
        finished=(("stopReason",), ("messageStop", "stopReason")),
        error=(("__type",), *_EXCEPTIONS),
        text=(
            ("contentBlockDelta", "delta", "text"),
            ("contentBlockDelta", "delta", "toolUse", "input"),
            ("contentBlockDelta", "delta", "reasoningContent", "text"),
            ("output", "message", "content", ANY, "text"),
            ("output", "message", "content", ANY, "reasoningContent", "reasoningText", "text"),
            ("output", "message", "content", ANY, "toolUse", "input"),
        ),
    ),
    own_meter=FramedMeter,
)
_INVOKE = replace(
    _CONVERSE,
    name="invoke",
    path="model/{model}/invoke",
    meter=UsagePointers(
        places=(
            ("message", "usage"),
            ("usage",),
            ("amazon-bedrock-invocationMetrics",),
        ),
        read=read_invoked,
        overlay=True,
    ),
    rules=Rules(
        model=(("model",), ("message", "model")),
        vendor_id=(("id",), ("message", "id")),
        finished=(("stop_reason",), ("delta", "stop_reason")),
        error=(("__type",), ("error",), *_EXCEPTIONS),
        text=(
            ("delta", "text"), ("delta", "thinking"), ("delta", "partial_json"),
            ("content", ANY, "text"), ("content", ANY, "thinking"), ("content", ANY, "input"),
            ("generation",), ("outputText",), ("completion",), ("outputs", ANY, "text"),
            ("results", ANY, "outputText"),
        ),
        terminal=frozenset({"message_stop"}),
    ),
    foretold=foretell_invoked,
)  # fmt: skip

_SPECS = (
    _CONVERSE,
    replace(_CONVERSE, name="converse_stream", path="model/{model}/converse-stream", streams_unasked=True),
    _INVOKE,
    replace(
        _INVOKE,
        name="invoke_stream",
        path="model/{model}/invoke-with-response-stream",
        streams_unasked=True,
        own_meter=partial(FramedMeter, is_wrapped=True),
    ),
    OperationSpec(
        "bedrock.count_tokens",
        "model/{model}/count-tokens",
        model_at="path",
        billed=False,
        guarded=(),
        rules=NOTHING,
    ),
)
OPERATIONS: dict[str, OperationSpec] = {spec.name: spec for spec in _SPECS}


# -- errors ----------------------------------------------------------------------------------------

# What AWS's SDKs raise, by status; the body names it where a header is missing.
_TYPES = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
}


def _type(status: int) -> str:
    return _TYPES.get(status, "InternalServerException" if status >= 500 else "ValidationException")


def error_body(kind: str, code: str, message: str, param: str | None, status: int, request_id: str) -> bytes:
    """`{"message": ..., "__type": ...}`."""
    return orjson.dumps({"message": message, "__type": _type(status), "code": code})


def stream_error(
    kind: str, code: str, message: str, param: str | None, status: int, request_id: str
) -> bytes:
    """A frame with an exception."""
    name = _type(status)
    headers = {
        ":exception-type": name[0].lower() + name[1:],
        ":content-type": "application/json",
        ":message-type": "exception",
    }
    return frame(headers, orjson.dumps({"message": message}))


# -- the dialect -----------------------------------------------------------------------------------

BEDROCK = Dialect(
    name="bedrock",
    operations=OPERATIONS,
    paths=dict.fromkeys(OPERATIONS, "/{operation_path}"),
    auth=(b"", b""),  # our key signs, it is not sent
    sign=signed,
    request_pass=frozenset({
        b"accept", b"content-type", b"user-agent", b"x-amzn-bedrock-accept", b"x-amzn-bedrock-trace",
        b"x-amzn-bedrock-guardrailidentifier", b"x-amzn-bedrock-guardrailversion",
        b"x-amzn-bedrock-performanceconfig-latency", b"x-amzn-bedrock-service-tier",
    }),
    response_pass=frozenset({
        b"cache-control", b"content-encoding", b"content-type", b"date", b"retry-after",
        b"x-amzn-bedrock-cache-read-input-token-count", b"x-amzn-bedrock-cache-write-input-token-count",
        b"x-amzn-bedrock-content-type", b"x-amzn-bedrock-input-token-count",
        b"x-amzn-bedrock-invocation-latency", b"x-amzn-bedrock-output-token-count",
        b"x-amzn-bedrock-performanceconfig-latency", b"x-amzn-errortype",
    }),
    error_body=error_body,
    stream_error=stream_error,
    id_header=b"x-amzn-requestid",
    own_id_headers=(b"x-request-id", b"x-amzn-requestid"),
    meter_of=meter_of,
)  # fmt: skip
