"""Recorded answers of real vendors through a real station: the same bytes, the vendor's usage in the row.

Each recording has an upstream and a model of its own, so that one that is refused cools nobody else's
credential. Answers are sent in pieces cut at random places, chunked or with a length.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from proxy.http1.head import Head
from proxy.metering.usage import Usage
from proxy.relay.answers import Verdict, judge
from tests.conftest import Databases
from tests.fakes.upstream_server import UpstreamServer, head
from tests.station import CANARIES, Station

PATHS = {
    "openai.chat": "/v1/chat/completions",
    "openai.completions": "/v1/completions",
    "openai.embeddings": "/v1/embeddings",
    "openai.images": "",
    "openai.moderations": "/v1/moderations",
    "openai.responses": "",
    "anthropic.complete": "/v1/complete",
    "bedrock.converse": "",
    "anthropic.messages": "/v1/messages",
    "gemini.generate": "",
    "gemini.embed": "",
    "gemini.predict": "",
    "cohere.chat": "/v2/chat",
    "cohere.embed": "/v2/embed",
    "rerank": "/v1/rerank",
    "ollama": "",
}
DIALECTS = {
    "azure": "azure",
    "anthropic.messages": "anthropic",
    "anthropic.complete": "anthropic",
    "gemini.generate": "vertex",
    "bedrock.converse": "bedrock",
}
# Vendors that a station reaches by a preset: it must find the path on which they were recorded.
PRESETS = {
    "alibaba": "dashscope",
    **{
        name: name
        for name in (
            "cerebras", "cohere", "deepseek", "gemini", "groq", "huggingface", "mistral", "ollama",
            "openrouter", "perplexity", "together", "voyage", "writer", "xai", "zhipu",
        )
    },
}  # fmt: skip
PRICE = (
    "call: 0.001 USD, input: 1 USD, output: 2 USD, cache_read: 0.1 USD, image: 0.04 USD,"
    " tools: {web_search: 0.01 USD}"
)
IN_PATH = re.compile(r"(?<=/models/)[^/:]+(?=:)|(?<=^/model/)[^/]+(?=/)")
PIECES = 12  # cuts of an answer

STATION = """
station: {{currency: USD, default_tier: Test}}
endpoints: {{direct: {{url: "http://127.0.0.1:1"}}}}
upstreams:
{upstreams}
models:
{models}
routes: [{{path: "/v1beta/models/{{model}}:predictLongRunning", operation: predict_long_running}}]
prices:
{prices}
tiers: {{Test: {{rank: 0, models: ["*"], multiplier: 1.0, limits: {{concurrency: 1000}}}}}}
"""


@dataclass(frozen=True)
class Recording:
    number: int
    name: str
    data: dict[str, Any]

    @property
    def protocol(self) -> str:
        return str(self.data["expected"]["protocol"])

    @property
    def dialect(self) -> str:
        if self.data["family"] == "vertex":
            return "vertex"
        if self.data["path"].startswith("/openai/v1/"):
            return "azure_v1"
        return DIALECTS.get(self.data["family"]) or DIALECTS.get(self.protocol) or "openai"

    @property
    def path(self) -> str:
        """As it was recorded, with our name for the model and without a place that was cut out."""
        path = str(self.data["path"]).partition("?")[0].replace("<GOOGLE_CLOUD_LOCATION>", "global")
        return IN_PATH.sub(self.model, path).removeprefix("/google-vertex")

    def upstream(self, url: str) -> str:
        """The line of its upstream."""
        base, found, _ = self.path.partition("/publishers/")
        preset = PRESETS.get(self.data["family"])
        kind = f"preset: {preset}" if preset else f"dialect: {self.dialect}"
        mirrors = f'{{direct: {{url: "{url}{base if found else ""}"}}}}'
        return f'{{{kind}, mirrors: {mirrors}, credentials: {{main: "${{env:ONE_KEY}}"}}}}'

    @property
    def model(self) -> str:
        return f"r{self.number}"

    @property
    def body(self) -> bytes:
        return str(self.data["response_body"]).encode()

    def request(self) -> dict[str, Any]:
        """What the recording's client asked, with our name for the model; a cut body is made up."""
        try:
            asked = orjson.loads(self.data["request_body"])
        except ValueError:
            asked = {"max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
            asked["stream"] = bool(self.data["expected"].get("stream"))
        for name in ("cachedContent", "previous_response_id", "background"):
            asked.pop(name, None)  # whose it is, and when it is billed, is asked elsewhere
        if not IN_PATH.search(self.data["path"]):
            asked["model"] = self.model
        if b'"choices":[],' in self.body and b'"usage":{' in self.body and "stream_options" not in asked:
            asked["stream_options"] = {"include_usage": True}  # its client must have asked for that event
        return dict(asked)

    @property
    def price(self) -> str:
        """Free where the request offers a server tool that this station has no price for."""
        return "free: true" if b"advisor" in self.body else PRICE


def _recordings() -> list[Recording]:
    folder = os.environ.get("HEADRACE_RECORDINGS")
    found = []
    for path in sorted(Path(folder).rglob("*.json")) if folder else ():
        data = orjson.loads(path.read_bytes())
        is_ours = (data.get("expected") or {}).get("protocol") in PATHS and data["method"] == "POST"
        if is_ours and data["response_body_encoding"] == "text":
            found.append(Recording(len(found), f"{path.parent.name}/{path.stem[-40:]}", data))
    return found


RECORDINGS = _recordings()
pytestmark = pytest.mark.skipif(not RECORDINGS, reason="HEADRACE_RECORDINGS names no folder of recordings")


@pytest.fixture(scope="session")
def players() -> Iterator[dict[int, UpstreamServer]]:
    servers = {r.number: UpstreamServer().start() for r in RECORDINGS}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture(scope="session")
def replaying(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, players: dict[int, UpstreamServer]
) -> Iterator[Station]:
    upstreams = "\n".join(f"  u{r.number}: {r.upstream(players[r.number].url)}" for r in RECORDINGS)
    models = "\n".join(f"  {r.model}: {{candidates: [{{upstream: u{r.number}}}]}}" for r in RECORDINGS)
    prices = "\n".join(f"  {r.model}: {{{r.price}}}" for r in RECORDINGS)
    config = STATION.format(upstreams=upstreams, models=models, prices=prices)
    station = Station(tmp_path_factory.mktemp("replay") / "data", config, databases.take())
    station.start()
    yield station
    station.stop()


@pytest.fixture(scope="session")
def replay_key(replaying: Station) -> str:
    return asyncio.run(replaying.customer("replay"))


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda r: r.name)
async def test_a_recorded_answer_reaches_the_client_unchanged_and_is_metered_as_expected(
    recording: Recording,
    coding: str,
    replaying: Station,
    players: dict[int, UpstreamServer],
    replay_key: str,
) -> None:
    stream = bool(recording.data["expected"].get("stream"))
    asked = recording.request()
    if coding == "gzip" and stream and recording.protocol in ("openai.chat", "openai.completions"):
        pytest.skip("the relay asks for identity where it adds include_usage")
    wire = gzip.compress(recording.body) if coding == "gzip" else recording.body
    seed = random.Random(f"{recording.name}{coding}")
    _script(players[recording.number], recording, wire, coding, seed)
    url, headers = _call(replaying, recording, replay_key)
    headers["accept-encoding"] = coding
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.post(url, data=orjson.dumps(asked), headers=headers) as answer,
    ):
        received = await answer.read()
        call = answer.headers["x-request-id"]
    status = recording.data["status"]
    if status >= 300 and judge(Head(status, b"", (1, 1), [], 0), recording.body) is not Verdict.VERBATIM:
        assert CANARIES["ONE_KEY"].encode() not in received  # mapped by policy
        return
    assert answer.status == status
    assert received == wire
    asked_for = players[recording.number].requests[-1].target
    if recording.data["family"] in (*PRESETS, "vertex"):
        assert _usual(asked_for.partition("?")[0]) == _usual(recording.path)
    assert "key=" not in asked_for
    row = await _row(replaying, call)
    _compare(row, recording)


def _usual(path: str) -> str:
    """DeepSeek has its paths twice, Zhipu those of another plan."""
    return path.removeprefix("/v1").replace("/coding", "")


def _script(
    server: UpstreamServer, recording: Recording, wire: bytes, coding: str, seed: random.Random
) -> None:
    kind = recording.data["response_headers"].get("content-type", "application/json")
    fields = [f"content-type: {kind}", *(["content-encoding: gzip"] if coding == "gzip" else [])]
    cuts = sorted(seed.randrange(len(wire) + 1) for _ in range(PIECES))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True) if b > a]
    if seed.random() < 0.5:
        actions = [head(recording.data["status"], *fields, f"content-length: {len(wire)}"), *pieces]
    else:
        chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
        actions = [
            head(recording.data["status"], *fields, "transfer-encoding: chunked"),
            *chunks,
            b"0\r\n\r\n",
        ]
    server.script("*", actions)


def _call(station: Station, recording: Recording, key: str) -> tuple[str, dict[str, str]]:
    in_path = IN_PATH.search(recording.path) is not None
    path = recording.path if in_path else PATHS[recording.protocol] or recording.path
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    if recording.data["family"] in PRESETS and recording.data["family"] != "writer":
        path = recording.path  # a key holder who exchanges only the host
    query = str(recording.data["path"]).partition("?")[2]
    if in_path:
        path += "?alt=sse" if "alt=sse" in query else ""
        headers = {"content-type": "application/json", "x-goog-api-key": key}
        if "key=" in query:
            path += f"&key={key}"
            del headers["x-goog-api-key"]
    elif recording.dialect == "azure":
        path = f"/openai/deployments/{recording.model}{path.removeprefix('/v1')}"
        path += "?api-version=2024-10-21" if recording.number % 2 else ""  # as the documents' curl lines
        headers = {"content-type": "application/json", "api-key": key}
    elif recording.dialect == "anthropic":
        headers = {"content-type": "application/json", "x-api-key": key, "anthropic-version": "2023-06-01"}
    return station.url + path, headers


async def _row(station: Station, call: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if rows := await station.rows(f"SELECT * FROM usage WHERE id = '{call}'"):
            return rows[0]
    raise AssertionError("the call has no usage row")


def _compare(row: dict[str, Any], recording: Recording) -> None:
    expected = recording.data["expected"]
    stored = orjson.loads(row["usage"]) if isinstance(row["usage"], str) else row["usage"]
    usage = Usage.from_dict(stored)
    if recording.data["status"] >= 400:
        assert (row["state"], row["cost_nanos"]) == ("void", 0)
        return
    if recording.protocol == "openai.moderations":
        assert row["cost_nanos"] == 0
        return
    detail = recording.data["expected_detail"]
    if expected["input_tokens_all"] is None and expected["images"] is None:
        if detail["error"]:  # an error without a usage: nothing is billed
            assert (row["state"], row["provenance"]) == ("void", "none")
        else:
            is_told = detail["raw_usage"] or recording.protocol == "gemini.predict"  # by the call
            assert row["provenance"] in (("final",) if is_told else ("counted", "estimated"))
            assert row["cost_nanos"] > 0
        return
    assert row["provenance"] == "final"
    wanted = {
        "in": expected["input_tokens_all"] or 0,
        "out": expected["output_tokens_all"] or 0,
        # More cached than there was input has been recorded: it is bounded by the input.
        "cache_read": min(expected["cache_read_tokens"] or 0, expected["input_tokens_all"] or 0),
        "reasoning": expected["reasoning_tokens"] or 0,
    }
    metered = {
        "in": usage.input_tokens_all(),
        "out": usage.output_tokens_all(),
        "cache_read": usage.cache_read,
        "reasoning": usage.reasoning,
    }
    assert metered == wanted
    if expected["images"] is not None and recording.protocol == "openai.images":
        assert usage.images == expected["images"] or usage.output_image > 0
