"""The C upstream answers like a chat vendor: the benchmark is worth nothing otherwise."""

from __future__ import annotations

import ssl
import time

import aiohttp
import orjson
import pytest

from proxy.bench.figures import STREAM
from proxy.bench.rig import Rig
from tests.waiting import promised

from .answers import ask, events_of


async def test_a_whole_answer_is_one_kilobyte_with_usage(rig: Rig) -> None:
    status, headers, body = await ask(rig.upstream_url(False), rig.requests("t", False)[0])
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert 900 < len(body) < 1200
    answer = orjson.loads(body)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == 260


async def test_a_request_is_one_kilobyte(rig: Rig) -> None:
    body = rig.requests("t", False)[0].read_bytes().partition(b"\r\n\r\n")[2]
    assert 800 < len(body) < 1200
    assert orjson.loads(body)["model"] == "gpt-4o-mini"


@pytest.mark.parametrize("asks_usage", [True, False])
async def test_a_stream_reports_usage_only_to_whom_asks(rig: Rig, asks_usage: bool) -> None:
    stream = STREAM.format(chunks=3, every_us=0)
    request = rig.requests("t", False, stream=stream, asks_usage=asks_usage)[0]
    _, headers, body = await ask(rig.upstream_url(False), request)
    assert headers["content-type"].startswith("text/event-stream")
    events = events_of(body)
    assert events[-1] == "[DONE]"
    texts = [e["choices"][0]["delta"].get("content") for e in events[:-1] if e["choices"]]
    assert texts == ["", " word", " word", " word", None]
    usages = [event["usage"] for event in events[:-1] if "usage" in event]
    if asks_usage:
        assert events[-2]["choices"] == []
        assert usages[:-1] == [None] * 5
        assert usages[-1]["total_tokens"] == 215
    else:
        assert usages == []


async def test_a_stream_keeps_its_pace(rig: Rig) -> None:
    stream = STREAM.format(chunks=20, every_us=10_000)
    began = time.monotonic()
    await ask(rig.upstream_url(False), rig.requests("t", False, stream=stream)[0])
    assert 0.19 < time.monotonic() - began < promised(2.0)


async def test_it_speaks_https_with_a_certificate_that_verifies(rig: Rig) -> None:
    if rig.certificate is None:
        pytest.skip("no openssl command")
    trust = ssl.create_default_context(cafile=str(rig.certificate))
    stream = STREAM.format(chunks=2, every_us=1000)
    _, _, body = await ask(rig.upstream_url(True), rig.requests("t", True, stream=stream)[0], trust)
    assert events_of(body)[-1] == "[DONE]"


async def test_a_connection_is_kept_for_many_requests(rig: Rig) -> None:
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        for _ in range(20):
            async with session.post(rig.upstream_url(False), data=b"{}") as answer:
                assert answer.status == 200
                await answer.read()
