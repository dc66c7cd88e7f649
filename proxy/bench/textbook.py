"""A streaming proxy as every tutorial on aiohttp writes it: what the relay is compared with.

`python -m proxy.bench.textbook PORT UPSTREAM_URL`. Not tuned on purpose; it authenticates, meters
and records nothing.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import aiohttp
import uvloop
from aiohttp import web

UPSTREAM = web.AppKey("upstream", str)
SESSION = web.AppKey("session", aiohttp.ClientSession)
HOP_BY_HOP = frozenset(
    ("host", "connection", "keep-alive", "transfer-encoding", "content-length", "upgrade", "te", "trailer")
)


async def proxy(request: web.Request) -> web.StreamResponse:
    url = request.app[UPSTREAM] + request.path_qs
    headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
    body = await request.read()
    async with request.app[SESSION].request(request.method, url, headers=headers, data=body) as upstream:
        kept = {k: v for k, v in upstream.headers.items() if k.lower() not in HOP_BY_HOP}
        response = web.StreamResponse(status=upstream.status, headers=kept)
        await response.prepare(request)
        async for chunk in upstream.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


async def session(app: web.Application) -> AsyncIterator[None]:
    # The two settings without which it would not survive the benchmark: streams outlast 300 s, and
    # there are more than 100 of them.
    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as app[SESSION]:
        yield


def main(port: int, upstream: str) -> None:
    app = web.Application(client_max_size=32 << 20)
    app[UPSTREAM] = upstream
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", proxy)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
