"""A vendor's side of sessions over a WebSocket, in a thread of its own: plays what a test gives it.

A script is a list of frames as the recordings have them: `{"dir": "server"|"client", "kind": "text"|"binary"
|"close", "data": str}`. A server's frame is sent, a client's is awaited and kept. A server's frame of kind
"wait" says and reads nothing until the test lets the session go on.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

Frame = dict[str, Any]

WAIT_S = 60.0  # for a test that has failed


@dataclass
class Played:
    """One session as the vendor saw it."""

    path: str
    headers: dict[str, str]
    received: list[tuple[WSMsgType, bytes | int]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    sent: int = 0  # frames
    go_on: threading.Event = field(default_factory=threading.Event)


class SocketServer:
    """Listens on 127.0.0.1. Used as a context manager."""

    def __init__(self) -> None:
        self.sessions: list[Played] = []
        self.refuses_with: int | None = None
        self._scripts: dict[str, list[Frame]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def script(self, model: str, frames: list[Frame]) -> None:
        """What is played to a session whose path or first frame names `model`."""
        self._scripts[model] = frames

    def __enter__(self) -> SocketServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def _start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.refuses_with is not None:
            return web.Response(status=self.refuses_with, text="{}")
        socket = web.WebSocketResponse(
            protocols=("realtime",), autoping=False, decode_text=False, max_msg_size=0
        )
        await socket.prepare(request)
        played = Played(request.path_qs, {k.lower(): v for k, v in request.headers.items()})
        self.sessions.append(played)
        try:
            await self._play(socket, played)
        finally:
            played.ended.set()
        return socket

    async def _play(self, socket: web.WebSocketResponse[bool], played: Played) -> None:
        frames = next((f for model, f in self._scripts.items() if model in played.path), None)
        if frames is None:
            message = await socket.receive()
            played.received.append((message.type, message.data))
            frames = next(f for model, f in self._scripts.items() if model.encode() in message.data)[1:]
        for frame in frames:
            if frame["dir"] == "client":
                message = await socket.receive()
                played.received.append((message.type, message.data))
                if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING):
                    return
            elif frame["kind"] == "wait":
                await asyncio.to_thread(played.go_on.wait, WAIT_S)
            elif frame["kind"] == "close":
                await socket.close(code=int(frame["data"]))
            else:
                data = frame["data"].encode()
                await socket.send_frame(data, WSMsgType[frame["kind"].upper()])
                played.sent += 1
        message = await socket.receive()
        played.received.append((message.type, message.data))
