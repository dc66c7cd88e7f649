"""Messages between a worker and control over a unix socket; both ends.

Owns framing (4 bytes of length, then JSON), requests and replies, and reconnecting. Knows the meaning
of no message but `hello`: handlers are given in. The unix listener belongs to the supervisor, so a
worker can connect while control is being replaced; it counts as connected only once control has
answered its hello.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, cast

import orjson

from proxy import telemetry
from proxy.errors import ProxyError

MESSAGE_BYTES_MAX = 256 << 10  # also the longest stall one message can cause
HELLO_BYTES_MAX = 32 << 20  # once per connection: what a worker holds of 200,000 accounts and limits
BACKLOG_BYTES_MAX = 64 << 20  # unsent to one peer: it is stuck, and a fresh connection says hello again
HELLO = 0  # the id of the first message
RETRY_FIRST_S, RETRY_LAST_S = 0.02, 0.5

Args = dict[str, Any]
Late = Callable[[Args], None]
log = logging.getLogger("headrace.channel")


class ChannelError(Exception):
    """A call was not answered. Whether the other side acted on it is unknown."""


class ChannelDown(ChannelError):
    """There is no other side at the moment."""


class ChannelTimeout(ChannelError):
    """No answer in time."""


class CallFailed(ChannelError):
    """The other side could not serve the call; its log says why."""


class _Link(asyncio.Protocol):
    """One connection: frames in, frames out."""

    def __init__(self, on_message: Callable[[_Link, Args], None], on_lost: Callable[[_Link], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._buffer = bytearray()
        self._bytes_max = HELLO_BYTES_MAX  # of the first message
        self._transport: asyncio.WriteTransport | None = None
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 4:
            end = 4 + int.from_bytes(self._buffer[:4], "big")
            if end > self._bytes_max + 4:
                log.error("message too long", extra={"bytes": end})
                self.abort()
                return
            if len(self._buffer) < end:
                return
            message = orjson.loads(memoryview(self._buffer)[4:end])
            del self._buffer[:end]
            self._bytes_max = MESSAGE_BYTES_MAX
            self._on_message(self, message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)
        self._on_lost(self)

    def send(self, message: Args) -> None:
        """Silently nothing on a connection that is gone: its owner learns that by `on_lost`.

        Raises ValueError when the message is too long.
        """
        data = orjson.dumps(message)
        if len(data) > (HELLO_BYTES_MAX if message.get("op") == "hello" else MESSAGE_BYTES_MAX):
            raise ValueError(f"message {message.get('op')!r} of {len(data)} bytes")
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > BACKLOG_BYTES_MAX:
            log.error("peer does not read; dropping it")
            self.abort()
            return
        self._transport.write(len(data).to_bytes(4, "big") + data)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


# -- worker's end --------------------------------------------------------------------------------


class Channel:
    """A worker's connection to control, made again whenever it is lost.

    `hello()` gives the arguments of the first message of each connection; `welcome(reply)` is called
    with control's answer to it. `handlers` are plain functions by op, called in the order of arrival.
    """

    def __init__(
        self,
        path: str,
        hello: Callable[[], Args],
        handlers: Mapping[str, Callable[[Args], None]],
        welcome: Callable[[Args], None] = lambda reply: None,
    ) -> None:
        self._path = path
        self._hello = hello
        self._handlers = handlers
        self._welcome = welcome
        self._link: _Link | None = None
        self._waiting: dict[int, asyncio.Future[Args]] = {}
        self._ids = itertools.count(1)
        self._up = asyncio.Event()
        self._was_welcome = False  # on the present connection
        self.ever_connected = False

    @property
    def connected(self) -> bool:
        """Control has answered the hello of the present connection."""
        return self._up.is_set()

    def start(self) -> None:
        telemetry.spawn("channel", self._keep_connected())

    async def wait_connected(self) -> None:
        await self._up.wait()

    async def call(self, op: str, args: Args, timeout_s: float, late: Late | None = None) -> Args:
        """Ask control; waits for a connection within the same time.

        Raises ChannelDown, ChannelTimeout, CallFailed. A lost answer is not asked for again: whether
        control acted on it shows at the next hello. An answer that comes after the time is over goes to
        `late`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
                assert self._link is not None
                return await self._ask(self._link, op, args, late)
        except TimeoutError as e:
            if self.connected:
                raise ChannelTimeout(f"{op}: no answer within {timeout_s} s") from e
            raise ChannelDown(f"{op}: control is not there") from e

    async def call_again(self, op: str, args: Args, timeout_s: float, late: Late | None = None) -> Args:
        """`call`, once more where control went away before it answered: for what is harmless twice.

        A look-up is; so is a slice, because the next hello tells a new control what this worker holds.
        """
        try:
            return await self.call(op, args, timeout_s, late)
        except ChannelDown:
            return await self.call(op, args, timeout_s, late)

    def notify(self, op: str, args: Args) -> bool:
        """Tell control; False when it is not there (nothing is kept for later)."""
        if self._link is None or not self.connected:
            return False
        self._link.send({"op": op, "args": args})
        return True

    async def _ask(self, link: _Link, op: str, args: Args, late: Late | None) -> Args:
        number = next(self._ids)
        link.send({"op": op, "id": number, "args": args})
        future: asyncio.Future[Args] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self._waiting.pop(number, None))
        self._waiting[number] = future
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if late is None:
                future.cancel()
            else:
                future.add_done_callback(partial(_hand_over, late))
            raise

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        delay_s = RETRY_FIRST_S
        while True:
            self._was_welcome = False
            try:
                _, link = await loop.create_unix_connection(
                    lambda: _Link(self._message, self._lost), self._path
                )
                # While control is being replaced the connection waits in the listener's backlog.
                link.send({"op": "hello", "id": HELLO, "args": self._hello()})
                await link.closed
            except OSError as e:
                log.debug("control's socket: %s", e)
            if self._was_welcome:
                delay_s = RETRY_FIRST_S
                continue
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_LAST_S)

    def _welcomed(self, link: _Link, reply: Args) -> None:
        """At once, not a loop tick later: what follows the reply may want to be answered."""
        self._link = link
        self._was_welcome = self.ever_connected = True
        self._up.set()
        self._welcome(reply)

    def _message(self, link: _Link, message: Args) -> None:
        if message.get("re") == HELLO:
            if "error" in message:
                link.abort()
            else:
                self._welcomed(link, message["args"])
            return
        if "re" in message:
            _resolve(self._waiting, message)
            return
        handler = self._handlers.get(message["op"])
        if handler is None:
            log.warning("unknown message", extra={"op": message["op"]})
            return
        try:
            handler(message.get("args") or {})
        except Exception:
            log.exception("message handler failed", extra={"op": message["op"]})

    def _lost(self, link: _Link) -> None:
        self._link = None
        self._up.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ChannelDown("control went away"))


def _hand_over(late: Late, future: asyncio.Future[Args]) -> None:
    """An answer for whom nobody waits any more."""
    if not future.cancelled() and future.exception() is None:
        late(future.result())


def _resolve(waiting: dict[int, asyncio.Future[Args]], message: Args) -> None:
    future = waiting.get(message["re"])
    if future is None or future.done():
        return  # its caller gave up
    if "error" in message:
        future.set_exception(CallFailed(message["error"]))
    else:
        future.set_result(message.get("args") or {})


# -- control's end -------------------------------------------------------------------------------


class Peer:
    """One worker as control sees it; lives as long as the connection."""

    def __init__(self, link: _Link, slot: int, incarnation: str, pid: int) -> None:
        self._link = link
        self.slot = slot
        self.incarnation = incarnation
        self.pid = pid

    def send(self, op: str, args: Args) -> None:
        self._link.send({"op": op, "args": args})

    def abort(self) -> None:
        self._link.abort()


Handler = Callable[[Peer, Args], Awaitable[Args] | Args | None]


class ChannelServer:
    """Control's end: accepts workers on the supervisor's listener.

    `on_hello(peer, args)` answers a worker's first message; `on_lost(peer)` is called once when its
    connection ends. A handler returns the reply, an awaitable of it, or None for a notification.
    """

    def __init__(
        self,
        on_hello: Callable[[Peer, Args], Args],
        on_lost: Callable[[Peer], None],
        handlers: Mapping[str, Handler],
    ) -> None:
        self._on_hello = on_hello
        self._on_gone = on_lost
        self._handlers = handlers
        self._peers: dict[_Link, Peer] = {}
        self._server: asyncio.AbstractServer | None = None

    async def start(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        # A copy: closing the server must not shut the supervisor's listener. Not create_unix_server():
        # from Python 3.13 on its server removes the socket's file when it closes.
        self._server = await loop.create_server(lambda: _Link(self._message, self._lost), sock=listener.dup())

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._peers):
            link.abort()

    @property
    def peers(self) -> list[Peer]:
        return list(self._peers.values())

    def broadcast(self, op: str, args: Args) -> None:
        for peer in self.peers:
            peer.send(op, args)

    def _message(self, link: _Link, message: Args) -> None:
        op, args = message["op"], message.get("args") or {}
        peer = self._peers.get(link)
        try:
            if op == "hello":
                peer = Peer(link, args["slot"], args["incarnation"], args["pid"])
                self._peers[link] = peer
                result: Any = self._on_hello(peer, args)
            elif peer is None:
                raise KeyError("no hello")
            else:
                result = self._handlers[op](peer, args)
        except Exception as e:  # noqa: BLE001 (_failed logs it)
            _failed(link, message, e)
            return
        if isinstance(result, Awaitable):
            telemetry.spawn(f"channel:{op}", self._answer(link, message, result))
        elif "id" in message:
            link.send({"re": message["id"], "args": result or {}})

    async def _answer(self, link: _Link, message: Args, result: Awaitable[Args]) -> None:
        try:
            reply = await result
        except Exception as e:  # noqa: BLE001 (_failed logs it)
            _failed(link, message, e)
            return
        if "id" in message:
            link.send({"re": message["id"], "args": reply})

    def _lost(self, link: _Link) -> None:
        peer = self._peers.pop(link, None)
        if peer is not None:
            self._on_gone(peer)


def _failed(link: _Link, message: Args, error: Exception) -> None:
    """Tell the caller that it failed, and the log why; Postgres away is no bug."""
    if isinstance(error, ProxyError):
        log.warning("%s: %s", message["op"], error.detail or error.message)
    else:
        log.error("message handler failed", extra={"op": message["op"]}, exc_info=error)
    if "id" in message:
        link.send({"re": message["id"], "error": f"{message['op']} failed"})
