"""Ollama's own API: streams are lines of JSON, and an answer streams unless the request forbids it.

Owns its wire format. The figures are members of the last line itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from proxy.dialects import headers
from proxy.dialects.answer import known_int
from proxy.dialects.base import ANY, Dialect, OperationSpec, Rules
from proxy.dialects.rules import meter_of, reading
from proxy.metering.usage import Usage


def read_usage(raw: dict[str, Any]) -> Usage | None:
    """The last line, or a whole answer. A prompt that was in the cache is not counted there."""
    read, written = raw.get("prompt_eval_count"), raw.get("eval_count")
    if read is None and written is None:
        return None
    return Usage(input=known_int(read), output=known_int(written))


USAGE = replace(reading(read_usage, ("prompt_eval_count",), ("eval_count",)), spread=True)
# Brackets of the values, and the size of a chunk in front of them: some servers frame their lines twice.
_VALUES = b"{0123456789abcdef"

_CHAT = OperationSpec(
    "ollama.chat",
    "chat",
    api="ollama",
    streams=True,
    streams_unasked=True,
    generates_text=True,
    guarded=("model", "stream", "options"),
    meter=USAGE,
    rules=Rules(
        values=_VALUES,
        vendor_id=(),
        finished=(("done_reason",), ("total_duration",)),
        text=(
            ("message", "content"), ("message", "thinking"), ("response",), ("thinking",),
            ("message", "tool_calls", ANY, "function", "arguments"),
        ),
    ),
)  # fmt: skip
_EMBED = OperationSpec(
    "ollama.embed",
    "embed",
    api="ollama",
    kind="embeddings",
    guarded=("model",),
    meter=USAGE,
    rules=Rules(vendor_id=()),
)

OPERATIONS: dict[str, OperationSpec] = {
    spec.name: spec
    for spec in (
        _CHAT,
        replace(_CHAT, name="ollama.generate", path="generate"),
        _EMBED,
        replace(_EMBED, name="ollama.embeddings", path="embeddings"),
    )
}


def error_body(kind: str, code: str, message: str, param: str | None, status: int, request_id: str) -> bytes:
    """`{"error": "text"}`"""
    return orjson.dumps({"error": message})


def stream_error(*refusal: Any) -> bytes:
    """The same as a line of a running stream."""
    return error_body(*refusal) + b"\n"


OLLAMA = Dialect(
    name="ollama",
    operations=OPERATIONS,
    paths=dict.fromkeys(OPERATIONS, "/api/{operation_path}"),
    auth=(b"authorization", b"Bearer "),
    request_pass=headers.REQUEST,
    response_pass=headers.RESPONSE,
    error_body=error_body,
    stream_error=stream_error,
    meter_of=meter_of,
)
