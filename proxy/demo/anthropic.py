"""Anthropic's API as the demo speaks it: messages and count_tokens."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import orjson
from aiohttp import web

from proxy.demo import answers, counting, reading, tools
from proxy.demo.streaming import open_stream, paced

FIRST_OUTPUT_TOKENS = 1  # message_start carries a small provisional figure


async def messages(request: web.Request) -> web.StreamResponse:
    """POST /v1/messages"""
    body = await reading.read_object(request)
    limit = reading.count_of(body, "max_tokens", None)
    if limit is None:
        raise reading.invalid("max_tokens: Field required")
    model, turns = body["model"], reading.messages_of(body)
    prompt, count = reading.last_prompt(turns), counting.counter(model)
    said = tools.call(body, turns, prompt, count) or answers.answer(prompt, 0, limit, count)
    stop_reason = "tool_use" if said.function else "max_tokens" if said.is_cut else "end_turn"
    message = {
        "id": "msg_" + uuid.uuid4().hex,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [block(said)],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage(input_tokens(body, turns), said.tokens),
    }
    if not body.get("stream"):
        return web.json_response(body=orjson.dumps(message))
    stream = await open_stream(request)
    async with stream:
        async for event in paced(request, events(message, said)):
            await stream.send(orjson.dumps(event).decode(), event=event["type"])
    return stream


def block(said: answers.Answer) -> dict[str, Any]:
    if not said.function:
        return {"type": "text", "text": said.text}
    called = {"id": "toolu_" + uuid.uuid4().hex, "name": said.function, "input": orjson.loads(said.text)}
    return {"type": "tool_use", **called}


def events(message: dict[str, Any], said: answers.Answer) -> Iterator[dict[str, Any]]:
    """The stream of `message`: figures of the input first, those of the output in message_delta."""
    final = message["usage"]
    provisional = final | {"output_tokens": min(FIRST_OUTPUT_TOKENS, final["output_tokens"])}
    opening = message | {"content": [], "stop_reason": None, "usage": provisional}
    yield {"type": "message_start", "message": opening}
    empty: dict[str, Any] = {"text": ""}
    kind, member = "text_delta", "text"
    if said.function:
        empty, kind, member = {"input": {}}, "input_json_delta", "partial_json"
    yield {"type": "content_block_start", "index": 0, "content_block": message["content"][0] | empty}
    yield {"type": "ping"}
    for piece in said.pieces:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": kind, member: piece}}
    yield {"type": "content_block_stop", "index": 0}
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": final["output_tokens"]}}
    yield {"type": "message_stop"}


async def count_tokens(request: web.Request) -> web.Response:
    """POST /v1/messages/count_tokens: the figure that `messages` will report as its input."""
    body = await reading.read_object(request)
    tokens = input_tokens(body, reading.messages_of(body))
    return web.json_response(body=orjson.dumps({"input_tokens": tokens}))


def input_tokens(body: dict[str, Any], turns: list[dict[str, Any]]) -> int:
    system = counting.text_tokens(reading.texts_of(body.get("system")), body["model"])
    return counting.message_tokens(turns, body["model"]) + system


def usage(input_count: int, output_count: int) -> dict[str, Any]:
    return {
        "input_tokens": input_count,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output_count,
        "service_tier": "standard",
    }
