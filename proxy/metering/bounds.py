"""Bound what a request may consume, from the request alone: the quantity behind a hold.

Owns the written formula of money.md 5. Pure and quick: one pass over the content parts, no counting.

    input   text at most bytes / 3 (never of base64), plus a declared bound for each image, recording,
            document and server tool; at most the model's context
    output  what the request allows, at most what the model can; times n
    images  n, and their tokens
    sound   characters of what is to be said, seconds of what is to be heard, and the tokens of both
    units   pages, search units: as many as the request can make them

A text of rare characters can hold more tokens than bytes / 3: such a call may cost more than its hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from proxy.metering.parts import BUCKETS, TTLS, Parts, ttl_of
from proxy.metering.pricing import tool_kinds
from proxy.metering.sound import SPEECH_TOKENS_PER_SECOND, Upload, speech_usage
from proxy.metering.usage import Usage

BYTES_PER_TOKEN = 3
OUTPUT_TOKENS = 16_384  # of a model whose limit nobody declared, when the request has none either
IMAGE_TOKENS = 5_000  # one image in the input at its highest resolution
KEPT_TOKENS = 30_000  # of a conversation or a prompt that is kept at the vendor, and only an id stands for
TOOLS_TOKENS = 600  # what vendors put in front when tools are offered
TOOL_CALLS = 5  # calls of a server tool, when the request does not limit them
TOOL_CALL_TOKENS = 10_000  # what one brings into the input
IMAGE_OUTPUT_TOKENS = 6_300  # one generated image, largest size and quality
PAGES = 1_000  # of a document whose request names none: Mistral's limit
SEARCH_UNIT_DOCUMENTS = 100  # documents, or pieces of 500 tokens of long ones, in one search unit
SEARCH_UNIT_BYTES = SEARCH_UNIT_DOCUMENTS * 500 * BYTES_PER_TOKEN
EDITED_IMAGES = 4  # pictures in a form; their number is known when all of it has come
RECORDING_MS = 600_000  # a recording that only a URL stands for
SPOKEN_TOKENS_PER_SECOND = 5  # of a transcript
TRAINING_TOKENS = 1_000_000  # of a training file, which only an id stands for
CACHED_HOURS = 24  # that a content is cached for which the request names the moment when it expires
PREDICTIONS = 4  # pictures of a request that does not say how many

_OUTPUT_LIMITS = frozenset(
    {"max_completion_tokens", "max_tokens", "max_output_tokens", "max_tokens_to_sample"}
)
_limits_no_output = _OUTPUT_LIMITS.isdisjoint
# The same where a request has its limits in an object: Gemini's, Ollama's, DashScope's.
_HOLDERS = frozenset({"generationConfig", "generation_config", "options", "parameters"})
_HELD_LIMITS = ("maxOutputTokens", "max_output_tokens", "num_predict", "max_tokens")
_HELD_COUNTS = ("candidateCount", "candidate_count", "n", "sampleCount")


@dataclass(slots=True)
class Bound:
    """`usage` is the most that the call should consume; its output is for `n` answers together."""

    usage: Usage
    n: int


def hold_bound(
    kind: str, doc: Mapping[str, Any], body_len: int, context: int | None, max_output: int | None
) -> Bound:
    """`kind` is the operation's. `context` and `max_output` are the model's limits in tokens, None where
    nobody declared them."""
    if is_text(kind) and (plain := plain_bound(doc, body_len, context, max_output)) is not None:
        return Bound(Usage(calls=1, input=plain[0], output=plain[1]), 1)
    n = 1
    if "n" in doc or "best_of" in doc:
        n = max(_whole(doc.get("n")) or 1, _whole(doc.get("best_of")) or 1)
    held = _NOTHING
    if not _HOLDERS.isdisjoint(doc):
        held = _held(doc)
        n = max(n, _least(held, _HELD_COUNTS) or 1)
    usage = Usage(calls=1)
    is_spoken = _BEYOND_MESSAGES.isdisjoint(doc)
    if is_spoken and (texts := plain_bound({"messages": doc.get("messages")}, body_len, None, None)):
        usage.input = texts[0]
    else:
        _bound_input(usage, doc, body_len)
    if kind in _KINDS:
        _KINDS[kind](usage, Asked(doc, held, body_len, n))
    else:
        _bound_output(usage, {**doc, **_limit(held)} if held else doc, n, max_output)
    if context is not None:
        _within(usage, context)
    return Bound(usage, n)


def is_text(kind: str) -> bool:
    """Do operations of this kind answer with text, as far as their request does not say otherwise?"""
    return kind not in _KINDS


def plain_bound(
    doc: Mapping[str, Any], body_len: int, context: int | None, max_output: int | None
) -> tuple[int, int] | None:
    """(tokens of input, tokens of output) of a conversation in which each message is one string and nothing
    is asked for but one text: `hold_bound`, in 3 us. None: it is none."""
    if not _asks_for_one_text(doc):
        return None
    try:
        for message in doc["messages"]:
            if type(message["content"]) is not str:
                return None
            if (len(message) != 2 or "role" not in message) and not _is_but_text(message):
                return None
    except (TypeError, KeyError):  # there are none, or it is none, or has no content
        return None
    tokens = body_len // BYTES_PER_TOKEN
    if context is not None and tokens > context:
        tokens = context
    if max_output is not None and _limits_no_output(doc):
        return tokens, max_output
    return tokens, _output(doc, 1, max_output)


class Asked(NamedTuple):
    """A request, as the formulas of the kinds look at it; `held` are its options that lie in an object."""

    doc: Mapping[str, Any]
    held: Mapping[str, Any]
    body_len: int
    n: int


def _images(usage: Usage, asked: Asked) -> None:
    usage.images = asked.n
    usage.output_image = asked.n * IMAGE_OUTPUT_TOKENS
    pictures = EDITED_IMAGES if _is_form(asked.doc) else _length(asked.doc.get("images"))
    usage.input_image += pictures * IMAGE_TOKENS
    _only_fields(usage, asked)


def _predictions(usage: Usage, asked: Asked) -> None:
    usage.images = _least(asked.held, _HELD_COUNTS) or PREDICTIONS


def _pages(usage: Usage, asked: Asked) -> None:
    usage.units = {"page": _length(asked.doc.get("pages")) or PAGES}


def _rerank(usage: Usage, asked: Asked) -> None:
    documents = _length(asked.doc.get("documents")) // SEARCH_UNIT_DOCUMENTS
    usage.units = {"search_unit": 1 + documents + asked.body_len // SEARCH_UNIT_BYTES}


def _speech(usage: Usage, asked: Asked) -> None:
    said = speech_usage(asked.doc, by_character=False)
    usage.characters, usage.output_audio = said.characters, said.output_audio


def _transcription(usage: Usage, asked: Asked) -> None:
    recording = asked.doc.get("file")
    usage.seconds_ms = recording.lasts_ms() if isinstance(recording, Upload) else RECORDING_MS
    usage.input_audio = usage.seconds_ms * SPEECH_TOKENS_PER_SECOND // 1000
    usage.output = usage.seconds_ms * SPOKEN_TOKENS_PER_SECOND // 1000
    _only_fields(usage, asked)


def _training(usage: Usage, asked: Asked) -> None:
    usage.units = {"training_input": TRAINING_TOKENS}


def _caching(usage: Usage, asked: Asked) -> None:
    """What is cached by an earlier request only lasts longer."""
    tokens = usage.input if "contents" in asked.doc else max(usage.input, KEPT_TOKENS)
    ttl, seconds = asked.doc.get("ttl"), 0 if "expireTime" in asked.doc else 3600
    if type(ttl) is str and ttl[:-1].partition(".")[0].isdecimal():
        seconds = int(ttl[:-1].partition(".")[0][:9]) + 1
    usage.units = {"token_hour": -(-tokens * (seconds or CACHED_HOURS * 3600) // 3600)}


def _nothing_more(usage: Usage, asked: Asked) -> None:
    """Its input is all that it consumes."""


_KINDS: dict[str, Callable[[Usage, Asked], None]] = {
    "embeddings": _nothing_more,
    "moderations": _nothing_more,
    "calls": _nothing_more,
    "amounts": _nothing_more,  # what it asks for is told by its own table
    "images": _images,
    "predictions": _predictions,
    "pages": _pages,
    "rerank": _rerank,
    "speech": _speech,
    "transcription": _transcription,
    "training": _training,
    "caching": _caching,
}


def _is_form(doc: Mapping[str, Any]) -> bool:
    return isinstance(doc.get("file"), Upload)


def _only_fields(usage: Usage, asked: Asked) -> None:
    """Of a form the text of its fields is read, not its files as text."""
    if _is_form(asked.doc):
        usage.input = sum(len(v.encode()) for v in asked.doc.values() if type(v) is str) // BYTES_PER_TOKEN


_NOTHING: Mapping[str, Any] = {}


def _held(doc: Mapping[str, Any]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name in _HOLDERS:
        holder = doc.get(name)
        if type(holder) is dict:
            found |= holder
    return found


def _limit(held: Mapping[str, Any]) -> Mapping[str, int]:
    limit = _least(held, _HELD_LIMITS)
    return {} if limit is None else {"max_tokens": limit}


def _least(held: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of the names that has a count; a negative one means that there is no limit."""
    return next((count for name in names if (count := _whole(held.get(name))) is not None), None)


def _length(value: object) -> int:
    return len(value) if type(value) is list else 0


def output_asked(doc: Mapping[str, Any]) -> int:
    """The tokens of output that a request allows for one answer; 0: it does not say."""
    return _asked(doc) or 0


def _output(doc: Mapping[str, Any], n: int, max_output: int | None) -> int:
    most = OUTPUT_TOKENS if max_output is None else max_output
    if _limits_no_output(doc):
        return n * most
    asked = _asked(doc)
    if asked is None or (max_output is not None and asked > max_output):
        return n * most
    return n * asked


def _asked(doc: Mapping[str, Any]) -> int | None:
    most = None
    for name in _OUTPUT_LIMITS:
        if name in doc and (limit := _whole(doc[name])) is not None and (most is None or limit > most):
            most = limit
    return most


def _bound_output(usage: Usage, doc: Mapping[str, Any], n: int, max_output: int | None) -> None:
    output = _output(doc, n, max_output)
    modalities = doc.get("modalities")
    if type(modalities) is list and "audio" in modalities:
        usage.output_audio = output
    else:
        usage.output = output


_BEYOND_MESSAGES = frozenset({
    "system", "input", "prompt", "tools", "web_search_options", "cache_control",
})  # fmt: skip
_asks_for_one_text = (_BEYOND_MESSAGES | _HOLDERS | {"n", "best_of", "modalities"}).isdisjoint
_is_but_text = frozenset({"type", "cache_control", "images"}).isdisjoint  # a message


_STANDS_FOR_MORE = frozenset({"previous_response_id", "conversation", "assistant_id"})


def _bound_input(usage: Usage, doc: Mapping[str, Any], body_len: int) -> None:
    found = Parts()
    for name in ("messages", "system", "input", "contents", "requests", "content", "instances"):
        value = doc.get(name)
        found.add(value.get("messages") or [value] if type(value) is dict else value)
    tokens = max(0, body_len - found.binary_chars) // BYTES_PER_TOKEN
    if type(doc.get("input")) is list or type(doc.get("prompt")) is list:
        tokens = max(tokens, _token_ids(doc.get("input")), _token_ids(doc.get("prompt")))
    tokens += found.tokens
    if not _STANDS_FOR_MORE.isdisjoint(doc):
        tokens += KEPT_TOKENS
    ttl = found.cache_ttl or ttl_of(doc)
    if "tools" in doc or "web_search_options" in doc:
        tools = Parts()
        tools.add(doc.get("tools"))
        ttl = max(ttl, tools.cache_ttl, key=TTLS.index)
        usage.tools = _tool_calls(doc)
        tokens += TOOLS_TOKENS + sum(usage.tools.values()) * TOOL_CALL_TOKENS
    setattr(usage, BUCKETS[ttl], tokens)
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


def _token_ids(value: Any) -> int:
    """Tokens of a prompt that is given as token ids; 0: it is text."""
    if type(value) is not list or not value:
        return 0
    if type(value[0]) is int:
        return len(value)
    return sum(len(row) for row in value if type(row) is list)


def _whole(value: object) -> int | None:
    """A count in a request, also where it came as text or with a point: upstreams may be lenient."""
    if type(value) is int:
        return value if value >= 0 else None
    if type(value) is str and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None
