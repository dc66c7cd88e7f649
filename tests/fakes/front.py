"""An Ingress that listens, its clients, and handlers for it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from time import monotonic

from proxy.errors import InvalidKey
from proxy.relay.exchange import Exchange
from proxy.relay.ingress import Connection, Ingress
from proxy.relay.sweep import Sweeper
from proxy.telemetry import Stats
from tests.waiting import DEADLINE_S, until

Handle = Callable[[Exchange], Awaitable[None]]
Open = Callable[..., Awaitable["Front"]]

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Front:
    """An Ingress that listens, and clients of it."""

    def __init__(
        self, handle: Handle, *, connections_max: int = 100, listener: socket.socket | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.stats = Stats()
        self.ingress = Ingress(
            handle, loop=loop, sweeper=Sweeper(loop), stats=self.stats, connections_max=connections_max
        )
        self._listener = listener
        self._clients: list[asyncio.StreamWriter] = []

    async def open(self) -> Front:
        loop = asyncio.get_running_loop()
        listener = self._listener or socket.create_server(("127.0.0.1", 0))
        self.server = await loop.create_server(self.ingress, sock=listener)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        self.server.close()
        for client in self._clients:
            client.transport.abort()
        await self.ingress.shutdown(0.1)

    async def connect(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        known = len(self.ingress.connections)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._clients.append(writer)
        writer.write(data)
        await until(lambda: len(self.ingress.connections) > known)
        return reader, writer

    @property
    def connection(self) -> Connection:
        """The only one."""
        (found,) = self.ingress.connections
        assert isinstance(found, Connection)
        return found

    def later(self, seconds: float) -> None:
        """Tell the connections that so much time has passed since now."""
        for connection in list(self.ingress.connections):
            assert isinstance(connection, Connection)
            connection.check(monotonic() + seconds)


async def say_ok(x: Exchange) -> None:
    x.client.write(OK)


async def never(x: Exchange) -> None:
    await asyncio.get_running_loop().create_future()


async def read_body(x: Exchange) -> None:
    while await x.body.more():
        pass
    x.client.write(OK)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What was still read before the connection ended."""
    return await asyncio.wait_for(reader.read(), DEADLINE_S)


async def refuse(x: Exchange) -> None:
    raise InvalidKey
