"""Submits that are one: by what name they are known, and what the next one finds. Pure.

An Idempotency-Key names a submit of its account for a day. A family of tasks may say that clicks which come
close together are one (`base.Once`): the name is then what they have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any

import orjson

from proxy.dialects.base import Once
from proxy.dialects.owned import found

KEY_CHARS_MAX = 255
KEY_MS = 86_400_000  # as long as a key is remembered
CLICK_MS = 120_000  # ... and a click that is not answered: longer than vendors take to accept it


class Turn(StrEnum):
    """What a submit finds."""

    OWN = "own"  # it is the first, or the first one came to nothing
    ANSWERED = "answered"
    WAITING = "waiting"  # the first is under way
    DIFFERENT = "different"  # something else was asked for by this name
    LOST = "lost"  # what became of the first, or its answer, is not known


@dataclass(frozen=True, slots=True)
class Submission:
    """One submit that may be another's."""

    account: int
    name: bytes  # what makes submits one
    request: bytes  # what is asked for
    call: str
    until_ms: int  # from then on the next one by this name is a new one


@dataclass(frozen=True, slots=True)
class Request:
    """What a submit asks for; `body` is the whole of it, `doc` what was read of it."""

    path: str
    body: bytes
    doc: Mapping[str, Any]


def by_key(account: int, key: str, request: Request, call: str, now_ms: int) -> Submission:
    asked = sha256(request.path.encode() + b"\0" + request.body).digest()
    return Submission(account, sha256(b"key\0" + key.encode()).digest(), asked, call, now_ms + KEY_MS)


def by_click(account: int, once: Once, request: Request, call: str, now_ms: int) -> Submission:
    """Where a request has none of the members that clicks have in common, all of it is."""
    common = [list(found(request.doc, member)) for member in once.members]
    told = orjson.dumps(common) if any(common) else request.body
    name = sha256(b"click\0" + request.path.encode() + b"\0" + told).digest()
    return Submission(account, name, name, call, now_ms + CLICK_MS)
