"""A vendor that has too much to do: 429 with retry-after, and a good answer to the next try.

A model whose name has "never" in it is never answered. Every other one is refused once, then answered, and
so on: a name of its own for each runner keeps them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import orjson

from tests.fakes.upstream_server import Request, UpstreamServer, whole

RETRY_AFTER_S = 1
CHAT = {
    "id": "chatcmpl-busy",
    "object": "chat.completion",
    "created": 1,
    "model": "busy",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Here."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}
MESSAGE = {
    "id": "msg_busy",
    "type": "message",
    "role": "assistant",
    "model": "busy",
    "content": [{"type": "text", "text": "Here."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 2},
}
CONTENT = {
    "candidates": [
        {"content": {"role": "model", "parts": [{"text": "Here."}]}, "finishReason": "STOP", "index": 0}
    ],
    "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 11},
}
ANSWERS = {"/v1/chat/completions": CHAT, "/v1/messages": MESSAGE}


@contextmanager
def busy() -> Iterator[str]:
    """Base URL of it, until the block ends."""
    with UpstreamServer() as server:
        server.script("*", [_every_other()])
        yield server.url


def _every_other() -> Callable[[Request], bytes]:
    asked: Counter[str] = Counter()

    def answer(request: Request) -> bytes:
        path = request.target.partition("?")[0]
        model = path if ":" in path else orjson.loads(request.body)["model"]
        asked[model] += 1
        if "never" in model or asked[model] % 2:
            refusal = {"error": {"type": "rate_limit_error", "message": "One too many."}}
            return whole(orjson.dumps(refusal), 429, f"retry-after: {RETRY_AFTER_S}")
        return whole(orjson.dumps(ANSWERS.get(path, CONTENT)))

    return answer
