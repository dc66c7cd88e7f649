"""Looking things up in a compiled table: endpoints, routes, models, tiers, multipliers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from proxy.errors import MalformedRequest, MethodNotAllowed, UnknownPath
from proxy.routing.canonical import canonical
from proxy.routing.table import Table
from tests.routing.compiling import ENVIRON, MINIMAL, MODELS, UPSTREAMS, compile_text, table

BUILTIN = [
    ("/v1/chat/completions", "chat", "openai"),
    ("/v1/completions", "completions", "openai"),
    ("/v1/embeddings", "embeddings", "openai"),
    ("/v1/moderations", "moderations", "openai"),
    ("/v1/images/generations", "images", "openai"),
    ("/v1/images/edits", "images.edits", "openai"),
    ("/v1/responses", "responses", "openai"),
    ("/v1/responses/compact", "responses.compact", "openai"),
    ("/v1/audio/speech", "speech", "openai"),
    ("/v1/audio/transcriptions", "transcriptions", "openai"),
    ("/v1/files", "files.create", "openai"),
    ("/v1/batches", "batches.create", "openai"),
    ("/v1/decisions", "decisions.create", "openai"),
    ("/v1/messages", "messages", "anthropic"),
    ("/v1/messages/count_tokens", "count_tokens", "anthropic"),
]


@pytest.mark.parametrize(("path", "operation", "dialect"), BUILTIN)
def test_what_every_station_serves_needs_no_line(path, operation, dialect):
    minimal = table(MINIMAL)
    bare = path.removeprefix("/v1")
    for spelling in (path, bare, "/v1/v1" + bare, path + "/", bare + "/", "/v1" * 3 + bare):
        route = minimal.match("POST", spelling).route
        assert (route.id, route.operation, route.dialect, route.line) == (path, operation, dialect, 0)


@pytest.mark.parametrize("operation", ["chat/completions", "completions", "embeddings", "images/generations"])
def test_azure_names_the_model_in_the_path(operation):
    for base in ("", "/v1"):
        match = table(MINIMAL).match("POST", f"{base}/openai/deployments/gpt-4o-mini/{operation}")
        assert match.captures == {"model": "gpt-4o-mini"}
        assert match.route.dialect == "azure"


def test_only_a_model_may_hide_a_slash():
    text = MINIMAL + 'routes:\n  - {path: "/v1/sessions/{id}", operation: chat}\n'
    path, _ = canonical("/openai/deployments/org%2fname/chat/completions")
    assert table(text).match("POST", path).captures == {"model": "org/name"}
    for target in ("/v1/sessions/a%2Fb", "/v1/chat%2Fcompletions"):
        with pytest.raises(MalformedRequest):
            table(text).match("POST", canonical(target)[0])


def test_a_path_that_nothing_serves():
    for path in ("/v1/organization/admin_api_keys", "/", "/v1", "/v1/chat/completions/x/y", "/EVIL/x"):
        with pytest.raises(UnknownPath):
            table(MINIMAL).match("POST", path)


def test_a_method_that_a_path_does_not_take():
    with pytest.raises(MethodNotAllowed):
        table(MINIMAL).match("PUT", "/v1/chat/completions")
    with pytest.raises(MethodNotAllowed):
        table(MINIMAL).match("DELETE", "/openai/deployments/x/embeddings")


@pytest.mark.parametrize(
    "base",
    [
        "/api/v1",
        "/api/paas/v4",
        "/api/coding/paas/v4",
        "/compatible-mode/v1",
        "/v1beta/openai",
        "/v2",
    ],
)
def test_what_a_vendor_has_in_front_of_its_paths_may_stay(base):
    assert table(MINIMAL).match("POST", f"{base}/chat/completions").route.id == "/v1/chat/completions"


def test_a_verb_may_end_a_captured_segment():
    text = MINIMAL + (
        "routes:\n"
        '  - {path: "/v3/models/{model}:embed", operation: embeddings}\n'
        '  - {path: "/v3/models/{model}:chat", operation: chat}\n'
        '  - {path: "/v3/models/{id}", operation: completions}\n'
    )
    index = table(text)
    for path, operation, captures in (
        ("/v3/models/a:b:chat", "chat", {"model": "a:b"}),
        ("/v3/models/org%2Fm:embed", "embeddings", {"model": "org/m"}),
        ("/v3/models/a:other", "completions", {"id": "a:other"}),
        ("/v3/models/:chat", "completions", {"id": ":chat"}),
    ):
        match = index.match("POST", path)
        assert (match.route.operation, match.captures) == (operation, captures)


def test_patterns_of_one_shape_share_a_path_by_method():
    text = MINIMAL + (
        "routes:\n"
        '  - {path: "/x/{id}", operation: chat, methods: [POST]}\n'
        '  - {path: "/x/{name}", operation: embeddings, methods: [PUT]}\n'
        "  - {path: /x/fixed, operation: completions}\n"
    )
    index = table(text)
    assert index.match("POST", "/x/1").captures == {"id": "1"}
    assert index.match("PUT", "/x/1").captures == {"name": "1"}
    assert index.match("POST", "/x/fixed").route.operation == "completions"


def test_a_route_of_the_file_replaces_the_built_in_one():
    text = (
        MINIMAL + "routes:\n  - {path: /v1/chat/completions, default_model: gpt-4o-mini, body_limit: 1 MiB}\n"
    )
    index = table(text)
    route = index.match("POST", "/chat/completions").route
    assert (route.default_model, route.body_limit, route.line) == ("gpt-4o-mini", 1 << 20, 9)
    assert [(r.path, r.operation) for r in index.routes].count(("/v1/chat/completions", "chat")) == 1


def test_a_path_has_an_operation_for_each_method():
    minimal = table(MINIMAL)
    for method, path, operation in (
        ("GET", "/v1/files", "files.list"),
        ("DELETE", "/files/file-1", "files.delete"),
        ("GET", "/v1/v1/files/file-1/content", "files.content"),
        ("GET", "/v1/responses/resp_1", "responses.get"),
        ("GET", "/v1/chat/completions", "stored_chats.list"),
        ("POST", "/v1/threads/t/runs", "threads.runs.create"),
    ):
        assert minimal.match(method, path).route.operation == operation


def upstream(name: str, operations: str) -> str:
    body = UPSTREAMS.split("openai:\n", 1)[1]
    return f"  {name}:\n{body}" + (f"    operations: [{operations}]\n" if operations else "")


def test_what_is_no_models_goes_to_the_first_upstream_that_offers_it():
    models = MODELS.replace("openai", "first")
    both = "upstreams:\n" + upstream("first", "chat") + upstream("second", "") + upstream("third", "")
    route = table(both + models).match("GET", "/v1/files").route
    assert [candidate.upstream for candidate in route.candidates] == ["second"]
    with pytest.raises(UnknownPath):
        table("upstreams:\n" + upstream("first", "chat") + models).match("GET", "/v1/files")


def test_a_file_may_name_an_api_for_its_operations():
    routes = """
routes:
  - {path: "/store/files/{id}", operation: files, candidates: [{upstream: openai}]}
  - {path: "/v1/files", methods: [GET, POST], candidates: [{upstream: openai}]}
  - {path: "/v1/anything/{x}", operation: call, methods: [GET, PUT], candidates: [{upstream: openai}]}
"""
    index = table("upstreams:\n" + upstream("openai", "chat, files, call") + MODELS + routes)
    offered = index.upstreams["openai"].operations
    assert set(offered) == {
        "chat", "call", "files.list", "files.create", "files.get", "files.delete", "files.content",
    }  # fmt: skip
    assert {m: index.match(m, "/store/files/x").route.operation for m in ("GET", "DELETE")} == {
        "GET": "files.get",
        "DELETE": "files.delete",
    }
    assert {index.match(m, "/v1/files").route.operation for m in ("GET", "POST")} == {
        "files.list",
        "files.create",
    }
    assert index.match("PUT", "/v1/anything/1").route.operation == "call"


def test_endpoints_are_found_by_host():
    text = MINIMAL + (
        "endpoints:\n"
        '  direct: {url: "https://api.example.com"}\n'
        '  cdn: {url: "https://x.example", hosts: [CDN.example.com, "[::1]"], proxy_read_timeout: 100s}\n'
    )
    index = table(text)
    names = {
        host: index.endpoint_for(host).name
        for host in ("cdn.example.com", "CDN.EXAMPLE.COM:443", "cdn.example.com.", "[::1]:8080", "[::1]")
    }
    assert set(names.values()) == {"cdn"}
    for host in (None, "", "other.example.com", "api.example.com", ":80", "a:b:c"):
        assert index.endpoint_for(host).name == "direct"
    assert index.endpoints["cdn"].proxy_read_timeout_ms == 100_000


def test_models_are_found_by_name_then_by_the_most_literal_glob():
    text = UPSTREAMS + (
        "models:\n"
        "  gpt-4o-mini: {context: 128000, candidates: [{upstream: openai, as: mini}]}\n"
        '  "gpt-*": {candidates: [{upstream: openai}]}\n'
        '  "*": {candidates: [{upstream: openai, weight: 3, priority: 2}]}\n'
    )
    index = table(text)
    patterns = {name: index.model_for(name).pattern for name in ("gpt-4o-mini", "gpt-4o", "claude-x")}
    assert patterns == {"gpt-4o-mini": "gpt-4o-mini", "gpt-4o": "gpt-*", "claude-x": "*"}
    assert index.model_for("gpt-4o-mini") is index.model_for("gpt-4o-mini")
    assert index.model_for("gpt-4o-mini").candidates[0].as_model == "mini"
    assert table(MINIMAL).model_for("claude-x") is None


def test_an_unknown_tier_counts_as_the_default_one():
    text = MINIMAL + (
        "station: {default_tier: Free}\n"
        "tiers:\n"
        "  VIP: {rank: 1, models: ['*'], multiplier: 0.5}\n"
        "  Free: {rank: 0, models: [gpt-4o-mini], limits: {requests: 3/min, concurrency: 2}, hold: max}\n"
    )
    index = table(text)
    assert index.tier("VIP").multiplier_ppm == 500_000
    assert index.tier("Gone") == index.tier("Free")
    assert index.tier("Free").limits.requests_per_minute == 3


def test_multipliers_default_to_one():
    index = table(MINIMAL + 'multipliers: {"gpt-4*": 1.5}\n')
    assert index.multiplier_ppm("gpt-4o-mini") == 1_500_000
    assert index.multiplier_ppm("claude-x") == 1_000_000


def test_a_secret_is_not_in_any_repr():
    index = table(MINIMAL)
    assert index.upstreams["openai"].credentials[0].secret == ENVIRON["OPENAI_API_KEY"]
    assert ENVIRON["OPENAI_API_KEY"] not in repr(index.upstreams)


def test_a_document_survives_json():
    import orjson

    document = compile_text(
        MINIMAL + "routes:\n  - {path: /v1/embeddings, parameters: {range: {n: [1, 5]}}}\n"
    ).document
    again = Table.from_document(orjson.loads(orjson.dumps(document)))
    assert again.routes == Table.from_document(document).routes
    assert _members(again) == _members(Table.from_document(document))


def _members(index: Table) -> list[dict[str, Any]]:
    """Policies for headers are told apart by identity; here their members count."""
    return [asdict(upstream) for upstream in index.upstreams.values()]
