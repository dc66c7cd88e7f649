"""Headers that pass in every family: what HTTP itself is about, and tracing. Tables only.

Never what names an account, carries a secret or belongs to one connection.
"""

from __future__ import annotations

REQUEST = frozenset({
    b"accept", b"accept-encoding", b"accept-language", b"baggage", b"content-type", b"idempotency-key",
    b"traceparent", b"tracestate", b"user-agent",
})  # fmt: skip

RESPONSE = frozenset({
    b"cache-control", b"content-disposition", b"content-encoding", b"content-language", b"content-type",
    b"date", b"etag", b"expires", b"last-modified", b"retry-after", b"vary", b"x-content-type-options",
})  # fmt: skip
