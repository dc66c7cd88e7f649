"""OpenAI's Responses as the demo speaks them: whole, streamed, in the background, and asked for again."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from proxy.demo import answers, counting, reading, tools
from proxy.demo.streaming import open_stream, paced

KEPT_MAX = 1000  # responses that can be asked for again
READY_AFTER_S = 1.0  # a response in the background

KEPT = web.AppKey("kept", OrderedDict[str, "Response"])


@dataclass(frozen=True, slots=True)
class Response:
    """One response: what was asked, what is said."""

    id: str
    body: dict[str, Any]
    said: answers.Answer
    input_tokens: int
    created: float

    def item(self) -> dict[str, Any]:
        if self.said.function:
            return {
                "id": f"fc_{self.id[5:]}",
                "type": "function_call",
                "status": "completed",
                "call_id": f"call_{self.id[5:]}",
                "name": self.said.function,
                "arguments": self.said.text,
            }
        content = {"type": "output_text", "text": self.said.text, "annotations": []}
        return {
            "id": f"msg_{self.id[5:]}",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [content],
        }

    def document(self, status: str) -> dict[str, Any]:
        """The response in one of its states; only one that has ended tells its output and usage."""
        has_ended = status not in ("queued", "in_progress")
        usage = {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.said.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + self.said.tokens,
        }
        return {
            "id": self.id,
            "object": "response",
            "created_at": int(self.created),
            "status": status,
            "background": bool(self.body.get("background")),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self.body.get("instructions"),
            "metadata": self.body.get("metadata") or {},
            "model": self.body["model"],
            "output": [self.item()] if has_ended else [],
            "parallel_tool_calls": True,
            "service_tier": "default",
            "store": self.body.get("store", True),
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": self.body.get("tools") or [],
            "top_p": 1.0,
            "usage": usage if has_ended else None,
        }

    @property
    def end(self) -> str:
        return "incomplete" if self.said.is_cut else "completed"

    def state(self, now: float) -> str:
        """What it is when it is asked for again."""
        is_running = self.body.get("background") and now < self.created + READY_AFTER_S
        return "in_progress" if is_running else self.end

    def events(self) -> list[dict[str, Any]]:
        """The stream of it, in order, numbered."""
        item = self.item()
        at: dict[str, Any] = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        empty: dict[str, Any] = {"content": []}
        kind, member = "output_text", "text"
        if self.said.function:
            del at["content_index"]
            empty, kind, member = {"arguments": ""}, "function_call_arguments", "arguments"
        listed: list[dict[str, Any]] = [
            {"type": "response.created", "response": self.document("in_progress")},
            {"type": "response.in_progress", "response": self.document("in_progress")},
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": item | {"status": "in_progress"} | empty,
            },
            *({"type": f"response.{kind}.delta", **at, "delta": piece} for piece in self.said.pieces),
            {"type": f"response.{kind}.done", **at, member: self.said.text},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": f"response.{self.end}", "response": self.document(self.end)},
        ]
        return [event | {"sequence_number": number} for number, event in enumerate(listed)]


async def create(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses"""
    body = await reading.read_object(request)
    model = body["model"]
    asked = body.get("input")
    messages = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    if not asked or not all(isinstance(message, dict) for message in messages):
        raise reading.invalid("Missing required parameter: 'input'.", "missing_required_parameter")
    prompt, count = reading.last_prompt(messages), counting.counter(model)
    limit = reading.count_of(body, "max_output_tokens", None)
    said = tools.call(body, messages, prompt, count) or answers.answer(prompt, 0, limit, count)
    tokens = counting.message_tokens(messages, model)
    made = Response(f"resp_{uuid.uuid4().hex}", body, said, tokens, time.time())
    if body.get("store", True):
        kept = request.app[KEPT]
        kept[made.id] = made
        while len(kept) > KEPT_MAX:
            kept.popitem(last=False)
    if not body.get("stream"):
        status = "queued" if body.get("background") else made.end
        return web.json_response(body=orjson.dumps(made.document(status)))
    stream = await open_stream(request)
    async with stream:
        async for event in paced(request, made.events()):
            await stream.send(orjson.dumps(event).decode(), event=event["type"])
    return stream


def _asked_for(request: web.Request) -> Response:
    found = request.app[KEPT].get(request.match_info["id"])
    if found is None:
        raise reading.RefusalError(404, "invalid_request_error", "Response not found.")
    return found


async def get(request: web.Request) -> web.Response:
    """GET /v1/responses/{id}"""
    found = _asked_for(request)
    return web.json_response(body=orjson.dumps(found.document(found.state(time.time()))))


async def delete(request: web.Request) -> web.Response:
    """DELETE /v1/responses/{id}"""
    found = _asked_for(request)
    del request.app[KEPT][found.id]
    return web.json_response(body=orjson.dumps({"id": found.id, "object": "response", "deleted": True}))


async def input_items(request: web.Request) -> web.Response:
    """GET /v1/responses/{id}/input_items"""
    asked = _asked_for(request).body["input"]
    items = asked if isinstance(asked, list) else [{"type": "message", "role": "user", "content": asked}]
    return web.json_response(body=orjson.dumps({"object": "list", "data": items, "has_more": False}))
