"""The vendor's part: one recorded answer at a time, on 127.0.0.1, cut at random places.

Bytes are written to the socket as they are given: no HTTP library frames them. Sessions over a WebSocket
have a server of their own. Owns no judgement of what is asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from aiohttp import ClientError, WSMsgType, web

from proxy.conform.recordings import Frame, Recording

CUTS = 12  # of an answer
HEAD_BYTES_MAX = 1 << 20
NOTHING_TO_SAY = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"


@dataclass(slots=True)
class Asked:
    """A request as the vendor got it; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""

    def accepts(self, coding: str) -> bool:
        codings = self.headers.get("accept-encoding", "").split(",")
        return coding in (name.partition(";")[0].strip().lower() for name in codings)


class Answer:
    """What is said to the next request of `method`. Its content is `plain`, or `coded` where that coding
    is accepted."""

    def __init__(self, method: str, status: int, headers: list[tuple[str, str]], plain: bytes) -> None:
        self.method = method
        self.status = status
        self.headers = headers
        self.plain = plain
        self.coding, self.coded = "", b""
        self.is_chunked = False
        self.asked: Asked | None = None
        self.sent = b""  # the content as it went over the wire

    async def prepare(self, asked: Asked) -> None:
        """Before it is said: note who asked."""
        self.asked = asked

    def recorded(self, recording: Recording) -> Recording:
        """What this was the answer of."""
        return recording

    def differences(self) -> Iterable[str]:
        """What is wrong with it in itself."""
        return ()

    def wire(self, asked: Asked, cuts: random.Random) -> bytes:
        """The whole answer."""
        headers = list(self.headers)
        self.sent = self.plain
        if self.coding and asked.accepts(self.coding):
            self.sent = self.coded
            headers.append(("content-encoding", self.coding))
        content = self.sent
        if self.is_chunked:
            headers.append(("transfer-encoding", "chunked"))
            pieces = cut(content, cuts)
            content = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        else:
            headers.append(("content-length", str(len(content))))
        lines = [f"HTTP/1.1 {self.status} Recorded", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + content


def cut(data: bytes, cuts: random.Random) -> list[bytes]:
    """The data in pieces, none of them empty."""
    edges = {0, len(data), *(cuts.randrange(len(data) + 1) for _ in range(CUTS))}
    return [data[start:end] for start, end in pairwise(sorted(edges))]


class Player:
    """An HTTP server that knows one answer. Used as an async context manager."""

    def __init__(self, seed: int) -> None:
        self._cuts = random.Random(seed)  # noqa: S311 - where an answer is cut is no secret
        self._answer: Answer | None = None
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Player:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=HEAD_BYTES_MAX)
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._server
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    @property
    def url(self) -> str:
        assert self._server
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def say(self, answer: Answer) -> None:
        """To the next request that fits; others hear that there is nothing."""
        self._answer = answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._handlers.add(task)
        try:
            while True:
                asked = await read_request(reader)
                await self._speak(writer, await self._wire(asked))
        except (EOFError, OSError, ClientError, asyncio.LimitOverrunError):
            pass  # the relay left, or what is behind us did
        finally:
            self._handlers.discard(task)
            writer.close()

    async def _wire(self, asked: Asked) -> bytes:
        answer = self._answer
        if answer is None or answer.method != asked.method:
            return NOTHING_TO_SAY
        self._answer = None
        await answer.prepare(asked)
        return answer.wire(asked, self._cuts)

    async def _speak(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        for piece in cut(data, self._cuts):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # the next piece is a write of its own


async def read_request(reader: asyncio.StreamReader) -> Asked:
    """Raises EOFError where the connection ends."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    method, target, _ = first.split(" ", 2)
    fields = (line.partition(":") for line in lines)
    asked = Asked(method, target, {name.lower(): value.strip() for name, _, value in fields})
    if "chunked" in asked.headers.get("transfer-encoding", ""):
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            asked.body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        asked.body = await reader.readexactly(int(asked.headers.get("content-length", 0)))
    return asked


@dataclass(slots=True)
class Session:
    """One session as the vendor saw it; `ended` when the relay has left."""

    target: str = ""
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class SocketPlayer:
    """A WebSocket server that plays the server's frames of one script. An async context manager."""

    def __init__(self) -> None:
        self._frames: tuple[Frame, ...] = ()
        self.session = Session()

    async def __aenter__(self) -> SocketPlayer:
        self._runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def play(self, frames: tuple[Frame, ...]) -> Session:
        """To the next session."""
        self._frames, self.session = frames, Session()
        return self.session

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        session = self.session
        session.target = request.path_qs
        socket: web.WebSocketResponse[bool] = web.WebSocketResponse(
            protocols=("realtime",), autoping=False, decode_text=False, max_msg_size=0
        )
        await socket.prepare(request)
        try:
            for frame in self._frames:
                if frame["dir"] == "server":
                    await socket.send_frame(frame["data"].encode(), WSMsgType[frame["kind"].upper()])
                elif not await self._hear(socket, session):
                    return socket
            await self._hear(socket, session)  # the end
        finally:
            session.ended.set()
        return socket

    async def _hear(self, socket: web.WebSocketResponse[bool], session: Session) -> bool:
        message = await socket.receive()
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return False
        session.heard.append((message.type.name.lower(), message.data))
        return True
