"""Cohere's own API, v1 and v2, and the reranking that other vendors copied from it.

Owns its wire formats. Streams of v2 are server-sent events, those of v1 lines of JSON. Cohere counts the
tokens of its own templates and does not charge them: what it bills is told beside what it counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from proxy.dialects import headers
from proxy.dialects import openai_format as fmt
from proxy.dialects.answer import known_int
from proxy.dialects.base import ANY, KEEP_ALIVE, Dialect, OperationSpec, Rules
from proxy.dialects.rules import meter_of, reading
from proxy.metering.usage import Usage

# -- usage -----------------------------------------------------------------------------------------

_UNITS = {"search_units": "search_unit", "classifications": "classification"}


def read_usage(raw: dict[str, Any]) -> Usage | None:
    """A `usage` of v2 or a `meta` of v1: `billed_units`, and where text is generated `tokens` beside it."""
    billed, counted = _mapping(raw.get("billed_units")), _mapping(raw.get("tokens"))
    told = counted or billed
    if not told:
        return None
    input_, output = known_int(told.get("input_tokens")), known_int(told.get("output_tokens"))
    cached = min(known_int(raw.get("cached_tokens")), input_)
    usage = Usage(
        input=input_ - cached,
        cache_read=cached,
        input_image=known_int(billed.get("image_tokens")),
        output=output,
        units={unit: n for name, unit in _UNITS.items() if (n := known_int(billed.get(name)))},
    )
    if counted and billed:
        _waive(usage, ("cache_read", "input"), input_ - known_int(billed.get("input_tokens")))
        _waive(usage, ("output",), output - known_int(billed.get("output_tokens")))
    return usage


def _waive(usage: Usage, buckets: tuple[str, ...], tokens: int) -> None:
    """The templates come first in a prompt: what is cached of it is theirs."""
    for bucket in buckets:
        waived = min(getattr(usage, bucket), tokens)
        if waived > 0:
            usage.waived[bucket] = waived
            tokens -= waived


def _read_any(raw: dict[str, Any]) -> Usage | None:
    return read_usage(raw) or fmt.read_usage(raw)


def _mapping(value: object) -> dict[str, Any]:
    return value if type(value) is dict else {}


# -- operations ------------------------------------------------------------------------------------

_CHAT = OperationSpec(
    "cohere.chat",
    "v2/chat",
    api="cohere",
    streams=True,
    generates_text=True,
    guarded=("model", "stream", "max_tokens"),
    terminal_hint=b"message-end",
    meter=reading(read_usage, ("usage",), ("delta", "usage")),
    rules=Rules(
        finished=(("finish_reason",), ("delta", "finish_reason")),
        error=(("error",), ("delta", "error")),
        terminal=frozenset({"message-end"}),
        text=tuple(
            (*holder, *text)
            for holder, part in ((("message",), (ANY,)), (("delta", "message"), ()))
            for text in (
                ("content", *part, "text"),
                ("content", *part, "thinking"),
                ("tool_plan",),
                ("tool_calls", *part, "function", "arguments"),
            )
        ),
    ),
)
_CHAT_V1 = replace(
    _CHAT,
    name="cohere.chat_v1",
    path="v1/chat",
    is_sse=False,
    terminal_hint=b"stream-end",
    meter=reading(read_usage, ("meta",), ("response", "meta")),
    rules=Rules(
        values=b"{",
        kind=("event_type",),
        vendor_id=(("generation_id",),),
        finished=(("finish_reason",),),
        terminal=frozenset({"stream-end"}),
        text=(("text",),),
    ),
)
_EMBED = OperationSpec(
    "cohere.embed",
    "v2/embed",
    api="cohere",
    kind="embeddings",
    guarded=("model",),
    meter=reading(read_usage, ("meta",)),
    rules=Rules(),
)
_RERANK = OperationSpec(
    "rerank",
    "v1/rerank",
    kind="rerank",
    guarded=("model",),
    meter=reading(_read_any, ("meta",), ("usage",)),
    rules=Rules(),
)

OPERATIONS: dict[str, OperationSpec] = {
    spec.name: spec
    for spec in (
        _CHAT,
        _CHAT_V1,
        _EMBED,
        replace(_EMBED, name="cohere.embed_v1", path="v1/embed"),
        _RERANK,
        replace(_RERANK, name="cohere.rerank", path="v2/rerank", api="cohere"),
    )
}

# -- errors ----------------------------------------------------------------------------------------


def error_body(kind: str, code: str, message: str, param: str | None, status: int, request_id: str) -> bytes:
    """`{"id": ..., "message": ...}`: there is nothing else for a code."""
    return orjson.dumps({"id": request_id, "message": message})


def stream_error(*refusal: Any) -> bytes:
    """The end of a v2 stream that did not go well."""
    message = orjson.loads(error_body(*refusal))["message"]
    end = {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": message}}
    return b"event: message-end\ndata: %b\n\n" % orjson.dumps(end)


COHERE = Dialect(
    name="cohere",
    operations=OPERATIONS,
    paths=dict.fromkeys(OPERATIONS, "/{operation_path}"),
    auth=(b"authorization", b"Bearer "),
    request_pass=headers.REQUEST | {b"x-client-name"},
    response_pass=headers.RESPONSE | {b"num_chars", b"num_tokens", b"x-api-warning"},
    error_body=error_body,
    stream_error=stream_error,
    heartbeat=KEEP_ALIVE,
    id_header=b"x-debug-trace-id",
    meter_of=meter_of,
)
