"""Headers that pass in every family, and those by which families tell what is left of a rate. Tables.

Never what names an account, carries a secret or belongs to one connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

REQUEST = frozenset({
    b"accept", b"accept-encoding", b"accept-language", b"baggage", b"content-type",
    b"traceparent", b"tracestate", b"user-agent",
})  # fmt: skip

RESPONSE = frozenset({
    b"cache-control", b"content-disposition", b"content-encoding", b"content-language", b"content-type",
    b"date", b"etag", b"expires", b"last-modified", b"retry-after", b"vary", b"x-content-type-options",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class RateHeaders:
    """The three headers of a rate; `%b` stands for what is counted: `requests` or `tokens`."""

    prefix: bytes  # of them all, and of no other header
    limit: bytes
    remaining: bytes
    reset: bytes
    when: Callable[[int, int], bytes]
    """(milliseconds until the window ends, now in ms of the Unix epoch) -> the value of `reset`."""


def span(ms: int, now_ms: int = 0) -> bytes:
    """`12s`, `6m0s`, `23h59m3s`: whole seconds, rounded up."""
    return _span(-(-ms // 1000))


@lru_cache(maxsize=256)  # a window ends in the same second for all answers of one
def _span(seconds: int) -> bytes:
    seconds = max(seconds, 0)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{head}{seconds}s".encode()


def moment(ms: int, now_ms: int) -> bytes:
    """RFC 3339, as Anthropic writes it: `2026-01-31T00:00:00Z`, rounded up to a second."""
    at_s = -(-(now_ms + max(ms, 0)) // 1000)
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%SZ}".encode()


# https://platform.openai.com/docs/guides/rate-limits and https://docs.anthropic.com/en/api/rate-limits
X_RATES = RateHeaders(
    b"x-ratelimit-", b"x-ratelimit-limit-%b", b"x-ratelimit-remaining-%b", b"x-ratelimit-reset-%b", span
)
ANTHROPIC_RATES = RateHeaders(
    b"anthropic-ratelimit-", b"anthropic-ratelimit-%b-limit", b"anthropic-ratelimit-%b-remaining",
    b"anthropic-ratelimit-%b-reset", moment,
)  # fmt: skip
