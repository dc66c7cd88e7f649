"""Sessions over a WebSocket: message by message, payloads unchanged, from the handshake to the close.

Owns both sockets of a session (aiohttp on either side) and what each may do to the other: a slow reader
holds up the one who writes, pings, pongs and close codes pass, whoever leaves ends it for both. What is
billed is the affair of turns.py; a session without credit, without its key or without its worker is closed
in words of its own dialect.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from logging import getLogger
from typing import Any
from urllib.parse import parse_qs

import orjson
from aiohttp import ClientWebSocketResponse, WSMsgType
from aiohttp.web import WebSocketResponse

from proxy.dialects.answer import look_up
from proxy.errors import (
    BodyNotJson,
    BodyTimeout,
    CredentialsCooling,
    InternalError,
    ModelMissing,
    ProxyError,
    StationFault,
    UpstreamClosed,
)
from proxy.ledger import entry
from proxy.ledger.entry import Attempt
from proxy.relay.dialler import Dialler, Refused
from proxy.relay.exchange import Exchange
from proxy.relay.handshake import CLOSE_S, accept, check_handshake
from proxy.relay.ingress import WRITE_STALL_S
from proxy.relay.plan import ATTEMPTS_MAX
from proxy.relay.turns import Books, Turns
from proxy.routing.selection import Choice
from proxy.telemetry import spawn

log = getLogger("headrace.sessions")

FIRST_FRAME_S = 30.0  # for sessions whose model is named in it
FRAMES_IN_A_ROW = 8  # of one session, before everybody else has a turn

# RFC 6455 7.4.1, and the registry of close codes.
NORMAL, GOING_AWAY, POLICY, FAULT, RESTART = 1000, 1001, 1008, 1011, 1012
_UNSENDABLE = frozenset({1004, 1005, 1006, 1015})
_REASON_BYTES_MAX = 123

_DATA = (WSMsgType.TEXT, WSMsgType.BINARY)
_SIGNS = (WSMsgType.PING, WSMsgType.PONG)

Socket = WebSocketResponse[bool] | ClientWebSocketResponse[bool]
Choose = Callable[[Exchange], Sequence[Choice]]
Report = Callable[[Choice, int, float | None], None]


class Sessions:
    """The sessions of one worker."""

    def __init__(self, books: Books, report: Report, dialler: Dialler) -> None:
        self.books = books
        self.report = report
        self.dialler = dialler
        self._live: set[_Session] = set()
        self._is_draining = False

    async def serve(self, x: Exchange, choose: Choose) -> None:
        """One session, from its handshake to its last frame. Raises what refuses the handshake."""
        check_handshake(x)
        if self._is_draining:
            raise StationFault(retry_after_s=1.0)
        session = _Session(self, x)
        self._live.add(session)
        try:
            await session.run(choose)
        finally:
            self._live.discard(session)
            session.abandon()

    def drain(self) -> None:
        """The worker stops: a session ends with the turn that it is in."""
        self._is_draining = True
        for session in list(self._live):
            session.drain()


class _Session:
    """One client, one upstream, and the turns between them."""

    def __init__(self, sessions: Sessions, x: Exchange) -> None:
        assert x.operation is not None and x.operation.session is not None
        self._sessions = sessions
        self._x = x
        self._rules = x.operation.session
        self._turns = Turns(x, sessions.books, self)
        self._client: WebSocketResponse[bool] | None = None
        self._upstream: ClientWebSocketResponse[bool] | None = None
        self._ended = asyncio.get_running_loop().create_future()
        self._cut_off = asyncio.get_running_loop().create_future()  # whatever either side still does
        self._closing: tuple[int, bytes] | None = None  # why we end it ourselves
        self._is_last_turn = False
        self._frames = 0
        self._client_left_first: bool | None = None

    # -- the life of a session --

    async def run(self, choose: Choose) -> None:
        x, first = self._x, b""
        opcode = WSMsgType.TEXT
        try:
            if self._rules.model_in_first:
                # Its model comes in a frame, so that it cannot be refused in HTTP.
                self._client = await accept(x, self._ended, ())
                first, opcode = await self._first_frame()
                self._turns.uploaded(len(first))
            x.model = self._model(first)
            self._sessions.books.admission.authorize(x)
            choices = choose(x)
            await self._turns.open()
            choice = await self._dial(choices)
            if self._client is None:
                protocol = self._upstream.protocol if self._upstream else None
                self._client = await accept(x, self._ended, (protocol,) if protocol else ())
            elif first:
                await self._begin(first, opcode, choice)
        except ProxyError as e:
            self._turns.interrupt(entry.FAILED, e.code)
            if self._client is None:
                raise
            await self._refuse(e)
            return
        x.status = 101
        await self._relay()

    async def _first_frame(self) -> tuple[bytes, WSMsgType]:
        assert self._client is not None
        try:
            async with asyncio.timeout(FIRST_FRAME_S):
                message = await self._client.receive()
        except TimeoutError as e:
            raise BodyTimeout from e
        return (message.data, message.type) if message.type in _DATA else (b"", WSMsgType.TEXT)

    def _model(self, first: bytes) -> str:
        """Raises ModelMissing, BodyNotJson."""
        x = self._x
        assert x.route is not None
        model: Any = None
        if self._rules.model_in_first:
            try:
                model = look_up(orjson.loads(first), self._rules.model_in_first)
            except ValueError as e:
                raise BodyNotJson from e
            # `models/name`, or a resource of a project; the name is the last of it.
            model = model.rpartition("/")[2] if isinstance(model, str) else None
        else:
            query = parse_qs(x.query)
            model = next((query[name][0] for name in self._rules.model_in_query if name in query), None)
        model = x.captures.get("model") or model or x.route.default_model
        if not model:
            raise ModelMissing(param="model")
        return str(model)

    async def _begin(self, first: bytes, opcode: WSMsgType, choice: Choice) -> None:
        """Say the first frame, in which the model is called as it is there. Raises UpstreamClosed."""
        assert self._upstream is not None
        if choice.model != self._x.model:
            told = str(look_up(orjson.loads(first), self._rules.model_in_first))
            theirs = "".join((*told.rpartition("/")[:2], choice.model))
            first = first.replace(orjson.dumps(told), orjson.dumps(theirs), 1)
        try:
            await _send(self._upstream, first, opcode)
        except ConnectionError as e:
            raise UpstreamClosed from e

    async def _dial(self, choices: Sequence[Choice]) -> Choice:
        """Try the choices in their order. Raises the last failure."""
        x = self._x
        assert x.heads is not None and x.operation is not None
        error: ProxyError = CredentialsCooling(retry_after_s=1.0)
        for choice in choices[:ATTEMPTS_MAX]:
            dialect = x.heads.snapshot.dialects[choice.upstream.operations[x.operation.name].dialect]
            attempt = Attempt(
                choice.upstream.name, choice.mirror.name, choice.credential.name, "ok", started_ms=x.at_ms
            )
            self._turns.answered_by(attempt, dialect)
            try:
                self._upstream = await self._sessions.dialler.dial(x, choice)
            except Refused as e:
                error = e.error
                attempt.outcome, attempt.status = error.detail or error.code, e.status
                if not e.is_ours:
                    raise error from e
                if e.status:
                    self._sessions.report(choice, e.status, None)
            else:
                attempt.status = 101
                return choice
        raise error

    async def _relay(self) -> None:
        up = spawn("session up", self._upload())
        down = spawn("session down", self._download())
        try:
            await asyncio.wait({up, down, self._cut_off}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            if self._closing is None:
                side = (entry.INTERRUPTED_CLIENT, "client_left")
                other = (entry.INTERRUPTED_UPSTREAM, "upstream_closed")
                self._turns.interrupt(*(side if self._client_left_first else other))
        code, reason = self._closing or (NORMAL, b"")
        for socket in (self._client, self._upstream):
            if socket is not None and not socket.closed:
                await _close(socket, code, reason)

    async def _upload(self) -> None:
        """What the client says. Returns when it has left, or was told to."""
        client, upstream = self._client, self._upstream
        assert client is not None and upstream is not None
        while True:
            message = await client.receive()
            if message.type in _DATA:
                self._turns.uploaded(len(message.data))
                await self._turns.is_open.wait()  # nothing is asked for without a hold
                await _send(upstream, message.data, message.type)
                await self._give_way()
            elif not await self._pass(message, upstream, is_client=True):
                return

    async def _download(self) -> None:
        """What the upstream says. Returns when it has left, or was told to."""
        client, upstream = self._client, self._upstream
        assert client is not None and upstream is not None
        while True:
            message = await upstream.receive()
            if message.type in _DATA:
                ended = await self._turns.take(message.data)
                if ended:
                    await self._turns.settle()
                await self._deliver(message)
                if ended and not await self._next_turn():
                    return
                await self._give_way()
            elif not await self._pass(message, client, is_client=False):
                return

    async def _give_way(self) -> None:
        """While frames wait in line, receiving and sending them awaits nothing: all others would wait."""
        self._frames += 1
        if self._frames % FRAMES_IN_A_ROW == 0:
            await asyncio.sleep(0)

    async def _deliver(self, message: Any) -> None:
        assert self._client is not None
        try:
            await _send(self._client, message.data, message.type)
        except ConnectionError:
            if self._client_left_first is None:
                self._client_left_first = True
            raise

    async def _next_turn(self) -> bool:
        """False: there is none, and the client was told why."""
        if self._is_last_turn:
            self._closing = (RESTART, b"service restart")
            return False
        try:
            await self._turns.open()
        except ProxyError as e:
            await self._refuse(e)
            return False
        return True

    async def _pass(self, message: Any, to: Socket, *, is_client: bool) -> bool:
        """A message that is no data. False: it was the last one."""
        if message.type in _SIGNS:
            await _send(to, message.data, message.type)
            return True
        if self._client_left_first is None:
            self._client_left_first = is_client
        if message.type is WSMsgType.CLOSE:
            code = message.data if message.data and message.data not in _UNSENDABLE else NORMAL
            await _close(to, code, (message.extra or "").encode())
        return False

    # -- ends --

    async def _refuse(self, error: ProxyError) -> None:
        """Tell a client whose session has begun, and end it."""
        self._closing = (_code_of(error), error.code.encode())
        if self._client is None or self._client.closed:
            return
        if self._rules.error is not None:
            told = self._rules.error(error.kind, error.code, error.message)
            with contextlib.suppress(ConnectionError):
                await _send(self._client, told, WSMsgType.TEXT, CLOSE_S)
        await _close(self._client, *self._closing)

    def cut(self, why: str, error: ProxyError) -> None:
        """End it by our own decision."""
        if self._closing is None:
            self._turns.interrupt(entry.CUT, why)
            self._closing = (_code_of(error), error.code.encode())
            spawn("session cut", self._end(error))

    async def _end(self, error: ProxyError) -> None:
        try:
            await self._refuse(error)
        finally:
            if not self._cut_off.done():
                self._cut_off.set_result(None)

    def drain(self) -> None:
        self._is_last_turn = True
        if self._turns.is_idle:
            self.cut("shutdown", StationFault(retry_after_s=1.0))

    def abandon(self) -> None:
        """Whatever happened: nothing stays open."""
        self._turns.interrupt(entry.INTERRUPTED_CLIENT, "client_left")
        if not self._ended.done():
            self._ended.set_result(None)
        if self._upstream is not None and not self._upstream.closed:
            spawn("session close", _close(self._upstream, GOING_AWAY, b""))


def _code_of(error: ProxyError) -> int:
    if isinstance(error, InternalError):
        return FAULT
    return RESTART if isinstance(error, StationFault) else POLICY


async def _send(socket: Socket, data: bytes, opcode: WSMsgType, within_s: float = WRITE_STALL_S) -> None:
    """Raises ConnectionError, also where the other side takes nothing for too long."""
    try:
        async with asyncio.timeout(within_s):
            await socket.send_frame(data, opcode)
    except TimeoutError as e:
        raise ConnectionAbortedError("it does not read") from e


async def _close(socket: Socket, code: int, reason: bytes) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await socket.close(code=code, message=reason[:_REASON_BYTES_MAX])
    except (TimeoutError, ConnectionError, RuntimeError) as e:
        log.debug("a socket did not close", extra={"kind": type(e).__name__})
