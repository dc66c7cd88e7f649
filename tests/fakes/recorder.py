"""The simplest user of an upstream connection: asks once and writes down what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from proxy.errors import ProxyError
from proxy.http1.head import Head
from proxy.relay.pool import Pool
from proxy.relay.upstream import UpstreamConnection
from proxy.routing.table import Mirror
from tests.waiting import DEADLINE_S


class Recorder:
    """A Sink. `ended` resolves with the whole content, or fails with what was told to `on_lost`."""

    def __init__(self, on_content: Callable[[Recorder], None] | None = None) -> None:
        self._on_content = on_content
        self.heads: list[Head] = []
        self.content = bytearray()
        self.reads = 0
        self.pieces_max = 0  # of one read
        self.upload: list[str] = []
        self.ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_head(self, head: Head, whole: Sequence[bytes] | None) -> None:
        assert not self.ended.done()
        self.heads.append(head)
        if whole is not None:
            self.on_content(whole, True)

    def on_content(self, pieces: Sequence[bytes], done: bool) -> None:
        assert self.heads
        assert not self.ended.done(), "an answer ends once"
        for piece in pieces:
            self.content += piece
        self.reads += 1
        self.pieces_max = max(self.pieces_max, len(pieces))
        if done:
            self.ended.set_result(bytes(self.content))
        if self._on_content is not None:
            self._on_content(self)

    def on_lost(self, error: ProxyError) -> None:
        self.ended.set_exception(error)

    def upload_pause(self) -> None:
        self.upload.append("pause")

    def upload_resume(self) -> None:
        self.upload.append("resume")

    async def end(self) -> bytes:
        """The whole content. Raises what was told to `on_lost`."""
        return await asyncio.wait_for(self.ended, DEADLINE_S)

    async def loss(self) -> ProxyError:
        """What was told to `on_lost`."""
        try:
            content = await self.end()
        except ProxyError as error:
            return error
        raise AssertionError(f"complete: {content!r}")


async def acquire(
    pool: Pool, mirror: Mirror, timeout_s: float = DEADLINE_S, *, fresh: bool = False, reuse: bool = True
) -> UpstreamConnection:
    """A connection as a call gets it. `fresh`: a new one, whatever is idle."""
    idle = pool.take(mirror) if reuse and not fresh else None
    return idle or await pool.connect(mirror, timeout_s, reuse=reuse)


def send(connection: UpstreamConnection, sink: Recorder, path: str, method: str = "POST") -> None:
    """Start an exchange and write a small request."""
    connection.start(sink, method)
    connection.write(
        (f"{method} {path} HTTP/1.1\r\nhost: upstream\r\ncontent-length: 2\r\n\r\n".encode(), b"{}")
    )


async def ask(pool: Pool, mirror: Mirror, path: str = "/", method: str = "POST") -> Recorder:
    """One whole exchange; the connection is released or gone when this returns."""
    sink = Recorder()
    connection = await acquire(pool, mirror)
    send(connection, sink, path, method)
    await asyncio.wait([sink.ended], timeout=DEADLINE_S)
    connection.release()
    return sink
