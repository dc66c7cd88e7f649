"""The C load client counts what it sees, says what went wrong, and stops."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.bench.figures import STREAM
from proxy.bench.load import Load, Mark
from proxy.bench.machine import BenchError
from proxy.bench.rig import Rig
from tests.waiting import wait_for


def mark_when(load: Load, condition) -> Mark:
    return wait_for(lambda: mark if condition(mark := load.mark()) else None)


def test_it_asks_again_and_again_on_kept_connections(rig: Rig) -> None:
    with Load(rig, rig.upstream_port, 4, rig.requests("t", False)) as load:
        mark = mark_when(load, lambda m: m.responses > 1000)
    assert (mark.errors, mark.reconnects, mark.events) == (0, 0, 0)


def test_it_counts_events_wherever_they_are_cut(rig: Rig) -> None:
    requests = rig.requests("t", False, stream=STREAM.format(chunks=5, every_us=0))
    with Load(rig, rig.upstream_port, 3, requests) as load:
        mark = mark_when(load, lambda m: (m.responses >= 30 and m.open == 0) or m.responses > 2000)
    assert mark.errors == 0
    per_answer = 1 + 5 + 1 + 1 + 1  # role, pieces, finish, usage, [DONE]
    assert mark.events >= mark.responses * per_answer


def test_it_keeps_a_rate(rig: Rig) -> None:
    with Load(rig, rig.upstream_port, 8, rig.requests("t", False), rate=200) as load:
        first = mark_when(load, lambda m: m.responses > 0)
        last = mark_when(load, lambda m: m.responses - first.responses >= 200)
    seconds = (last.ns - first.ns) / 1e9
    assert 0.9 < (last.responses - first.responses) / seconds / 200 < 1.1
    assert last.first_byte_us["p50"] > 0


def test_streams_open_and_stay_open(rig: Rig) -> None:
    requests = rig.requests("t", False, stream=STREAM.format(chunks=100, every_us=1_000_000))
    with Load(rig, rig.upstream_port, 300, requests) as load:
        mark = load.wait_until_open(300, 10)
    assert mark.responses == 0


@pytest.fixture
async def unhappy():
    """A server that refuses, or cuts its answer, by the path."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"x")
        assert request.transport
        request.transport.close()
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        yield server


async def test_a_cut_answer_and_a_refusal_are_errors(rig: Rig, unhappy: TestServer, tmp_path: Path) -> None:
    def drive(request: Path) -> Mark:
        with Load(rig, int(unhappy.port or 0), 1, [request], rate=50) as load:
            return mark_when(load, lambda m: m.errors > 0)

    cut = await asyncio.to_thread(drive, rig.requests("t", False)[0])
    assert "within an answer" in cut.complaint
    refused = tmp_path / "refused"
    refused.write_bytes(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    mark = await asyncio.to_thread(drive, refused)
    assert "404" in mark.first_error


def test_a_stream_that_does_not_open_is_told(rig: Rig) -> None:
    requests = rig.requests("t", False)
    with Load(rig, rig.upstream_port, 1, requests) as load, pytest.raises(BenchError, match="of 2 streams"):
        load.wait_until_open(2, 0.2)
