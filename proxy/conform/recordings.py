"""Recorded exchanges as they lie on disk: one JSON file each, or our own golden answers.

Owns the two formats and what of a recording says how it was metered; knows nothing of how it is replayed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from proxy.dialects import DIALECTS
from proxy.metering.usage import Usage

Frame = dict[str, Any]  # {"dir": "server" | "client", "kind": "text" | "binary" | "close", "data": str}
Figures = dict[str, int]

_CONTENT_TYPES = {
    ".sse": "text/event-stream",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".ndjson": "application/x-ndjson",
    ".html": "text/html",
    ".bin": "application/vnd.amazon.eventstream",
}
EXPECTED = "expected.json"  # of a folder of golden answers


@dataclass(frozen=True, slots=True)
class Recording:
    """One exchange. `told`: the figures of its vendor; None: it told none, or nobody noted them.

    `is_paid`: an answer without figures still costs, or (an error within it) must not; None: nobody knows.
    """

    name: str
    family: str
    protocol: str  # what it is called where it was recorded: openai.chat, or DIALECT:OPERATION
    method: str
    host: str
    target: str  # path and query
    status: int
    request_headers: Mapping[str, str] = field(default_factory=dict)
    request_body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    frames: tuple[Frame, ...] = ()
    is_stream: bool = False
    told: Figures | None = None
    is_paid: bool | None = None
    model: str = ""  # at an upstream that is not played but called


def figures(usage: Usage) -> Figures:
    """A usage as vendors count: our disjoint buckets summed back."""
    return {
        "input_tokens_all": usage.input_tokens_all(),
        "output_tokens_all": usage.output_tokens_all(),
        "cache_read_tokens": usage.cache_read,
        "cache_write_tokens": usage.cache_write_5m + usage.cache_write_1h,
        "cache_write_1h_tokens": usage.cache_write_1h,
        "reasoning_tokens": usage.reasoning,
        "input_audio_tokens": usage.input_audio,
        "output_audio_tokens": usage.output_audio,
        "input_image_tokens": usage.input_image,
        "output_image_tokens": usage.output_image,
        "images": usage.images,
        "audio_ms": usage.seconds_ms,
        "characters": usage.characters,
    }


def as_billed(expected: Mapping[str, Any]) -> Figures:
    """What a vendor reported, in the form that can be billed: no more from the cache than came in."""
    told = {name: expected.get(name) or 0 for name in figures(Usage())}
    if expected.get("input_tokens_all") is None and expected.get("total_tokens"):
        told["input_tokens_all"] = expected["total_tokens"]  # Voyage: a total and nothing else
    told["audio_ms"] = round((expected.get("audio_seconds") or 0) * 1000)
    told["cache_read_tokens"] = min(told["cache_read_tokens"], told["input_tokens_all"])
    return told


def read(folder: Path) -> list[Recording]:
    """Every recording below a folder, in the order of their names. Raises ValueError for a file that is
    no recording, LookupError where there is none."""
    golden = {path.parent for path in folder.rglob(EXPECTED)}
    found = [recording for there in sorted(golden) for recording in _golden(there, folder)]
    paths = [path for path in sorted(folder.rglob("*.json")) if path.parent not in golden]
    found += [_recorded(path, str(path.relative_to(folder))) for path in paths]
    if not found:
        raise LookupError(f"there is no recording in {folder}")
    return found


def _recorded(path: Path, name: str) -> Recording:
    try:
        data = orjson.loads(path.read_bytes())
        expected = data.get("expected") or {}
        figures_told = as_billed(expected)
        return Recording(
            name=name,
            family=data["family"],
            protocol=expected.get("protocol") or "",
            method=data["method"],
            host=data.get("url_host") or "",
            target=data["path"],
            status=data["status"],
            request_headers=_lowered(data.get("request_headers")),
            request_body=_content(data.get("request_body"), data.get("request_body_encoding")),
            headers=_lowered(data.get("response_headers")),
            body=_content(data["response_body"], data.get("response_body_encoding")),
            frames=tuple(data.get("websocket_frames") or ()),
            is_stream=bool(expected.get("stream")),
            told=figures_told if any(figures_told.values()) else None,
            is_paid=not (data.get("expected_detail") or {}).get("error"),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path} is no recording: {type(e).__name__}: {e}") from e


def _content(value: Any, encoding: str | None) -> bytes:
    if not isinstance(value, str):
        return b"" if value is None else json.dumps(value).encode()
    return base64.b64decode(value) if encoding == "base64" else value.encode()


def _lowered(headers: Mapping[str, Any] | None) -> dict[str, str]:
    return {name.lower(): str(value) for name, value in (headers or {}).items()}


def _golden(folder: Path, root: Path) -> Iterator[Recording]:
    """Answers of our own, each with the operation that it belongs to and what the meter makes of it."""
    dialect = folder.name
    for name, expected in orjson.loads((folder / EXPECTED).read_bytes()).items():
        operation = DIALECTS[dialect].operations[expected["operation"]]
        path = folder / name
        is_last_word = expected["final"] and "error" not in expected["flags"]
        usage = Usage.from_dict(expected["usage"]) if is_last_word and expected["usage"] else None
        yield Recording(
            name=str(path.relative_to(root)),
            family=dialect,
            protocol=f"{dialect}:{operation.name}",
            method=operation.methods[0],
            host="",
            target="",
            status=200,
            headers={"content-type": _CONTENT_TYPES.get(path.suffix, "application/octet-stream")},
            body=path.read_bytes(),
            is_stream=path.suffix == ".sse" and operation.streams,
            told=figures(usage) if usage is not None else None,
        )
