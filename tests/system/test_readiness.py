"""What /readyz promises: the very next call with a good key is served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from tests.fakes.cable import Cable
from tests.fakes.upstream_server import UpstreamServer, whole
from tests.station import Station, routes
from tests.waiting import DEADLINE_S

ANSWER = b'{"id":"c1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}'
BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}


async def test_a_node_is_not_ready_before_it_can_look_a_key_up(
    tmp_path: Path, database_dsn: str, upstream: UpstreamServer
) -> None:
    """Postgres comes later than control's patience: workers are served without it meanwhile."""
    upstream.script("/v1/chat/completions", [whole(ANSWER)])
    async with Cable(database_dsn, tmp_path / "cable") as cable:
        cable.cut()
        station = Station(tmp_path / "data", routes(upstream.url), cable.dsn, workers=2)
        starting = asyncio.create_task(asyncio.to_thread(station.start))
        async with asyncio.timeout(DEADLINE_S):
            while station.log().count('"msg":"serving"') < 2 or "without Postgres" not in station.log():
                await asyncio.sleep(0.02)
        for _ in range(8):  # any worker
            assert await asyncio.to_thread(station.get, "/readyz") == 503
            assert await asyncio.to_thread(station.get, "/healthz") == 200
        cable.mend()
        await starting
        key = await station.customer("early")
        async with (
            aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session,
            session.post(station.url + "/v1/chat/completions", json=BODY) as answer,
        ):
            assert answer.status == 200, await answer.text()
        assert await asyncio.to_thread(station.stop) == 0
