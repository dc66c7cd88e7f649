"""Tells the URLs that jobs name of every change: the vendor's side of callbacks.

One attempt each, and in the order of the changes of a job; who does not answer misses one.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import aiohttp
import orjson

from proxy.demo.tasks.jobs import Job
from proxy.telemetry import spawn

POST_S = 5.0


class Hooks:
    """Needs a running loop from the first `tell` on."""

    def __init__(self) -> None:
        self._last: dict[str, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None

    def tell(self, job: Job) -> None:
        """As it is now."""
        if job.hook:
            body = orjson.dumps(job.family.shown(job))
            before = self._last.get(job.id)
            self._last[job.id] = task = spawn("demo hook", self._post(before, job.hook, body))
            task.add_done_callback(lambda done: self._forget(job.id, done))

    async def _post(self, before: asyncio.Task[None] | None, url: str, body: bytes) -> None:
        if before is not None:
            await asyncio.wait([before])
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=POST_S))
        with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, ValueError):
            async with self._session.post(url, data=body, headers={"content-type": "application/json"}):
                pass

    def _forget(self, id_: str, done: asyncio.Task[Any]) -> None:
        if self._last.get(id_) is done:
            del self._last[id_]

    async def stop(self) -> None:
        for task in self._last.values():
            task.cancel()
        if self._session is not None:
            await self._session.close()
