"""`python -m proxy.demo` as a process, and its bytes on the wire."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import aiohttp
import pytest

from tests.waiting import DEADLINE_S, wait_for

from .conftest import KEY


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def process() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    command = [sys.executable, "-m", "proxy.demo", "--listen", f"127.0.0.1:{port}", "--pace", "0"]
    running = subprocess.Popen(command, env=os.environ | {"HEADRACE_DEMO_KEY": KEY})

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens)
    yield f"http://127.0.0.1:{port}", running
    if running.poll() is None:
        running.kill()
    running.wait()


async def test_it_serves_with_its_key_and_stops_when_told(process) -> None:
    url, running = process
    async with aiohttp.ClientSession() as session:
        async with session.get(url + "/v1/models") as refused:
            assert refused.status == 401
        async with session.get(url + "/v1/models", headers={"api-key": KEY}) as listed:
            assert listed.status == 200
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=DEADLINE_S) == 0


def test_it_listens_on_the_loopback_address_only() -> None:
    command = [sys.executable, "-m", "proxy.demo", "--listen", "0.0.0.0:0"]
    assert subprocess.run(command, capture_output=True, timeout=DEADLINE_S).returncode == 2


async def test_events_end_with_line_feeds_and_the_stream_with_done(demo: str) -> None:
    body = {"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(demo + "/v1/chat/completions", json=body) as answer,
    ):
        raw = await answer.read()
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["x-request-id"].startswith("req_")
    assert b"\r" not in raw
    assert raw.startswith(b"data: {") and raw.endswith(b"}\n\ndata: [DONE]\n\n")


async def test_anthropic_events_come_in_their_order(demo: str) -> None:
    body = {
        "model": "claude-sonnet-4-5",
        "max_tokens": 2,
        "stream": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }
    async with (
        aiohttp.ClientSession(headers={"x-api-key": KEY}) as session,
        session.post(demo + "/v1/messages", json=body) as answer,
    ):
        raw = (await answer.read()).decode()
    names = [line.removeprefix("event: ") for line in raw.splitlines() if line.startswith("event: ")]
    assert [name for name in names if name != "content_block_delta"] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"model":"m"}', b'{"model":"m","messages":[]}'])
async def test_a_bad_body_is_a_400_in_the_paths_own_shape(demo: str, body: bytes) -> None:
    async with aiohttp.ClientSession(headers={"x-api-key": KEY}) as session:
        async with session.post(demo + "/v1/chat/completions", data=body) as answer:
            assert answer.status == 400
            assert set((await answer.json())["error"]) == {"type", "message", "param", "code"}
        async with session.post(demo + "/v1/messages", data=body) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["type"] == "invalid_request_error"
