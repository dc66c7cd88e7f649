"""Where files that were fetched are kept: a directory, or a bucket.

Owns the names of files, how one gets to its name whole or not at all, and how it is removed. Both kinds take
what lies in a file of the same node. Whether something is kept is store.results'.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Protocol

import aiohttp

from proxy.routing.buckets import Bucket
from proxy.routing.results import Results, path_of
from proxy.store.results import File

READ_BYTES = 256 << 10
PARTS = ".parts"  # in a directory: files that are not whole yet
PUT_S, DELETE_S = 900.0, 30.0


class ShelfError(OSError):
    """It could not be kept now; the same may work later."""


class Shelf(Protocol):
    """`kind` is what rows say of it, `parts` the folder of files that are not whole yet."""

    kind: str
    parts: Path

    async def put(self, name: str, content: IO[bytes], file: File) -> None:
        """Keep what was written. Once this returns it is safe from a power loss. Raises OSError."""

    async def remove(self, name: str) -> None:
        """Nothing happens where there is no such file. Raises OSError."""

    async def close(self) -> None: ...


def shelf_for(results: Results, data: Path, now_ms: Callable[[], int]) -> Shelf:
    """Within a running loop."""
    if results.bucket is not None:
        return ObjectShelf(results.bucket, data / "spool" / "results", now_ms)
    return DirectoryShelf(data / results.directory)  # an absolute one stays what it is


class DirectoryShelf:
    """Files under names that tell nothing."""

    kind = "directory"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.parts = root / PARTS

    async def put(self, name: str, content: IO[bytes], file: File) -> None:
        await asyncio.to_thread(self._put, self.root / path_of(name), content)

    @staticmethod
    def _put(path: Path, content: IO[bytes]) -> None:
        """The file takes its name; it lies among the parts, on the same disk."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content.flush()
        os.fsync(content.fileno())
        os.replace(content.name, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    async def remove(self, name: str) -> None:
        await asyncio.to_thread((self.root / path_of(name)).unlink, missing_ok=True)

    async def close(self) -> None:
        """Nothing is held."""

    def has(self, name: str) -> bool:
        """Blocking."""
        return (self.root / path_of(name)).is_file()


class ObjectShelf:
    """Objects of a bucket, each put in one request with its length and its SHA-256."""

    kind = "bucket"

    def __init__(self, bucket: Bucket, parts: Path, now_ms: Callable[[], int]) -> None:
        self.parts = parts
        self._bucket = bucket
        self._now_ms = now_ms
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), skip_auto_headers=("User-Agent", "Accept-Encoding")
        )

    async def put(self, name: str, content: IO[bytes], file: File) -> None:
        more = {"content-type": file.content_type, "content-length": str(file.size)}
        url, fields = self._bucket.request("PUT", name, self._now_ms(), digest=file.sha256.hex(), more=more)
        content.seek(0)
        await self._send("PUT", url, fields, PUT_S, _pieces(content))

    async def remove(self, name: str) -> None:
        url, fields = self._bucket.request("DELETE", name, self._now_ms())
        await self._send("DELETE", url, fields, DELETE_S, None)

    async def close(self) -> None:
        await self._session.close()

    async def _send(
        self,
        method: str,
        url: str,
        fields: dict[str, str],
        within_s: float,
        data: AsyncIterator[bytes] | None,
    ) -> None:
        where, times = aiohttp.client.URL(url, encoded=True), aiohttp.ClientTimeout(total=within_s)
        try:
            async with self._session.request(
                method, where, headers=fields, data=data, allow_redirects=False, timeout=times
            ) as response:
                if response.status >= 300 and not (method == "DELETE" and response.status == 404):
                    said = (await response.content.read(500)).decode("utf-8", "replace")
                    raise ShelfError(f"the bucket answered {response.status}: {said}")
        except (aiohttp.ClientError, TimeoutError) as e:
            raise ShelfError(f"the bucket could not be reached: {type(e).__name__}") from e


async def _pieces(content: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(content.read, READ_BYTES):
        yield piece
