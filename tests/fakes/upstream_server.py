"""An upstream that says exactly what a test tells it to, and remembers everything it was asked.

Raw sockets in a thread of its own: it sends bytes that no HTTP library would, at the moments that a test
chooses, and keeps answering while the loop under test is busy.

    with UpstreamServer() as server:
        server.script("/v1/chat/completions", [chunked_head(), b"5\\r\\nhel", Reset()])
        ...
        assert server.requests[0].body == b"{}"
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

SCRIPT_ENDS_S = 10.0  # a pause that nobody ends


class Request(NamedTuple):
    """One request as it was received. Header names keep their case."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    connection: int = 0  # 1 is the first one accepted

    def header(self, name: bytes) -> bytes | None:
        """The first field called `name`, in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Pause:
    """Send nothing for `seconds`, or until the test calls `end()`.

    `reached` is set when a connection gets here. A connection that its client leaves meanwhile ends.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = SCRIPT_ENDS_S if seconds is None else seconds
        self._is_ended = False
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self.reached = threading.Event()

    def end(self) -> None:
        """Go on with the script, here and whenever it comes here again."""
        self._is_ended = True
        for loop, event in list(self._waiting):
            loop.call_soon_threadsafe(event.set)

    async def wait(self, reader: _Reader) -> None:
        wake = (asyncio.get_running_loop(), asyncio.Event())
        self._waiting.add(wake)
        self.reached.set()
        waits = [asyncio.ensure_future(event.wait()) for event in (wake[1], reader.gone)]
        try:
            if not self._is_ended:
                await asyncio.wait(waits, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiting.discard(wake)
            for wait in waits:
                wait.cancel()
        if reader.gone.is_set():
            raise _Ended


class Close:
    """End the connection: FIN, over TLS behind a close_notify."""


class Cut:
    """End the connection with a FIN alone: over TLS this is a truncation."""


class HalfClose:
    """Send a FIN and stay: what was written last, but not the end of reading."""


class Reset:
    """End the connection with RST."""


class Repeat(NamedTuple):
    """The same bytes again and again, as fast as the other side takes them."""

    data: bytes
    times: int = 1_000_000


Action = bytes | Pause | Close | Cut | HalfClose | Reset | Repeat | Callable[[Request], bytes]


class _Ended(Exception):
    """A script or a client ended the connection."""


class _Reader(asyncio.StreamReader):
    """Knows that its client has left without reading."""

    def __init__(self) -> None:
        super().__init__(limit=1 << 24)
        self.gone = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.gone.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.gone.set()


class UpstreamServer:
    """A server on 127.0.0.1. `requests` is its log; `script` says what a path answers."""

    def __init__(self, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl_context = ssl_context
        self._scripts: dict[str, tuple[bool, list[Sequence[Action]]]] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upstream", daemon=True)
        self.requests: list[Request] = []
        self.accepted = 0  # connections so far
        self.port = 0

    def script(self, path: str, *answers: Sequence[Action], at_head: bool = False) -> None:
        """Say what requests to `path` ("*": any) get, one after the other; the last answer repeats.

        `at_head`: as soon as the head of the request was read; its body is not.
        """
        self._scripts[path] = (at_head, list(answers))

    @property
    def url(self) -> str:
        return f"{'https' if self._ssl_context else 'http'}://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._writers)

    def push(self, data: bytes) -> None:
        """Send bytes on every open connection, whatever it is doing."""
        done = threading.Event()

        def write() -> None:
            for writer in self._writers:
                writer.write(data)
            done.set()

        self._loop.call_soon_threadsafe(write)
        done.wait(SCRIPT_ENDS_S)

    def close_connections(self, how: Close | Cut | Reset | None = None) -> None:
        """End every open connection."""
        self._loop.call_soon_threadsafe(
            lambda: [_end(writer, how or Close()) for writer in list(self._writers)]
        )

    def start(self) -> UpstreamServer:
        self._thread.start()
        assert self._ready.wait(SCRIPT_ENDS_S)
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(SCRIPT_ENDS_S)

    def __enter__(self) -> UpstreamServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # -- in the server's thread ----------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        handlers: set[asyncio.Task[None]] = set()

        def connection() -> asyncio.StreamReaderProtocol:
            reader = _Reader()

            def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                self.accepted += 1
                handler = asyncio.ensure_future(self._handle(reader, writer, self.accepted))
                handlers.add(handler)
                handler.add_done_callback(handlers.discard)

            return asyncio.StreamReaderProtocol(reader, accept)

        server = await self._loop.create_server(connection, "127.0.0.1", 0, ssl=self._ssl_context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for handler in list(handlers):
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)

    async def _handle(self, reader: _Reader, writer: asyncio.StreamWriter, number: int) -> None:
        self._writers.add(writer)
        try:
            while True:
                await self._answer(reader, writer, number)
        except (_Ended, EOFError, OSError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: _Reader, writer: asyncio.StreamWriter, number: int) -> None:
        request = _parse_head(await reader.readuntil(b"\r\n\r\n"))._replace(connection=number)
        path = request.target.partition("?")[0]
        at_head, answers = self._scripts.get(path) or self._scripts.get("*") or (False, [NOT_FOUND])
        if not at_head:
            request = request._replace(body=await _read_body(reader, request))
        self.requests.append(request)
        for action in answers.pop(0) if len(answers) > 1 else answers[0]:
            await _act(action, request, reader, writer)
        if at_head:
            await _read_body(reader, request)  # closing on it would reset the answer away


async def _act(action: Action, request: Request, reader: _Reader, writer: asyncio.StreamWriter) -> None:
    if isinstance(action, bytes):
        writer.write(action)
        await writer.drain()
    elif isinstance(action, Pause):
        await action.wait(reader)
    elif isinstance(action, HalfClose):
        writer.write_eof()
    elif isinstance(action, Repeat):
        for _ in range(action.times):
            writer.write(action.data)
            await writer.drain()
    elif isinstance(action, Close | Cut | Reset):
        _end(writer, action)
        raise _Ended
    else:
        writer.write(action(request))
        await writer.drain()


def _end(writer: asyncio.StreamWriter, how: Close | Cut | Reset) -> None:
    if isinstance(how, Close):
        writer.close()
        return
    if isinstance(how, Reset):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def _parse_head(head: bytes) -> Request:
    first, *lines = head[:-4].split(b"\r\n")
    method, target, _ = first.decode("latin-1").split(" ", 2)
    fields = [line.partition(b":") for line in lines]
    return Request(method, target, [(name, value.strip()) for name, _, value in fields], b"")


async def _read_body(reader: asyncio.StreamReader, request: Request) -> bytes:
    length = request.header(b"content-length")
    if length is not None:
        return await reader.readexactly(int(length))
    if request.header(b"transfer-encoding") is None:
        return b""
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return body


# -- answers -----------------------------------------------------------------------------------------


def head(status: int = 200, *fields: str) -> bytes:
    """`head(200, "content-length: 5")`"""
    return "\r\n".join((f"HTTP/1.1 {status} Fine", *fields, "", "")).encode("latin-1")


def whole(body: bytes, status: int = 200, *fields: str, kind: str = "application/json") -> bytes:
    """An answer with a Content-Length."""
    return head(status, f"content-type: {kind}", f"content-length: {len(body)}", *fields) + body


def chunked_head(*fields: str, kind: str = "text/event-stream") -> bytes:
    """The head of a chunked answer."""
    return head(200, f"content-type: {kind}", "transfer-encoding: chunked", *fields)


def chunk(data: bytes) -> bytes:
    """One chunk; of b"" the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def unchunked(data: bytes) -> bytes:
    """The content of such chunks."""
    content = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        content, data = content + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return content


def chunked(pieces: Iterable[bytes], *fields: str, kind: str = "text/event-stream") -> bytes:
    """A chunked answer, whole."""
    return chunked_head(*fields, kind=kind) + b"".join(map(chunk, pieces)) + chunk(b"")


def stream(body: bytes, cuts: Iterable[int] = (), *fields: str, gap_s: float = 0.0) -> list[Action]:
    """An event stream whose `body` is cut into chunks at the given offsets, `gap_s` apart."""
    edges = sorted({0, *cuts, len(body)})
    actions: list[Action] = [chunked_head(*fields)]
    for start, stop in pairwise(edges):
        actions += [chunk(body[start:stop]), Pause(gap_s)]
    return [*actions, chunk(b"")]


def drip(data: bytes, gap_s: float, size: int = 1) -> list[Action]:
    """`data` in pieces of `size` bytes, `gap_s` apart."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return [action for piece in pieces for action in (piece, Pause(gap_s))]


NOT_FOUND: Sequence[Action] = [whole(b'{"error": "no script"}', 404)]

_HELLO = whole(b"hello")

# What a broken or hostile upstream sends in place of an answer: none may become one.
GARBAGE: dict[str, Sequence[Action]] = {
    "two different lengths": [head(200, "content-length: 5", "content-length: 6") + b"hello", Pause()],
    "the same length twice": [head(200, "content-length: 5", "content-length: 5") + b"hello", Pause()],
    "a list of lengths": [head(200, "content-length: 5, 5") + b"hello", Pause()],
    "a negative length": [head(200, "content-length: -5") + b"hello", Pause()],
    "a length with a plus": [head(200, "content-length: +5") + b"hello", Pause()],
    "length and chunked": [head(200, "content-length: 5", "transfer-encoding: chunked") + b"hello", Pause()],
    "an unknown coding": [head(200, "transfer-encoding: gzip, chunked") + chunk(b"hello"), Pause()],
    "chunked twice": [head(200, "transfer-encoding: chunked", "transfer-encoding: chunked"), Pause()],
    "chunked in HTTP/1.0": [b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", Pause()],
    "NUL in a value": [head(200, "x-note: a\0b", "content-length: 5") + b"hello", Pause()],
    "bare CR in a value": [head(200, "x-note: a\rb", "content-length: 5") + b"hello", Pause()],
    "bare LF line ends": [b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello", Pause()],
    "a folded field": [head(200, "x-note: a", " b", "content-length: 5") + b"hello", Pause()],
    "a space before the colon": [head(200, "content-length : 5") + b"hello", Pause()],
    "a field without colon": [head(200, "content-length 5") + b"hello", Pause()],
    "no HTTP at all": [b"SSH-2.0-OpenSSH_9.2\r\n", Pause()],
    "HTTP/2": [b"HTTP/2 200 OK\r\ncontent-length: 5\r\n\r\nhello", Pause()],
    "status 99": [b"HTTP/1.1 099 No\r\ncontent-length: 5\r\n\r\nhello", Pause()],
    "status of four digits": [b"HTTP/1.1 2000 OK\r\ncontent-length: 5\r\n\r\nhello", Pause()],
    "101 unasked": [head(101, "upgrade: websocket", "connection: upgrade"), Pause()],
    "a flood of 1xx": [Repeat(head(103, "link: </x>")), Pause()],
    "endless fields": [b"HTTP/1.1 200 OK\r\n", Repeat(b"x-more: and more\r\n"), Pause()],
    "a head of 10 MB": [b"HTTP/1.1 200 OK\r\nx-long: " + b"a" * 10_000_000 + b"\r\n\r\n", Pause()],
    "too many fields": [head(200, *(f"x-{n}: 1" for n in range(200))), Pause()],
    "a chunk size that is none": [chunked_head() + b"zz\r\nhello\r\n", Pause()],
    "a chunk size that overflows": [chunked_head() + b"FFFFFFFFFFFFFFFFF\r\nhello\r\n", Pause()],
    "a chunk size with a prefix": [chunked_head() + b"0x5\r\nhello\r\n", Pause()],
    "bare LF behind a chunk size": [chunked_head() + b"5\nhello\r\n", Pause()],
}

# The same behind content that was right: the client has its head by then and must see the answer break off.
GARBAGE_LATER: dict[str, Sequence[Action]] = {
    "a chunk longer than its size": [chunked_head() + b"5\r\nhello!\r\n", Pause()],
    "bare LF behind a chunk": [chunked_head() + b"5\r\nhello\n5\r\nhello\r\n", Pause()],
    "a chunk size that is none": [chunked_head() + chunk(b"hello") + b"zz\r\n", Pause()],
    "a chunk size that overflows": [chunked_head() + chunk(b"hello") + b"FFFFFFFFFFFFFFFFF\r\n", Pause()],
    "an endless chunk extension": [chunked_head() + chunk(b"hello") + b"5;", Repeat(b"a=b;" * 64), Pause()],
    "endless trailers": [chunked_head() + chunk(b"hello") + b"0\r\n", Repeat(b"x-more: more\r\n"), Pause()],
    "a trailer of 10 MB": [chunked_head() + chunk(b"hello") + b"0\r\nx: " + b"a" * 10_000_000, Pause()],
    "NUL in a trailer": [chunked_head() + chunk(b"hello") + b"0\r\nx: \0\r\n\r\n", Pause()],
    "RST mid-chunk": [chunked_head() + b"a\r\nhello", Pause(0.02), Reset()],
    "FIN mid-chunk": [chunked_head() + b"a\r\nhello", Close()],
    "FIN before the last chunk": [chunked_head() + chunk(b"hello"), Close()],
    "a short length": [head(200, "content-length: 9") + b"hello", Close()],
    "a short length and RST": [head(200, "content-length: 9") + b"hello", Pause(0.02), Reset()],
    "silence and RST without a length": [head(200) + b"hello", Pause(0.02), Reset()],
}

# An answer that is right, and bytes that belong to nobody: the client gets "hello", the next request its own.
EXCESS: dict[str, Sequence[Action]] = {
    "bytes behind the length": [_HELLO + b"EVIL"],
    "an answer behind the length": [_HELLO + whole(b"EVIL")],
    "an answer behind the last chunk": [chunked([b"hello"]) + whole(b"EVIL")],
    "an unasked answer later": [_HELLO, Pause(0.01), whole(b"EVIL")],
    "a late 408": [_HELLO, Pause(0.01), whole(b"EVIL", 408, "connection: close"), Close()],
    "connection: close": [whole(b"hello", 200, "connection: close")],
    "the length over a closing connection": [_HELLO, Close()],
}
