"""The client's side: bytes of a connection become Exchanges, one after the other.

Owns the client's connection: which request is being served, timers, caps, fixed error bodies, lingering
close. A protocol of our own: request_head.py reads heads, request_body.py bodies; the relay writes to the
transport itself.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from logging import getLogger
from time import monotonic, time_ns
from typing import cast

from proxy.errors import BodyTimeout, InternalError, MalformedRequest, ProxyError, Source
from proxy.relay.answers import refusal, unparsed_refusal
from proxy.relay.exchange import Exchange
from proxy.relay.ids import IdSource
from proxy.relay.request_body import ArrivedBody, ArrivingBody, body_of
from proxy.relay.request_head import HEAD_BYTES_MAX, HEAD_END, HeadReader, RequestHead
from proxy.relay.sweep import Sweeper
from proxy.telemetry import Stats

log = getLogger("headrace.ingress")

HEAD_S = 10.0  # accept, or first byte of a head, to its end
BODY_IDLE_S = 30.0
KEEPALIVE_S = 75.0
WRITE_STALL_S = 60.0
LATE_HEAD_S = 1.0  # while draining, for the request of a connection that was accepted before
# Received behind the request that is being served: a head that may still be incomplete, and what follows it.
PIPELINED_BYTES_MAX = HEAD_BYTES_MAX
LINGER_S = 5.0  # after an early answer the client still sends; closing at once would reset it
LINGER_BYTES = 1 << 20

# What a connection is doing; each has its own time limit (seconds), BUSY has none.
HEAD, KEEPALIVE, BODY, LINGER, BUSY = range(5)
EMPTY_LINE = (b"\r", b"\n")  # or the rest of one
LIMIT_S = {HEAD: HEAD_S, KEEPALIVE: KEEPALIVE_S, BODY: BODY_IDLE_S, LINGER: LINGER_S}

Handle = Callable[[Exchange], Awaitable[None]]
# What `Exchange(...)` does, without the interpreter loop of its own that a class is called with.
_blank: Callable[[type[Exchange]], Exchange] = object.__new__
_fill = Exchange.__init__


def _drop(data: bytes | Sequence[bytes]) -> None:
    """To a client that has left."""


class Connection(asyncio.Protocol):
    """One client connection. Implements the relay's `Client` and a body's `Source`."""

    __slots__ = (
        "_arrival", "_body", "_head", "_is_reading", "_lingers_for", "_received", "_task", "_transport",
        "address", "exchange", "first_byte", "front", "is_paused", "phase", "since", "stalled_at",
        "write", "writelines",
    )  # fmt: skip

    def __init__(self, front: Ingress) -> None:
        self.front = front
        self.address = ""
        self.exchange: Exchange | None = None
        self.phase = HEAD
        self.since = monotonic()
        self.first_byte = 0.0  # of a head that is not complete yet
        self.is_paused, self.stalled_at = False, 0.0
        self._transport: asyncio.Transport | None = None
        # The transport's own, while there is one: a stream calls it for each chunk.
        self.write: Callable[[bytes], None] = _drop
        self.writelines: Callable[[Sequence[bytes]], None] = _drop
        # Received and not understood yet: an incomplete head; while a request is served, what was pipelined.
        self._received = b""
        self._head: RequestHead | None = None  # of the last request
        self._body: ArrivedBody | ArrivingBody | None = None  # of the request that is being served
        self._task: asyncio.Task[None] | None = None  # from the first request on
        self._arrival: asyncio.Future[None] | None = None  # of the next request: the task waits for it
        self._is_reading = True
        self._lingers_for = LINGER_BYTES

    def enter(self, phase: int) -> None:
        """Start the time limit of a phase."""
        self.phase = phase
        self.since = monotonic()

    # -- the client's side, as the relay sees it --

    @property
    def is_gone(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        transport = self._transport
        self._lose_transport()
        if transport is None or self.exchange is None:
            raise ConnectionResetError  # the client has left meanwhile
        if not self._is_reading:
            transport.resume_reading()
        self.front.sweeper.discard(self)
        self.front.forget(self)
        received = self.exchange.head.as_bytes() + self._received
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(received)

    def cut(self) -> None:
        self._forbid_clean_end()
        self.close()

    def close(self) -> None:
        """End the connection once what was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def _forbid_clean_end(self) -> None:
        """A close would look like the end of a close-delimited body: reset instead."""
        if self.exchange is not None and self.exchange.head.is_http10 and self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def abort(self) -> None:
        """End the connection without waiting for a client that does not read."""
        self._forbid_clean_end()
        if self._transport is not None:
            self._transport.abort()

    # -- the body's side --

    def begin_body(self) -> None:
        self.enter(BODY)

    def end_body(self) -> None:
        self.enter(BUSY)

    def steer_reading(self) -> None:
        """Read while there is room for what comes."""
        is_full = len(self._received) > PIPELINED_BYTES_MAX and self._body is not None
        reads = not is_full and (self._body is None or not self._body.is_ahead)
        if reads is self._is_reading or self._transport is None or self._transport.is_closing():
            return
        self._is_reading = reads
        if reads:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    # -- what the transport tells --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by duck typing only
        self.write, self.writelines = self._transport.write, self._transport.writelines
        sock = transport.get_extra_info("socket")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = transport.get_extra_info("peername")
        # A socket of both families shows IPv4 as mapped; allow-lists and trusted proxies do not.
        self.address = peer[0].removeprefix("::ffff:") if isinstance(peer, tuple) else ""
        self.front.sweeper.add(self)
        self.front.connections.add(self)
        if len(self.front.connections) > self.front.connections_max:
            self.front.stats.inc("refusals_total", "connections_max")
            self.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.front.sweeper.discard(self)
        self.front.forget(self)
        self._lose_transport()
        if self._task is not None:
            self._task.cancel()

    def _lose_transport(self) -> None:
        self._transport = None
        self.write = self.writelines = _drop

    def data_received(self, data: bytes) -> None:
        if self._body is not None or self.phase == LINGER:
            self._receive_more(data)
            return
        front, head, arrived = self.front, self._head, self.first_byte or monotonic()
        body: ArrivedBody | ArrivingBody
        # Most often the last head again, but for the length, and with all of its body.
        block, _, content = data.partition(HEAD_END)
        if head is not None and not self._received and block == head.form % len(content):
            self._body = body = ArrivedBody(content)
        elif (found := self._find(data, arrived)) is not None:
            head, body = found
        else:
            return
        at_ms = time_ns() // 1_000_000
        self.exchange = x = _blank(Exchange)
        _fill(x, front.ids.next(at_ms), self, head, body, arrived, at_ms)
        self.first_byte, self.phase = 0.0, BUSY
        if (arrival := self._arrival) is not None:
            arrival.set_result(None)
        else:
            # The connection keeps its task, and ends with it: telemetry has nothing to keep or to log.
            self._task = front.loop.create_task(self._serve())

    def _find(self, data: bytes, arrived: float) -> tuple[RequestHead, ArrivedBody | ArrivingBody] | None:
        """The head and the body of a request, as far as it was received; None: no head, or not all of it."""
        scanned = len(self._received)
        if scanned:
            data, self._received = self._received + data, b""
        elif data.startswith(EMPTY_LINE):
            data = data.lstrip(b"\r\n")  # RFC 9112 2.2: an empty line in front of a request is no harm
        try:
            found = self.front.heads.find(data, scanned)
        except MalformedRequest:
            self._refuse_unparsed()
            return None
        if found is None:
            self.phase, self.since, self.first_byte = HEAD, arrived, arrived
            self._received = data
            return None
        head = self._head = found[0]
        self._body, self._received = body_of(self, found, data)
        self.steer_reading()
        return head, self._body

    def _receive_more(self, data: bytes) -> None:
        """While a request is served, or after the last one."""
        if self._body is None:
            self._lingers_for -= len(data)
            if self._lingers_for < 0:
                self.abort()
            return
        if self.phase == BODY:
            self.since = monotonic()
        self._received += self._body.feed(data)
        self.steer_reading()

    def pause_writing(self) -> None:
        self.is_paused, self.stalled_at = True, monotonic()
        if self.exchange is not None and self.exchange.pump is not None:
            self.exchange.pump.client_paused()

    def resume_writing(self) -> None:
        self.is_paused = False
        if self.exchange is not None and self.exchange.pump is not None:
            self.exchange.pump.client_resumed()

    def check(self, now: float) -> None:
        """The sweep: end what takes too long."""
        if self.is_paused and now - self.stalled_at > WRITE_STALL_S:
            self.front.stats.inc("client_disconnects_total")
            self.abort()
        elif self.phase == BUSY:
            if not self._is_reading and _has_hung_up(self._transport):
                self.abort()
        elif now - self.since < LIMIT_S[self.phase]:
            return
        elif self.phase == BODY and self._body is not None:
            self._body.fail(BodyTimeout())
        else:
            self.abort()

    # -- requests --

    def _refuse_unparsed(self) -> None:
        self.front.stats.inc("refusals_total", MalformedRequest.code)
        self.write(unparsed_refusal())
        self._linger()

    async def _serve(self) -> None:
        """The requests of this connection, one after the other, each to the end of its answer."""
        front = self.front
        handle, create_future = front.handle, front.loop.create_future
        while True:
            x = self.exchange
            assert x is not None
            try:
                await handle(x)
            except ProxyError as e:
                front.refuse(x, e)
            except Exception as e:
                log.exception("call failed", extra={"call": x.id, "kind": type(e).__name__})
                front.refuse(x, InternalError())
            except asyncio.CancelledError:
                self.close()
                raise
            body, transport = x.body, self._transport
            is_whole = body.content is not None or body.is_complete
            self.exchange = self._body = None
            if transport is None or transport.is_closing():
                return
            if not (is_whole and x.keep_alive):
                self.close() if is_whole else self._linger()
                return
            del x, body  # a connection that waits holds no request
            self.phase, self.since = KEEPALIVE, monotonic()
            arrival = self._arrival = create_future()
            if self._received or not self._is_reading:
                data, self._received = self._received, b""
                if data:
                    self.data_received(data)
                if not self._is_reading:
                    self.steer_reading()
                if arrival.done():
                    # What was pipelined waits as well, until the others have had their turn.
                    await asyncio.sleep(0)
                    continue
            await arrival

    def _linger(self) -> None:
        """Say that this was all, and drop what the client still sends: closing at once would reset the last
        answer away (RFC 9112 9.6). The client ends it, or the sweep."""
        if self._transport is None:
            return
        self._received = b""
        self.enter(LINGER)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.steer_reading()


def _has_hung_up(transport: asyncio.Transport | None) -> bool:
    """A client that is not read from (it pipelines) is noticed only by asking the kernel."""
    if transport is None or (sock := transport.get_extra_info("socket")) is None:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


class Ingress:
    """Accepts connections for one worker and hands Exchanges to `handle`."""

    def __init__(
        self,
        handle: Handle,
        *,
        loop: asyncio.AbstractEventLoop,
        sweeper: Sweeper,
        stats: Stats,
        connections_max: int,
    ) -> None:
        self.handle = handle
        self.loop = loop
        self.sweeper = sweeper
        self.stats = stats
        self.connections_max = connections_max
        self.connections: set[Connection] = set()
        self.heads = HeadReader(loop)
        self.ids = IdSource()
        self._emptied: asyncio.Future[None] | None = None

    def __call__(self) -> Connection:
        return Connection(self)

    def close_idle(self) -> bool:
        """While draining: close the connections that wait for a request; whether any are left.

        One that was made just now, or has begun to send, is given a moment: closing it would reset it.
        """
        began = monotonic() - LATE_HEAD_S
        for connection in list(self.connections):
            if connection.phase == KEEPALIVE or (connection.phase == HEAD and connection.since < began):
                connection.close()
        return bool(self.connections)

    async def shutdown(self, grace_s: float) -> None:
        """End all connections: what was written is sent, within the grace."""
        for connection in list(self.connections):
            connection.close()
        if self.connections:
            self._emptied = self.loop.create_future()
            await asyncio.wait({self._emptied}, timeout=grace_s)
        for connection in list(self.connections):
            connection.abort()

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        self.connections.discard(connection)
        if self._emptied is not None and not self.connections and not self._emptied.done():
            self._emptied.set_result(None)

    def refuse(self, x: Exchange, error: ProxyError) -> None:
        """Answer a call that ended with an error of ours."""
        if error.source is not Source.CLIENT:
            log.info("refused", extra={"call": x.id, "code": error.code, "detail": error.detail})
        if x.has_begun_answer:
            x.client.cut()
            return
        # What is no proper request may hide another one: nothing behind it is believed.
        is_sound = not isinstance(error, MalformedRequest)
        x.keep_alive = x.keep_alive and x.body.is_complete and is_sound
        x.status = error.status
        x.outcome = x.outcome or error.code
        self.stats.inc("refusals_total", error.code)
        if x.heartbeat is not None and x.heartbeat.is_committed:
            x.heartbeat.refuse(error)
        else:
            x.client.write(refusal(x, error))
