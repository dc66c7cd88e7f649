"""Files that tasks have made, served to whoever has the link: the id is the capability, no key is asked for.

Owns the answer: what of a file is asked for, what a browser may do with it, how it is read without holding up
the loop. A file that is not kept (yet) is where its vendor has it, and the link leads there. What is kept is
control's to know.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from io import FileIO
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from proxy.channel import Channel, ChannelError
from proxy.dialects.links import PREFIX, Linker
from proxy.errors import MethodNotAllowed, Overloaded, ProxyError, StationFault, UnknownId
from proxy.http1.head import Field
from proxy.relay.answers import own_head
from proxy.relay.exchange import Exchange
from proxy.relay.metering_task import Tap
from proxy.relay.pages import respond
from proxy.routing.results import Results, path_of
from proxy.telemetry import Stats

log = getLogger("headrace.results")

AT_ONCE, AT_ONCE_EACH = 64, 16  # files under way in a worker, and to one address
THREADS = 4  # that read from disk
READ_BYTES = 256 << 10
ASK_S = 6.0  # control may wait for an order that is on its way
KNOWN_MS, KNOWN_MAX = 30_000, 10_000  # what control has told
BUCKET_S = 30.0  # until a bucket answers, and between its bytes
CACHE_S = 3600

# What a browser may show in its place: it runs nothing. Everything else is saved to a file.
SHOWN = {
    "audio/aac": "aac", "audio/flac": "flac", "audio/mp4": "m4a", "audio/mpeg": "mp3", "audio/ogg": "ogg",
    "audio/wav": "wav", "audio/webm": "weba", "audio/x-wav": "wav", "image/avif": "avif", "image/gif": "gif",
    "image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "video/mp4": "mp4",
    "video/quicktime": "mov", "video/webm": "webm",
}  # fmt: skip

_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})")
_EXPOSED = (b"access-control-expose-headers", b"accept-ranges, content-disposition, content-range, etag")


class Span(NamedTuple):
    """Of a file: from its first byte, so many."""

    first: int
    size: int
    is_part: bool = True


class Sending:
    """A Runner without an upstream: tells when the client takes more."""

    tap: Tap | None = None

    def __init__(self, x: Exchange) -> None:
        self._x = x
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def write(self, data: bytes) -> None:
        self._x.client.write(data)
        await self._has_room.wait()

    def send(self, refused: BaseException | None) -> None:
        """There is no Begin."""

    def cut(self, why: str, error: ProxyError) -> None:
        self._x.client.cut()

    def client_paused(self) -> None:
        self._has_room.clear()

    def client_resumed(self) -> None:
        self._has_room.set()

    def client_left(self) -> None:
        """Whoever sends is cancelled."""


class ResultPages:
    """Of one worker. `linker()` is None until control has told the station's secret."""

    def __init__(
        self,
        channel: Channel,
        linker: Callable[[], Linker | None],
        data: Path,
        wall_ms: Callable[[], int],
        stats: Stats,
    ) -> None:
        self._channel = channel
        self._linker = linker
        self._data = data
        self._wall_ms = wall_ms
        self._stats = stats
        self._known: dict[str, tuple[int, dict[str, Any]]] = {}  # id -> when it was told, and what
        self._sending: Counter[str] = Counter()  # by address
        self._threads: ThreadPoolExecutor | None = None
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        if self._session is not None:
            await self._session.close()

    async def serve(self, x: Exchange) -> None:
        """Raises MethodNotAllowed, UnknownId, StationFault, Overloaded."""
        if x.method not in ("GET", "HEAD"):
            raise MethodNotAllowed
        linker = self._linker()
        if linker is None:
            raise StationFault(retry_after_s=2.0)
        id_ = x.path.rpartition(PREFIX)[2]
        if not linker.is_ours(id_):
            raise UnknownId
        told = await self._ask(id_)
        if told["state"] == "away":
            self._lead(x, told["url"])
        elif told["state"] == "kept":
            await self._answer(x, id_, told)
        else:
            raise (
                UnknownId("This file is kept no more.", status=410) if told["state"] == "gone" else UnknownId
            )
        self._stats.inc("results_served_total", str(x.status))

    async def _ask(self, id_: str) -> dict[str, Any]:
        now = self._wall_ms()
        at, told = self._known.get(id_, (0, {}))
        if told and at > now - KNOWN_MS and told["until_ms"] > now:
            return told
        try:
            told = await self._channel.call_again("result", {"id": id_}, ASK_S)
        except ChannelError as e:
            raise StationFault(retry_after_s=2.0, detail=str(e)) from e
        self._known.pop(id_, None)
        if told["state"] == "kept":
            self._known[id_] = (now, told)
            if len(self._known) > KNOWN_MAX:
                del self._known[next(iter(self._known))]
        return told

    @staticmethod
    def _lead(x: Exchange, url: str) -> None:
        """To where its vendor has it."""
        fields = [
            (b"location", _escaped(url)),
            (b"cache-control", b"no-store"),
            (b"referrer-policy", b"no-referrer"),
        ]
        respond(x, 302, b"", fields)

    async def _answer(self, x: Exchange, id_: str, told: dict[str, Any]) -> None:
        etag = b'"%b"' % told["etag"].encode()
        fields = [*_about(id_, told["type"], etag), *([_EXPOSED] if x.endpoint and x.endpoint.cors else [])]
        if _names(x.headers.get("If-None-Match"), etag):
            respond(x, 304, b"", fields)
            return
        size, status = told["size"], 200
        asked = x.headers.get("Range") if _is_same(x.headers.get("If-Range"), etag) else None
        span = span_of(asked, size)
        if span is None:
            respond(x, 416, b"", [(b"content-range", b"bytes */%d" % size), (b"accept-ranges", b"bytes")])
            return
        if span.is_part:
            status = 206
            last = span.first + span.size - 1
            fields.append((b"content-range", b"bytes %d-%d/%d" % (span.first, last, size)))
        if x.method == "HEAD" or not span.size:
            x.status = status
            x.client.write(own_head(x, status, fields, span.size))
            return
        async with aclosing(self._content(x, id_, told, span)) as content:
            await self._send(x, content, own_head(x, status, fields, span.size), status)

    async def _send(
        self, x: Exchange, content: AsyncGenerator[bytes, None], head: bytes, status: int
    ) -> None:
        """At most so many at once. The first bytes are there before the head goes out."""
        if self._sending.total() >= AT_ONCE or self._sending[x.address] >= AT_ONCE_EACH:
            raise Overloaded(retry_after_s=5.0)
        self._sending[x.address] += 1
        sending = x.pump = Sending(x)
        if x.client.is_paused:
            sending.client_paused()
        try:
            async for data in content:
                x.status = status
                x.response_bytes += len(data)
                await sending.write(head + data if head else data)
                head = b""
        finally:
            x.pump = None
            self._sending[x.address] -= 1
            self._sending += Counter()  # without those that are done
            self._stats.inc("results_served_bytes_total", by=x.response_bytes)

    def _content(
        self, x: Exchange, id_: str, told: dict[str, Any], span: Span
    ) -> AsyncGenerator[bytes, None]:
        assert x.snapshot is not None
        results = x.snapshot.table.results
        if results is not None and told["shelf"] == "bucket" and results.bucket is not None:
            return self._from_bucket(results, id_, span)
        if results is not None and told["shelf"] == "directory" and results.bucket is None:
            return self._from_disk(self._data / results.directory / path_of(id_), told["size"], span)
        raise self._missing(id_, "on another shelf than the file names")

    def _missing(self, id_: str, why: str) -> ProxyError:
        """It should be there. The next request asks control again."""
        self._known.pop(id_, None)
        log.error("a result is missing: %s", why)
        return StationFault("This file cannot be read at the moment.", retry_after_s=5.0, detail=why)

    async def _from_disk(self, path: Path, size: int, span: Span) -> AsyncGenerator[bytes, None]:
        """Reads in threads of its own: a slow disk holds up no stream, and no journal."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "results")
        loop = asyncio.get_running_loop()
        try:
            file = await loop.run_in_executor(self._threads, FileIO, path)
        except OSError as e:
            raise self._missing(
                path.name, f"{type(e).__name__} in this node's directory: is it shared?"
            ) from e
        try:
            if os.fstat(file.fileno()).st_size != size:
                raise self._missing(path.name, "it has another size")
            at, end = span.first, span.first + span.size
            while at < end:
                count = min(READ_BYTES, end - at)
                data = await loop.run_in_executor(self._threads, os.pread, file.fileno(), count, at)
                if not data:
                    raise self._missing(path.name, "it is shorter than it was")
                at += len(data)
                yield data
        finally:
            file.close()

    async def _from_bucket(self, results: Results, id_: str, span: Span) -> AsyncGenerator[bytes, None]:
        assert results.bucket is not None
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=BUCKET_S, sock_read=BUCKET_S),
            )
        part = f"bytes={span.first}-{span.first + span.size - 1}"
        more = {"range": part, "accept-encoding": "identity"}
        url, fields = results.bucket.request("GET", id_, self._wall_ms(), more=more)
        left = span.size
        try:
            async with self._session.get(
                aiohttp.client.URL(url, encoded=True), headers=fields, allow_redirects=False
            ) as response:
                if response.status != 206 or response.content_length != span.size:
                    raise self._missing(id_, f"the bucket answers {response.status}")
                async for data in response.content.iter_chunked(READ_BYTES):
                    left -= len(data)
                    yield data
        except (aiohttp.ClientError, TimeoutError) as e:
            raise self._missing(id_, f"the bucket: {type(e).__name__}") from e


def span_of(asked: str | None, size: int) -> Span | None:
    """What a Range field asks for (RFC 9110 14.1.2): all of it where it asks for several parts or in words
    that nobody knows; None: there is nothing of that."""
    found = _RANGE.fullmatch(asked) if asked is not None else None
    if found is None or not (found["first"] or found["last"]):
        return Span(0, size, is_part=False)
    if not found["first"]:
        count = min(int(found["last"]), size)
        return Span(size - count, count) if count else None
    first = int(found["first"])
    last = min(int(found["last"]), size - 1) if found["last"] else size - 1
    if found["last"] and int(found["last"]) < first:
        return Span(0, size, is_part=False)
    return Span(first, last - first + 1) if first < size else None


def _about(id_: str, kind: str, etag: bytes) -> list[Field]:
    """Nothing of it is run by a browser, whatever a vendor has put there."""
    ending = SHOWN.get(kind)
    name = f'filename="{id_[:12]}.{ending}"' if ending else f'filename="{id_[:12]}"'
    return [
        (b"content-type", kind.encode()),
        (b"content-disposition", f"{'inline' if ending else 'attachment'}; {name}".encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", b"default-src 'none'; sandbox"),
        (b"cache-control", b"private, max-age=%d, immutable" % CACHE_S),
        (b"accept-ranges", b"bytes"),
        (b"etag", etag),
    ]


def _names(field: str | None, etag: bytes) -> bool:
    """Does If-None-Match name it? Weakly compared (RFC 9110 13.1.2)."""
    if field is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in field.split(",")}
    return etag.decode() in tags or "*" in tags


def _is_same(field: str | None, etag: bytes) -> bool:
    """May a part be given under an If-Range? Strongly compared; a date is never the same."""
    return field is None or field.strip() == etag.decode()


def _escaped(url: str) -> bytes:
    return "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode()) for c in url).encode()
