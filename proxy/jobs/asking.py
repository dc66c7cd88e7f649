"""The requests of the poller: one task, several in one request, the results of one that is finished.

Owns what goes to a vendor and how much is read of its answer. A vendor's failure is an Answer, never an
exception: it is as common as a success.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
import orjson

from proxy.dialects.base import UsagePointers
from proxy.dialects.declared import filled
from proxy.dialects.owned import Results, Task, first, found
from proxy.metering.events import JsonSplitter
from proxy.metering.scanner import PointerScanner
from proxy.metering.usage import Usage
from proxy.routing.rewrite import upstream_target
from proxy.routing.table import Credential, Mirror, Upstream
from proxy.snapshot import Snapshot

ANSWER_BYTES_MAX = 4 << 20
TIMEOUT_S = 30.0
RESULTS_TIMEOUT_S = 90.0
CONNECTIONS_PER_HOST = 8
MODELS_MAX = 100  # of one task's results
READ_BYTES = 64 << 10

# What says nothing of the tasks that a request names: the vendor does not know such requests.
NOT_HERE = frozenset({400, 404, 405, 410, 501})
# What means that nobody told: the next poll may.
UNHEARD = (aiohttp.ClientError, TimeoutError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a vendor said; `status` 0: nothing."""

    status: int = 0
    document: Any = None
    size: int = 0
    retry_after_s: float | None = None
    error: str = ""

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300 and self.document is not None

    @property
    def outcome(self) -> str:
        return "ok" if self.is_good else self.error or f"status:{self.status}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where tasks of one credential are asked about."""

    snapshot: Snapshot
    upstream: Upstream
    mirror: Mirror
    credential: Credential


class Asker:
    """One session for all polls; make it within a running loop."""

    def __init__(self, session: aiohttp.ClientSession | None = None) -> None:
        self._session = session or aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit_per_host=CONNECTIONS_PER_HOST),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "headrace"},
        )

    async def close(self) -> None:
        await self._session.close()

    @staticmethod
    def place(snapshot: Snapshot, upstream: str, mirror: str, credential: str) -> Place | None:
        """None: the file does not have it any more. Another mirror will do, another credential will not."""
        found = snapshot.table.upstreams.get(upstream)
        secret = next((c for c in found.credentials if c.name == credential), None) if found else None
        if found is None or secret is None or not found.mirrors:
            return None
        there = next((m for m in found.mirrors if m.name == mirror), found.mirrors[0])
        return Place(snapshot, found, there, secret)

    async def ask(
        self, place: Place, operation: str, id_: str, task: Task, body: Mapping[str, Any] | None = None
    ) -> Answer:
        """The task in the answer of an operation about one id, or (with a body) the answer about those that
        it names."""
        sent = filled(task.poll_body, {"id": id_}) if body is None else body
        try:
            async with self._request(place, operation, id_, task, sent) as response:
                data = await _read(response)
                document = orjson.loads(data) if response.status < 300 else None
                if body is None:
                    document = first(document, (task.object,))
                return Answer(response.status, document, len(data), _retry_after(response))
        except UNHEARD as e:
            return Answer(error=type(e).__name__)
        except LookupError as e:
            return Answer(error=f"no operation {e}")

    async def ask_many(self, place: Place, task: Task, ids: list[str]) -> dict[str, Answer]:
        """The answer about each; what a good answer leaves out is a 404."""
        many = task.many
        assert many is not None
        answer = await self.ask(place, many.operation, "", task, {many.ids: ids})
        if answer.status in NOT_HERE:
            answers = await asyncio.gather(*(self.ask(place, task.poll, id_, task) for id_ in ids))
            return dict(zip(ids, answers, strict=True))
        if not answer.is_good:
            return dict.fromkeys(ids, answer)
        items = next(found(answer.document, many.items), None)
        told = {
            str(id_): Answer(answer.status, item, answer.size // max(len(ids), 1))
            for item in (items if isinstance(items, list) else ())
            for id_ in found(item, many.id_at)
        }
        return {id_: told.get(id_) or Answer(404) for id_ in ids}

    async def results(self, place: Place, task: Task, ids: list[str]) -> dict[str, Usage] | None:
        """What the lines of result files add up to, by model. None: they could not be read whole."""
        assert task.results is not None
        sums = _Sums(task.results.usage, task.results)
        try:
            for id_ in ids:
                async with self._request(place, task.results.operation, id_, task, None) as response:
                    if response.status >= 300:
                        return None
                    async for data in response.content.iter_chunked(READ_BYTES):
                        sums.feed(data)
                    sums.finish()
        except (*UNHEARD, LookupError):
            return None
        return None if sums.is_broken else sums.by_model

    def _request(
        self, place: Place, operation: str, id_: str, task: Task, body: Mapping[str, Any] | None
    ) -> Any:
        """Raises KeyError: the upstream does not offer the operation."""
        snapshot, upstream, mirror = place.snapshot, place.upstream, place.mirror
        offered = upstream.operations[operation]
        dialect = snapshot.dialects[offered.dialect or upstream.dialect]
        query = urlencode({task.poll_query: id_}) if task.poll_query and id_ else ""
        target = upstream_target(offered, mirror, "", {"id": id_}, query, dialect)
        fields = [*task.headers, *upstream.headers.request_set]
        if place.credential.secret:
            name, prefix = offered.auth
            fields.append((name, prefix + place.credential.secret.encode("latin-1")))
        is_result = task.results is not None and operation == task.results.operation
        return self._session.request(
            "GET" if body is None else "POST",
            f"{mirror.scheme}://{_authority(mirror)}{target}",
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in fields},
            json=body,
            **_way(mirror),
            allow_redirects=is_result,  # result files may live in a bucket
            timeout=aiohttp.ClientTimeout(total=RESULTS_TIMEOUT_S if is_result else TIMEOUT_S),
        )


class _Sums:
    """Usage of JSON lines, by the model that each names."""

    def __init__(self, usage: UsagePointers, results: Results) -> None:
        self.by_model: dict[str, Usage] = {}
        self.is_broken = False
        self._usage = usage
        self._results = results
        self._splitter = JsonSplitter(self._new_scanner)

    def feed(self, data: bytes) -> None:
        for line in self._splitter.feed(data):
            self._line(line)

    def finish(self) -> None:
        for line in self._splitter.finish():
            self._line(line)
        self._splitter = JsonSplitter(self._new_scanner)

    def _new_scanner(self) -> PointerScanner:
        return PointerScanner((*self._usage.places, self._results.model))

    def _line(self, line: bytes | PointerScanner) -> None:
        document = orjson.loads(line) if isinstance(line, bytes) else line.document
        told = first(document, self._usage.places)
        usage = self._usage.read(told) if isinstance(told, dict) else None
        if usage is None:
            return  # a call that failed
        model = str(first(document, (self._results.model,)) or "")
        known = self.by_model.get(model)
        if known is None and len(self.by_model) == MODELS_MAX:
            self.is_broken = True
            return
        self.by_model[model] = usage if known is None else known.plus(usage)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Raises ValueError: it is too long."""
    pieces, size = [], 0
    async for data in response.content.iter_chunked(READ_BYTES):
        pieces.append(data)
        size += len(data)
        if size > ANSWER_BYTES_MAX:
            raise ValueError("too long")
    return b"".join(pieces)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.replace(".", "", 1).isdigit() and value.isascii() else None


def _authority(mirror: Mirror) -> str:
    host = f"[{mirror.host}]" if ":" in mirror.host else mirror.host
    return f"{host}:{mirror.port}"


def _way(mirror: Mirror) -> dict[str, Any]:
    """The proxy on the way there, as aiohttp takes it. Raises ValueError: there is none for polls (SOCKS)."""
    via = mirror.via
    if via is None:
        return {}
    if via.scheme != "http":
        raise ValueError(f"polls do not go through a {via.scheme} proxy")
    auth = aiohttp.BasicAuth(via.user, via.secret) if via.user else None
    return {"proxy": f"http://{via.host}:{via.port}", "proxy_auth": auth}
