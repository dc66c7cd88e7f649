"""What the replies of several families have in common: words, ids, dates, refusals."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable
from itertools import count
from typing import Any

from proxy.demo.tasks.jobs import Job, Refusal

STATUS = {"invalid": 400, "banned": 400, "missing": 404, "full": 429, "broken": 500}

_numbers = count(uuid.uuid4().int % 10**6)


def words(begun: str, running: str, succeeded: str, failed: str, cancelled: str = "") -> dict[str, str]:
    """A vendor's words for our states."""
    return {
        "queued": begun, "submitted": begun, "waiting": begun, "running": running, "succeeded": succeeded,
        "failed": failed, "cancelled": cancelled or failed,
    }  # fmt: skip


def number() -> str:
    """An id of eighteen digits."""
    return f"{int(time.time() * 1000)}{next(_numbers) % 100_000:05}"


def named(prefix: str) -> Callable[[], str]:
    return lambda: prefix + uuid.uuid4().hex


def iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def refused_as_openai(refusal: Refusal) -> tuple[int, Any]:
    kind = "server_error" if refusal.kind == "broken" else "invalid_request_error"
    code = {"full": "rate_limit_exceeded", "banned": "moderation_blocked"}.get(refusal.kind)
    error = {"message": refusal.message, "type": kind, "param": None, "code": code}
    return STATUS[refusal.kind], {"error": error}


def film_of(job: Job) -> str:
    return job.file("mp4") if job.is_done else ""
