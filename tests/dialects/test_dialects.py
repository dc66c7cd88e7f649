"""What a dialect says about paths, keys, headers and errors is what its SDKs read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy import errors
from proxy.dialects import DIALECTS
from proxy.dialects.base import Dialect
from proxy.metering.events import JsonSplitter, SseSplitter
from proxy.metering.eventstream import FrameSplitter
from proxy.metering.scanner import PointerScanner

each_dialect = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
REFUSALS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ProxyError)
]


# What some SDKs read differs from OpenAI's envelope; where the message is, and what it stands beside.
MESSAGE_AT = {
    "cohere": "message",
    "mistral": "message",
    "dashscope": "message",
    "ollama": "error",
    "bedrock": "message",
}
BESIDE = {
    "gemini": {"code", "message", "status", "details"},
    "vertex": {"code", "message", "status", "details"},
    "cohere": {"id", "message"},
    "mistral": {"object", "message", "type", "param", "code"},
    "dashscope": {"code", "message", "request_id"},
    "ollama": {"error"},
    "bedrock": {"message", "__type", "code"},
}


def body(dialect: Dialect, error: errors.ProxyError) -> dict[str, Any]:
    answer = dialect.error_body(error.kind, error.code, error.message, error.param, error.status, "req-1")
    return json.loads(answer)


def test_each_dialect_is_found_by_its_name():
    assert {name: dialect.name for name, dialect in DIALECTS.items()} == {name: name for name in DIALECTS}
    assert len(DIALECTS) == 11


@each_dialect
def test_each_operation_has_a_path_and_a_meter(dialect: Dialect):
    assert set(dialect.paths) == set(dialect.operations)
    for operation in dialect.operations.values():
        path = dialect.paths[operation.name].replace("{operation_path}", operation.path)
        assert path == "{path}" or (path.startswith("/") and "//" not in path)
        told = dialect.make_meter(operation, True).usage()
        assert (told is not None) == (operation.billed and operation.kind == "calls")
        if operation.billed:
            assert operation.meter is not None or operation.kind == "calls"


def test_paths_are_the_vendors():
    assert (DIALECTS["openai"].paths["chat"], DIALECTS["openai"].operations["chat"].path) == (
        "/v1/{operation_path}",
        "chat/completions",
    )
    assert DIALECTS["azure"].paths["chat"] == "/openai/deployments/{model}/{operation_path}"
    assert dict(DIALECTS["azure"].query) == {"api-version": "2024-10-21"}
    assert DIALECTS["anthropic"].operations["count_tokens"].path == "messages/count_tokens"


def test_keys_are_written_where_the_vendor_reads_them():
    assert {name: dialect.auth for name, dialect in DIALECTS.items()} == {
        "openai": (b"authorization", b"Bearer "),
        "azure": (b"api-key", b""),
        "azure_v1": (b"api-key", b""),
        "bedrock": (b"", b""),  # it signs
        "anthropic": (b"x-api-key", b""),
        "gemini": (b"x-goog-api-key", b""),
        **dict.fromkeys(
            ("vertex", "cohere", "mistral", "dashscope", "ollama"), (b"authorization", b"Bearer ")
        ),
    }


@each_dialect
def test_no_header_passes_that_carries_a_key_or_names_our_account(dialect: Dialect):
    secrets = {b"authorization", b"api-key", b"x-api-key", b"cookie", b"set-cookie", b"proxy-authorization"}
    ours = {
        b"openai-organization",
        b"openai-project",
        b"anthropic-organization-id",
        b"x-goog-user-project",
        b"x-goog-api-key",
        b"x-dashscope-async",
        b"host",
        b"content-length",
    }
    passing = dialect.request_pass | dialect.response_pass
    assert not passing & (secrets | ours)
    assert not any(name.startswith(dialect.response_pass_prefixes) for name in secrets | ours)
    assert all(name == name.lower() for name in passing)


@each_dialect
@pytest.mark.parametrize("kind", REFUSALS)
def test_every_refusal_has_a_body_and_a_stream_event(dialect: Dialect, kind: type[errors.ProxyError]):
    error = kind(param="model")
    answer = body(dialect, error)
    where = MESSAGE_AT.get(dialect.name)
    told = answer if where else answer["error"]
    assert told[where or "message"] == error.message
    assert set(told) >= BESIDE.get(dialect.name, {"message", "type"})
    event = dialect.stream_error(error.kind, error.code, error.message, None, error.status, "req-1")
    assert len(events(event)) == 1


def events(stream: bytes) -> list[bytes]:
    """What a client of the stream sees: server-sent events, lines, or frames."""
    for kind in (SseSplitter, JsonSplitter, FrameSplitter):
        splitter = kind(lambda: PointerScanner(()))
        if found := splitter.feed(stream):
            return [event for event in found if type(event) is bytes]
    return []


@each_dialect
def test_a_message_with_line_ends_makes_no_second_event(dialect: Dialect):
    event = dialect.stream_error("server_error", "x", "a\n\ndata: [DONE]\r\n\r\n", None, 500, "r")
    (only,) = events(event)
    assert b"[DONE]" in only and b"\n" not in only


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidKey(), "invalid_request_error"),
        (errors.NoCredit(), "insufficient_quota"),
        (errors.LimitExceeded(), "requests"),
        (errors.InternalError(), "server_error"),
        (errors.UnknownModel(), "invalid_request_error"),
    ],
)
def test_openai_errors_have_message_type_param_and_code(error: errors.ProxyError, kind: str):
    answer = body(DIALECTS["openai"], error)["error"]
    assert answer == {"message": error.message, "type": kind, "param": None, "code": error.code}


def test_azure_codes_are_strings_of_letters_or_digits():
    assert body(DIALECTS["azure"], errors.InvalidKey())["error"]["code"] == "401"
    assert body(DIALECTS["azure"], errors.UnknownModel())["error"]["code"] == "DeploymentNotFound"
    assert body(DIALECTS["azure"], errors.UnknownModel())["error"]["innererror"] == {
        "code": "model_not_found"
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidKey(), "authentication_error"),
        (errors.ModelNotPermitted(), "permission_error"),
        (errors.UnknownModel(), "not_found_error"),
        (errors.BodyTooLarge(), "request_too_large"),
        (errors.NoCredit(), "billing_error"),
        (errors.LimitExceeded(), "rate_limit_error"),
        (errors.Overloaded(), "overloaded_error"),
        (errors.UpstreamTimeout(), "api_error"),
    ],
)
def test_anthropic_errors_have_their_own_types_and_the_request_id(error: errors.ProxyError, kind: str):
    answer = body(DIALECTS["anthropic"], error)
    assert answer == {
        "type": "error",
        "error": {"type": kind, "message": error.message},
        "request_id": "req-1",
    }
    event = DIALECTS["anthropic"].stream_error("server_error", "x", "m", None, 500, "r")
    assert event.startswith(b"event: error\ndata: {")


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (errors.InvalidKey(), 401, "UNAUTHENTICATED"),
        (errors.ModelNotPermitted(), 403, "PERMISSION_DENIED"),
        (errors.UnknownModel(), 404, "NOT_FOUND"),
        (errors.BodyTooLarge(), 413, "INVALID_ARGUMENT"),
        (errors.LimitExceeded(), 429, "RESOURCE_EXHAUSTED"),
        (errors.InternalError(), 500, "INTERNAL"),
        (errors.Overloaded(), 503, "UNAVAILABLE"),
    ],
)
def test_gemini_errors_are_google_statuses_and_name_our_reason(
    error: errors.ProxyError, status: int, name: str
):
    answer = body(DIALECTS["gemini"], error)["error"]
    assert (answer["code"], answer["status"], answer["message"]) == (status, name, error.message)
    assert answer["details"][0]["reason"] == error.code.upper()


def test_anthropic_names_the_request_twice():
    assert DIALECTS["anthropic"].own_id_headers == (b"x-request-id", b"request-id")
