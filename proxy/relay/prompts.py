"""The text of a request, for counting where the vendor reports no input tokens.

Owns which strings of a request body are text that a model reads. Media and their base64 are not.
"""

from __future__ import annotations

from typing import Any

from proxy.metering import sliced
from proxy.metering.count import count_tokens

DEPTH_MAX = 12
COUNTED_CHARS = 256 << 10  # counted before it is asked whether that is enough
_READ = (
    "messages", "system", "prompt", "input", "tools", "functions", "instructions", "response_format",
    # Gemini's, Cohere's and Ollama's
    "contents", "systemInstruction", "system_instruction", "content", "requests", "instances",
    "message", "chat_history", "preamble", "documents", "query", "texts", "suffix",
)  # fmt: skip
_SKIPPED = frozenset({
    "image_url", "source", "input_audio", "file", "type", "role", "id", "cache_control", "model",
    "inlineData", "inline_data", "fileData", "file_data", "images", "image", "audio", "video",
    "bytesBase64Encoded", "thoughtSignature",
})  # fmt: skip


def text_of(content: bytes) -> str:
    """All text of a JSON request body, in order; "" if it has none."""
    try:
        doc = sliced.loads(content)
    except ValueError:
        return ""
    pieces: list[str] = []
    for name in _READ:
        _collect(content, doc.get(name), pieces, DEPTH_MAX)
    return "\n".join(pieces)


def _collect(content: bytes, value: Any, pieces: list[str], depth: int) -> None:
    if type(value) is str:
        pieces.append(value)
    elif isinstance(value, sliced.LongText):
        pieces.append("".join(sliced.pieces(content, value)))
    elif depth == 0:
        return
    elif type(value) is list:
        for part in value:
            _collect(content, part, pieces, depth - 1)
    elif type(value) is dict:
        for name, part in value.items():
            if name not in _SKIPPED:
                _collect(content, part, pieces, depth - 1)


def count(content: bytes, model: str) -> int:
    """Tokens of the text of a JSON request body. Of a long one in a thread: 1 MB takes 25 ms, and 3
    of them are everybody's."""
    return count_tokens((text_of(content),), model)


def count_until(content: bytes, model: str, most: int) -> int:
    """Like `count`; of a text that has more than `most` tokens, only so many that this is certain."""
    text = text_of(content)
    tokens = 0
    for at in range(0, len(text), COUNTED_CHARS):
        tokens += count_tokens((text[at : at + COUNTED_CHARS],), model)
        if tokens > most:
            break
    return tokens
