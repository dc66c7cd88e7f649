"""What the parts of a conversation hold that is no text: pictures, recordings, documents.

Owns the ways in which vendors' requests carry them. Pure and quick: nothing is decoded or counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AUDIO_TOKENS_LEAST = 400  # a recording is filled up to 30 s by some models
AUDIO_BYTES_PER_TOKEN = 125  # 32 tokens a second of speech at 32 kbit/s
DOCUMENT_BYTES_PER_TOKEN = 2  # a page is some KB of compressed PDF and is read as text and as image
DOCUMENT_TOKENS = 50_000  # a document that only a URL or an id stands for

# How long a part asks to be cached -> the bucket that its tokens are held in; the dearer the later.
BUCKETS = {"": "input", "5m": "cache_write_5m", "1h": "cache_write_1h"}
TTLS = tuple(BUCKETS)


class Parts:
    """Walks content parts and sums up what is not text. Strings, the common case, cost one look."""

    def __init__(self) -> None:
        self.binary_chars = 0
        self.images = 0
        self.audio_tokens = 0
        self.tokens = 0  # of documents
        self.cache_ttl = ""  # the longest asked for

    def add(self, value: Any, depth: int = 4) -> None:
        if type(value) is not list or depth == 0:
            return
        for part in value:
            if type(part) is not dict:
                continue
            kind = part.get("type")
            if type(kind) is str and kind in _MEDIA:
                self._add_media(kind, part)
            if not _NAMES.isdisjoint(part):
                for name in _NAMES & part.keys():
                    self._add_keyed(name, part[name])
            if "cache_control" in part:
                self.cache_ttl = max(self.cache_ttl, ttl_of(part), key=TTLS.index)
            for name in ("content", "parts"):
                inner = part.get(name)
                if inner is not None:
                    self.add([inner] if type(inner) is dict else inner, depth - 1)

    def _add_media(self, kind: str, part: Mapping[str, Any]) -> None:
        self._count(kind, self._skip(part))

    def _add_keyed(self, name: str, value: Any) -> None:
        """A part that is told by a member's name: Gemini's, Ollama's, DashScope's."""
        if type(value) is dict:
            mime = str(value.get("mimeType") or value.get("mime_type") or "")
            kind = next((kind for begins, kind in _OF_MIME.items() if mime.startswith(begins)), "file")
            sizes = [_base64_chars(value.get("data"), "data")]
        else:
            kind, values = _KEYED[name], value if type(value) is list else [value]
            sizes = [_base64_chars(one, "data" if name == "images" else "url") for one in values]
        for size in sizes:
            self.binary_chars += size
            self._count(kind, size)

    def _count(self, kind: str, size: int) -> None:
        if kind in _IMAGES:
            self.images += 1
        elif kind in _DOCUMENTS:
            self.tokens += size * 3 // 4 // DOCUMENT_BYTES_PER_TOKEN if size else DOCUMENT_TOKENS
        else:
            self.audio_tokens += AUDIO_TOKENS_LEAST + size * 3 // 4 // AUDIO_BYTES_PER_TOKEN

    def _skip(self, part: Mapping[str, Any]) -> int:
        """Characters of base64 in a part: they are in the body, but are no text."""
        for name in ("image_url", "source", "input_audio", "file", "video_url"):
            holder = part.get(name)
            if isinstance(holder, str):
                holder = {"url": holder}
            if type(holder) is dict:
                size = max((_base64_chars(holder.get(field), field) for field in _DATA), default=0)
                self.binary_chars += size
                return size
        return 0


_IMAGES = frozenset({"image_url", "image", "input_image", "video_url"})
_DOCUMENTS = frozenset({"document", "file", "input_file"})
_MEDIA = _IMAGES | _DOCUMENTS | {"input_audio"}
_DATA = ("data", "url", "file_data")
_KEYED = {
    **dict.fromkeys(("inlineData", "inline_data", "fileData", "file_data"), "file"),
    "images": "image",
    "image": "image",
    "video": "image",
    "audio": "input_audio",
}
_NAMES = frozenset(_KEYED)
_OF_MIME = {"image/": "image", "video/": "image", "audio/": "input_audio"}


def _base64_chars(value: object, field: str) -> int:
    if not isinstance(value, str):
        return 0
    return len(value) if field == "data" or value.startswith("data:") else 0


def ttl_of(part: Mapping[str, Any]) -> str:
    control = part.get("cache_control")
    if type(control) is not dict:
        return ""
    return "1h" if control.get("ttl") == "1h" else "5m"
