"""Vendors by name: where they are, and under which paths they serve what.

A preset saves an upstream its dialect, mirrors and operations; what the file says itself counts. The paths
are those of the vendors' documents: their OpenAI-compatible ones, so that their models are reached through
/v1/chat/completions without translation, and their own where this build speaks their dialect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.routing import spec

OWN = ""  # as a path: the one that the dialect of the operation has


@dataclass(frozen=True, slots=True)
class Preset:
    """`operations` maps those that are offered to their paths; None: all of the dialect."""

    url: str
    dialect: str = "openai"
    operations: Mapping[str, str] | None = None
    include_usage: str = "auto"  # "never": its streams tell the usage without being asked


_PATHS = {
    "chat": "chat/completions",
    "completions": "completions",
    "embeddings": "embeddings",
    "images": "images/generations",
    "messages": "messages",
    "rerank": "rerank",
    "responses": "responses",
    "speech": "audio/speech",
    "transcriptions": "audio/transcriptions",
    "translations": "audio/translations",
}


def _at(base: str, names: str) -> dict[str, str]:
    """OpenAI's paths behind a vendor's base path."""
    return {name: f"{base}/{_PATHS[name]}" for name in names.split()}


def _own(names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), OWN)


def _like_openai(url: str, base: str, names: str, **other: str) -> Preset:
    return Preset(url, operations=_at(base, names) | other)


def _telling(url: str, base: str, names: str, **other: str) -> Preset:
    """One whose streams tell the usage unasked."""
    return Preset(url, operations=_at(base, names) | other, include_usage="never")


_GEMINI = _own(
    "generate_content stream_generate_content count_content_tokens embed_content batch_embed_contents predict"
    " predict_long_running cached_contents gemini_files"
)
_COHERE = _own("cohere.chat cohere.chat_v1 cohere.embed cohere.embed_v1 cohere.rerank rerank")
_OLLAMA = _own("ollama.chat ollama.generate ollama.embed ollama.embeddings")
_DASHSCOPE = _own("dashscope.text dashscope.multimodal dashscope.embeddings dashscope.rerank")

PRESETS: dict[str, Preset] = {
    # -- with a dialect of their own, and OpenAI's beside it
    "openai": Preset("https://api.openai.com"),
    "anthropic": Preset(
        "https://api.anthropic.com",
        "anthropic",
        _own("messages count_tokens") | _at("/v1", "chat"),
    ),
    "gemini": Preset(
        "https://generativelanguage.googleapis.com",
        "gemini",
        _GEMINI | _at("/v1beta/openai", "chat embeddings images"),
    ),
    "cohere": Preset(
        "https://api.cohere.com", "cohere", _COHERE | _at("/compatibility/v1", "chat embeddings")
    ),
    "mistral": Preset(
        "https://api.mistral.ai",
        "mistral",
        _own("chat embeddings moderations fim ocr") | _at("/v1", "transcriptions"),
        include_usage="never",
    ),
    "dashscope": Preset(
        "https://dashscope.aliyuncs.com",
        "dashscope",
        _DASHSCOPE | _at("/compatible-mode/v1", "chat embeddings"),
    ),
    "dashscope-intl": Preset(
        "https://dashscope-intl.aliyuncs.com",
        "dashscope",
        _DASHSCOPE | _at("/compatible-mode/v1", "chat embeddings"),
    ),
    "ollama": Preset(
        "http://127.0.0.1:11434", "ollama", _OLLAMA | _at("/v1", "chat completions embeddings messages")
    ),
    # -- with OpenAI's formats under paths of their own
    "deepseek": _telling(
        "https://api.deepseek.com",
        "",
        "chat responses",
        completions="/beta/completions",
        messages="/anthropic/v1/messages",
    ),
    "qianfan": _like_openai("https://qianfan.baidubce.com", "/v2", "chat embeddings images rerank"),
    "zhipu": _like_openai(
        "https://open.bigmodel.cn",
        "/api/paas/v4",
        "chat embeddings images",
        messages="/api/anthropic/v1/messages",
    ),
    "zai": _like_openai(
        "https://api.z.ai", "/api/paas/v4", "chat embeddings images", messages="/api/anthropic/v1/messages"
    ),
    "spark": _telling("https://spark-api-open.xf-yun.com", "/v1", "chat"),
    "spark-x1": _telling("https://spark-api-open.xf-yun.com", "/v2", "chat"),
    "moonshot": _telling("https://api.moonshot.cn", "/v1", "chat", messages="/anthropic/v1/messages"),
    "moonshot-intl": _telling("https://api.moonshot.ai", "/v1", "chat", messages="/anthropic/v1/messages"),
    "groq": _telling(
        "https://api.groq.com", "/openai/v1", "chat responses embeddings speech transcriptions translations"
    ),
    "xai": _like_openai("https://api.x.ai", "/v1", "chat completions responses embeddings images messages"),
    "openrouter": _telling(
        "https://openrouter.ai", "/api/v1", "chat completions responses messages embeddings rerank"
    ),
    "perplexity": _telling("https://api.perplexity.ai", "", "chat", embeddings="/v1/embeddings"),
    "together": _telling("https://api.together.xyz", "/v1", "chat completions embeddings images rerank"),
    "huggingface": _like_openai("https://router.huggingface.co", "/v1", "chat"),
    "cerebras": _like_openai("https://api.cerebras.ai", "/v1", "chat completions"),
    "fireworks": _like_openai(
        "https://api.fireworks.ai", "/inference/v1", "chat completions embeddings rerank messages"
    ),
    # Stable Diffusion and others behind an OpenAI-style path for images.
    "siliconflow": _like_openai(
        "https://api.siliconflow.cn", "/v1", "chat embeddings images rerank messages"
    ),
    "volcengine": _like_openai(
        "https://ark.cn-beijing.volces.com", "/api/v3", "chat embeddings images responses"
    ),
    "minimax": _like_openai("https://api.minimax.chat", "/v1", "chat", messages="/anthropic/v1/messages"),
    "stepfun": _like_openai("https://api.stepfun.com", "/v1", "chat images messages"),
    "lingyi": _like_openai("https://api.lingyiwanwu.com", "/v1", "chat"),
    "baichuan": _like_openai("https://api.baichuan-ai.com", "/v1", "chat embeddings"),
    "hunyuan": _like_openai("https://api.hunyuan.cloud.tencent.com", "/v1", "chat embeddings"),
    "360": _like_openai("https://ai.360.cn", "/v1", "chat embeddings"),
    "novita": _like_openai("https://api.novita.ai", "/v3/openai", "chat completions embeddings"),
    "voyage": _like_openai("https://api.voyageai.com", "/v1", "embeddings rerank"),
    "jina": _like_openai("https://api.jina.ai", "/v1", "embeddings rerank"),
    "writer": Preset("https://api.writer.com", operations={"chat": "/v1/chat"}),
    "vercel": _like_openai("https://ai-gateway.vercel.sh", "/v1", "chat embeddings messages"),
    # -- servers of one's own
    "llamacpp": _like_openai(
        "http://127.0.0.1:8080", "/v1", "chat completions embeddings messages rerank responses"
    ),
    "vllm": _like_openai(
        "http://127.0.0.1:8000", "/v1", "chat completions embeddings messages rerank responses"
    ),
}


def filled_in(upstream: spec.Upstream, preset: Preset) -> spec.Upstream:
    """The upstream with what its preset says where the file says nothing."""
    update: dict[str, object] = {}
    if not upstream.dialect:
        update["dialect"] = preset.dialect
    if not upstream.mirrors:
        update["mirrors"] = {"direct": spec.Mirror.model_construct(url=preset.url)}
    if "include_usage" not in upstream.model_fields_set:
        update["include_usage"] = preset.include_usage
    if preset.operations is not None:
        update["operations"] = _operations(upstream, preset.operations)
    return upstream.model_copy(update=update)


def _operations(upstream: spec.Upstream, paths: Mapping[str, str]) -> dict[str, spec.Operation]:
    """Those that the file chooses, else all of the preset; its paths where the file has none."""
    given = upstream.operations if isinstance(upstream.operations, dict) else {}
    chosen = paths if upstream.operations is None else upstream.operations
    found = {}
    for name in chosen:
        operation = given.get(name, spec.Operation())
        if operation.path is None and upstream.rewrite.path is None and paths.get(name):
            operation = operation.model_copy(update={"path": paths[name]})
        found[name] = operation
    return found


def is_foreign(name: str, chosen: list[str] | dict[str, spec.Operation]) -> bool:
    """True for an operation that a file places by its path: it may be of any dialect."""
    return isinstance(chosen, dict) and name in chosen and chosen[name].path is not None
