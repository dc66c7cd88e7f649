"""Send a canned request by a client that is not ours, and read what came back."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import aiohttp
import orjson


async def ask(base: str, request: Path, trust: ssl.SSLContext | bool = True) -> tuple[int, Any, bytes]:
    """The request's own path, headers and body at `base`: (status, headers, body)."""
    head, _, body = request.read_bytes().partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in fields if not line.startswith(("Host", "Content-Length")))
    url = base + first.split()[1]
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers=headers, ssl=trust) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


def events_of(body: bytes) -> list[Any]:
    """The data of every SSE event: a JSON value, or `[DONE]` as text."""
    data = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]
    return [text if text == "[DONE]" else orjson.loads(text) for text in data]
