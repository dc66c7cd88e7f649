"""What stands in front of an endpoint: a proxy that gives up on an origin that is silent for too long."""

from __future__ import annotations

import asyncio
import contextlib

GAVE_UP = b"HTTP/1.1 524 A Timeout Occurred\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Cdn:
    """On 127.0.0.1. One exchange at a time on a connection; `cuts` are those that it gave up."""

    def __init__(self, origin: int, silence_s: float) -> None:
        self._origin = origin
        self._silence_s = silence_s
        self._running: set[asyncio.Task[None]] = set()
        self.cuts = 0

    async def __aenter__(self) -> Cdn:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        origin_reader, origin_writer = await asyncio.open_connection("127.0.0.1", self._origin)
        upload = asyncio.ensure_future(self._upload(reader, origin_writer))
        self._running.add(upload)
        with contextlib.suppress(OSError):
            await self._relay(origin_reader, writer)
        origin_writer.transport.abort()
        writer.close()

    async def _upload(self, reader: asyncio.StreamReader, origin: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            origin.write(data)
        origin.transport.abort()

    async def _relay(self, origin: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        has_begun = False
        while True:
            try:
                data = await asyncio.wait_for(origin.read(65536), self._silence_s)
            except TimeoutError:
                self.cuts += 1
                if has_begun:
                    writer.transport.abort()
                else:
                    writer.write(GAVE_UP)
                return
            if not data:
                return
            has_begun = True
            writer.write(data)
