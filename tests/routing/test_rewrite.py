"""What goes upstream: paths, queries and headers, and above all what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects import DIALECTS
from proxy.errors import MalformedRequest
from proxy.routing.rewrite import CREDENTIAL_HEADERS, OWN_HEADERS, request_headers, upstream_target
from tests.routing.compiling import MODELS, table

AZURE = """\
upstreams:
  azure:
    dialect: azure
    mirrors: {direct: {url: "https://acme.openai.azure.com"}}
    credentials: {main: "${env:OPENAI_API_KEY}"}
    headers:
      request: {pass: [X-Trace], set: {x-app: station}, drop: [user-agent]}
models:
  gpt-4o-mini: {candidates: [{upstream: azure, as: gpt-4o}]}
"""


def openai(members: str = "", url: str = "https://api.openai.com"):
    text = (
        f'upstreams:\n  openai:\n    dialect: openai\n    mirrors: {{direct: {{url: "{url}"}}}}\n'
        f'    credentials: {{main: "${{env:OPENAI_API_KEY}}"}}\n{members}'
    )
    return table(text + MODELS)


def target(
    index, upstream: str, operation: str, model: str = "gpt-4o-mini", query: str = "", **captures
) -> str:
    found = index.upstreams[upstream]
    offered = found.operations[operation]
    return upstream_target(offered, found.mirrors[0], model, captures, query, DIALECTS[found.dialect])


def sent(index, upstream: str, *fields: tuple[bytes, bytes], path: str = "/v1/chat/completions"):
    found = index.upstreams[upstream]
    route = index.match("POST", path).route
    offered = found.operations[route.operation]
    return request_headers(fields, DIALECTS[found.dialect], found, offered, route, found.credentials[0])


# -- targets -------------------------------------------------------------------------------------


def test_the_dialect_knows_the_path():
    assert target(openai(), "openai", "chat") == "/v1/chat/completions"
    assert target(table(AZURE), "azure", "chat", "gpt-4o") == (
        "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
    )


@pytest.mark.parametrize("url", ["https://x.example/v1", "https://x.example/v1/", "https://x.example"])
def test_a_base_url_with_v1_is_not_doubled(url):
    assert target(openai(url=url), "openai", "chat") == "/v1/chat/completions"


def test_a_mirror_may_have_a_path_of_its_own():
    index = openai(url="https://dashscope.example/compatible-mode/v1")
    assert target(index, "openai", "chat") == "/compatible-mode/v1/chat/completions"
    index = openai('    rewrite: {path: "/{operation_path}"}\n', "https://gemini.example/v1beta/openai")
    assert target(index, "openai", "embeddings") == "/v1beta/openai/embeddings"


def test_an_operation_may_have_a_path_and_a_query_of_its_own():
    index = openai('    operations: {chat: {path: "/chat", query: {v: "2 3"}}, embeddings: {}}\n')
    assert target(index, "openai", "chat") == "/chat?v=2+3"
    assert target(index, "openai", "embeddings") == "/v1/embeddings"


def test_a_path_of_its_own_does_not_get_the_dialects_query():
    text = AZURE.replace("    headers:", '    rewrite: {path: "/openai/v1/{operation_path}"}\n    headers:')
    assert target(table(text), "azure", "chat") == "/openai/v1/chat/completions"


def test_only_known_query_parameters_pass():
    assert (
        target(openai(), "openai", "chat", query="key=sk-x&beta=true&api-version=1") == "/v1/chat/completions"
    )
    assert target(table(AZURE), "azure", "chat", query="api-version=2020-01-01&key=sk-x").endswith(
        "completions?api-version=2024-10-21"
    )
    anthropic = openai().upstreams["openai"]
    offered = anthropic.operations["chat"]
    asked = upstream_target(
        offered, anthropic.mirrors[0], "m", {}, "beta=true&key=sk-x", DIALECTS["anthropic"]
    )
    assert asked == "/v1/chat/completions?beta=true"


def test_a_slash_in_a_model_stays_inside_of_its_segment():
    assert target(table(AZURE), "azure", "chat", "org/name").startswith("/openai/deployments/org%2Fname/chat")


@pytest.mark.parametrize(
    "model", ["..", "../../admin", "a/../b", "a\\b", "a%2e", "x\r\nHost: y", ".", "", "\ud800"]
)
def test_a_model_cannot_leave_its_place_in_the_path(model):
    with pytest.raises(MalformedRequest):
        target(table(AZURE), "azure", "chat", model)


@given(st.text(max_size=12))
def test_no_model_adds_a_segment_or_a_line(model):
    try:
        path, _, query = target(table_of_azure, "azure", "chat", model).partition("?")
    except MalformedRequest:
        return
    assert path.count("/") == 5 and path.endswith("/chat/completions") and query == "api-version=2024-10-21"
    assert path.isascii() and path.isprintable() and " " not in path


table_of_azure = table(AZURE)

# -- headers -------------------------------------------------------------------------------------


def test_headers_pass_by_name_and_in_order():
    fields = sent(
        openai(), "openai", (b"Content-Type", b"application/json"), (b"X-Evil", b"1"), (b"User-Agent", b"sdk")
    )
    assert fields == [
        (b"Content-Type", b"application/json"),
        (b"User-Agent", b"sdk"),
        (b"authorization", b"Bearer sk-canary-1"),
    ]


@pytest.mark.parametrize("name", sorted(CREDENTIAL_HEADERS | OWN_HEADERS))
def test_no_credential_and_nothing_of_the_connection_passes(name):
    canary = (name.upper(), b"canary")
    assert canary not in sent(openai(), "openai", canary)
    assert all(value != b"canary" for _, value in sent(table(AZURE), "azure", canary))


@pytest.mark.parametrize(
    "name",
    [
        b"Content_Type",
        b"X_Forwarded_For",
        b"content_length",
        b"authorization_",
        b"x-forwarded-for",
        b"cookie",
    ],
)
def test_names_that_servers_take_for_others_are_dropped(name):
    assert sent(openai(), "openai", (name, b"canary")) == sent(openai(), "openai")


def test_what_connection_names_ends_here_but_ours_stays():
    fields = sent(
        openai(),
        "openai",
        (b"Connection", b"keep-alive, Content-Type, authorization"),
        (b"Content-Type", b"application/json"),
        (b"Accept", b"*/*"),
    )
    assert fields == [(b"Accept", b"*/*"), (b"authorization", b"Bearer sk-canary-1")]


def test_a_connection_header_behind_what_it_names_counts_too():
    fields = sent(openai(), "openai", (b"Accept", b"*/*"), (b"connection", b"accept"))
    assert fields == [(b"authorization", b"Bearer sk-canary-1")]


def test_the_upstreams_policy_adds_and_takes():
    fields = sent(
        table(AZURE),
        "azure",
        (b"User-Agent", b"sdk"),
        (b"x-trace", b"1"),
        (b"X-App", b"mine"),
        (b"Accept", b"a"),
    )
    assert fields == [
        (b"x-trace", b"1"),
        (b"Accept", b"a"),
        (b"x-app", b"station"),
        (b"api-key", b"sk-canary-1"),
    ]


def test_a_route_may_let_a_header_pass():
    text = AZURE + "routes:\n  - {path: /v1/chat/completions, pass: [x-tenant]}\n"
    assert (b"X-Tenant", b"7") in sent(table(text), "azure", (b"X-Tenant", b"7"))


def test_an_upstream_without_a_key_gets_none():
    index = table(
        'upstreams:\n  local:\n    dialect: openai\n    mirrors: {here: {url: "http://127.0.0.1:8000"}}\n'
        "    credentials: none\nmodels:\n  gpt-4o-mini: {candidates: [{upstream: local}]}\n"
    )
    assert sent(index, "local", (b"Authorization", b"Bearer sk-client")) == []


def test_bytes_of_a_value_pass_as_they_came():
    assert (b"User-Agent", b"caf\xe9 \xff") in sent(openai(), "openai", (b"User-Agent", b"caf\xe9 \xff"))


@pytest.mark.parametrize(
    ("query", "passes"),
    [
        ("alt=sse&key=sk-1", "alt=sse"),
        ("key=sk-1&$alt=json;enum-encoding=int", "%24alt=json%3Benum-encoding%3Dint"),
        ("alt=proto", ""),  # the meter could not read it: no bill
        ("fields=candidates&access_token=x", ""),
    ],
)
def test_of_a_gemini_query_only_known_formats_pass(query: str, passes: str):
    text = (
        "upstreams: {g: {preset: gemini, credentials: none}}\n"
        "models: {gpt-4o-mini: {candidates: [{upstream: g}]}}\n"
    )
    found = target(table(text), "g", "stream_generate_content", query=query)
    assert found.partition("?")[2] == passes
