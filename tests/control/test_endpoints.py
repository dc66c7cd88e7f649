"""What a node finds at its public base URLs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.control import endpoints
from proxy.control.endpoints import EndpointProbes
from proxy.routing.table import Endpoint
from tests.fakes.upstream_server import Close, UpstreamServer, whole
from tests.station import free_port


def endpoint(url: str) -> Endpoint:
    return Endpoint("cdn", url, (), "", "", None, False, ())


async def measured(url: str) -> dict[str, Any]:
    probes = EndpointProbes(lambda op, args: None)
    await probes.probe({"cdn": endpoint(url)})
    return probes.measured["cdn"]


async def test_an_endpoint_that_answers_is_reachable_and_timed() -> None:
    with UpstreamServer() as server:
        server.script("/base/healthz", [whole(b"{}")])
        found = await measured(f"{server.url}/base")
        assert (found["status"], type(found["first_byte_ms"])) == ("reachable", int)
        (request,) = server.requests
        assert request.header(b"host") == f"127.0.0.1:{server.port}".encode()


@pytest.mark.parametrize("answer", [whole(b"{}", 502), b"x" * 20_000, Close()])
async def test_what_is_not_the_relay_is_unreachable(answer: Any) -> None:
    with UpstreamServer() as server:
        server.script("/healthz", [answer])
        found = await measured(server.url)
        assert (found["status"], found["first_byte_ms"]) == ("unreachable", None)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_where_nobody_listens_and_names_that_lead_nowhere_are_unreachable(scheme: str) -> None:
    for host in (f"127.0.0.1:{free_port()}", "nowhere.invalid"):
        assert (await measured(f"{scheme}://{host}"))["status"] == "unreachable"


async def test_workers_are_told_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "TELL_S", 0.0)
    told: asyncio.Queue[Any] = asyncio.Queue()
    probes = EndpointProbes(lambda op, args: told.put_nowait((op, args)))
    task = asyncio.ensure_future(
        probes.keep_going(lambda: {"cdn": endpoint(f"http://127.0.0.1:{free_port()}")})
    )
    for _ in range(20):
        op, args = await asyncio.wait_for(told.get(), 30)
        assert (op, args["cdn"]["status"]) == ("endpoints", "unreachable")
    task.cancel()
