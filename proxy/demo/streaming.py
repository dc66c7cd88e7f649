"""Event streams as vendors send them, at the demo's pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

from aiohttp import web
from aiohttp_sse import EventSourceResponse

PACE = web.AppKey("pace", float)  # pieces a second; 0: as fast as possible
Piece = TypeVar("Piece")


async def open_stream(request: web.Request) -> EventSourceResponse:
    """Start the answer. LF between lines: OpenAI's and Anthropic's streams use no CRLF."""
    stream = EventSourceResponse(sep="\n", allow_all_methods=True)
    await stream.prepare(request)
    return stream


async def paced(request: web.Request, pieces: Iterable[Piece]) -> AsyncIterator[Piece]:
    """Hand out `pieces` one by one at the application's pace."""
    pace = request.app[PACE]
    for piece in pieces:
        if pace:
            await asyncio.sleep(1 / pace)
        yield piece
