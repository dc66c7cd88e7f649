"""Slow calls at an endpoint behind a CDN that cuts silence, with a real one's habits and the real SDKs.

All calls run once and at the same time, because each of them takes as long as the CDN is patient.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from typing import Any

import aiohttp
import anthropic
import openai
import orjson
import pytest

from tests.conftest import Databases
from tests.fakes.cdn import Cdn
from tests.fakes.upstream_server import Pause, UpstreamServer, chunk, chunked_head, whole
from tests.station import Station
from tests.system.operated import CHAT, DONE, LAST, MESSAGES, USAGE, WORD, chat, completion

SILENCE_S = 4.0  # of the CDN: it cuts
SLOW_S = 5.5  # of the upstream
SECRET = {"SLOW_KEY": "sk-upstream-canary-slow-0123456789"}
HINT, TRICKLE, PLAIN = "hint.test", "trickle.test", "plain.test"

EVENTS = [chunk(part) for part in (WORD, LAST, USAGE, DONE)]
MESSAGE = [
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message","role":'
    b'"assistant","model":"m-claude","content":[],"stop_reason":null,"stop_sequence":null,'
    b'"usage":{"input_tokens":9,"output_tokens":1}}}\n\n',
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"Hello"}}\n\n',
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn",'
    b'"stop_sequence":null},"usage":{"output_tokens":100}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
]
ERROR = b'{\n  "error": {"message": "too long", "type": "invalid_request_error", "code": "length"}\n}'

# model -> what its upstream does
SCRIPTS: dict[str, list[Any]] = {
    "m-late": [Pause(SLOW_S), chunked_head(), *EVENTS, chunk(b"")],
    "m-gap": [chunked_head(), EVENTS[0], Pause(SLOW_S), *EVENTS[1:], chunk(b"")],
    "m-inside": [chunked_head(), chunk(WORD[:30]), Pause(SLOW_S), chunk(WORD[30:]), *EVENTS, chunk(b"")],
    "m-error": [Pause(SLOW_S), whole(ERROR, 400)],
    "m-busy": [Pause(SLOW_S), whole(b"{}", 503)],
    "m-whole": [Pause(SLOW_S), whole(completion())],
    "m-claude": [Pause(SLOW_S), chunked_head(), *map(chunk, MESSAGE), chunk(b"")],
}


def config(url: str) -> str:
    endpoint = {"proxy_read_timeout": f"{SILENCE_S:g}s"}
    return orjson.dumps(
        {
            "station": {"default_tier": "Open"},
            "endpoints": {
                "plain": {"url": f"http://{PLAIN}"},
                "hint": {"url": f"http://{HINT}", **endpoint},
                "trickle": {"url": f"http://{TRICKLE}", "slow_calls": "trickle", **endpoint},
            },
            "upstreams": {
                name: {
                    "dialect": "anthropic" if name == "m-claude" else "openai",
                    "mirrors": {"direct": {"url": f"{url}/{name}"}},
                    "credentials": {"a": "${env:SLOW_KEY}"},
                }
                for name in SCRIPTS
            },
            "models": {name: {"candidates": [{"upstream": name}]} for name in SCRIPTS},
            "prices": {"m-*": {"input": "0 USD", "output": "10000 USD"}},
            "tiers": {"Open": {"rank": 0, "models": ["*"], "limits": {"concurrency": 100}}},
        }
    ).decode()


async def post(url: str, key: str, host: str, model: str, **members: Any) -> Any:
    """(status, headers, what came of the body, how it ended)."""
    headers = {"host": host, "authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(60)) as session,
        session.post(CHAT, json=chat(model, **members), headers=headers) as answer,
    ):
        content, end = b"", "complete"
        try:
            async for piece in answer.content.iter_any():
                content += piece
        except aiohttp.ClientPayloadError:
            end = "cut"
        return answer.status, answer.headers, content, end


async def sdk_openai(url: str, key: str, host: str, model: str) -> str | Exception:
    client = openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=key, default_headers={"Host": host}, max_retries=0
    )
    try:
        stream: Any = await client.chat.completions.create(**chat(model), stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    except openai.APIError as e:
        return e
    finally:
        await client.close()


async def sdk_anthropic(url: str, key: str, host: str, model: str) -> str:
    client = anthropic.AsyncAnthropic(
        base_url=url, api_key=key, default_headers={"Host": host}, max_retries=0
    )
    try:
        async with client.messages.stream(**chat(model), max_tokens=100) as stream:
            return await stream.get_final_text()
    finally:
        await client.close()


async def all_calls(origin: int, key: str) -> dict[str, Any]:
    async with Cdn(origin, SILENCE_S) as cdn:
        calls: dict[str, Awaitable[Any]] = {
            "late": post(cdn.url, key, HINT, "m-late", stream=True),
            "late, unprotected": post(cdn.url, key, PLAIN, "m-late", stream=True),
            "gap": post(cdn.url, key, HINT, "m-gap", stream=True),
            "gap, unprotected": post(cdn.url, key, PLAIN, "m-gap", stream=True),
            "inside": post(
                cdn.url, key, HINT, "m-inside", stream=True, stream_options={"include_usage": True}
            ),
            "error": sdk_openai(cdn.url, key, HINT, "m-error"),
            "busy": sdk_openai(cdn.url, key, HINT, "m-busy"),
            "openai": sdk_openai(cdn.url, key, HINT, "m-late"),
            "anthropic": sdk_anthropic(cdn.url, key, HINT, "m-claude"),
            "whole, hint": post(cdn.url, key, HINT, "m-whole"),
            "whole, trickle": post(cdn.url, key, TRICKLE, "m-whole"),
            "failing, trickle": post(cdn.url, key, TRICKLE, "m-busy"),
        }
        return dict(zip(calls, await asyncio.gather(*calls.values()), strict=True)) | {"cuts": cdn.cuts}


@pytest.fixture(scope="module")
def station(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, upstream: UpstreamServer
) -> Iterator[Station]:
    for name, script in SCRIPTS.items():
        upstream.script(f"/{name}{MESSAGES if name == 'm-claude' else CHAT}", script)
    data = tmp_path_factory.mktemp("slow") / "data"
    running = Station(data, config(upstream.url), databases.take(), environ=SECRET)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def answers(station: Station) -> dict[str, Any]:
    """What came of each call."""
    key = asyncio.run(station.customer("slow", 10**15))
    return asyncio.run(all_calls(station.port, key))


def uncommented(content: bytes) -> bytes:
    return content.replace(b": keep-alive\n\n", b"")


def test_the_cdn_cuts_what_is_not_protected(answers: dict[str, Any]) -> None:
    assert answers["late, unprotected"][0] == 524
    assert answers["gap, unprotected"][3] == "cut"


def test_a_stream_that_begins_late_comes_whole_behind_comments(answers: dict[str, Any]) -> None:
    status, headers, content, end = answers["late"]
    assert (status, end) == (200, "complete")
    assert headers["content-type"] == "text/event-stream"
    assert headers["x-request-id"]
    assert content.startswith(b": keep-alive\n\n")
    assert uncommented(content) == WORD + LAST + DONE  # the usage event was not asked for


def test_a_gap_between_events_is_bridged(answers: dict[str, Any]) -> None:
    status, _, content, end = answers["gap"]
    assert (status, end) == (200, "complete")
    assert content.startswith(WORD + b": keep-alive\n\n")
    assert uncommented(content) == WORD + LAST + DONE


def test_a_silence_inside_an_event_is_never_broken(answers: dict[str, Any]) -> None:
    """The event would be another one: rather a cut than a lie."""
    *_, content, end = answers["inside"]
    assert (content, end) == (WORD[:30], "cut")


def test_the_sdks_read_heartbeats_as_nothing(answers: dict[str, Any]) -> None:
    assert answers["openai"] == "word "
    assert answers["anthropic"] == "Hello"


def test_an_error_that_comes_late_is_told_in_the_stream(answers: dict[str, Any]) -> None:
    assert isinstance(answers["error"], openai.APIError)
    assert "too long" in answers["error"].message
    assert isinstance(answers["busy"], openai.APIError)
    assert "model provider" in answers["busy"].message


def test_a_slow_whole_answer_is_refused_in_time_and_told_where_to_go(answers: dict[str, Any]) -> None:
    status, headers, content, _ = answers["whole, hint"]
    assert (status, headers["x-should-retry"]) == (504, "false")
    error = orjson.loads(content)["error"]
    assert error["code"] == "time_limit"
    assert f"http://{PLAIN}" in error["message"]
    assert TRICKLE not in error["message"]


def test_a_slow_whole_answer_trickles_and_is_json_all_the_same(answers: dict[str, Any]) -> None:
    status, _, content, end = answers["whole, trickle"]
    assert (status, end) == (200, "complete")
    assert content.startswith(b" ")
    assert content.lstrip() == completion()
    assert "error" in orjson.loads(answers["failing, trickle"][2])


async def test_every_slow_call_is_on_the_books_once(answers: dict[str, Any], station: Station) -> None:
    rows = await station.settled_rows(12)
    assert {row["model"] for row in rows} == set(SCRIPTS)
    assert await station.violations() == []
