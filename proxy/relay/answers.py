"""What the client is told when an upstream is not happy, and our own refusals on the wire.

Owns the table of unhappy answers (design.md, "Answers of an upstream that is not happy") and the
bytes of a refusal. Pure.
"""

from __future__ import annotations

import math
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

import orjson

from proxy.dialects import DIALECTS
from proxy.dialects.base import Dialect
from proxy.errors import (
    LimitExceeded,
    MalformedRequest,
    ProxyError,
    UpstreamBusy,
    UpstreamFault,
    UpstreamRefused,
)
from proxy.http1.head import Field, Head
from proxy.http1.headers import REASONS, serialize
from proxy.metering.decode import Decoder
from proxy.relay.ids import dashed

if TYPE_CHECKING:
    from proxy.relay.exchange import Exchange

UNHAPPY_BYTES_MAX = 64 * 1024  # of an error answer that is read before it is judged
CREDENTIAL_STATUS = frozenset({401, 402, 403})
BUSY_STATUS = frozenset({429, 529})

# How vendors say, under another status, that the key is what is wrong. Never looked for in all of the body:
# it may quote what the client sent, and no client may put a credential to rest.
_BAD_KEY_CODES = frozenset({"invalid_api_key", "api_key_invalid", "authentication_error"})
_BAD_KEY_BEGINNINGS = ("incorrect api key", "invalid api key", "invalid x-api-key", "api key not valid")
# A refusal of the content, not of the key, although it comes as a 403.
_POLICY_CODES = frozenset(
    {"content_policy_violation", "content_filter", "moderation_blocked", "responsibleaipolicyviolation"}
)
_POLICY_PHRASES = ("content policy", "usage polic", "was flagged", "safety system", "content management")
_ERROR_BYTES_MAX = 256 * 1024  # of an error that is read: a longer one is a bomb


_JSON = (b"content-type", b"application/json")


class Verdict(Enum):
    """What becomes of an upstream's answer with a status of 300 and above."""

    VERBATIM = "verbatim"  # the client's business: verbatim
    COOL = "cool"  # our credential's: cool it, next candidate
    BUSY = "busy"  # cool it for a moment, next candidate
    NEXT = "next"  # next candidate


def judge(head: Head, body: bytes) -> Verdict:
    """`body` is what was read of the answer, at most UNHAPPY_BYTES_MAX."""
    status = head.status
    if status in BUSY_STATUS:
        return Verdict.BUSY
    if status >= 500:
        return Verdict.NEXT
    if status in CREDENTIAL_STATUS:
        return Verdict.VERBATIM if status == 403 and _is_about_content(head, body) else Verdict.COOL
    if status >= 400:
        return Verdict.COOL if _is_about_key(head, body) else Verdict.VERBATIM
    return Verdict.NEXT  # 3xx: never followed with our credential, its Location would name the upstream


def counts_as(verdict: Verdict, status: int) -> int:
    """The status under which an answer counts against its credential: a bad key hides under others too."""
    return 401 if verdict is Verdict.COOL and status not in CREDENTIAL_STATUS else status


def error_for(verdict: Verdict, status: int, retry_after_s: float | None) -> UpstreamFault:
    """What the client is told when no candidate is left."""
    if verdict is Verdict.BUSY:
        return UpstreamBusy(retry_after_s=retry_after_s or 1.0, detail=f"status:{status}")
    return UpstreamRefused(detail=f"status:{status}")


def retry_after(value: str | None) -> float | None:
    """Seconds from a retry-after header (RFC 9110 10.2.3); a date or nonsense counts as none."""
    try:
        seconds = float(value) if value else math.nan
    except ValueError:
        return None
    return seconds if 0 <= seconds < 86400 else None


def _is_about_key(head: Head, body: bytes) -> bool:
    codes, message = _error_of(head, body)
    return not codes.isdisjoint(_BAD_KEY_CODES) or message.startswith(_BAD_KEY_BEGINNINGS)


def _is_about_content(head: Head, body: bytes) -> bool:
    codes, message = _error_of(head, body)
    return not codes.isdisjoint(_POLICY_CODES) or any(phrase in message for phrase in _POLICY_PHRASES)


def _error_of(head: Head, body: bytes) -> tuple[set[str], str]:
    """(codes, message) of an error body in lower case, wherever vendors put them; empty without any."""
    text = Decoder(head.shape.coding or "identity").feed(body)
    try:
        document = orjson.loads(text) if len(text) <= _ERROR_BYTES_MAX else None
    except ValueError:
        return set(), ""
    if type(document) is list and document:  # Gemini
        document = document[0]
    if type(document) is not dict:
        return set(), ""
    error = document.get("error")
    if type(error) is not dict:  # xAI: the message itself
        error = {**document, "message": error or document.get("message")}
    inner, details = error.get("innererror"), error.get("details")
    codes = [error.get(name) for name in ("code", "type", "status")]
    codes += [inner.get("code")] if type(inner) is dict else []
    codes += [d.get("reason") for d in details if type(d) is dict] if type(details) is list else []
    message = error.get("message")
    return {c.lower() for c in codes if type(c) is str}, message.lower() if type(message) is str else ""


# Who asks for a path like these reads that dialect, also where the path is none of ours.
_SPOKEN_AT = {
    "/messages": "anthropic",
    "/openai/deployments/": "azure",
    "/publishers/": "vertex",
    "/v1beta/": "gemini",
    ":generatecontent": "gemini",
    ":streamgeneratecontent": "gemini",
    "/v2/": "cohere",
    "/api/v1/services/": "dashscope",
    "/api/tags": "ollama",
    "/api/chat": "ollama",
    "/api/generate": "ollama",
    "/api/embed": "ollama",
}


def dialect_of(x: Exchange) -> Dialect:
    """The dialect in which this caller reads errors, as far as the request tells yet."""
    if x.dialect is not None:
        return x.dialect
    target = x.head.target.lower()
    spoken = (name for part, name in _SPOKEN_AT.items() if part in target)
    if "anthropic-version" in x.headers:
        return DIALECTS["anthropic"]
    return DIALECTS[next(spoken, "gemini" if "x-goog-api-key" in x.headers else "openai")]


_CORS = (
    b"access-control-allow-origin: *\r\n"
    b"access-control-expose-headers: x-request-id, request-id, retry-after, server-timing\r\n"
)


ID = b"%"  # in `own_lines`, where the call's id stands


def own_fields(x: Exchange) -> bytes:
    """The header lines of every answer of ours: the call's id, and CORS where the endpoint has it."""
    lines = own_lines(dialect_of(x), x.endpoint is not None and x.endpoint.cors)
    return lines.replace(ID, dashed(x.id))


@lru_cache(maxsize=64)
def own_lines(caller: Dialect, has_cors: bool) -> bytes:
    """The same of all calls that are answered in one dialect."""
    lines = b"".join([b"%b: %b\r\n" % (name, ID) for name in caller.own_id_headers])
    return lines + _CORS if has_cors else lines


def own_head(x: Exchange, status: int, fields: list[Field], length: int) -> bytes:
    """The head of an answer of our own, whose body has so many bytes."""
    lines = own_fields(x)
    if status not in (204, 304):
        lines += b"content-length: %d\r\n" % length
    if not x.keep_alive:
        lines += b"connection: close\r\n"
    head = serialize(status, REASONS.get(status, b""), fields)
    return b"%b%b\r\n" % (head[:-2], lines)


def whole_answer(x: Exchange, status: int, fields: list[Field], body: bytes) -> bytes:
    """An answer of our own with its body, which a HEAD request does not get."""
    head = own_head(x, status, fields, len(body))
    return head if x.method == "HEAD" else head + body


def refusal(x: Exchange, error: ProxyError) -> bytes:
    """Our own error in the caller's dialect. Holds nothing of what the client sent."""
    dialect = dialect_of(x)
    body = dialect.error_body(
        error.kind, error.code, error.message, error.param, error.status, dashed(x.id).decode()
    )
    fields = [_JSON]
    if error.retry_after_s is not None:
        fields.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
        if isinstance(error, LimitExceeded):
            fields += error.fields
    if error.should_retry is not None:
        fields.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    return whole_answer(x, error.status, fields, body)


def unparsed_refusal() -> bytes:
    """The answer to bytes that are no request: there is nothing yet to know a dialect or an id from."""
    error = MalformedRequest()
    body = DIALECTS["openai"].error_body(error.kind, error.code, error.message, None, error.status, "")
    fields = [_JSON, (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    return serialize(error.status, REASONS[error.status], fields) + body
