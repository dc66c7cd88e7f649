"""The table of unhappy answers, and our own refusals on the wire."""

from __future__ import annotations

import gzip
from typing import Any

import orjson
import pytest

from proxy import errors
from proxy.access.limits import Limit, shown
from proxy.dialects import DIALECTS
from proxy.dialects.headers import ANTHROPIC_RATES, X_RATES
from proxy.errors import InvalidKey, LimitExceeded, NoCredit, ProxyError, UpstreamBusy, UpstreamRefused
from proxy.http1.head import Head, parse
from proxy.relay.answers import (
    Verdict,
    counts_as,
    dialect_of,
    error_for,
    judge,
    refusal,
    retry_after,
    unparsed_refusal,
)
from proxy.relay.exchange import Exchange
from tests.fakes.calls import call
from tests.fakes.upstream_server import head

COOL, BUSY, NEXT, VERBATIM = Verdict.COOL, Verdict.BUSY, Verdict.NEXT, Verdict.VERBATIM


def head_of(status: int, *fields: str) -> Head:
    found = parse(head(status, *fields))
    assert found is not None
    return found


def openai(code: str | None, message: str = "No.", kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


# -- judging ---------------------------------------------------------------------------------------

UNHAPPY: list[tuple[int, Any, Verdict]] = [
    # The client's own business.
    (400, openai("context_length_exceeded"), VERBATIM),
    (404, openai("model_not_found"), VERBATIM),
    (409, openai("conflict"), VERBATIM),
    (413, {"type": "error", "error": {"type": "request_too_large", "message": "x"}}, VERBATIM),
    (422, openai(None), VERBATIM),
    (400, b"<html>Bad Request</html>", VERBATIM),
    (400, b"", VERBATIM),
    # Our credential's.
    (401, openai("invalid_api_key"), COOL),
    (401, b"Unauthorized", COOL),
    (402, {"error": {"message": "Insufficient Balance"}}, COOL),
    (403, {"type": "error", "error": {"type": "permission_error", "message": "x"}}, COOL),
    (403, openai("model_not_found", "Project `p` does not have access to model `omni-moderation`"), COOL),
    (403, openai(None, "Your account is under safety review"), COOL),
    # A bad key under another status, as vendors were recorded to say it.
    (400, {"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.",
                     "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}, COOL),
    (400, [{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}], COOL),
    (400, {"code": "invalid-argument", "error": "Incorrect API key provided. You can obtain one."}, COOL),
    (404, openai("invalid_api_key"), COOL),
    # What a client sent and a vendor quotes is no word on our key.
    (400, openai("unknown_parameter", "Unknown parameter: 'invalid_api_key'."), VERBATIM),
    (400, openai(None, 'Invalid value: "Incorrect API key provided"'), VERBATIM),
    (400, {"error": {"message": "x", "type": "t", "param": "invalid_api_key", "code": "c"}}, VERBATIM),
    (400, b'{"error": "bad", "invalid_api_key": 1}', VERBATIM),
    # Content that was refused.
    (403, openai("content_policy_violation"), VERBATIM),
    (403, openai(None, "x requires moderation on y. Your input was flagged for \"violence\""), VERBATIM),
    (403, {"error": {"code": "x", "message": "y", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
     VERBATIM),
    # At their limit, or broken.
    (429, openai("rate_limit_exceeded"), BUSY),
    (529, {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}, BUSY),
    (500, b"", NEXT),
    (502, b"<html>", NEXT),
    (503, openai(None), NEXT),
    (504, b"", NEXT),
    (599, b"", NEXT),
    # Never followed: its Location would be told, our credential sent there.
    (301, b"", NEXT),
    (302, b"", NEXT),
    (307, b"", NEXT),
    (308, b"", NEXT),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "verdict"), UNHAPPY)
def test_an_unhappy_answer_is_judged(status: int, body: Any, verdict: Verdict) -> None:
    assert judge(head_of(status), body if isinstance(body, bytes) else orjson.dumps(body)) is verdict


def test_a_compressed_error_is_read() -> None:
    body = gzip.compress(orjson.dumps(openai("invalid_api_key")))
    assert judge(head_of(400, "content-encoding: gzip"), body) is COOL
    assert judge(head_of(400), body) is VERBATIM


@pytest.mark.parametrize(
    "body",
    [b"[]", b"[1]", b"null", b'"invalid_api_key"', b"{", b'{"error": null}', b'{"error": 5}',
     b'{"error": {"code": ["invalid_api_key"]}}', b'{"error": {"details": {"reason": 1}}}',
     b'{"error": {"innererror": "x", "details": [null]}}', b"\xff\xfe", b"[" * 60_000],
)  # fmt: skip
def test_an_odd_error_body_is_passed_on(body: bytes) -> None:
    assert judge(head_of(400), body) is VERBATIM


def test_an_error_that_unpacks_without_end_is_not_read() -> None:
    bomb = gzip.compress(b'{"error": {"code": "invalid_api_key", "x": "' + b"a" * 50_000_000 + b'"}}')
    assert len(bomb) < 64 * 1024
    assert judge(head_of(400, "content-encoding: gzip"), bomb) is VERBATIM


def test_a_bad_key_under_another_status_counts_like_a_401() -> None:
    assert [counts_as(COOL, status) for status in (400, 404, 401, 402, 403)] == [401, 401, 401, 402, 403]
    assert [counts_as(BUSY, 429), counts_as(NEXT, 500)] == [429, 500]


def test_what_is_told_when_no_candidate_is_left() -> None:
    busy = error_for(BUSY, 429, 7.0)
    assert (type(busy), busy.status, busy.retry_after_s) == (UpstreamBusy, 429, 7.0)
    assert error_for(BUSY, 529, None).retry_after_s == 1.0
    refused = error_for(COOL, 401, None)
    assert (type(refused), refused.status) == (UpstreamRefused, 502)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("0", 0.0), (None, None), ("", None), ("-1", None), ("nan", None),
     ("inf", None), ("1e9", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("7 apples", None)],
)  # fmt: skip
def test_retry_after_is_a_number_of_seconds_within_a_day(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


# -- refusing --------------------------------------------------------------------------------------


def sent(x: Exchange, error: ProxyError) -> tuple[bytes, dict[bytes, bytes], bytes]:
    raw_head, _, body = refusal(x, error).partition(b"\r\n\r\n")
    first, *lines = raw_head.split(b"\r\n")
    return first, dict(tuple(line.split(b": ", 1)) for line in lines), body  # type: ignore[misc]


def test_a_refusal_is_complete() -> None:
    first, fields, body = sent(call(), InvalidKey())
    assert first == b"HTTP/1.1 401 Unauthorized"
    assert fields == {
        b"content-type": b"application/json",
        b"x-should-retry": b"false",
        b"x-request-id": b"01990000-0000-0000-0000-000000000000",
        b"content-length": str(len(body)).encode(),
    }


def test_the_dialect_is_guessed_where_no_route_was_found() -> None:
    error = InvalidKey()
    assert b'"request_id"' in sent(call("/v1/messages"), error)[2]
    assert b'"request_id"' in sent(call("/nowhere", ("anthropic-version", "2023-06-01")), error)[2]
    assert b'"innererror"' in sent(call("/openai/deployments/x/none"), error)[2]
    assert b'"code":"invalid_api_key"' in sent(call("/nowhere"), error)[2]


def test_waiting_times_are_whole_seconds_and_never_none() -> None:
    assert sent(call(), LimitExceeded(retry_after_s=0.2))[1][b"retry-after"] == b"1"
    assert sent(call(), LimitExceeded(retry_after_s=12.1))[1][b"retry-after"] == b"13"
    assert b"x-should-retry" not in sent(call(), LimitExceeded(retry_after_s=1))[1]
    assert b"retry-after" not in sent(call(), NoCredit())[1]


def test_a_rate_is_told_as_its_family_tells_it() -> None:
    error = LimitExceeded(retry_after_s=11.5)
    assert not any(b"ratelimit" in name for name in sent(call(), error)[1])  # calls at once have no window
    error.fields = tuple(shown(Limit("k1", "requests_per_minute", 60), 0, 11_500, X_RATES, 0))
    fields = sent(call(), error)[1]
    assert fields[b"x-ratelimit-limit-requests"] == b"60"
    assert fields[b"x-ratelimit-remaining-requests"] == b"0"
    assert fields[b"x-ratelimit-reset-requests"] == b"12s"
    error.fields = tuple(shown(Limit("k1", "tokens_per_day", 60), 0, 11_500, ANTHROPIC_RATES, 0))
    fields = sent(call("/v1/messages"), error)[1]
    assert fields[b"anthropic-ratelimit-tokens-reset"] == b"1970-01-01T00:00:12Z"


def test_a_head_request_gets_no_body() -> None:
    _, fields, body = sent(call(method="HEAD"), InvalidKey())
    assert body == b"" and int(fields[b"content-length"]) > 0


def test_a_connection_that_ends_says_so() -> None:
    x = call()
    x.keep_alive = False
    assert sent(x, InvalidKey())[1][b"connection"] == b"close"


ALL_ERRORS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ProxyError)
]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_is_json_in_every_dialect_and_holds_no_detail(
    kind: type[ProxyError], dialect: str
) -> None:
    x = call()
    x.dialect = DIALECTS[dialect]
    first, _, body = sent(x, kind(detail="host api.vendor.test said sk-secret"))
    assert first.startswith(b"HTTP/1.1 %d " % kind.status)
    assert b"vendor" not in body and b"sk-secret" not in body
    error = orjson.loads(body)
    assert kind.text.encode() in body and len(error) >= 1  # where each has it: tests/dialects
    error = error.get("error")
    if dialect == "anthropic":
        assert error["type"] in ANTHROPIC_TYPES


@pytest.mark.parametrize(
    ("target", "dialect"),
    [
        ("/v1beta/models/m:generateContent?key=x", "gemini"),
        ("/v9/models/m:streamGenerateContent", "gemini"),
        ("/v1/projects/p/locations/l/publishers/google/models/m:x", "vertex"),
        ("/v2/unknown", "cohere"),
        ("/api/chat/x", "ollama"),
        ("/api/v1/services/x", "dashscope"),
        ("/v1/messages/x", "anthropic"),
        ("/openai/deployments/m/x", "azure"),
        ("/v1/unknown", "openai"),
    ],
)
def test_who_asks_for_a_path_that_is_none_is_answered_in_its_dialect(target: str, dialect: str) -> None:
    assert dialect_of(call(target)).name == dialect


# https://docs.anthropic.com/en/api/errors: what its SDKs know.
ANTHROPIC_TYPES = {
    "invalid_request_error", "authentication_error", "billing_error", "permission_error", "not_found_error",
    "request_too_large", "rate_limit_error", "timeout_error", "api_error", "overloaded_error",
}  # fmt: skip


def test_what_is_no_request_is_refused_without_an_id() -> None:
    answer = unparsed_refusal()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nconnection: close\r\n" in answer
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "malformed_request"
