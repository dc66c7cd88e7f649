"""Connections to upstreams, kept open between requests.

Owns who may use which connection again, and how a new one is made: addresses, happy eyeballs, TLS. Reads and
writes nothing on them. An idle connection on which a byte has come is never handed out: the next answer read
from it would belong to somebody else.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from aiohappyeyeballs import start_connection

from proxy.errors import UpstreamConnectFailed
from proxy.relay.egress import open_tunnel
from proxy.relay.resolver import GetAddressInfo, Resolver
from proxy.relay.upstream import State, UpstreamConnection
from proxy.relay.upstream_tls import TlsConnection
from proxy.routing.table import Mirror, Origin

IDLE_S = 50.0  # below the 60 s at which most load balancers close an idle connection
IDLE_MAX = 1024  # a burst of streams does not leave all its descriptors behind
IDLE_MARGIN_S = 1.0  # a server counts from an earlier moment than we do
EXPIRY_S = 10.0  # between two looks for connections that have been idle for too long
EYEBALLS_DELAY_S = 0.25  # RFC 8305 section 8


@dataclass(slots=True)
class PoolStats:
    """Totals since the process began."""

    opened: int = 0
    poisoned: int = 0  # idle, and bytes came that nobody had asked for
    unclean: int = 0  # at check-out something was readable: such bytes, or the end of file
    expired: int = 0
    connect_failed: int = 0


def tls_context(cafile: str | None = None) -> ssl.SSLContext:
    """The context of a process: verification on, HTTP/1.1 only. Costs 36 ms: made once, at start."""
    context = ssl.create_default_context(cafile=cafile)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Pool:
    """The connections of one process. `connections_max` (None: no cap) and `idle_max` are per origin.

    `clock` gives seconds and never goes back.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
        connections_max: int | None = None,
        idle_max: int = IDLE_MAX,
        getaddrinfo: GetAddressInfo | None = None,
    ) -> None:
        self._loop = loop
        self._ssl_context = ssl_context
        self._clock = clock
        self._connections_max = connections_max
        self._idle_max = idle_max
        self._resolver = Resolver(loop, clock, getaddrinfo or loop.getaddrinfo)
        # A dict is a stack that also forgets from its middle: the latest parked is taken first.
        self._idle: defaultdict[Origin, dict[UpstreamConnection, None]] = defaultdict(dict)
        self._open: Counter[Origin] = Counter()  # with those that are being connected
        self._connections: set[UpstreamConnection] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.stats = PoolStats()

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return sum(map(len, self._idle.values()))

    @property
    def open(self) -> int:
        """All connections, also those that are being made."""
        return self._open.total()

    def take(self, mirror: Mirror) -> UpstreamConnection | None:
        """Return a connection to `mirror` that was idle, its user's own until it is released or aborted."""
        idle = self._idle.get(mirror.origin)
        while idle:
            connection, _ = idle.popitem()
            if connection.idle_until <= self._clock():
                self.stats.expired += 1
            elif connection.has_unread_bytes():
                self.stats.unclean += 1
            else:
                return connection
            connection.abort()
        return None

    async def connect(
        self, mirror: Mirror, connect_timeout_s: float, *, reuse: bool = True
    ) -> UpstreamConnection:
        """Return a new one. `reuse` False: it is never used again. Raises UpstreamConnectFailed,
        within `connect_timeout_s`."""
        origin = mirror.origin
        if self._connections_max is not None and self._open[origin] >= self._connections_max:
            raise UpstreamConnectFailed(detail="connection cap")
        return await self._open_connection(origin, connect_timeout_s, reuse)

    def park(self, connection: UpstreamConnection) -> None:
        """Keep a connection for the next request to its origin."""
        idle = self._idle[connection.origin]
        if len(idle) >= self._idle_max:
            connection.abort()
            return
        idle[connection] = None
        kept_s = connection.kept_s  # servers that say how long are believed
        keeps_s = IDLE_S if kept_s is None else min(IDLE_S, kept_s - IDLE_MARGIN_S)
        connection.idle_until = connection.last_activity + keeps_s
        if self._expiry is None:
            self._expiry = self._loop.call_later(EXPIRY_S, self.expire)

    def closed(self, connection: UpstreamConnection, *, poisoned: bool) -> None:
        """Forget a connection that is gone."""
        if connection not in self._connections:
            return  # it was lost before anybody was given it
        self._connections.remove(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None:
            idle.pop(connection, None)
        self._count_closed(connection.origin)
        self.stats.poisoned += poisoned

    def expire(self) -> None:
        """Close what has been idle for too long. Calls itself again while anything is idle."""
        self._expiry = None
        now = self._clock()
        expired = [c for idle in self._idle.values() for c in idle if c.idle_until <= now]
        for connection in expired:
            connection.abort()
        self.stats.expired += len(expired)
        for origin in [origin for origin, idle in self._idle.items() if not idle]:
            del self._idle[origin]
        if self._idle:
            self._expiry = self._loop.call_later(EXPIRY_S, self.expire)

    def close(self) -> None:
        """Abort every connection; those of running exchanges without a word to their sinks."""
        self._is_closed = True
        self._idle_max = 0
        if self._expiry is not None:
            self._expiry.cancel()
        for connection in list(self._connections):
            connection.abort()

    async def _open_connection(self, origin: Origin, timeout_s: float, reuse: bool) -> UpstreamConnection:
        connection: UpstreamConnection | None = None
        self._open[origin] += 1
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connect(origin, reuse)
        except (OSError, RuntimeError, TimeoutError) as error:  # uvloop has RuntimeError for some of them
            self.stats.connect_failed += 1
            raise UpstreamConnectFailed(detail=f"{type(error).__name__}: {error}") from error
        finally:
            if connection is None:
                self._count_closed(origin)
        self.stats.opened += 1
        return connection

    async def _connect(self, origin: Origin, reuse: bool) -> UpstreamConnection:
        tls = origin.scheme == "https"
        if tls and self._ssl_context is None:
            raise OSError("no TLS context")
        kind = TlsConnection if tls else UpstreamConnection
        sock = await self._socket(origin)
        _, connection = await self._loop.create_connection(
            lambda: kind(self, origin, self._clock, reusable=reuse),
            sock=sock,
            ssl=self._ssl_context if tls else None,
            server_hostname=origin.host if tls else None,
        )
        if self._is_closed:
            connection.abort()
        if connection.state is not State.IDLE:
            raise ConnectionError("closed, or spoke before it was asked")
        self._connections.add(connection)
        return connection

    async def _socket(self, origin: Origin) -> socket.socket:
        """Connected to the origin, by way of its egress proxy where it has one. Raises OSError."""
        host, port = (origin.via.host, origin.via.port) if origin.via else (origin.host, origin.port)
        addresses = await self._resolver.addresses(host, port)
        try:
            sock = await start_connection(addresses, happy_eyeballs_delay=EYEBALLS_DELAY_S, loop=self._loop)
        except (OSError, RuntimeError):
            self._resolver.forget(host, port)
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if origin.via is not None:
            try:
                await open_tunnel(self._loop, sock, origin.via, origin.host, origin.port)
            except BaseException:  # also when time is up: nobody else knows of it yet
                sock.close()
                raise
        return sock

    def _count_closed(self, origin: Origin) -> None:
        self._open[origin] -= 1
        if not self._open[origin]:
            del self._open[origin]
