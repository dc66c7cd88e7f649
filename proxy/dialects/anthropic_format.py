"""Anthropic's wire format: disjoint usage that a stream tells in two events, which overlay each other.

Owns what the dialects that use it (anthropic, bedrock, vertex) have in common.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar

import orjson

from proxy.dialects.answer import AnswerMeter, known_int
from proxy.dialects.base import ANY, Pointer, UsagePointers
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


_ONLY_TEXT = (("delta", "text"), ("delta", "thinking"), ("delta", "partial_json"))


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

    def _only_text(self) -> tuple[Pointer, ...]:
        return _ONLY_TEXT

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
