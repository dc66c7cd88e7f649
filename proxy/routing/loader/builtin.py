"""What every station has without a line in its file. Data only."""

from __future__ import annotations

from typing import NamedTuple


class BuiltinRoute(NamedTuple):
    path: str
    operation: str
    dialect: str  # the caller's


class Mount(NamedTuple):
    """Where all paths of a dialect are served; of two mounts that have a path, the first counts."""

    prefix: str
    dialect: str


MOUNTS = (
    Mount("/v1", "openai"),
    Mount("/v1", "anthropic"),
    Mount("/anthropic/v1", "anthropic"),
    Mount("/openai/v1", "azure_v1"),
    Mount("/openai/deployments/{model}", "azure"),
    Mount("", "bedrock"),
    Mount("/bedrock", "bedrock"),
    Mount("/v1beta", "gemini"),
    Mount("/v1", "gemini"),
    Mount("/v1/projects/{project}/locations/{location}/publishers/{publisher}", "vertex"),
    Mount("/v1beta1/projects/{project}/locations/{location}/publishers/{publisher}", "vertex"),
    Mount("/v1/publishers/{publisher}", "vertex"),
    Mount("/v1beta1/publishers/{publisher}", "vertex"),
    Mount("", "cohere"),
    Mount("/v1", "mistral"),
    Mount("/api/v1/services", "dashscope"),
    Mount("/api", "ollama"),
)

# What the vendor runs when a request names no model, where the station has it.
DEFAULT_MODELS = {
    "images": "dall-e-2",
    "images.edits": "dall-e-2",
    "images.variations": "dall-e-2",
    "moderations": "omni-moderation-latest",
}

# Answered by the relay itself: a route here would never be asked.
OWN_PATHS = frozenset({"/v1/models", "/endpoints", "/healthz", "/readyz", "/v1/me", "/status", "/portal"})
OWN_PREFIXES = (
    "/callbacks/", "/dashboard/billing/", "/portal/", "/results/", "/status/", "/v1/dashboard/billing/",
    "/v1/me/", "/v1/receipts/",
)  # fmt: skip

# Models that think without showing it: when a client leaves, what they have thought is still billed.
HIDDEN_REASONING = ("o1*", "o3*", "o4-*", "gpt-5*", "gemini-2.5*", "gemini-3*")
HIDDEN_REASONING_DRAIN_MS = 120_000
