"""A vendor is one line: its models are reached under the vendor's own paths, without translation."""

from __future__ import annotations

import pytest

from proxy.dialects import DIALECTS
from proxy.routing.loader.presets import PRESETS
from proxy.routing.rewrite import upstream_target
from proxy.routing.table import Upstream
from tests.routing.compiling import table, warnings


def upstream(line: str, model: str = "gpt-4o-mini") -> Upstream:
    text = f"upstreams:\n  up: {{{line}}}\nmodels:\n  {model}: {{candidates: [{{upstream: up}}]}}\n"
    return table(text + f"prices: {{{model}: {{call: 1}}}}\n").upstreams["up"]


def target(up: Upstream, operation: str, model: str = "m") -> str:
    offered, mirror = up.operations[operation], up.mirrors[0]
    path = upstream_target(offered, mirror, model, {}, "", DIALECTS[offered.dialect])
    return f"{mirror.scheme}://{mirror.host}{path}"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_whole_upstream(name: str):
    up = upstream(f"preset: {name}, credentials: none")
    assert up.dialect == PRESETS[name].dialect
    for operation, offered in up.operations.items():
        assert operation in DIALECTS[offered.dialect].operations
        assert offered.auth == DIALECTS[offered.dialect].auth
        assert offered.path == "{path}" or (offered.path.startswith("/") and "//" not in offered.path)


@pytest.mark.parametrize(
    ("preset", "model", "where"),
    [
        ("anthropic", "claude-sonnet-4-5", "https://api.anthropic.com/v1/chat/completions"),
        (
            "gemini",
            "gemini-2.5-pro",
            "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
        ),
        ("dashscope", "qwen-plus", "https://dashscope.aliyuncs.com/compatible-mode/v1/chat/completions"),
        ("qianfan", "ERNIE-Bot-4", "https://qianfan.baidubce.com/v2/chat/completions"),
        ("zhipu", "chatglm_pro", "https://open.bigmodel.cn/api/paas/v4/chat/completions"),
        ("spark", "SparkDesk", "https://spark-api-open.xf-yun.com/v1/chat/completions"),
        ("deepseek", "deepseek-chat", "https://api.deepseek.com/chat/completions"),
        ("groq", "llama-3.3-70b", "https://api.groq.com/openai/v1/chat/completions"),
        ("cohere", "command-a-03-2025", "https://api.cohere.com/compatibility/v1/chat/completions"),
        ("ollama", "gemma3", "http://127.0.0.1/v1/chat/completions"),
        ("writer", "palmyra-x5", "https://api.writer.com/v1/chat"),
    ],
)
def test_models_of_every_vendor_are_reached_through_chat_completions(preset: str, model: str, where: str):
    up = upstream(f"preset: {preset}, credentials: none", model)
    assert target(up, "chat", model) == where
    assert up.operations["chat"].auth == (b"authorization", b"Bearer ")


def test_one_upstream_may_serve_several_dialects_each_with_its_key():
    up = upstream("preset: gemini, credentials: none")
    assert target(up, "stream_generate_content") == (
        "https://generativelanguage.googleapis.com/v1beta/models/m:streamGenerateContent"
    )
    assert up.operations["stream_generate_content"].auth == (b"x-goog-api-key", b"")
    assert up.operations["images"].dialect == "openai"


def test_stable_diffusion_is_behind_an_image_path_like_openais():
    assert target(upstream("preset: siliconflow, credentials: none"), "images") == (
        "https://api.siliconflow.cn/v1/images/generations"
    )
    own = 'dialect: openai, mirrors: {a: {url: "https://sd.example"}}, credentials: none'
    assert target(upstream(own + ", operations: {images: {path: /sdapi/openai/images}}"), "images") == (
        "https://sd.example/sdapi/openai/images"
    )


def test_what_the_file_says_itself_counts():
    mirrors = 'mirrors: {intl: {url: "https://dashscope-intl.example/compatible-mode/v1"}}'
    up = upstream(
        f"preset: dashscope, credentials: none, {mirrors}, operations: [chat], include_usage: never"
    )
    assert (set(up.operations), up.include_usage) == ({"chat"}, "never")
    assert target(up, "chat") == "https://dashscope-intl.example/compatible-mode/v1/chat/completions"
    moved = upstream(
        'preset: deepseek, credentials: none, operations: {chat: {path: "/v9/chat"}, completions: {}}'
    )
    assert target(moved, "chat") == "https://api.deepseek.com/v9/chat"
    assert target(moved, "completions") == "https://api.deepseek.com/beta/completions"


def test_a_vendor_that_tells_its_usage_unasked_is_not_asked():
    assert upstream("preset: mistral, credentials: none").include_usage == "never"
    assert upstream("preset: huggingface, credentials: none").include_usage == "auto"


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("https://x.example", "/v1beta/models/m:generateContent"),
        ("https://x.example/v1beta", "/v1beta/models/m:generateContent"),
        ("https://x.example/gw/v1beta", "/gw/v1beta/models/m:generateContent"),
        ("https://x.example/gw", "/gw/v1beta/models/m:generateContent"),
    ],
)
def test_a_base_url_may_end_in_what_the_paths_begin_with(base: str, path: str):
    up = upstream(f'dialect: gemini, mirrors: {{a: {{url: "{base}"}}}}, credentials: none')
    assert target(up, "generate_content") == f"https://x.example{path}"


def test_vertex_has_its_project_in_the_base_url():
    base = "https://us-east5-aiplatform.googleapis.com/v1/projects/p/locations/us-east5"
    up = upstream(f'dialect: vertex, mirrors: {{a: {{url: "{base}"}}}}, credentials: none')
    assert target(up, "generate_content") == f"{base}/publishers/google/models/m:generateContent"
    assert target(up, "stream_raw_predict", "claude-3-7-sonnet@20250219") == (
        f"{base}/publishers/anthropic/models/claude-3-7-sonnet@20250219:streamRawPredict"
    )


ONE_LINE = """\
upstreams: {up: {preset: openai, credentials: none}}
models: {gpt-4o-mini: {candidates: [{upstream: up}]}}
"""
CALLS = [
    ("/v1beta/models/m:generateContent", "generate_content", "gemini"),
    ("/v1/models/m:streamGenerateContent", "stream_generate_content", "gemini"),
    ("/models/m:countTokens", "count_content_tokens", "gemini"),
    ("/v1/v1beta/models/m:embedContent", "embed_content", "gemini"),
    ("/v1beta/v1beta/models/m:batchEmbedContents", "batch_embed_contents", "gemini"),
    ("/v1/projects/p/locations/l/publishers/google/models/m:generateContent", "generate_content", "vertex"),
    ("/v1beta1/publishers/google/models/m:generateContent", "generate_content", "vertex"),
    ("/v1/projects/p/locations/l/publishers/anthropic/models/m:rawPredict", "raw_predict", "vertex"),
    ("/v2/chat", "cohere.chat", "cohere"),
    ("/v1/v2/chat", "cohere.chat", "cohere"),
    ("/v1/chat", "cohere.chat_v1", "cohere"),
    ("/v2/embed", "cohere.embed", "cohere"),
    ("/v2/rerank", "cohere.rerank", "cohere"),
    ("/v1/rerank", "rerank", "cohere"),
    ("/api/v1/rerank", "rerank", "cohere"),
    ("/api/chat", "ollama.chat", "ollama"),
    ("/v1/api/generate", "ollama.generate", "ollama"),
    ("/v1/fim/completions", "fim", "mistral"),
    ("/v1/ocr", "ocr", "mistral"),
    ("/api/v1/services/aigc/text-generation/generation", "dashscope.text", "dashscope"),
]


@pytest.mark.parametrize(("path", "operation", "dialect"), CALLS)
def test_the_paths_of_every_family_are_routes_without_a_line(path: str, operation: str, dialect: str):
    match = table(ONE_LINE).match("POST", path)
    assert (match.route.operation, match.route.dialect) == (operation, dialect)
    assert match.captures.get("model", "m") == "m"


def test_a_preset_needs_no_warning():
    assert warnings(ONE_LINE) == []


def test_a_station_may_declare_that_it_hands_out_the_vendors_addresses_for_uploads():
    text = """\
upstreams:
  g:
    preset: gemini
    credentials: none
    operations: {gemini_files: {}, call: {path: /upload/v1beta/files}}
    headers: {response: {pass: [x-goog-upload-url]}}
models: {gpt-4o-mini: {candidates: [{upstream: g}]}}
routes:
  - path: /upload/v1beta/files
    operation: call
    candidates: [{upstream: g}]
    pass: [x-goog-upload-protocol, x-goog-upload-command]
prices: {gpt-4o-mini: {call: 1}, call: {call: 1}}
"""
    found = table(text)
    assert found.match("POST", "/upload/v1beta/files").route.operation == "call"
    assert found.match("GET", "/v1beta/files/x").route.operation == "gemini_files.get"
