"""The main job: a call through a real station becomes one settled row."""

from __future__ import annotations

import aiohttp

from tests.fakes.upstream_server import UpstreamServer, whole
from tests.station import Station
from tests.waiting import until

ANSWER = (
    b'{"id":"c1","object":"chat.completion","model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}'
)


async def test_a_call_is_answered_with_the_same_bytes_and_settled_once(
    station: Station, upstream: UpstreamServer
) -> None:
    upstream.script("/v1/chat/completions", [whole(ANSWER)])
    key = await station.customer("first-call")
    async with aiohttp.ClientSession() as session:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
        async with session.post(
            station.url + "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
        ) as answer:
            assert answer.status == 200, await answer.text()
            assert await answer.read() == ANSWER
            call = answer.headers["x-request-id"]
    sql = f"SELECT * FROM usage WHERE id = '{call}'"
    rows = await until(lambda: station.rows(sql), "the row")
    assert rows[0]["state"] == "settled"
    # 9 x 0.15 USD and 12 x 0.60 USD per million tokens
    assert rows[0]["cost_nanos"] == 9 * 150 + 12 * 600
    assert await station.violations() == []
