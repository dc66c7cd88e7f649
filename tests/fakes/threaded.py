"""An aiohttp application in a thread of its own, so that it outlives the loop of one test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

DEADLINE_S = 30


@contextmanager
def served(app: web.Application, loop: asyncio.AbstractEventLoop | None = None) -> Iterator[str]:
    """Its URL while it runs, on a new loop if none is given."""
    loop = loop or asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def serve() -> TestServer:
        server = TestServer(app)
        await server.start_server(shutdown_timeout=0.1)
        return server

    server = asyncio.run_coroutine_threadsafe(serve(), loop).result(DEADLINE_S)
    yield str(server.make_url("")).rstrip("/")
    asyncio.run_coroutine_threadsafe(server.close(), loop).result(DEADLINE_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(DEADLINE_S)
