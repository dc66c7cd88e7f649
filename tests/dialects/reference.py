"""A slow and simple reader of answers, to compare the meters with: the whole body at once, by the letter.

Server-sent events as WHATWG HTML 9.2.6 has them (and a last event without its blank line), JSON by
the standard library, usage at the places of the dialect's table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from proxy.dialects.base import ANY, UsagePointers
from proxy.metering.usage import Usage


def events(body: bytes) -> Iterator[bytes]:
    data: list[bytes] = []
    for line in [*re.split(rb"\r\n|\n|\r", body.removeprefix(b"\xef\xbb\xbf")), b""]:
        if not line:
            if data:
                yield b"\n".join(data)
            data = []
            continue
        field, colon, value = line.partition(b":")
        if field == b"data" and colon:
            data.append(value.removeprefix(b" "))


def documents(body: bytes) -> Iterator[dict[str, Any]]:
    for data in events(body):
        try:
            doc = json.loads(data)
        except ValueError:
            continue
        if isinstance(doc, dict):
            yield doc


def at(value: Any, pointer: tuple[str | int, ...]) -> list[Any]:
    """All non-null values at a pointer, in order."""
    if value is None:
        return []
    if not pointer:
        return [value]
    if pointer[0] == ANY:
        return [v for element in value for v in at(element, pointer[1:])] if isinstance(value, list) else []
    return at(value.get(pointer[0]), pointer[1:]) if isinstance(value, dict) else []


def usage(body: bytes, pointers: UsagePointers) -> Usage | None:
    """The last usage object of a stream, or the overlay of all."""
    last: dict[str, Any] | None = None
    for doc in documents(body):
        for place in pointers.places:
            for value in at(doc, place)[-1:]:
                if not isinstance(value, dict):
                    continue
                if pointers.overlay:
                    last = {**(last or {}), **{k: v for k, v in value.items() if v is not None}}
                elif pointers.read(value) is not None:
                    last = value
    usage = pointers.read(last) if last is not None else None
    if usage is not None:
        usage.calls = 1
    return usage
