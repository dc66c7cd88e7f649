"""What every station has without a line in its file. Data only."""

from __future__ import annotations

from typing import NamedTuple


class BuiltinRoute(NamedTuple):
    path: str
    operation: str
    dialect: str  # the caller's


_DEPLOYMENT = "/openai/deployments/{model}"

ROUTES = (
    BuiltinRoute("/v1/chat/completions", "chat", "openai"),
    BuiltinRoute("/v1/completions", "completions", "openai"),
    BuiltinRoute("/v1/embeddings", "embeddings", "openai"),
    BuiltinRoute("/v1/moderations", "moderations", "openai"),
    BuiltinRoute("/v1/images/generations", "images", "openai"),
    BuiltinRoute("/v1/messages", "messages", "anthropic"),
    BuiltinRoute("/v1/messages/count_tokens", "count_tokens", "anthropic"),
    BuiltinRoute(f"{_DEPLOYMENT}/chat/completions", "chat", "azure"),
    BuiltinRoute(f"{_DEPLOYMENT}/completions", "completions", "azure"),
    BuiltinRoute(f"{_DEPLOYMENT}/embeddings", "embeddings", "azure"),
    BuiltinRoute(f"{_DEPLOYMENT}/images/generations", "images", "azure"),
)

# Answered by the relay itself: a route here would never be asked.
OWN_PATHS = frozenset({"/v1/models", "/endpoints", "/healthz", "/readyz", "/v1/me", "/status", "/portal"})
OWN_PREFIXES = ("/v1/receipts/", "/portal/", "/status/", "/dashboard/billing/", "/v1/dashboard/billing/")

# Models that think without showing it: when a client leaves, what they have thought is still billed.
HIDDEN_REASONING = ("o1*", "o3*", "o4-*", "gpt-5*", "gemini-2.5*", "gemini-3*")
HIDDEN_REASONING_DRAIN_MS = 120_000
