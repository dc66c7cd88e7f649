"""Bound what a request may consume, from the request alone: the quantity behind a hold.

Owns the written formula of money.md 5. Pure and quick: one pass over the content parts, no counting.

    input   text at most bytes / 3 (never of base64), plus a declared bound for each image, recording,
            document and server tool; at most the model's context
    output  what the request allows, at most what the model can; times n
    images  n, and their tokens

A text of rare characters can hold more tokens than bytes / 3: such a call may cost more than its hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.metering.pricing import tool_kinds
from proxy.metering.usage import Usage

BYTES_PER_TOKEN = 3
OUTPUT_TOKENS = 16_384  # of a model whose limit nobody declared, when the request has none either
IMAGE_TOKENS = 5_000  # one image in the input at its highest resolution
AUDIO_TOKENS_LEAST = 400  # a recording is filled up to 30 s by some models
AUDIO_BYTES_PER_TOKEN = 125  # 32 tokens a second of speech at 32 kbit/s
DOCUMENT_BYTES_PER_TOKEN = 2  # a page is some KB of compressed PDF and is read as text and as image
DOCUMENT_TOKENS = 50_000  # a document that only a URL or an id stands for
TOOLS_TOKENS = 600  # what vendors put in front when tools are offered
TOOL_CALLS = 5  # calls of a server tool, when the request does not limit them
TOOL_CALL_TOKENS = 10_000  # what one brings into the input
IMAGE_OUTPUT_TOKENS = 6_300  # one generated image, largest size and quality

_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(slots=True)
class Bound:
    """`usage` is the most that the call should consume; its output is for `n` answers together."""

    usage: Usage
    n: int


def hold_bound(
    operation: str, doc: Mapping[str, Any], body_len: int, context: int | None, max_output: int | None
) -> Bound:
    """`context` and `max_output` are the model's limits in tokens, None where nobody declared them."""
    n = max(_whole(doc.get("n")) or 1, _whole(doc.get("best_of")) or 1)
    usage = Usage(calls=1)
    _bound_input(usage, doc, body_len)
    if operation == "images":
        usage.images = n
        usage.output_image = n * IMAGE_OUTPUT_TOKENS
    elif operation not in ("embeddings", "moderations"):
        _bound_output(usage, doc, n, max_output)
    if context is not None:
        _within(usage, context)
    return Bound(usage, n)


def _bound_output(usage: Usage, doc: Mapping[str, Any], n: int, max_output: int | None) -> None:
    asked = [limit for name in _OUTPUT_LIMITS if (limit := _whole(doc.get(name))) is not None]
    limits = [limit for limit in (max(asked, default=None), max_output) if limit is not None]
    output = n * min(limits, default=OUTPUT_TOKENS)
    modalities = doc.get("modalities")
    if type(modalities) is list and "audio" in modalities:
        usage.output_audio = output
    else:
        usage.output = output


def _bound_input(usage: Usage, doc: Mapping[str, Any], body_len: int) -> None:
    found = _Parts()
    for name in ("messages", "system", "tools", "input"):
        found.add(doc.get(name))
    ids = _token_ids(doc.get("input")) or _token_ids(doc.get("prompt"))
    text = max(0, body_len - found.binary_chars) // BYTES_PER_TOKEN
    tokens = max(ids, text) + found.tokens
    if doc.get("tools"):
        tokens += TOOLS_TOKENS
    for kind, calls in _tool_calls(doc).items():
        usage.tools[kind] = calls
        tokens += calls * TOOL_CALL_TOKENS
    if found.cache_ttl == "1h" or _ttl(doc) == "1h":
        usage.cache_write_1h = tokens
    elif found.cache_ttl or _ttl(doc):
        usage.cache_write_5m = tokens
    else:
        usage.input = tokens
    usage.input_audio = found.audio_tokens
    usage.input_image = found.images * IMAGE_TOKENS


def _within(usage: Usage, context: int) -> None:
    """Cut the text of the input down to what fits beside the rest into the model's context."""
    excess = usage.input_tokens_all() - context
    for bucket in ("input", "cache_write_5m", "cache_write_1h", "input_image", "input_audio"):
        if excess <= 0:
            return
        cut = min(excess, getattr(usage, bucket))
        setattr(usage, bucket, getattr(usage, bucket) - cut)
        excess -= cut


def _tool_calls(doc: Mapping[str, Any]) -> dict[str, int]:
    calls = dict.fromkeys(tool_kinds(doc), TOOL_CALLS)
    tools = doc.get("tools")
    for tool in tools if type(tools) is list else ():
        limit = _whole(tool.get("max_uses")) if type(tool) is dict else None
        if limit is not None:
            calls.update((kind, limit) for kind in tool_kinds({"tools": [tool]}))
    return calls


class _Parts:
    """Walks content parts and sums up what is not text. Strings, the common case, cost one look."""

    def __init__(self) -> None:
        self.binary_chars = 0
        self.images = 0
        self.audio_tokens = 0
        self.tokens = 0  # of documents
        self.cache_ttl = ""  # the longest asked for

    def add(self, value: Any, depth: int = 4) -> None:
        if type(value) is not list or depth == 0:
            return
        for part in value:
            if type(part) is not dict:
                continue
            if "cache_control" in part:
                ttl = _ttl(part)
                self.cache_ttl = ttl if ttl == "1h" else self.cache_ttl or ttl
            kind = str(part.get("type"))
            if kind in _IMAGES:
                self.images += 1
                self._skip(part)
            elif kind == "input_audio":
                self.audio_tokens += AUDIO_TOKENS_LEAST + self._skip(part) * 3 // 4 // AUDIO_BYTES_PER_TOKEN
            elif kind in _DOCUMENTS:
                size = self._skip(part)
                self.tokens += size * 3 // 4 // DOCUMENT_BYTES_PER_TOKEN if size else DOCUMENT_TOKENS
            content = part.get("content")
            if content is not None:
                self.add(content, depth - 1)

    def _skip(self, part: Mapping[str, Any]) -> int:
        """Characters of base64 in a part: they are in the body, but are no text."""
        for name in ("image_url", "source", "input_audio", "file", "video_url"):
            holder = part.get(name)
            if type(holder) is str:
                holder = {"url": holder}
            if type(holder) is dict:
                size = max((_base64_chars(holder.get(field), field) for field in _DATA), default=0)
                self.binary_chars += size
                return size
        return 0


_IMAGES = frozenset({"image_url", "image", "input_image", "video_url"})
_DOCUMENTS = frozenset({"document", "file", "input_file"})
_DATA = ("data", "url", "file_data")


def _base64_chars(value: object, field: str) -> int:
    if type(value) is not str:
        return 0
    return len(value) if field == "data" or value.startswith("data:") else 0


def _ttl(part: Mapping[str, Any]) -> str:
    control = part.get("cache_control")
    return str(control.get("ttl") or "5m") if type(control) is dict else ""


def _token_ids(value: Any) -> int:
    """Tokens of a prompt that is given as token ids; 0: it is text."""
    if type(value) is not list or not value:
        return 0
    if type(value[0]) is int:
        return len(value)
    return sum(len(row) for row in value if type(row) is list)


def _whole(value: object) -> int | None:
    """A count in a request, also where it came as text or with a point: upstreams may be lenient."""
    if type(value) is str and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None
