"""The seam to aiohttp's low-level server: its requests become Exchanges, nothing of it goes further.

Owns the client's connection: timers, caps, fixed error bodies, 100-continue, lingering close. The
relay writes to the transport itself, so the response objects that aiohttp wants do nothing.
Relies on aiohttp internals (`RequestHandler`, its C parser) that tests/relay/test_ingress.py pins.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from logging import getLogger
from time import monotonic, time_ns
from typing import Any

from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_server import Server

from proxy.errors import BodyTimeout, InternalError, MalformedRequest, ProxyError, Source
from proxy.relay.answers import refusal, unparsed_refusal
from proxy.relay.exchange import Exchange
from proxy.relay.ids import IdSource
from proxy.relay.sweep import Sweeper
from proxy.telemetry import Stats

log = getLogger("headrace.ingress")

HTTP_11 = (1, 1)
HEAD_S = 10.0  # accept, or first byte of a head, to its end
BODY_IDLE_S = 30.0
KEEPALIVE_S = 75.0
WRITE_STALL_S = 60.0
LATE_HEAD_S = 1.0  # while draining, for the request of a connection that was accepted before
HEAD_BYTES_MAX = 64 * 1024
FIELD_BYTES_MAX = 16 * 1024  # one header: cookies and long betas are the long ones
QUEUED_MAX = 2  # the request that is about to be served and one pipelined behind it
LINGER_S = 5.0  # after an early answer the client still sends; closing at once would reset it
LINGER_BYTES = 1 << 20

# What a connection is doing; each has its own time limit (seconds), BUSY has none.
HEAD, KEEPALIVE, BODY, LINGER, BUSY = range(5)
LIMIT_S = {HEAD: HEAD_S, KEEPALIVE: KEEPALIVE_S, BODY: BODY_IDLE_S, LINGER: LINGER_S}

Handle = Callable[[Exchange], Awaitable[None]]


def assert_c_parser() -> None:
    """The pure-Python parser is laxer than the C one: refuse to run on it."""
    if HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise RuntimeError("aiohttp's C parser is not loaded (is AIOHTTP_NO_EXTENSIONS set?)")


class RequestBody:
    """aiohttp's payload as the relay's Body; for aiohttp itself it is the current request."""

    __slots__ = ("_connection", "_expects_continue", "_payload")

    def __init__(self, payload: StreamReader, connection: Connection, expects_continue: bool) -> None:
        self._payload = payload
        self._connection = connection
        self._expects_continue = expects_continue

    def _cancel(self, exc: BaseException) -> None:
        """aiohttp's way to tell a reader that the client is gone; ours that its body is late."""
        if self._payload is not EMPTY_PAYLOAD:
            self._payload.set_exception(exc)

    @property
    def is_complete(self) -> bool:
        return self._payload.is_eof()

    def arrived(self) -> bytes | None:
        if not self._payload.is_eof():
            return None
        if (error := self._payload.exception()) is not None:
            raise MalformedRequest from error
        if self._payload is EMPTY_PAYLOAD:
            return b""
        # Not read_nowait(): it makes the parser run once more, for a pause that there was not.
        return b"".join(self._payload._buffer)

    async def more(self) -> bytes:
        if self._expects_continue:
            # RFC 9110 10.1.1: only now, so that a refused upload is never sent.
            self._expects_continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._connection.enter(BODY)
        try:
            return await self._payload.readany()
        except ProxyError:  # BodyTimeout, from the sweep
            raise
        except Exception as e:
            raise MalformedRequest from e
        finally:
            self._connection.enter(BUSY)


class Connection(RequestHandler):
    """One client connection. Implements the relay's `Client`."""

    __slots__ = (
        "_lingers_for", "_wire", "address", "exchange", "first_byte", "front", "phase", "since", "stalled_at",
    )  # fmt: skip

    def __init__(self, front: Ingress, **kwargs: Any) -> None:
        super().__init__(front, loop=front.loop, **kwargs)
        self._max_msg_queue_size = QUEUED_MAX
        self._msg_queue_resume_size = 0
        self.front = front
        self.address = ""
        self.exchange: Exchange | None = None
        self.phase = HEAD
        self.since = monotonic()
        self.first_byte = 0.0
        self.stalled_at = 0.0
        self._wire: asyncio.Transport | None = None  # aiohttp forgets it when it begins to close
        self._lingers_for = LINGER_BYTES

    def enter(self, phase: int) -> None:
        """Start the time limit of a phase."""
        self.phase = phase
        self.since = monotonic()

    # -- the client's side, as the relay sees it --

    @property
    def is_gone(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    @property
    def is_paused(self) -> bool:
        return self.stalled_at != 0.0

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def writelines(self, pieces: Sequence[bytes]) -> None:
        if self.transport is not None:
            self.transport.writelines(pieces)

    def cut(self) -> None:
        if self.transport is None:
            return
        self._forbid_clean_end()
        self.force_close()

    def _forbid_clean_end(self) -> None:
        """A close would look like the end of a close-delimited body: reset instead."""
        if self.exchange is not None and self.exchange.http10 and self._wire is not None:
            sock = self._wire.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _abort(self) -> None:
        """End the connection without waiting for a client that does not read."""
        self._forbid_clean_end()
        self.force_close()
        if self._wire is not None:
            self._wire.abort()

    # -- what the transport tells --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._wire = self.transport
        peer = transport.get_extra_info("peername")
        # A socket of both families shows IPv4 as mapped; allow-lists and trusted proxies do not.
        self.address = peer[0].removeprefix("::ffff:") if isinstance(peer, tuple) else ""
        self.front.sweeper.add(self)
        if len(self.front.connections) > self.front.connections_max:
            self.front.stats.inc("refusals_total", "connections_max")
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.front.sweeper.discard(self)
        self._wire = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.phase == LINGER:
            self._lingers_for -= len(data)
            if self._lingers_for < 0:
                self._abort()
            return
        if self.phase != BUSY:
            now = monotonic()
            if self.first_byte == 0.0:
                self.first_byte = now
                self.phase, self.since = HEAD, now
            elif self.phase == BODY:
                self.since = now
        super().data_received(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_at = monotonic()
        if self.exchange is not None and self.exchange.pump is not None:
            self.exchange.pump.client_paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_at = 0.0
        if self.exchange is not None and self.exchange.pump is not None:
            self.exchange.pump.client_resumed()

    def check(self, now: float) -> None:
        """The sweep: end what takes too long."""
        if self.stalled_at and now - self.stalled_at > WRITE_STALL_S:
            self.front.stats.inc("client_disconnects_total")
            self._abort()
        elif self.phase == BUSY or now - self.since < LIMIT_S[self.phase]:
            if self.phase == BUSY and self._buffer_paused and _has_hung_up(self.transport):
                self.force_close()
        elif self.phase == BODY and self._current_request is not None:
            self._current_request._cancel(BodyTimeout())
        else:
            self._abort()

    # -- requests --

    async def start(self) -> None:
        """Serve the requests of this connection one after the other.

        Replaces aiohttp's loop, which makes a task, a writer and a request object for each of them.
        """
        lingers = False
        while not self._force_close:
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            message, payload = self._messages.popleft()
            if self._parser is not None:
                self._parser.message_consumed()
            if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
                self._resume_reading_if_drained()
            if not isinstance(message, RawRequestMessage):
                # The parser's own words hold the client's bytes, which may hold a key: never echoed.
                self.front.stats.inc("refusals_total", MalformedRequest.code)
                self.write(unparsed_refusal())
                lingers = True
                break
            # RFC 9110 10.1.1: a client of HTTP/1.0 cannot expect anything.
            body = RequestBody(payload, self, "Expect" in message.headers and message.version >= HTTP_11)
            if not await self._serve(message, body) or self._close:
                lingers = not body.is_complete
                break
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self._linger() if lingers else self.transport.close()

    def _linger(self) -> None:
        """Say that this was all, and drop what the client still sends: closing at once would reset the last
        answer away (RFC 9112 9.6). The client ends it, or the sweep."""
        assert self.transport is not None
        self.enter(LINGER)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._resume_transport_reading()

    async def _serve(self, message: RawRequestMessage, body: RequestBody) -> bool:
        """One request. Returns whether the connection serves another one."""
        self._request_in_progress = True
        self._current_request = body  # type: ignore[assignment]
        self.enter(BUSY)
        try:
            keep_alive = await self.front.serve(self, message, body)
        except asyncio.CancelledError:
            self.force_close()
            raise
        finally:
            self._current_request = None
            self._request_in_progress = False
            self.exchange = None
            self.first_byte = 0.0
            self.enter(KEEPALIVE)
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        return keep_alive

    def log_exception(self, *args: Any, **kw: Any) -> None:
        log.error("client connection failed", extra={"error": type(kw.get("exc_info")).__name__})

    def log_debug(self, *args: Any, **kw: Any) -> None:
        """aiohttp's debug lines may hold header bytes."""

    def _process_keepalive(self) -> None:
        self._keepalive_handle = None  # the sweep does this for all connections


def _has_hung_up(transport: asyncio.Transport | None) -> bool:
    """A client whose reading is paused (it pipelines) is noticed only by asking the kernel."""
    if transport is None or (sock := transport.get_extra_info("socket")) is None:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


class Ingress(Server):
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
        assert_c_parser()
        super().__init__(self._never, handler_cancellation=True, loop=loop)
        self.loop = loop
        self.sweeper = sweeper
        self.stats = stats
        self.connections_max = connections_max
        self._handle = handle
        self._ids = IdSource()

    def __call__(self) -> Connection:
        return Connection(
            self,
            access_log=None,
            keepalive_timeout=86400.0,  # the sweep closes idle connections
            lingering_time=0.0,  # ours has a cap on bytes too
            auto_decompress=False,
            max_line_size=HEAD_BYTES_MAX // 4,
            max_field_size=FIELD_BYTES_MAX,
            max_headers=100,
        )

    def close_idle(self) -> bool:
        """While draining: close the connections that wait for a request; whether any are left.

        One that was made just now, or has begun to send, is given a moment: closing it would reset it.
        """
        began = monotonic() - LATE_HEAD_S
        for connection in self.connections:
            assert isinstance(connection, Connection)
            if connection.phase == KEEPALIVE or (connection.phase == HEAD and connection.since < began):
                connection.force_close()
        return bool(self.connections)

    async def _never(self, request: object) -> Any:
        raise AssertionError("Connection.start serves requests itself")

    async def serve(self, connection: Connection, message: RawRequestMessage, body: RequestBody) -> bool:
        """One request from its head to the end of its answer. Returns whether to keep the connection."""
        x = Exchange(
            id=self._ids.next(at_ms := time_ns() // 1_000_000),
            client=connection,
            method=message.method,
            raw_target=message.path,
            headers=message.headers,
            raw_headers=message.raw_headers,
            body=body,
            address=connection.address,
            version=message.version,
            http10=message.version < HTTP_11,
            arrived=connection.first_byte or monotonic(),
            at_ms=at_ms,
            # After an Upgrade that we do not take, aiohttp's parser drops or misreads what follows.
            keep_alive=not (message.should_close or message.upgrade),
        )
        connection.exchange = x
        try:
            await self._handle(x)
        except ProxyError as e:
            self._refuse(x, e)
        except Exception as e:
            log.exception("call failed", extra={"call": x.id, "kind": type(e).__name__})
            self._refuse(x, InternalError())
        return x.keep_alive and not x.http10 and body.is_complete

    def _refuse(self, x: Exchange, error: ProxyError) -> None:
        if error.source is not Source.CLIENT:
            log.info("refused", extra={"call": x.id, "code": error.code, "detail": error.detail})
        if x.has_begun_answer:
            x.client.cut()
            return
        # What is no proper request may hide another one: nothing behind it is believed.
        is_sound = not isinstance(error, MalformedRequest)
        x.keep_alive = x.keep_alive and not x.http10 and x.body.is_complete and is_sound
        x.status = error.status
        x.outcome = x.outcome or error.code
        self.stats.inc("refusals_total", error.code)
        x.client.write(refusal(x, error))
