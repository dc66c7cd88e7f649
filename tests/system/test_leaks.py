"""Secrets stay where they belong: canaries in every credential, and nothing of them on the other side.

A client's credentials never reach an upstream, an upstream's never a client; neither they nor prompts are
ever in a log, a metric, a page, a journal or a command line.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.access.keyformat import make_key
from tests.fakes.raw_client import Answer, RawClient, request
from tests.fakes.upstream_server import Action, Close, chunk, chunked_head, head, whole
from tests.system.troubled import CANARY, CHAT, HELLO, Lane, Troubled, completion, unhappy

SECRET = "sk-client-canary-0123456789abcdef"
PROMPT = "the-prompt-canary"

# Where clients have been seen to put a key, or a proxy to look for one; each in a header of its own.
SPELLINGS = [
    "authorization: Basic {}", "authorization: ApiKey {}", "AUTHORIZATION: Digest {}", "api-key: {}",
    "Api-Key: {}", "x-api-key: {}", "X-API-KEY: {}", "x-goog-api-key: {}", "mj-api-secret: {}", "apikey: {}",
    "x-apikey: {}", "api_key: {}", "x_api_key: {}", "Api_Key: {}", "x-auth-token: {}", "x-access-token: {}",
    "x-authorization: Bearer {}", "authorization_: Bearer {}", "x-forwarded-authorization: Bearer {}",
    "x-original-authorization: Bearer {}", "proxy-authorization: Basic {}", "proxy_authorization: Basic {}",
    "cookie: session={}", "Cookie: a=1; key={}", "cookie2: {}", "ocp-apim-subscription-key: {}",
    "x-amz-security-token: {}", "x-amz-date: {}", "sec-websocket-protocol: openai-insecure-api-key.{}",
    "x-secret: {}", "x-token: {}", "token: {}", "key: {}", "secret: {}", "password: {}", "auth: {}",
    "openai-organization: {}", "openai-project: {}", "x-csrf-token: {}", "x-forwarded-for: {}",
    "forwarded: for={}", "via: 1.1 {}", "from: {}", "referer: https://a.test/?key={}", "x-real-ip: {}",
    "x-headrace-key: {}", "x-original-url: /{}", "x-rewrite-url: /{}", "x-api-key.: {}", "x.api.key: {}",
    "connection: {}", "keep-alive: {}", "te: {}", "trailer: {}", "upgrade: {}", "x-client-cert: {}",
    "x-stainless-helper-secret: {}", "anthropic-api-key: {}", "x-anthropic-api-key: {}",
]  # fmt: skip
QUERIES = ["key={}", "api_key={}", "api-key={}", "access_token={}", "token={}", "KEY={}", "api-version={}",
           "beta=true&key={}", "%6bey={}"]  # fmt: skip


@pytest.fixture(scope="module")
def lane(troubled: Troubled) -> Lane:
    """It answers well."""
    made = troubled.lane()
    made.script(HELLO)
    return made


def sent(lane: Lane) -> bytes:
    """All that the upstream was asked with, last."""
    asked = lane.asked()[-1]
    fields = b"".join(name + b": " + value + b"\r\n" for name, value in asked.headers)
    return asked.target.encode() + fields + asked.body


# -- a client's credentials ------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_credential_of_a_client_reaches_an_upstream(troubled: Troubled, lane: Lane, spelling: str) -> None:
    # Where the canary stands in the first place that is looked at, the key is in the next one.
    real = "api-key: " if spelling.lower().startswith("authorization:") else "authorization: Bearer "
    before = len(lane.asked())
    with troubled.connect() as client:
        fields = (real + troubled.key, spelling.format(SECRET))
        answer = client.ask(request("POST", CHAT, *fields, body=lane.body()))
    assert (answer.status, len(lane.asked())) == (200, before + 1)
    assert SECRET.encode() not in sent(lane) + answer.raw + answer.body
    assert troubled.key.encode() not in sent(lane)


@pytest.mark.parametrize("query", QUERIES)
def test_no_query_of_a_client_reaches_an_upstream(troubled: Troubled, lane: Lane, query: str) -> None:
    answer = troubled.ask(lane.body(), path=f"{CHAT}?{query.format(SECRET)}")
    assert answer.status == 200
    assert lane.asked()[-1].target == f"/{lane.model}/0{CHAT}"


@pytest.mark.parametrize(
    "spelling",
    ["authorization: Bearer {}", "authorization: bearer  {}", "authorization: {}", "api-key: {}",
     "x-api-key: {}", "x-goog-api-key: {}", "mj-api-secret: {}", "?key={}"],
)  # fmt: skip
def test_a_key_is_known_in_every_spelling_and_goes_no_further(
    troubled: Troubled, lane: Lane, spelling: str
) -> None:
    filled = spelling.format(troubled.key)
    path, fields = (CHAT + filled, ()) if filled.startswith("?") else (CHAT, (filled,))
    with troubled.connect() as client:
        assert client.ask(request("POST", path, *fields, body=lane.body())).status == 200
    assert troubled.key.encode() not in sent(lane)


def test_an_upstream_gets_its_own_credential_and_nothing_of_who_asked(troubled: Troubled, lane: Lane) -> None:
    fields = ("user-agent: sdk/1", "x-forwarded-for: 10.1.1.1", "x-title: t", "traceparent: 00-1-2-03")
    troubled.ask(lane.body(), *fields)
    assert dict(lane.asked()[-1].headers) == {
        b"host": f"127.0.0.1:{lane.server.port}".encode(),
        b"accept-encoding": b"identity",
        b"user-agent": b"sdk/1",
        b"x-title": b"t",
        b"traceparent": b"00-1-2-03",
        b"authorization": f"Bearer {CANARY}{lane.model}-0-0".encode(),
        b"content-length": str(len(lane.body())).encode(),
    }


# -- an upstream's ---------------------------------------------------------------------------------

# Who the operator's upstream is, its cookies, what its CDN does, what a front in front of us obeys.
TELLTALES = [
    "set-cookie", "set-cookie2", "server", "via", "location", "content-location", "refresh",
    "openai-organization", "openai-project", "anthropic-organization-id", "x-organization", "cf-ray",
    "cf-cache-status", "x-amzn-requestid", "x-amz-cf-id", "x-served-by", "x-cache", "x-powered-by",
    "x-backend", "x-upstream", "x-envoy-upstream-service-time", "alt-svc", "strict-transport-security",
    "public-key-pins", "nel", "report-to", "x-accel-redirect", "x-accel-buffering", "x-accel-expires",
    "x-sendfile", "x-lighttpd-send-file", "www-authenticate", "proxy-authenticate", "authorization",
    "api-key", "x-api-key", "x-request-id", "request-id", "x-headrace-key", "access-control-allow-origin",
    "access-control-allow-credentials", "content-security-policy", "link", "warning", "connection",
    "keep-alive", "proxy-connection", "te", "upgrade", "sourcemap", "clear-site-data", "x-forwarded-for",
    "x-openai-proxy-wasm", "x-new-api-version", "x-oneapi-request-id", "x-account", "x-canary",
]  # fmt: skip
HINT = "hint-of-the-upstream-"
TOLD = [f"{name}: {HINT}{number}" for number, name in enumerate(TELLTALES)]

ANSWERS: dict[str, list[Action]] = {
    "whole": [whole(completion(), 200, *TOLD)],
    "stream": [chunked_head(*TOLD), chunk(b"data: [DONE]\n\n"), chunk(b"")],
    "verbatim error": [whole(b'{"error": {"message": "m"}}', 400, *TOLD)],
    "no content": [head(204, *TOLD)],
    "until it closes": [head(200, *TOLD) + b"{}", Close()],
    "an error of ours": [whole(b'{"error": {"message": "no"}}', 500, *TOLD)],
}


@pytest.mark.parametrize("kind", ["solo", "claude"])
@pytest.mark.parametrize("case", ANSWERS)
def test_nothing_that_tells_of_an_upstream_reaches_a_client(troubled: Troubled, case: str, kind: str) -> None:
    lane = troubled.lane(kind)
    lane.script(ANSWERS[case])
    answer = troubled.ask(lane.body(stream=case == "stream"), path=lane.path)
    shown = answer.raw + answer.body
    for telltale in (HINT, CANARY, f"{lane.model}-0", str(lane.server.port)):
        assert telltale.encode() not in shown
    assert len([value for name, value in answer.fields if name == "x-request-id"]) == 1


def test_a_refused_credential_is_not_quoted(troubled: Troubled) -> None:
    lane = troubled.lane()
    said = b'{"error": {"message": "Incorrect API key provided: %b", "code": "invalid_api_key"}}'
    lane.script(unhappy(401, said % f"{CANARY}{lane.model}-0-0".encode(), f"www-authenticate: {CANARY}"))
    answer = troubled.call(lane)
    assert answer.status == 502
    assert CANARY.encode() not in answer.raw + answer.body


# -- our own pages ---------------------------------------------------------------------------------

PAGES = [
    "/v1/models",
    "/v1/models/lane-solo-1",
    "/endpoints",
    "/v1/me",
    "/v1/receipts",
    "/v1/receipts?format=csv",
    "/healthz",
    "/readyz",
]


def get(troubled: Troubled, path: str, key: str = "") -> Answer:
    fields = [f"authorization: Bearer {key}"] if key else []
    with troubled.connect() as client:
        return client.ask(request("GET", path, *fields), method="GET")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_for_key_holders_names_no_upstream_and_no_secret(troubled: Troubled, path: str) -> None:
    troubled.row(troubled.call(_good(troubled)).call)  # there is a receipt to show
    answer = get(troubled, path, troubled.key)
    assert answer.status == 200
    for telltale in (CANARY, troubled.key, "-0-0", str(troubled.server.port)):
        assert telltale.encode() not in answer.raw + answer.body


def _good(troubled: Troubled) -> Lane:
    lane = troubled.lane()
    lane.script(HELLO)
    return lane


def test_a_receipt_is_its_owners(troubled: Troubled) -> None:
    call = troubled.call(_good(troubled)).call
    troubled.row(call)
    receipt = get(troubled, f"/v1/receipts/{call}", troubled.key)
    assert receipt.json()["id"] == call
    assert CANARY.encode() not in receipt.body and b"lane-solo" in receipt.body
    assert "upstream" not in receipt.json() and "credential" not in receipt.json()
    assert get(troubled, f"/v1/receipts/{call}", troubled.customer()).status == 404


@pytest.mark.parametrize("path", ["/v1/me", "/v1/receipts", "/v1/models", "/endpoints", "/me"])
@pytest.mark.parametrize("key", ["", "sk-unknown"])
def test_a_page_for_key_holders_is_for_key_holders(troubled: Troubled, path: str, key: str) -> None:
    fields = [f"x-forwarded-for: {troubled.address()}", "x-headrace-key: 1"]
    fields += [f"authorization: Bearer {key}"] if key else []
    with troubled.connect() as client:
        assert client.ask(request("GET", path, *fields), method="GET").status == 401


@pytest.mark.parametrize("path", ["/metrics", "/admin/status"])
def test_an_operators_page_shows_no_secret(troubled: Troubled, path: str) -> None:
    with RawClient(troubled.station.admin_port) as client:
        host = f"host: 127.0.0.1:{troubled.station.admin_port}"
        answer = client.ask(request("GET", path, host), method="GET")
    assert answer.status == 200
    for secret in (CANARY, troubled.key, SECRET):
        assert secret.encode() not in answer.body


@pytest.mark.parametrize(
    "path", ["/metrics", "/admin/status", "/admin/accounts", "/admin/../metrics", "//metrics", "/v1/metrics"]
)
@pytest.mark.parametrize(
    "field", ["host: 127.0.0.1:8081", "x-original-url: /metrics", "x-forwarded-host: admin"]
)
def test_an_operators_page_is_not_on_the_public_side(troubled: Troubled, path: str, field: str) -> None:
    with troubled.connect() as client:
        answer = client.ask(request("GET", path, field, f"api-key: {troubled.key}"), method="GET")
    assert answer.status in (400, 404)


# -- what is written down --------------------------------------------------------------------------


def test_nothing_that_is_written_down_holds_a_secret_or_a_prompt(troubled: Troubled) -> None:
    """Everything that goes wrong is told somewhere: not with what it was about."""
    key = troubled.customer()
    unknown = make_key(b"leaks" * 6 + b"xy")
    for script in (HELLO, unhappy(401), unhappy(500), [head(200) + b"\0", Close()], [Close()]):
        lane = troubled.lane()
        lane.script(script)
        body = lane.body(PROMPT)
        troubled.ask(body, key=key)
        troubled.ask(body, key=unknown)
        troubled.ask(body, f"cookie: {SECRET}", key=key, path=f"{CHAT}?key={SECRET}")
        troubled.ask(body[:-1], key=key)
    with troubled.connect() as client:
        client.ask(f"GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {SECRET}\0\r\n\r\n".encode())
    with troubled.connect() as client:
        client.ask(f"GET /{SECRET}%00?key={SECRET} HTTP/1.1\r\nhost: a/{SECRET}\r\n\r\n".encode())
    secrets = [CANARY, SECRET, key, unknown, troubled.key, PROMPT]
    for found in written(troubled):
        for secret in secrets:
            assert secret.encode() not in found.read_bytes(), found
    assert "Traceback" not in troubled.station.log()


def written(troubled: Troubled) -> list[Path]:
    """The log, the journals and all else in the data folder, and how the processes were started."""
    kept = [path for path in troubled.station.data.rglob("*") if path.is_file() and path.stat().st_size]
    assert any("journal" in path.parts for path in kept)
    assert troubled.station.process is not None
    pids = [troubled.station.process.pid, *troubled.station.children().values()]
    return [troubled.station.log_path, *kept, *(Path(f"/proc/{pid}/cmdline") for pid in pids)]


def test_a_worker_is_told_nothing_of_the_database(troubled: Troubled) -> None:
    pid = troubled.station.child("w0")
    assert b"postgresql://" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"postgresql://" not in Path(f"/proc/{pid}/environ").read_bytes()
