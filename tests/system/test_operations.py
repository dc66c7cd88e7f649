"""What is no chat, through a real station: the same bytes, and billed by what each API consumes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from proxy.metering.eventstream import frame
from proxy.routing.sigv4 import signed
from tests.conftest import Databases
from tests.fakes.upstream_server import UpstreamServer, head, whole
from tests.station import Station
from tests.waiting import until

PAIR = "AKIDEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
CONFIG = """
station: {{currency: USD, default_tier: Test}}
endpoints: {{direct: {{url: "http://127.0.0.1:1"}}}}
upstreams:
  openai:
    dialect: openai
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:ONE_KEY}}"}}
  aws:
    dialect: bedrock
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:AWS_PAIR}}"}}
models:
  gpt-5: {{candidates: [{{upstream: openai}}]}}
  gpt-4o-mini-tts: {{candidates: [{{upstream: openai}}]}}
  tts-1: {{candidates: [{{upstream: openai}}]}}
  whisper-1: {{candidates: [{{upstream: openai}}]}}
  dall-e-3: {{candidates: [{{upstream: openai}}]}}
  gpt-image-1: {{candidates: [{{upstream: openai}}]}}
  "gpt-4-gizmo-*": {{candidates: [{{upstream: openai}}]}}
  claude-on-aws: {{candidates: [{{upstream: aws, as: "us.anthropic.claude-sonnet-4-5-v1:0"}}]}}
routes:
  - {{path: "/v1/evals/{{id}}/runs", operation: call, methods: [POST], candidates: [{{upstream: openai}}]}}
prices:
  "gpt-4-gizmo-*": {{call: 0.1 USD}}
  claude-on-aws: {{input: 3 USD, output: 15 USD, cache_read: 0.3 USD, cache_write_5m: 3.75 USD}}
  decisions.create: {{call: 0.002 USD}}
  call: {{call: 0.05 USD}}
tiers: {{Test: {{rank: 0, models: ["*"], multiplier: 1.0, limits: {{concurrency: 100}}}}}}
"""
USAGE = {"input_tokens": 120, "input_tokens_details": {"cached_tokens": 100}, "output_tokens": 12}

HEARD = (
    b'data: {"type":"transcript.text.delta","delta":"hi"}\n\n'
    b'data: {"type":"transcript.text.done","text":"hi"}\n\n'
)


@pytest.fixture(scope="module")
def vendor() -> Iterator[UpstreamServer]:
    with UpstreamServer() as server:
        yield server


@pytest.fixture(scope="module")
def media(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, vendor: UpstreamServer
) -> Iterator[Station]:
    running = Station(
        tmp_path_factory.mktemp("media") / "data",
        CONFIG.format(url=vendor.url),
        databases.take(),
        environ={"AWS_PAIR": PAIR},
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def key(media: Station) -> str:
    return asyncio.run(media.customer("media"))


async def call(station: Station, key: str, path: str, **request: Any) -> tuple[int, bytes, str]:
    """(status, body, call id) of a POST."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(station.url + path, headers={"authorization": f"Bearer {key}"}, **request) as answer,
    ):
        return answer.status, await answer.read(), answer.headers["x-request-id"]


async def row_of(station: Station, id_: str) -> dict[str, Any]:
    [row] = await until(lambda: station.rows(f"SELECT * FROM usage WHERE id = '{id_}'"), "a usage row")
    usage = row["usage"]
    return row | {"usage": json.loads(usage) if isinstance(usage, str) else usage}


def events(*docs: dict[str, Any]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (d["type"].encode(), json.dumps(d).encode()) for d in docs)


def stream(body: bytes, kind: str = "text/event-stream") -> list[Any]:
    """In pieces of 64 KiB, as a socket has them."""
    pieces = [body[at : at + (64 << 10)] for at in range(0, len(body), 64 << 10)]
    return [head(200, f"content-type: {kind}", f"content-length: {len(body)}"), *pieces]


async def test_responses_are_streamed_and_billed_by_their_last_event(
    media: Station, vendor: UpstreamServer, key: str
) -> None:
    done = {
        "id": "resp_1",
        "status": "completed",
        "model": "gpt-5",
        "service_tier": "default",
        "usage": USAGE,
    }
    done["output"] = [{"type": "web_search_call", "action": {"type": "search"}}]
    body = events(
        {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "usage": None}},
        {"type": "response.output_text.delta", "delta": "Hi"},
        {"type": "response.completed", "response": done},
    )
    vendor.script("/v1/responses", stream(body))
    asked = {"model": "gpt-5", "input": "Hi", "stream": True, "store": False}
    asked["tools"] = [{"type": "web_search_preview"}]
    status, answer, id_ = await call(media, key, "/v1/responses", json=asked)
    assert (status, answer) == (200, body)
    row = await row_of(media, id_)
    assert row["usage"] == {
        "input": 20,
        "cache_read": 100,
        "output": 12,
        "calls": 1,
        "tools": {"web_search": 1},
    }
    assert row["cost_nanos"] == 20 * 1250 + 100 * 125 + 12 * 10_000 + 10_000_000
    assert row["provenance"] == "final"


@pytest.mark.parametrize(
    ("model", "usage", "cost_nanos"),
    [
        ("tts-1", {"characters": 5, "calls": 1}, 5 * 15_000),
        (
            "gpt-4o-mini-tts",
            {"characters": 5, "input": 2, "output_audio": 11, "calls": 1},
            2 * 600 + 11 * 12_000,
        ),
    ],
)
async def test_speech_is_billed_by_characters_or_by_tokens(
    media: Station, vendor: UpstreamServer, key: str, model: str, usage: dict[str, int], cost_nanos: int
) -> None:
    sound = b"ID3\x04" + bytes(range(256)) * 2000
    vendor.script("/v1/audio/speech", stream(sound, "audio/mpeg"))
    asked = {"model": model, "input": "Hi 中!", "voice": "alloy"}
    status, answer, id_ = await call(media, key, "/v1/audio/speech", json=asked)
    assert (status, answer) == (200, sound)
    row = await row_of(media, id_)
    assert (row["usage"], row["cost_nanos"]) == (usage, cost_nanos)


@pytest.mark.parametrize(
    ("asked", "body", "usage"),
    [
        ("json", b'{"text":"hi","usage":{"type":"duration","seconds":4}}', {"seconds_ms": 4000, "calls": 1}),
        ("verbose_json", b'{"text":"hi","duration":3.7,"segments":[]}', {"seconds_ms": 3700, "calls": 1}),
        ("srt", b"1\n00:00:00,000 --> 00:00:03,250\nhi\n", {"seconds_ms": 3250, "calls": 1}),
        ("vtt", b"WEBVTT\n\n00:00.000 --> 00:02.500\nhi\n", {"seconds_ms": 2500, "calls": 1}),
        ("text", b"hi\n", {"seconds_ms": 2500, "calls": 1}),  # by the head of its file
        ("events", HEARD, {"seconds_ms": 2500, "calls": 1}),  # also where the stream tells no usage
    ],
)
async def test_what_is_heard_is_billed_by_the_second_whatever_is_asked_for(
    media: Station, vendor: UpstreamServer, key: str, asked: str, body: bytes, usage: dict[str, int]
) -> None:
    kinds = {"json": "application/json", "verbose_json": "application/json", "events": "text/event-stream"}
    kind = kinds.get(asked, "text/plain; charset=utf-8")
    vendor.script("/v1/audio/transcriptions", stream(body, kind))
    form = aiohttp.FormData()
    form.add_field("file", b"OggS" + bytes(9_996), filename="a.ogg", content_type="audio/ogg")
    name, value = ("stream", "true") if asked == "events" else ("response_format", asked)
    form.add_field(name, value)
    form.add_field("model", "whisper-1")
    status, answer, id_ = await call(media, key, "/v1/audio/transcriptions", data=form)
    assert (status, answer) == (200, body)
    row = await row_of(media, id_)
    assert (row["usage"], row["provenance"]) == (usage, "final")
    assert row["cost_nanos"] == usage["seconds_ms"] * 100


async def test_pictures_are_priced_by_size_and_quality(
    media: Station, vendor: UpstreamServer, key: str
) -> None:
    vendor.script("/v1/images/generations", [whole(b'{"created":1,"data":[{"url":"a"}]}')])
    costs = {}
    for size, quality in (("1024x1024", "standard"), ("1792x1024", "hd"), (None, None)):
        asked = {"model": "dall-e-3", "prompt": "a cat", "size": size, "quality": quality}
        asked = {name: value for name, value in asked.items() if value}
        _, _, id_ = await call(media, key, "/v1/images/generations", json=asked)
        costs[size, quality] = (await row_of(media, id_))["cost_nanos"] // 10_000_000
    assert list(costs.values()) == [4, 12, 4]


async def test_an_event_of_20_mb_is_relayed_and_its_usage_billed(
    media: Station, vendor: UpstreamServer, key: str
) -> None:
    usage = {"input_tokens": 10, "output_tokens": 272, "total_tokens": 282}
    body = events(
        {"type": "image_generation.partial_image", "b64_json": "iVBO" * (1 << 20), "partial_image_index": 0},
        {"type": "image_generation.completed", "b64_json": "iVBO" * (5 << 20), "usage": usage},
    )
    vendor.script("/v1/images/generations", stream(body))
    asked = {"model": "gpt-image-1", "prompt": "a cat", "stream": True, "partial_images": 1}
    status, answer, id_ = await call(media, key, "/v1/images/generations", json=asked)
    assert (status, answer == body) == (200, True)
    row = await row_of(media, id_)
    assert row["usage"] == {"input": 10, "output": 272, "images": 1, "calls": 1}
    assert row["cost_nanos"] == 10 * 5_000 + 272 * 40_000


async def test_models_by_glob_are_sold_by_the_call(media: Station, vendor: UpstreamServer, key: str) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1200, "total_tokens": 1209}
    vendor.script("/v1/chat/completions", [whole(json.dumps({"choices": [], "usage": usage}).encode())])
    asked = {"model": "gpt-4-gizmo-g-123", "messages": [{"role": "user", "content": "Hi"}]}
    _, _, id_ = await call(media, key, "/v1/chat/completions", json=asked)
    assert (await row_of(media, id_))["cost_nanos"] == 100_000_000


async def test_a_declared_path_goes_to_the_same_path_there_and_is_sold_by_the_call(
    media: Station, vendor: UpstreamServer, key: str
) -> None:
    for path, cost_nanos in (("/v1/decisions", 2_000_000), ("/v1/evals/eval_1/runs", 50_000_000)):
        vendor.script(path, [whole(b'{"id":"x_1","result":"yes"}')])
        status, answer, id_ = await call(media, key, path, json={"what": "now"})
        assert (status, answer) == (200, b'{"id":"x_1","result":"yes"}')
        assert vendor.requests[-1].target == path
        row = await row_of(media, id_)
        assert (row["usage"], row["cost_nanos"]) == ({"calls": 1}, cost_nanos)


async def test_what_is_no_models_may_come_without_a_body(
    media: Station, vendor: UpstreamServer, key: str
) -> None:
    vendor.script("/v1/conversations", [whole(b'{"id":"conv_1","object":"conversation"}')])
    status, _, id_ = await call(media, key, "/v1/conversations")
    assert status == 200
    assert (await row_of(media, id_))["cost_nanos"] == 0


async def test_what_has_no_price_is_not_sold(media: Station, vendor: UpstreamServer, key: str) -> None:
    before = len(vendor.requests)
    status, answer, _ = await call(media, key, "/v1/vector_stores", json={"name": "x"})
    assert (status, json.loads(answer)["error"]["code"]) == (403, "model_not_priced")
    status, _, _ = await call(media, key, "/v1/evals", json={})
    assert status == 404
    assert len(vendor.requests) == before


async def test_bedrock_is_asked_with_a_signature_and_answers_in_frames(
    media: Station, vendor: UpstreamServer, key: str
) -> None:
    usage = {"inputTokens": 3, "outputTokens": 61, "cacheReadInputTokens": 2074, "cacheWriteInputTokens": 297}
    body = b"".join(
        frame({":event-type": kind, ":message-type": "event"}, json.dumps(payload).encode())
        for kind, payload in (
            ("messageStart", {"role": "assistant"}),
            ("contentBlockDelta", {"delta": {"text": "hi"}}),
            ("messageStop", {"stopReason": "end_turn"}),
            ("metadata", {"usage": usage}),
        )
    )
    path = "/model/us.anthropic.claude-sonnet-4-5-v1%3A0/converse-stream"
    vendor.script("*", stream(body, "application/vnd.amazon.eventstream"))
    asked = {"messages": [{"role": "user", "content": [{"text": "Hi"}]}]}
    status, answer, id_ = await call(media, key, "/model/claude-on-aws/converse-stream", json=asked)
    assert (status, answer) == (200, body)
    request = vendor.requests[-1]
    assert request.target.replace(":", "%3A") == path
    at_ms = _ms(request.header(b"x-amz-date") or b"")
    told = b"POST %b HTTP/1.1\r\nhost: %b\r\n" % (request.target.encode(), request.header(b"host") or b"")
    assert b"authorization: %b\r\n" % (request.header(b"authorization") or b"") in signed(
        told, request.body, PAIR, at_ms
    )
    assert not any(PAIR.partition(":")[2].encode() in value for _, value in request.headers)
    row = await row_of(media, id_)
    assert row["usage"] == {"input": 3, "cache_read": 2074, "cache_write_5m": 297, "output": 61, "calls": 1}
    assert row["cost_nanos"] == 3 * 3000 + 2074 * 300 + 297 * 3750 + 61 * 15_000


def _ms(date: bytes) -> int:
    at = datetime.strptime(date.decode(), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return int(at.timestamp() * 1000)
