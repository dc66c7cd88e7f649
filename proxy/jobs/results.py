"""Fetch the files that tasks have made before their vendor forgets them, and remove them when their days are
over.

Owns how a file is fetched and what becomes of one that cannot be. Which are due, and that one node at a time
fetches one, is store.results'; where they are put is shelves.py's. Runs in control. What dies with its
process is fetched again once its claim runs out: a file has its name only when it is whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urljoin

import aiohttp

from proxy import telemetry
from proxy.jobs.guarded import UNREACHED, AddressRefused, GuardedSession
from proxy.jobs.shelves import DirectoryShelf, Shelf, shelf_for
from proxy.routing.results import Results
from proxy.store.results import KEPT, LEFT, LOST, File, Order
from proxy.store.results import Results as Rows
from proxy.telemetry import Stats

log = logging.getLogger("headrace.results")

AT_ONCE = 4  # files of a node; each takes one thread now and then, and READ_BYTES of memory
CLAIM_MS = 15_000  # renewed while a file comes
RENEW_MS = 5_000
FETCH_S, CONNECT_S, SILENCE_S = 900.0, 10.0, 30.0  # of one file
READ_BYTES = 256 << 10
REDIRECTS_MAX = 3  # each is judged like the first URL
SPARE_BYTES = 1 << 30  # of the disk: it may be the journal's too
REFUSED = frozenset({401, 403, 404, 410, 451})
REFUSALS_MAX = 5  # in a row; a CDN may not have the file yet
RETRY_FIRST_MS, RETRY_MAX_MS = 5_000, 3_600_000
GIVE_UP_MS = 3 * 86_400_000  # after its task ended
TIDY_MS = 60_000
REMOVE_MS = 60_000  # what a removal may take
STALE_PART_S = 86_400.0  # longer than any fetch

_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,63}")
_UNSAID = frozenset({"application/octet-stream", "binary/octet-stream", ""})
# How files of a kind begin, for vendors that do not say it: (offset, bytes, type).
_BEGINNINGS = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/wav"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (4, b"ftypM4A", "audio/mp4"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"),
)


class NotKeptError(Exception):
    """The file cannot be kept, however often it is tried."""


class RefusedError(Exception):
    """Its vendor says that there is no such file, or not for us."""


class NotNowError(Exception):
    """Its vendor did not give it; the next try may get it."""


class Keeper:
    """One node's. `kept()` is the section `results` in force, None: nothing is kept. Make it in a loop."""

    def __init__(
        self,
        rows: Rows,
        session: GuardedSession,
        kept: Callable[[], Results | None],
        data: Path,
        now_ms: Callable[[], int],
        stats: Stats,
    ) -> None:
        self._rows = rows
        self._session = session
        self._kept = kept
        self._data = data
        self._now_ms = now_ms
        self._stats = stats
        self._shelf: Shelf | None = None
        self._shelved: Results | None = None  # what the shelf was made for
        self._busy: dict[str, Order] = {}
        self._renewed_ms = self._tidied_ms = self._told_ms = 0

    @property
    def is_idle(self) -> bool:
        return not self._busy

    async def close(self) -> None:
        if self._shelf is not None:
            await self._shelf.close()
        await self._session.close()

    async def run_once(self) -> int:
        """Begin to fetch what is due; how many files. Raises DatabaseUnavailable."""
        results, now = self._kept(), self._now_ms()
        if results is None:
            return 0
        shelf = self._shelf_for(results)
        if now >= self._renewed_ms + RENEW_MS:
            await self._rows.renew(self._busy.values(), now + CLAIM_MS)
            self._renewed_ms = now
        if now >= self._tidied_ms + TIDY_MS:
            await self._tidy(shelf, now)
            self._tidied_ms = now
        slots = AT_ONCE - len(self._busy)
        if slots <= 0 or not await self._has_room(shelf, now):
            return 0
        orders = await self._rows.claim(slots, now, now + CLAIM_MS)
        for order in orders:
            self._busy[order.id] = order
            telemetry.spawn("result", self._try(order, results, shelf))
        return len(orders)

    def _shelf_for(self, results: Results) -> Shelf:
        if self._shelf is None or self._shelved != results:
            if self._shelf is not None and self._busy:
                return self._shelf  # what is under way ends where it began
            if self._shelf is not None:
                telemetry.spawn("shelf", self._shelf.close())
            self._shelf, self._shelved = shelf_for(results, self._data, self._now_ms), results
        return self._shelf

    async def _has_room(self, shelf: Shelf, now_ms: int) -> bool:
        """Is there a disk to fetch to? Its operator is told once a minute if there is not."""
        try:
            free = await asyncio.to_thread(_free_bytes, shelf.parts)
        except OSError as e:
            free, why = 0, str(e)
        else:
            why = f"{free} bytes are free"
        if free < SPARE_BYTES and now_ms >= self._told_ms + TIDY_MS:
            log.error("results cannot be fetched to %s: %s", shelf.parts, why)
            self._told_ms = now_ms
        self._stats.set("results_disk_full", int(free < SPARE_BYTES))
        return free >= SPARE_BYTES

    # -- one file --

    async def _try(self, order: Order, results: Results, shelf: Shelf) -> None:
        try:
            outcome = await self._fetch(order, results, shelf)
        except Exception:
            log.exception("a result was not fetched")  # its claim runs out
            outcome = "error"
        finally:
            del self._busy[order.id]
        self._stats.inc("result_fetches_total", outcome)

    async def _fetch(self, order: Order, results: Results, shelf: Shelf) -> str:
        """The outcome, for the metric. Raises DatabaseUnavailable."""
        try:
            return await self._keep(order, results, shelf)
        except NotKeptError as e:
            await self._rows.give_up(order, LEFT, str(e))
            return LEFT
        except RefusedError as e:
            if order.refusals + 1 >= REFUSALS_MAX:
                await self._rows.give_up(order, LOST, str(e))
                return LOST
            await self._put_off(order, str(e), is_refusal=True)
            return "refused"
        except (NotNowError, OSError) as e:
            if isinstance(e, OSError):
                log.warning("a result could not be kept: %s", e)
            if self._now_ms() > order.ordered_ms + GIVE_UP_MS:
                await self._rows.give_up(order, LEFT, str(e))
                return LEFT
            await self._put_off(order, str(e))
            return "shelf" if isinstance(e, OSError) else "unreached"

    async def _put_off(self, order: Order, note: str, *, is_refusal: bool = False) -> None:
        pause_ms = min(RETRY_FIRST_MS * 3 ** min(order.tries - 1, 20), RETRY_MAX_MS)
        at_ms = self._now_ms() + int(pause_ms * random.uniform(0.8, 1.2))  # noqa: S311 - spreads tries
        await self._rows.put_off(order, at_ms, note, is_refusal=is_refusal)

    async def _keep(self, order: Order, results: Results, shelf: Shelf) -> str:
        part = shelf.parts / f"{order.id}.{order.tries}"
        try:
            with await asyncio.to_thread(_open, part) as content:
                file = await self._download(order.url, content, results.size_limit)
                await shelf.put(order.id, content, file)
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)
        now = self._now_ms()
        state = await self._rows.keep(order, file, shelf.kind, now, now + results.lasts_ms)
        if state != KEPT:
            await shelf.remove(order.id)  # an operator did not want it
        self._stats.inc("result_bytes_total", by=file.size)
        return state

    async def _download(self, url: str, content: IO[bytes], most_bytes: int) -> File:
        """Raises NotKeptError, RefusedError, NotNowError, OSError of the disk."""
        for _ in range(REDIRECTS_MAX + 1):
            try:
                async with self._session.request(
                    "GET", url, headers={"Accept-Encoding": "identity", "Accept": "*/*"}, timeout=_TIMES
                ) as response:
                    if response.status not in (301, 302, 303, 307, 308):
                        return await _saved(response, content, most_bytes)
                    url = urljoin(url, response.headers.get("Location", ""))
            except _DiskError as e:
                raise e.cause from e
            except UNREACHED as e:
                if _is_closed_to_us(e):
                    raise NotKeptError("its URL leads to no public address") from e
                raise NotNowError(type(e).__name__) from e
        raise NotKeptError("its vendor sends from one place to the other")

    # -- what is over --

    async def _tidy(self, shelf: Shelf, now_ms: int) -> None:
        orders, age_ms = await self._rows.waiting(now_ms)
        self._stats.set("results_waiting", orders)
        self._stats.set("results_waiting_seconds", age_ms / 1000)
        over = await self._rows.expired(now_ms, now_ms + REMOVE_MS)
        done = [id_ for id_, kind in over if kind == shelf.kind and await self._removed(shelf, id_)]
        await self._rows.removed(done)
        self._stats.inc("results_removed_total", by=len(done))
        await self._rows.forget(now_ms)
        await asyncio.to_thread(_clear, shelf.parts, time.time() - STALE_PART_S)
        if isinstance(shelf, DirectoryShelf):
            others = await self._rows.of_other_nodes(shelf.kind)
            missing = [id_ for id_ in others if not await asyncio.to_thread(shelf.has, id_)]
            self._stats.set("results_not_shared", len(missing))
            if missing:
                log.error("%s lacks what other nodes have put there: is it shared?", shelf.root)

    async def _removed(self, shelf: Shelf, id_: str) -> bool:
        try:
            await shelf.remove(id_)
        except OSError as e:
            log.warning("a result could not be removed: %s", e)
            return False
        return True


_TIMES = aiohttp.ClientTimeout(total=FETCH_S, sock_connect=CONNECT_S, sock_read=SILENCE_S)


class _DiskError(Exception):
    """Keeps the disk's errors apart from the network's."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


async def _saved(response: aiohttp.ClientResponse, content: IO[bytes], most_bytes: int) -> File:
    """The body is in the file. Raises NotKeptError, RefusedError, NotNowError, _DiskError, UNREACHED."""
    if response.status in REFUSED:
        raise RefusedError(f"its vendor answers {response.status}")
    if response.status != 200:
        raise NotNowError(f"its vendor answers {response.status}")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise NotKeptError("its vendor sends it coded")
    if (response.content_length or 0) > most_bytes:
        raise NotKeptError(f"{response.content_length} bytes are too many")
    digest, size, beginning = hashlib.sha256(), 0, b""

    def save(data: bytes) -> None:
        digest.update(data)
        content.write(data)

    async for data in response.content.iter_chunked(READ_BYTES):
        size += len(data)
        if size > most_bytes:
            response.close()  # the rest is not waited for
            raise NotKeptError(f"more than {most_bytes} bytes")
        beginning = beginning or data[:16]
        try:
            await asyncio.to_thread(save, data)
        except OSError as e:
            raise _DiskError(e) from e
    return File(size, digest.digest(), content_type_of(response.headers.get("Content-Type", ""), beginning))


def content_type_of(said: str, beginning: bytes) -> str:
    """Without parameters; what the bytes are where the vendor does not say it."""
    kind = said.partition(";")[0].strip().lower()
    if kind in _UNSAID or not _TYPE.fullmatch(kind):
        found = (type_ for at, mark, type_ in _BEGINNINGS if beginning[at:].startswith(mark))
        return next(found, "application/octet-stream")
    return kind


def _is_closed_to_us(error: BaseException) -> bool:
    """Does its URL lead where strangers' URLs may not? A try would end in the same way."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return isinstance(error.os_error, AddressRefused)
    return isinstance(error, AddressRefused | ValueError)


def _open(part: Path) -> IO[bytes]:
    part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return part.open("w+b")


def _free_bytes(parts: Path) -> int:
    parts.mkdir(mode=0o700, parents=True, exist_ok=True)
    return shutil.disk_usage(parts).free


def _clear(parts: Path, before_s: float) -> None:
    """What processes left that died long ago."""
    for path in parts.glob("*") if parts.is_dir() else ():
        if path.stat().st_mtime < before_s:
            path.unlink(missing_ok=True)
