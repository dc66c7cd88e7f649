"""Requests that are refused for what they are: bodies, sizes, paths and methods.

Nothing of them goes upstream; the connection goes on where the request was sound.
"""

from __future__ import annotations

import pytest

from tests.fakes.raw_client import COMPLETE, CUT, request
from tests.fakes.upstream_server import chunk
from tests.system.troubled import CHAT, HELLO, MESSAGES, Lane, Troubled


@pytest.fixture(scope="module")
def lane(troubled: Troubled) -> Lane:
    """It answers well."""
    made = troubled.lane()
    made.script(HELLO)
    return made


# -- the body --------------------------------------------------------------------------------------

BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "body_not_json"),
    "no JSON": (b"hello", 400, "body_not_json"),
    "cut JSON": (b'{"model": "MODEL", "messages": [', 400, "body_not_json"),
    "two documents": (b'{"model": "MODEL"}{"model": "MODEL"}', 400, "body_not_json"),
    "array": (b'[{"model": "MODEL"}]', 400, "body_not_json"),
    "string": (b'"MODEL"', 400, "body_not_json"),
    "null": (b"null", 400, "body_not_json"),
    "NaN": (b'{"model": "MODEL", "temperature": NaN}', 400, "body_not_json"),
    "Infinity": (b'{"model": "MODEL", "temperature": -Infinity}', 400, "body_not_json"),
    "bad UTF-8": (b'{"model": "MODEL", "user": "\xff"}', 400, "body_not_json"),
    "lone surrogate": (b'{"model": "MODEL", "user": "\\ud800"}', 400, "body_not_json"),
    "UTF-16": ('{"model": "MODEL"}'.encode("utf-16"), 400, "body_not_json"),
    "byte order mark": (b'\xef\xbb\xbf{"model": "MODEL"}', 400, "body_not_json"),
    "too deep": (b'{"model": "MODEL", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "body_not_json"),
    "model twice": (b'{"model": "MODEL", "model": "gpt-4o"}', 400, "duplicate_member"),
    "model twice, escaped": (b'{"model": "MODEL", "m\\u006fdel": "gpt-4o"}', 400, "duplicate_member"),
    "model twice, escaped first": (b'{"\\u006dodel": "gpt-4o", "model": "MODEL"}', 400, "duplicate_member"),
    "stream twice": (b'{"model": "MODEL", "stream": true, "stream": false}', 400, "duplicate_member"),
    "stream_options twice": (
        b'{"model": "MODEL", "stream_options": {}, "stream_options": {"include_usage": false}}',
        400,
        "duplicate_member",
    ),
    "n twice": (b'{"model": "MODEL", "n": 1, "n": 100}', 400, "duplicate_member"),
    "max_tokens twice": (b'{"model": "MODEL", "max_tokens": 1, "max_tokens": 99}', 400, "duplicate_member"),
    "no model": (b'{"messages": []}', 400, "model_missing"),
    "empty model": (b'{"model": ""}', 400, "model_missing"),
    "null model": (b'{"model": null}', 400, "model_missing"),
    "model that is a number": (b'{"model": 4}', 400, "body_not_json"),
    "model that is a list": (b'{"model": ["MODEL"]}', 400, "body_not_json"),
    "unpriced option": (b'{"model": "MODEL", "service_tier": "priority"}', 400, "option_not_priced"),
    "unpriced tool": (
        b'{"model": "MODEL", "web_search_options": {}, "messages": []}',
        400,
        "option_not_priced",
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_body_is_refused(troubled: Troubled, lane: Lane, case: str) -> None:
    body, status, code = BODIES[case]
    before = len(lane.asked())
    auth = f"authorization: Bearer {troubled.key}"
    with troubled.connect() as client:
        answer = client.ask(request("POST", CHAT, auth, body=body.replace(b"MODEL", lane.model.encode())))
        assert (answer.status, answer.json()["error"]["code"]) == (status, code)
        assert answer.header("x-should-retry") == "false"
        assert lane.asked()[before:] == []
        assert client.ask(request("POST", CHAT, auth, body=lane.body())).status == 200
    assert len(lane.asked()) == before + 1


def test_a_range_is_the_routes(troubled: Troubled, lane: Lane) -> None:
    before = len(lane.asked())
    answer = troubled.ask(lane.body(temperature=1.5), path="/v1/ranged")
    assert (answer.status, answer.json()["error"]["code"]) == (400, "parameter_refused")
    assert answer.json()["error"]["param"] == "temperature"
    assert troubled.ask(lane.body(temperature="1"), path="/v1/ranged").status == 400
    assert lane.asked()[before:] == []
    assert troubled.ask(lane.body(temperature=0.5), path="/v1/ranged").status == 200


HOSTILE = {
    "a depth of 100,000": (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "body_not_json"),
    "UTF-16": ('{"model":"m"}'.encode("utf-16"), 400, "body_not_json"),
    "a model of 1 MB": (b'{"model":"%b"}' % (b"m" * (1 << 20)), 404, "model_not_found"),
    "nothing but values": (b'{"model":"m","x":[' + b"[]," * 8_000_000 + b"1]}", 413, "request_too_large"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_body_is_refused_and_others_are_served(troubled: Troubled, lane: Lane, case: str) -> None:
    body, status, code = HOSTILE[case]
    answer = troubled.ask(body)
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)
    assert troubled.ask(lane.body()).status == 200


@pytest.mark.parametrize("coding", ["gzip, br", "compress", "deflate, identity", "gzip;q=1", "x"])
def test_a_coding_that_nobody_reads_is_refused(troubled: Troubled, lane: Lane, coding: str) -> None:
    before = len(lane.asked())
    answer = troubled.ask(lane.body(), f"content-encoding: {coding}")
    assert (answer.status, answer.json()["error"]["code"]) == (415, "unsupported_content_encoding")
    assert lane.asked()[before:] == []
    assert troubled.ask(lane.body(), "content-encoding: identity").status == 200


# -- too large -------------------------------------------------------------------------------------


def test_an_announced_body_that_is_too_large_is_refused_before_it_is_sent(troubled: Troubled) -> None:
    fields = (f"authorization: Bearer {troubled.key}", "content-length: 2049")
    with troubled.connect() as client:
        answer = client.ask(request("POST", "/v1/small", *fields))
        assert (answer.status, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert answer.says_close
        client.half_close()
        assert client.end() == CUT


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_32_mib_are_the_limit_where_nothing_else_is_said(troubled: Troubled, path: str) -> None:
    fields = (f"authorization: Bearer {troubled.key}", f"content-length: {(32 << 20) + 1}")
    with troubled.connect() as client:
        answer = client.ask(request("POST", path, *fields))
    assert answer.status == 413
    error = answer.json()["error"]
    assert (error["type"] if path == MESSAGES else error["code"]) == "request_too_large"


def test_a_client_that_still_sends_can_read_its_413(troubled: Troubled) -> None:
    """Closing at once would reset the answer away."""
    body = b'{"model": "' + b"x" * 900_000 + b'"}'
    with troubled.connect() as client:
        client.send(request("POST", "/v1/small", f"authorization: Bearer {troubled.key}", body=body))
        answer = client.answer()
        assert (answer.status, answer.end) == (413, COMPLETE)
        assert client.end() == CUT


def test_a_chunked_body_is_refused_at_its_limit(troubled: Troubled) -> None:
    fields = (f"authorization: Bearer {troubled.key}", "transfer-encoding: chunked")
    with troubled.connect() as client:
        client.send(request("POST", "/v1/small", *fields), chunk(b'{"model": "'), chunk(b"x" * 2048))
        answer = client.answer()
        assert (answer.status, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_body_of_exactly_the_limit_passes(troubled: Troubled, lane: Lane) -> None:
    body = lane.body("x" * (2048 - len(lane.body(""))))
    assert len(body) == 2048
    assert troubled.ask(body, path="/v1/small").status == 200
    assert troubled.ask(body[:-1] + b" }", path="/v1/small").status == 413


def test_a_page_takes_no_large_body_either(troubled: Troubled) -> None:
    with troubled.connect() as client:
        answer = client.ask(
            request("PUT", "/v1/me", f"authorization: Bearer {troubled.key}", body=bytes(70_000))
        )
    assert (answer.status, answer.end) == (413, COMPLETE)


# -- paths and methods -----------------------------------------------------------------------------

PATHS: dict[str, tuple[str, int, str]] = {
    "unknown": ("/v1/no/such/path", 404, "unknown_path"),
    "root": ("/", 404, "unknown_path"),
    "organization": ("/v1/organization/admin_api_keys", 404, "unknown_path"),
    "admin": ("/admin/status", 404, "unknown_path"),
    "metrics": ("/metrics", 404, "unknown_path"),
    "an operation's path in another case": ("/V1/Chat/Completions", 404, "unknown_path"),
    "a segment more": ("/v1/embeddings/x", 404, "unknown_path"),
    "a segment more that names a completion of nobody": ("/v1/chat/completions/x", 404, "object_not_found"),
    "dot segment": ("/v1/x/../chat/completions", 400, "malformed_request"),
    "single dot": ("/v1/./chat/completions", 400, "malformed_request"),
    "encoded dots": ("/v1/x/%2e%2e/chat/completions", 400, "malformed_request"),
    "half encoded dots": ("/v1/x/.%2E/chat/completions", 400, "malformed_request"),
    "doubly encoded dots": ("/v1/x/%252e%252e/organization/admin_api_keys", 400, "malformed_request"),
    "dots with a parameter": ("/v1/x/..;a=b/chat/completions", 400, "malformed_request"),
    "encoded slashes": ("/v1/x/..%2f..%2fadmin", 400, "malformed_request"),
    "an encoded slash": ("/v1/chat%2Fcompletions", 400, "malformed_request"),
    "backslash": ("/v1/x/..\\..\\admin", 400, "malformed_request"),
    "encoded backslash": ("/v1/x/..%5cadmin", 400, "malformed_request"),
    "NUL": ("/v1/chat/completions%00", 400, "malformed_request"),
    "encoded line end": ("/v1/chat/completions%0d%0ahost:%20evil", 400, "malformed_request"),
    "fragment": ("/v1/chat/completions#x", 400, "malformed_request"),
    "fragment in the query": ("/v1/chat/completions?a#b", 400, "malformed_request"),
    "overlong UTF-8": ("/v1/%c0%ae%c0%ae/x", 400, "malformed_request"),
    "half an escape": ("/v1/chat/completions%2", 400, "malformed_request"),
    "absolute-form": ("http://station.test/v1/chat/completions", 400, "malformed_request"),
    "absolute-form, another authority": ("http://evil.test/v1/chat/completions", 400, "malformed_request"),
    "another scheme": ("file:///etc/passwd", 400, "malformed_request"),
    "authority after the slashes": ("//evil.test/v1/chat/completions", 404, "unknown_path"),
    "asterisk": ("*", 400, "malformed_request"),
    "traversal in a model": ("/openai/deployments/..%2Fx/chat/completions", 400, "malformed_request"),
    "no model between the slashes": ("/openai/deployments//embeddings", 404, "404"),
}


@pytest.mark.parametrize("case", PATHS)
def test_a_path_is_refused(troubled: Troubled, lane: Lane, case: str) -> None:
    target, status, code = PATHS[case]
    before = len(troubled.server.requests)
    auth = f"authorization: Bearer {troubled.key}"
    with troubled.connect() as client:
        answer = client.ask(request("POST", target, auth, body=lane.body()))
        assert (answer.status, answer.json()["error"]["code"]) == (status, code)
        assert len(troubled.server.requests) == before
        if status == 400:
            assert answer.says_close
            assert client.end() == CUT
        else:
            assert client.ask(request("POST", CHAT, auth, body=lane.body())).status == 200


@pytest.mark.parametrize(
    "target",
    [
        "/chat/completions",
        "/v1/v1/chat/completions",
        "//v1//chat/completions",
        "/v1/chat%2dcompletions".replace("%2d", "/"),
        "/v1/ch%61t/completions",
        CHAT + "?api-version=x",
    ],
)
def test_a_forgiven_path_goes_upstream_in_its_one_spelling(
    troubled: Troubled, lane: Lane, target: str
) -> None:
    assert troubled.ask(lane.body(), path=target).status == 200
    assert lane.asked()[-1].target == f"/{lane.model}/0{CHAT}"


# GET is another operation: it lists the completions that a caller has stored.
METHODS = {"PUT": 405, "DELETE": 405, "PATCH": 405, "HEAD": 405, "OPTIONS": 405, "TRACE": 405,
           "CONNECT": 405, "BREW": 400}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_refused(troubled: Troubled, lane: Lane, method: str) -> None:
    before = len(lane.asked())
    with troubled.connect() as client:
        answer = client.ask(request(method, CHAT, f"authorization: Bearer {troubled.key}"), method=method)
    assert answer.status == METHODS[method]
    assert answer.end == COMPLETE
    assert lane.asked()[before:] == []
