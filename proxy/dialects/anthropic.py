"""Anthropic's Messages: disjoint usage that a stream tells in two events, which overlay each other."""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar

import orjson

from proxy.dialects.answer import AnswerMeter, known_int
from proxy.dialects.base import ANY, Dialect, OperationSpec, Pointer, UsagePointers
from proxy.metering.usage import Usage

# -- usage -----------------------------------------------------------------------------------------

TOOL_KINDS_MAX = 16  # of one call; there are three

# An iteration of these types is not part of the top-level figures; it is billed on top of them.
_ON_TOP = {"compaction": "compaction", "advisor_message": "advisor"}


def read_usage(raw: dict[str, Any]) -> Usage | None:
    """A `usage` object. Input excludes what was read from or written to the cache.

    Iterations on top of the message's own (a compaction of the context, an adviser with its own
    model) are `units` named like `compaction_input`: their own prices, else those of the tokens.
    """
    if raw.get("input_tokens") is None and raw.get("output_tokens") is None:
        return None
    usage = Usage(input=known_int(raw.get("input_tokens")), output=known_int(raw.get("output_tokens")))
    usage.cache_read = known_int(raw.get("cache_read_input_tokens"))
    usage.cache_write_5m, usage.cache_write_1h = _cache_writes(raw)
    details = raw.get("output_tokens_details")
    if type(details) is dict:
        usage.reasoning = known_int(details.get("thinking_tokens"))
    tools = raw.get("server_tool_use")
    if type(tools) is dict:
        for name, count in islice(tools.items(), TOOL_KINDS_MAX):
            if known_int(count):
                usage.tools[name.removesuffix("_requests")] = known_int(count)
    for iteration in raw.get("iterations") or ():
        if type(iteration) is dict and iteration.get("type") in _ON_TOP:
            _add_units(usage, _ON_TOP[iteration["type"]], iteration)
    return usage


def _cache_writes(raw: dict[str, Any]) -> tuple[int, int]:
    """(5m, 1h) tokens. What the split does not explain was written for five minutes, the default."""
    split = raw.get("cache_creation")
    five = hour = 0
    if type(split) is dict:
        five = known_int(split.get("ephemeral_5m_input_tokens"))
        hour = known_int(split.get("ephemeral_1h_input_tokens"))
    return max(five, known_int(raw.get("cache_creation_input_tokens")) - hour), hour


def _add_units(usage: Usage, kind: str, iteration: dict[str, Any]) -> None:
    own = read_usage({name: value for name, value in iteration.items() if name != "iterations"})
    if own is None:
        return
    for bucket in ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output"):
        if count := getattr(own, bucket):
            name = f"{kind}_{bucket}"
            usage.units[name] = usage.units.get(name, 0) + count


USAGE = UsagePointers(places=(("message", "usage"), ("usage",)), read=read_usage, overlay=True)

# -- answers ---------------------------------------------------------------------------------------


class MessagesMeter(AnswerMeter):
    """messages, streamed or not; the answer of count_tokens has no usage of its own."""

    KEEP: ClassVar[tuple[Pointer, ...]] = (
        ("type",), ("id",), ("model",), ("stop_reason",), ("error",), ("message", "id"), ("message", "model"),
        ("delta", "stop_reason"),
    )  # fmt: skip
    TEXT: ClassVar[tuple[Pointer, ...]] = (
        ("delta", "text"), ("delta", "thinking"), ("delta", "partial_json"),
        ("content", ANY, "text"), ("content", ANY, "thinking"), ("content", ANY, "input"),
    )  # fmt: skip

    def _on_event(self, doc: dict[str, Any]) -> None:
        kind = doc.get("type")
        if kind == "content_block_delta":
            if self._keeps_text:
                self._keep_block(doc.get("delta") or {})
        elif kind == "content_block_start":
            self._keep_block(doc.get("content_block") or {})
        elif kind == "message_start":
            self._find_usage(doc)
            self._on_message(doc.get("message") or {})
        elif kind == "message_delta":
            # message_start told a provisional output; this is the word on it.
            if self._find_usage(doc) and doc["usage"].get("output_tokens") is not None:
                self._drop_text()
            if (doc.get("delta") or {}).get("stop_reason") is not None:
                self.finished = True
        elif kind == "message_stop":
            self.complete = True
        elif kind == "error":
            self.error = True

    def _on_whole(self, doc: dict[str, Any]) -> None:
        self._on_message(doc)
        self.error |= doc.get("type") == "error" or bool(doc.get("error"))
        self.finished = doc.get("stop_reason") is not None
        if self._find_usage(doc):
            self._drop_text()
            return
        for block in doc.get("content") or ():
            self._keep_block(block)

    def _on_message(self, message: dict[str, Any]) -> None:
        self._identify(message)
        usage = message.get("usage")
        if type(usage) is dict:
            self._take_tier(usage.get("service_tier"))
            if usage.get("speed") not in (None, "standard"):  # priced like a tier of its own
                self._take_tier(usage["speed"])

    def _keep_block(self, block: dict[str, Any]) -> None:
        for name in ("text", "thinking", "partial_json", "name"):
            if name in block:
                self._keep_text(block[name])
        if block.get("input"):  # a whole tool call, as an answer that is no stream has it
            self._keep_text(orjson.dumps(block["input"]).decode())


# -- errors ----------------------------------------------------------------------------------------

_TYPES = {"server_error": "api_error", "insufficient_quota": "billing_error"}
_OVERLOADED = (503, 529)


def error_body(kind: str, code: str, message: str, param: str | None, status: int, request_id: str) -> bytes:
    """`{"type": "error", "error": {...}, "request_id": ...}`; Anthropic's errors have no code."""
    name = "overloaded_error" if status in _OVERLOADED else _TYPES.get(kind, kind)
    error = {"type": name, "message": message}
    return orjson.dumps({"type": "error", "error": error, "request_id": request_id})


def stream_error(
    kind: str, code: str, message: str, param: str | None, status: int, request_id: str
) -> bytes:
    """An `error` event."""
    return b"event: error\ndata: %b\n\n" % error_body(kind, code, message, param, status, request_id)


# -- the dialect -----------------------------------------------------------------------------------

OPERATIONS: dict[str, OperationSpec] = {
    spec.name: spec
    for spec in (
        OperationSpec(
            "messages",
            "messages",
            streams=True,
            generates_text=True,
            guarded=("model", "stream", "max_tokens"),
            terminal_hint=b"message_stop",
            meter=USAGE,
        ),
        OperationSpec("count_tokens", "messages/count_tokens", billed=False, guarded=("model",)),
        OperationSpec("models", "models", ("GET",), request="none", model_at="none", billed=False),
    )
}

REQUEST_PASS = frozenset({
    b"accept", b"accept-encoding", b"accept-language", b"anthropic-beta",
    b"anthropic-dangerous-direct-browser-access", b"anthropic-version", b"baggage", b"content-type",
    b"idempotency-key", b"traceparent", b"tracestate", b"user-agent", b"x-app", b"x-stainless-arch",
    b"x-stainless-async", b"x-stainless-helper", b"x-stainless-helper-method", b"x-stainless-lang",
    b"x-stainless-os", b"x-stainless-package-version", b"x-stainless-raw-response",
    b"x-stainless-read-timeout", b"x-stainless-retry-count", b"x-stainless-runtime",
    b"x-stainless-runtime-version", b"x-stainless-stream-helper", b"x-stainless-timeout",
})  # fmt: skip

# Not anthropic-organization-id: whose account it is stays ours.
RESPONSE_PASS = frozenset({
    b"cache-control", b"content-encoding", b"content-language", b"content-type", b"date", b"retry-after",
    b"vary", b"x-content-type-options", b"x-should-retry",
})  # fmt: skip

ANTHROPIC = Dialect(
    name="anthropic",
    operations=OPERATIONS,
    paths=dict.fromkeys(OPERATIONS, "/v1/{operation_path}"),
    auth=(b"x-api-key", b""),
    request_pass=REQUEST_PASS,
    response_pass=RESPONSE_PASS,
    response_pass_prefixes=(b"anthropic-ratelimit-", b"x-ratelimit-"),
    query_pass={"beta": frozenset()},
    error_body=error_body,
    stream_error=stream_error,
    heartbeat=b'event: ping\ndata: {"type": "ping"}\n\n',
    id_header=b"request-id",
    own_id_headers=(b"x-request-id", b"request-id"),
    make_meter=MessagesMeter,
)
