"""OpenAI's generated text as the demo speaks it: chat completions and legacy completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import orjson
from aiohttp import web

from proxy.demo import answers, counting, reading, tools
from proxy.demo.answers import Answer
from proxy.demo.streaming import open_stream, paced

COMPLETION_TOKENS = 16  # OpenAI's default limit of the legacy path

Choice = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """How one of the two paths wraps a piece of text."""

    id_prefix: str
    whole_object: str
    chunk_object: str
    whole: Callable[[str], Choice]
    opening: Choice | None
    piece: Callable[[str], Choice]
    closing: Choice


CHAT = Shape(
    id_prefix="chatcmpl-",
    whole_object="chat.completion",
    chunk_object="chat.completion.chunk",
    whole=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    opening={"delta": {"role": "assistant", "content": "", "refusal": None}},
    piece=lambda text: {"delta": {"content": text}},
    closing={"delta": {}},
)
LEGACY = Shape(
    id_prefix="cmpl-",
    whole_object="text_completion",
    chunk_object="text_completion",
    whole=lambda text: {"text": text},
    opening=None,
    piece=lambda text: {"text": text},
    closing={"text": ""},
)


def calling(function: str) -> Shape:
    """CHAT where the text are the arguments of a call."""
    call_id = "call_" + uuid.uuid4().hex

    def entire(arguments: str) -> Choice:
        return {"id": call_id, "type": "function", "function": {"name": function, "arguments": arguments}}

    def delta(part: Choice) -> Choice:
        return {"delta": {"tool_calls": [{"index": 0, **part}]}}

    opening = delta(entire(""))
    opening["delta"] |= {"role": "assistant", "content": None}
    return replace(
        CHAT,
        whole=lambda text: {"message": {"role": "assistant", "content": None, "tool_calls": [entire(text)]}},
        opening=opening,
        piece=lambda text: delta({"function": {"arguments": text}}),
    )


@dataclass(frozen=True, slots=True)
class Generation:
    """One call: what was asked, what will be said and what it costs."""

    shape: Shape
    id: str
    model: str
    created: int
    answers: list[Answer]
    prompt_tokens: int
    streams: bool
    reports_usage: bool  # in a stream; a whole answer always does

    def envelope(self, object_name: str, choices: list[Choice]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": "fp_headrace_demo",
            "choices": choices,
        }

    def usage(self) -> dict[str, Any]:
        completion_tokens = sum(answer.tokens for answer in self.answers)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }

    def whole(self) -> dict[str, Any]:
        """The answer to a call that does not stream."""
        choices = [
            self._choice(index, self.shape.whole(answer.text), finish_reason(answer))
            for index, answer in enumerate(self.answers)
        ]
        return self.envelope(self.shape.whole_object, choices) | {"usage": self.usage()}

    def chunks(self) -> list[dict[str, Any]]:
        """Every event of the stream but the last `[DONE]`; the choices take turns."""
        parts: list[tuple[int, Choice, str | None]] = []
        numbered = list(enumerate(self.answers))
        if self.shape.opening is not None:
            parts += [(index, self.shape.opening, None) for index, _ in numbered]
        for turn in range(max(len(answer.pieces) for answer in self.answers)):
            parts += [
                (index, self.shape.piece(answer.pieces[turn]), None)
                for index, answer in numbered
                if turn < len(answer.pieces)
            ]
        parts += [(index, self.shape.closing, finish_reason(answer)) for index, answer in numbered]
        chunks = [self.envelope(self.shape.chunk_object, [self._choice(*part)]) for part in parts]
        if self.reports_usage:
            chunks = [chunk | {"usage": None} for chunk in chunks]
            chunks.append(self.envelope(self.shape.chunk_object, []) | {"usage": self.usage()})
        return chunks

    @staticmethod
    def _choice(index: int, content: Choice, reason: str | None) -> Choice:
        return {"index": index, **content, "logprobs": None, "finish_reason": reason}


def finish_reason(answer: Answer) -> str:
    if answer.function:
        return "tool_calls"
    return "length" if answer.is_cut else "stop"


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    body = await reading.read_object(request)
    messages = reading.messages_of(body)
    prompt = reading.last_prompt(messages)
    limit = reading.count_of(body, "max_completion_tokens", reading.count_of(body, "max_tokens", None))
    prompt_tokens = counting.message_tokens(messages, body["model"])
    made = generate(CHAT, body, [prompt], limit, prompt_tokens)
    if called := tools.call(body, messages, prompt, counting.counter(body["model"])):
        made = replace(made, shape=calling(called.function), answers=[called])
    return await respond(request, made)


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions"""
    body = await reading.read_object(request)
    prompts = reading.inputs_of(body.get("prompt"), "prompt")
    limit = reading.count_of(body, "max_tokens", COMPLETION_TOKENS)
    prompt_tokens = counting.input_tokens(prompts, body["model"])
    spoken = [prompt if isinstance(prompt, str) else "a list of tokens" for prompt in prompts]
    return await respond(request, generate(LEGACY, body, spoken, limit, prompt_tokens))


def generate(
    shape: Shape, body: dict[str, Any], prompts: list[str], limit: int | None, prompt_tokens: int
) -> Generation:
    """`n` answers to every prompt. Raises RefusalError where `n` or `stream_options` is not valid."""
    n = reading.count_of(body, "n", 1, reading.N_MAX) or 1
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise reading.invalid("Invalid type for 'stream_options': expected an object.", "invalid_type")
    if options and not body.get("stream"):
        raise reading.invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.")
    count = counting.counter(body["model"])
    said = [answers.answer(prompt, choice, limit, count) for prompt in prompts for choice in range(n)]
    return Generation(
        shape=shape,
        id=shape.id_prefix + uuid.uuid4().hex,
        model=body["model"],
        created=int(time.time()),
        answers=said,
        prompt_tokens=prompt_tokens,
        streams=bool(body.get("stream")),
        reports_usage=bool(options.get("include_usage")),
    )


async def respond(request: web.Request, generation: Generation) -> web.StreamResponse:
    if not generation.streams:
        return web.json_response(body=orjson.dumps(generation.whole()))
    stream = await open_stream(request)
    async with stream:
        async for chunk in paced(request, generation.chunks()):
            await stream.send(orjson.dumps(chunk).decode())
        await stream.send("[DONE]")
    return stream
