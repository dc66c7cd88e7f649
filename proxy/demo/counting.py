"""Count tokens as the demo bills them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from proxy.demo.reading import images_in, texts_of
from proxy.metering.count import count_tokens

MESSAGE_OVERHEAD = 3  # tokens around each chat message, and before the answer (OpenAI's cookbook)
IMAGE_TOKENS = 85  # a low-detail image


def text_tokens(texts: Iterable[str], model: str) -> int:
    """Tokens of all `texts`, each counted by itself."""
    return sum(count_tokens([text], model) for text in texts)


def counter(model: str) -> Callable[[str], int]:
    """Tells the tokens of a text."""
    return lambda text: text_tokens([text], model)


def input_tokens(inputs: list[str | list[int]], model: str) -> int:
    """Tokens of inputs of which some may already be tokens."""
    texts = [item for item in inputs if isinstance(item, str)]
    return text_tokens(texts, model) + sum(len(item) for item in inputs if not isinstance(item, str))


def message_tokens(messages: list[dict[str, Any]], model: str) -> int:
    """Prompt tokens of a chat: its texts, the frame around each message, a flat price per image."""
    texts = [text for message in messages for text in texts_of(message.get("content"))]
    frame = MESSAGE_OVERHEAD * (len(messages) + 1) + len(messages)  # a role is one token
    return text_tokens(texts, model) + frame + IMAGE_TOKENS * images_in(messages)
