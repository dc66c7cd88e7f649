"""Vendors' own SDKs, whose formats are not OpenAI's: their base URL exchanged, and nothing else.

With HEADRACE_CLIENTS=all (`make clients`); the upstream plays the small answers of tests/golden.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.access import Access
from tests.clients.test_sdks import failures, script
from tests.clients.venvs import python_with
from tests.fakes.upstream_server import Request, UpstreamServer, whole
from tests.station import Station

STREAMS = Path(__file__).resolve().parents[1] / "golden" / "streams"
GEMINI = "/v1beta/models/gemini-2.5-flash:"
ANSWERS = {
    f"{GEMINI}generateContent": "gemini/whole.json",
    f"{GEMINI}streamGenerateContent": "gemini/stream.sse",
    f"{GEMINI}batchEmbedContents": "gemini/embeddings.json",
    f"{GEMINI}countTokens": "gemini/token_count.json",
    "/v2/rerank": "cohere/rerank.json",
    "/api/chat": "ollama/chat.ndjson",
    "/api/generate": "ollama/generate.json",
}
KINDS = {".json": "application/json", ".sse": "text/event-stream", ".ndjson": "application/x-ndjson"}
FILLED_IN = (
    b'{"id":"f","object":"chat.completion","created":1,"model":"codestral","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3}}'
)
STATION = """
station: {{currency: USD, default_tier: Test}}
upstreams:
{upstreams}
models:
  gemini-2.5-flash: {{candidates: [{{upstream: gemini}}]}}
  command-a-03-2025: {{candidates: [{{upstream: cohere}}]}}
  "gemma3:1b": {{candidates: [{{upstream: ollama}}]}}
  codestral: {{candidates: [{{upstream: mistral}}]}}
prices: {{"*": {{input: 1 USD, output: 2 USD, units: {{search_unit: 0.002 USD}}}}}}
tiers: {{Test: {{rank: 0, models: ["*"], multiplier: 1.0, limits: {{concurrency: 1000}}}}}}
"""
UPSTREAM = """\
  {name}: {{preset: {name}, mirrors: {{direct: {{url: "{url}"}}}}, credentials: {{main: "${{env:ONE_KEY}}"}}}}
"""


def answer(name: str) -> bytes:
    path = STREAMS / name
    return whole(path.read_bytes(), kind=KINDS[path.suffix])


def cohere_chat(request: Request) -> bytes:
    streams = b'"stream":true' in request.body.replace(b" ", b"")
    return answer("cohere/chat.sse" if streams else "cohere/chat.json")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """To a station with an upstream of each family."""
    with UpstreamServer() as vendor:
        for path, name in ANSWERS.items():
            vendor.script(path, [answer(name)])
        vendor.script("/v2/chat", [cohere_chat])
        vendor.script("/v1/fim/completions", [whole(FILLED_IN)])
        names = ("gemini", "cohere", "ollama", "mistral")
        upstreams = "".join(UPSTREAM.format(name=name, url=vendor.url) for name in names)
        station = Station(tmp_path_factory.mktemp("native") / "data", STATION.format(upstreams=upstreams))
        station.start()
        try:
            yield Access(station.url, asyncio.run(station.customer("native")))
        finally:
            station.stop()


@pytest.mark.skipif(os.environ.get("HEADRACE_CLIENTS") != "all", reason="only with `make clients`")
def test_every_way_of_the_vendors_own_sdks_works(native: Access):
    assert failures(native, [python_with("native"), script("native_clients")]) == []
