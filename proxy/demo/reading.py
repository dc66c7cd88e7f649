"""Read what a caller sent: the JSON body, its prompt as text, its limits, its token counts.

Owns the demo's input checks; every mistake is a RefusalError that the application answers in the
caller's own dialect.
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

N_MAX = 8


class RefusalError(Exception):
    """A request that the demo will not answer: status, error type, message and OpenAI's code."""

    def __init__(self, status: int, kind: str, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.code = status, kind, message, code


def invalid(message: str, code: str | None = None) -> RefusalError:
    return RefusalError(400, "invalid_request_error", message, code=code)


async def read_object(request: web.Request, model_default: str = "") -> dict[str, Any]:
    """The body as a JSON object with a string `model`, if need be `model_default`. Raises RefusalError."""
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise invalid("We could not parse the JSON body of your request.") from error
    if not isinstance(body, dict):
        raise invalid("The request body must be a JSON object.")
    body["model"] = body.get("model") or model_default
    if not isinstance(body["model"], str) or not body["model"]:
        raise invalid("you must provide a model parameter", "missing_required_parameter")
    return body


def count_of(body: dict[str, Any], name: str, default: int | None, most: int | None = None) -> int | None:
    """A positive integer member, or `default` where it is absent or null. Raises RefusalError."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (most and value > most):
        raise invalid(f"Invalid value for '{name}': expected an integer of at least 1.", "invalid_value")
    return value


def texts_of(content: object) -> list[str]:
    """Every text in a message's content: a string, or a list of parts."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        return []
    found = [part.get("text") for part in content if isinstance(part, dict)]
    return [text for text in found if isinstance(text, str)]


def messages_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise invalid("Missing required parameter: 'messages'.", "missing_required_parameter")
    return messages


def last_prompt(messages: list[dict[str, Any]]) -> str:
    """What the user said last: the answer depends on it."""
    for message in reversed(messages):
        if message.get("role") == "user":
            return " ".join(texts_of(message.get("content")))
    return ""


def images_in(messages: list[dict[str, Any]]) -> int:
    parts = [p for m in messages if isinstance(m.get("content"), list) for p in m["content"]]
    return sum(1 for p in parts if isinstance(p, dict) and p.get("type") in ("image_url", "image"))


def inputs_of(value: object, name: str) -> list[str | list[int]]:
    """`input` of embeddings or `prompt` of completions: text, tokens, or a list of either."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, int) for item in value):
            return [value]
        if all(isinstance(item, (str, list)) for item in value):
            return value
    raise invalid(f"Missing or invalid parameter: '{name}'.", "missing_required_parameter")
