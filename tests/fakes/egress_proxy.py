"""An egress proxy: CONNECT and SOCKS5, as much of both as a test needs."""

from __future__ import annotations

import asyncio
import contextlib
from base64 import b64decode


class EgressProxy:
    """On 127.0.0.1. `asked` are the targets it was asked for; whatever they are, it connects to `to`."""

    def __init__(self, to: int, *, login: str = "", answer: bytes | None = None) -> None:
        self._to = to
        self._login = login
        self._answer = answer  # instead of its own, to a request that it understood
        self._pumps: set[asyncio.Task[None]] = set()
        self.asked: list[str] = []

    async def __aenter__(self) -> EgressProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(1)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await (self._socks if first == b"\5" else self._connect)(reader, writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head.split(" ")[1])
        token = head.partition("Basic ")[2].partition("\r\n")[0]
        if self._login and b64decode(token).decode() != self._login:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            return
        await self._pipe(reader, writer, b"HTTP/1.1 200 Connection established\r\nx-a: b\r\n\r\n")

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method = (await reader.readexactly((await reader.readexactly(1))[0]))[0]
        if method != (2 if self._login else 0):
            writer.write(b"\5\xff")
            return
        writer.write(bytes((5, method)))
        if self._login:
            await reader.readexactly(1)
            user, password = [await reader.readexactly((await reader.readexactly(1))[0]) for _ in range(2)]
            is_known = f"{user.decode()}:{password.decode()}" == self._login
            writer.write(b"\1\0" if is_known else b"\1\1")
        await reader.readexactly(4)
        name = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        self.asked.append(f"{name}:{int.from_bytes(await reader.readexactly(2))}")
        await self._pipe(reader, writer, b"\5\0\0\1\0\0\0\0\0\0")

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, done: bytes) -> None:
        if self._answer is not None:
            writer.write(self._answer)
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        writer.write(done)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._pumps.add(asyncio.ensure_future(_pump(source, sink)))


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()
