"""OpenAI's wire format, which most vendors speak: its operations, usage, streams and error bodies.

Owns what the dialects that use it (openai, azure) have in common; they add paths, authentication
and headers. The usage rules were checked against recordings of some twenty vendors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import orjson
from msgspec import Meta, MsgspecError, Struct, ValidationError, convert, json

from proxy.dialects.answer import COUNT_MAX, NAME_CHARS_MAX, PIECE_BYTES_MAX, AnswerMeter, known_int
from proxy.dialects.base import ANY, DONE, MakeMeter, OperationSpec, Pointer, UsagePointers
from proxy.dialects.owned import DEEP, IdIn
from proxy.dialects.rules import NOTHING, RuledMeter
from proxy.metering.usage import Usage

_Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]

# -- usage -----------------------------------------------------------------------------------------

# Where vendors put each figure: the first that is not null counts.
_INPUT = ("prompt_tokens", "input_tokens")
_OUTPUT = ("completion_tokens", "output_tokens")
_INPUT_DETAILS = (
    "prompt_tokens_details",
    "input_tokens_details",
    "input_token_details",
    "prompt_token_details",
)
_OUTPUT_DETAILS = ("completion_tokens_details", "output_tokens_details", "output_token_details")
_CACHED = ("cached_tokens", "prompt_cache_hit_tokens", "num_cached_tokens")
_CACHE_WRITE = ("cache_write_tokens", "cache_creation_input_tokens", "cache_creation_tokens")


class _InputDetails(Struct, forbid_unknown_fields=True, gc=False):
    cached_tokens: _Count | None = 0
    audio_tokens: Literal[0] | None = 0
    text_tokens: _Count | None = 0


class _OutputDetails(Struct, gc=False):
    reasoning_tokens: _Count | None = 0
    audio_tokens: Literal[0] | None = 0
    image_tokens: Literal[0] | None = 0


class _Ordinary(Struct, forbid_unknown_fields=True, gc=False):
    """OpenAI's own names for a call of text, which most answers have and no others."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


def read_usage(raw: dict[str, Any]) -> Usage | None:
    """A `usage` object of chat, completions, embeddings or images -> disjoint buckets."""
    return _read_ordinary(raw) or _read_any(raw)


def _read_ordinary(raw: dict[str, Any]) -> Usage | None:
    """The shape that OpenAI sends for text, read as `_read_any` does in a fifth of its time (1 us).

    None: it has other names, or figures that do not add up.
    """
    try:
        return _figures(convert(raw, _Ordinary))
    except ValidationError:
        return None


def _figures(told: _Ordinary, calls: int = 0) -> Usage | None:
    ins, outs = told.prompt_tokens_details, told.completion_tokens_details
    cached = ins.cached_tokens or 0 if ins is not None else 0
    input_, output = told.prompt_tokens, told.completion_tokens
    if cached > input_ or input_ + output != told.total_tokens:
        return None
    reasoning = outs.reasoning_tokens or 0 if outs is not None else 0
    return Usage(input_ - cached, cached, output=output, reasoning=reasoning, calls=calls)


def _read_any(raw: dict[str, Any]) -> Usage | None:
    """Every vendor's names.

    Whether reasoning is part of the output, and audio of the input, differs by vendor; the total
    tells: what it exceeds input + output by is what they do not include. An excess that no detail
    explains is thinking that is billed but not listed (Gemini behind its OpenAI paths).
    """
    prompt, completion = _first(raw, _INPUT), _first(raw, _OUTPUT)
    total = known_int(raw.get("total_tokens"))
    if prompt is None and completion is None and not total:
        return None
    output = known_int(completion)
    input_ = known_int(prompt) if prompt is not None else max(0, total - output)
    ins, outs = _first(raw, _INPUT_DETAILS), _first(raw, _OUTPUT_DETAILS)
    ins = ins if type(ins) is dict else _NOTHING
    outs = outs if type(outs) is dict else _NOTHING
    audio = known_int(ins.get("audio_tokens"))
    reasoning = known_int(outs.get("reasoning_tokens")) or known_int(raw.get("reasoning_tokens"))
    excess = total - input_ - output
    if excess > 0:
        if audio and excess in (audio, audio + reasoning):
            input_ += audio
            excess -= audio
        output += excess

    # Details are bounded by what they are details of: 314 cached of 198 was recorded.
    cached = min(known_int(_first(ins, _CACHED) or _first(raw, _CACHED)), input_)
    written = min(known_int(_first(ins, _CACHE_WRITE) or _first(raw, _CACHE_WRITE)), input_ - cached)
    audio = min(audio, input_ - cached - written)
    image = min(known_int(ins.get("image_tokens")), input_ - cached - written - audio)
    spoken = min(known_int(outs.get("audio_tokens")), output)
    drawn = min(known_int(outs.get("image_tokens")), output - spoken)
    return Usage(
        input=input_ - cached - written - audio - image,
        cache_read=cached,
        cache_write_5m=written,
        input_audio=audio,
        input_image=image,
        output=output - spoken - drawn,
        output_audio=spoken,
        output_image=drawn,
        reasoning=reasoning,
    )


_NOTHING: dict[str, Any] = {}


def _first(raw: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        value = raw.get(name)
        if value is not None:
            return value
    return None


USAGE = UsagePointers(
    # Groq has it in x_groq without being asked, Moonshot in the choice.
    places=(("x_groq", "usage"), ("choices", ANY, "usage"), ("usage",)),
    read=read_usage,
)
TOP_USAGE = UsagePointers(places=(("usage",),), read=read_usage)

# -- operations ------------------------------------------------------------------------------------

# What any request may name, however deep: the parts of messages, the resources of tools.
NAMED = (
    IdIn(("body", DEEP, "file_id")),
    IdIn(("body", DEEP, "file_ids", ANY)),
    IdIn(("body", DEEP, "vector_store_id")),
    IdIn(("body", DEEP, "vector_store_ids", ANY)),
    IdIn(("body", "model"), only=("ft:",)),  # what was trained for somebody, but where a file sells it
)

_CHAT = OperationSpec(
    "chat",
    "chat/completions",
    streams=True,
    include_usage=True,
    generates_text=True,
    guarded=("model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "best_of"),
    terminal_hint=DONE,
    meter=USAGE,
    ids_in=NAMED,
)
OPERATIONS: dict[str, OperationSpec] = {
    spec.name: spec
    for spec in (
        _CHAT,
        replace(_CHAT, name="completions", path="completions"),
        OperationSpec("embeddings", "embeddings", kind="embeddings", guarded=("model",), meter=TOP_USAGE),
        OperationSpec("moderations", "moderations", guarded=("model",), billed=False, meter=TOP_USAGE),
        OperationSpec("models", "models", ("GET",), request="none", model_at="none", billed=False),
        OperationSpec(
            "models.get",
            "models/{model}",
            ("GET",),
            api="models",
            request="none",
            model_at="path",
            billed=False,
            rules=NOTHING,
        ),
    )
}

# -- answers ---------------------------------------------------------------------------------------


_TEXTS = ("content", "refusal", "text")
_REASONING = ("reasoning_content", "reasoning")  # some send both, with the same text
_CALLS = ("tool_calls", "function_call", "audio")
_IN_CALL = ("name", "arguments", "transcript")
_ONLY_TEXT = (
    ("choices", ANY, "text"),
    *(("choices", ANY, "delta", name) for name in ("content", *_REASONING)),
)


_Name = Annotated[str, Meta(max_length=NAME_CHARS_MAX)]


class _OrdinaryChoice(Struct, gc=False):
    finish_reason: str
    usage: None = None
    error: None = None


class _OrdinaryAnswer(Struct, gc=False):
    """A whole answer of chat and completions whose vendor does nothing special in what we look at."""

    object: Literal["chat.completion", "text_completion"]
    choices: Annotated[list[_OrdinaryChoice], Meta(min_length=1)]
    usage: _Ordinary
    id: _Name = ""
    model: _Name = ""
    service_tier: _Name | None = None
    error: None = None
    code: None = None
    error_code: None = None


_read_answer = json.Decoder(_OrdinaryAnswer).decode


class CompletionMeter(AnswerMeter):
    """chat and completions, streamed or not; also every answer with a top-level usage."""

    KEEP: ClassVar[tuple[Pointer, ...]] = (
        ("id",), ("model",), ("object",), ("service_tier",), ("error",), ("code",), ("error_code",),
        ("choices", ANY, "finish_reason"),
    )  # fmt: skip
    TEXT: ClassVar[tuple[Pointer, ...]] = (
        ("choices", ANY, "text"),
        *(
            ("choices", ANY, holder, name)
            for holder in ("delta", "message")
            for name in (*_TEXTS, "reasoning_content", "tool_calls")
        ),
    )

    def _only_text(self) -> tuple[Pointer, ...]:
        return _ONLY_TEXT

    def _on_event(self, doc: dict[str, Any]) -> None:
        # Some 10,000 of these come each second: what is usual is looked at first, and once.
        get = doc.get
        if not self.model:
            self._identify(doc)
        tier = get("service_tier")
        if tier is not None and tier != self.service_tier:
            self._take_tier(tier)
        if get("error") or get("code"):
            # Spark and DashScope say it with a code beside HTTP 200.
            self.error |= bool(get("error")) or "choices" not in doc
        if get("usage") or get("x_groq"):
            self._on_usage(doc)
        for choice in get("choices") or ():
            get = choice.get
            if self._keeps_text:
                delta = get("delta")
                text = delta.get("content") if delta else None
                if type(text) is str and len(delta) == 1:
                    self._keep_text(text)
                else:
                    self._keep_message(delta or get("message") or choice)
            if get("finish_reason") is not None:
                self.finished = True
            if get("usage"):
                self._on_usage(doc)
            if get("error"):
                self.error = True

    def _on_usage(self, doc: dict[str, Any]) -> None:
        # Some send zeros until they know: text is kept as long as the output is not told.
        if self._find_usage(doc) and self._usage is not None and self._usage.output_tokens_all():
            self._drop_text()

    def read_all(self, content: bytes) -> None:
        """Reads what OpenAI answers to most calls in a third of the time of `_on_event` (1 us)."""
        usage = None
        if self._pointers is USAGE and len(content) <= PIECE_BYTES_MAX:
            try:  # what is not wanted is checked as well, but for its UTF-8
                told = _read_answer(content if content.isascii() else content.decode())
                usage = _figures(told.usage, 1)
            except (MsgspecError, UnicodeDecodeError, RecursionError):
                pass  # something is special about it
        if usage is None or not usage.output:  # without an output there may be text to be kept
            super().read_all(content)
            return
        self._usage, self.events, self.complete, self.finished = usage, 1, True, True
        self.model, self.vendor_id = told.model, told.id
        if told.service_tier:
            self.service_tier = told.service_tier

    def _on_whole(self, doc: dict[str, Any]) -> None:
        self._on_event(doc)
        if doc.get("object") == "error" or doc.get("error_code"):  # Mistral, Baidu
            self.error = True

    def _keep_message(self, message: dict[str, Any]) -> None:
        for name in _TEXTS:
            if name in message:
                self._keep_parts(message[name])
        self._keep_parts(_first(message, _REASONING))
        for name in _CALLS:
            if message.get(name):
                self._keep_calls(message[name])

    def _keep_parts(self, content: object) -> None:
        """Text, or a list of parts with text in them (Mistral)."""
        for part in content if type(content) is list else (content,):
            if type(part) is dict:
                self._keep_parts(part.get("text") or part.get("thinking"))
            else:
                self._keep_text(part)

    def _keep_calls(self, calls: Any) -> None:
        for call in calls if type(calls) is list else (calls,):
            function = call.get("function") or call
            for name in _IN_CALL:
                self._keep_text(function.get(name))


def meter_of(operation: OperationSpec) -> MakeMeter:
    return operation.own_meter or (CompletionMeter if operation.rules is None else RuledMeter)


# -- errors ----------------------------------------------------------------------------------------

# OpenAI's `type` for our kinds; what is not listed is an invalid_request_error there too.
_TYPES = {
    "server_error": "server_error",
    "timeout_error": "server_error",
    "insufficient_quota": "insufficient_quota",
    "rate_limit_error": "requests",
}


def error_object(kind: str, code: str, message: str, param: str | None) -> dict[str, Any]:
    """The value of `error`, as OpenAI's SDKs read it."""
    return {
        "message": message,
        "type": _TYPES.get(kind, "invalid_request_error"),
        "param": param,
        "code": code,
    }


def error_body(kind: str, code: str, message: str, param: str | None, status: int, request_id: str) -> bytes:
    """`{"error": {...}}`. The request id is in the header."""
    return orjson.dumps({"error": error_object(kind, code, message, param)})


def in_stream(error_body: Callable[..., bytes]) -> Callable[..., bytes]:
    """The same refusal as a `data:` event of a running stream, which makes the SDKs raise."""

    def stream_error(*refusal: Any) -> bytes:
        return b"data: %b\n\n" % error_body(*refusal)

    return stream_error


# -- headers ---------------------------------------------------------------------------------------

REQUEST_PASS = frozenset({
    b"accept", b"accept-encoding", b"accept-language", b"baggage", b"content-type", b"http-referer",
    b"openai-beta", b"traceparent", b"tracestate", b"user-agent", b"x-client-request-id",
    b"x-stainless-arch", b"x-stainless-async", b"x-stainless-helper-method", b"x-stainless-lang",
    b"x-stainless-os", b"x-stainless-package-version", b"x-stainless-raw-response",
    b"x-stainless-read-timeout", b"x-stainless-retry-count", b"x-stainless-runtime",
    b"x-stainless-runtime-version", b"x-stainless-timeout", b"x-title",
})  # fmt: skip

# What pages of lists, and a look at a response, are asked by.
QUERY_PASS = dict.fromkeys(
    (
        "after", "before", "filter", "include", "include[]", "include_obfuscation", "limit", "order",
        "purpose", "run_id", "starting_after", "stream",
    ),
    frozenset[str](),
)  # fmt: skip

# Not the vendor's organisation or project, cookies, or what its CDN adds.
RESPONSE_PASS = frozenset({
    b"cache-control", b"content-disposition", b"content-encoding", b"content-language", b"content-type",
    b"date", b"etag", b"expires", b"last-modified", b"openai-processing-ms", b"openai-version",
    b"retry-after", b"retry-after-ms", b"vary", b"x-content-type-options", b"x-generation-id",
    b"x-should-retry",
})  # fmt: skip
RESPONSE_PASS_PREFIXES = (b"x-ratelimit-",)
