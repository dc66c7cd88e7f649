"""Key holders at work: many streams at once through a station, and the proof that each was billed once.

The oracle is not the station's: the upstream server remembers what it was asked, and every user remembers
what it was answered. A prompt is a marker that the upstream gives back as its request id, so that a usage
row names the call that it belongs to.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp
import orjson
import pytest

from proxy.store.audit import audit
from proxy.store.journal_audit import audit_journals
from tests.fakes.upstream_server import Action, Pause, Request, UpstreamServer, chunk, chunked_head
from tests.station import Station
from tests.waiting import DEADLINE_S, until

# Long forms of these tests.
SLOW = [
    pytest.mark.slow,
    pytest.mark.skipif("HEADRACE_SOAK" not in os.environ, reason="minutes of load; make soak runs it"),
]

_loads = count(1)

PATH = "/v1/chat/completions"
MODEL = "gpt-4o-mini"
COST_NANOS = 9 * 150 + 12 * 600  # of every whole call: 0.15 and 0.60 USD per million tokens


def _event(delta: str, finish: str) -> bytes:
    choice = b'{"index":0,"delta":{%b},"finish_reason":%b}' % (delta.encode(), finish.encode())
    return b'data: {"id":"c1","object":"chat.completion.chunk","choices":[%b]}\n\n' % choice


WORD = _event('"content":"word "', "null")
LAST = _event("", '"stop"')
USAGE = (
    b'data: {"id":"c1","object":"chat.completion.chunk","choices":[],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def marker_of(request: Request) -> str:
    """Which call this is, as the upstream sees it."""
    return str(orjson.loads(request.body)["messages"][0]["content"])


def head(request: Request) -> bytes:
    return chunked_head(f"x-request-id: {marker_of(request)}")


def stream(words: int, gap_s: float) -> list[Action]:
    """An answer of so many words, `gap_s` apart; the client sees all of it but the usage event."""
    return [head, *[chunk(WORD), Pause(gap_s)] * words, chunk(LAST), chunk(USAGE), chunk(DONE), chunk(b"")]


def held(until: Pause) -> list[Action]:
    """An answer that stays in the middle of its words until the test ends the pause."""
    return [head, chunk(WORD), chunk(WORD), until, chunk(LAST), chunk(USAGE), chunk(DONE), chunk(b"")]


@dataclass(slots=True)
class Call:
    """One call as its user saw it. Times are seconds of time.time(), as in logs."""

    marker: str
    began_s: float
    id: str = ""  # x-request-id of the answer; "": there was none
    status: int = 0
    code: str = ""  # of an error answer
    content: bytes = b""
    pieces: list[tuple[float, int]] = field(default_factory=list)  # when how much of it was there
    error: str = ""
    ended_s: float = 0.0

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and not self.error and self.content.endswith(DONE)

    @property
    def is_open(self) -> bool:
        return bool(self.content) and not self.ended_s

    def had(self, moment_s: float) -> int:
        """Bytes of the answer that were there at a moment."""
        return max((size for at_s, size in self.pieces if at_s <= moment_s), default=0)

    def __str__(self) -> str:
        return f"{self.marker} {self.id} {self.status} {self.code} {self.error} {len(self.content)} bytes"


class Load:
    """`users` that call one after the other, on connections of their own, from a thread of their own.

    They begin spread over `spread_s`. `once`: each makes one call only.
    """

    def __init__(
        self, station: Station, key: str, users: int, *, once: bool = False, spread_s: float = 0.0
    ) -> None:
        self.calls: list[Call] = []
        self._url = station.url + PATH
        self._key = key
        self._users = users
        self._once = once
        self._spread_s = spread_s
        self._number = next(_loads)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> list[Call]:
        """Users end the call that they are in; all calls."""
        self._stopping.set()
        self._thread.join(2 * DEADLINE_S)
        assert not self._thread.is_alive(), "a call hangs"
        return self.calls

    @property
    def open(self) -> list[Call]:
        """Those that receive their answer at this moment."""
        return [call for call in list(self.calls) if call.is_open]

    @property
    def ended(self) -> list[Call]:
        return [call for call in list(self.calls) if call.ended_s]

    async def _run(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        patience = aiohttp.ClientTimeout(total=None, sock_connect=DEADLINE_S, sock_read=DEADLINE_S)
        async with aiohttp.ClientSession(connector=connector, timeout=patience) as session:
            await asyncio.gather(*(self._user(session, number) for number in range(self._users)))

    async def _user(self, session: aiohttp.ClientSession, number: int) -> None:
        await asyncio.sleep(self._spread_s * number / self._users)
        for turn in count():
            call = Call(f"{self._number}-{number}-{turn}", time.time())
            self.calls.append(call)
            await self._call(session, call)
            if self._once or self._stopping.is_set():
                return
            if not call.is_whole:
                await asyncio.sleep(0.5)  # as an SDK does before it tries again

    async def _call(self, session: aiohttp.ClientSession, call: Call) -> None:
        body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": call.marker}]}
        try:
            async with session.post(
                self._url, json=body, headers={"authorization": f"Bearer {self._key}"}
            ) as answer:
                call.status = answer.status
                call.id = answer.headers.get("x-request-id", "").replace("-", "")  # as in a journal
                async for piece in answer.content.iter_any():
                    call.content += piece
                    call.pieces.append((time.time(), len(call.content)))
            if call.status != 200:
                call.code = orjson.loads(call.content)["error"]["code"]
        except (aiohttp.ClientError, OSError, TimeoutError) as e:
            call.error = f"{type(e).__name__}: {e}"
        call.ended_s = time.time()


@dataclass(slots=True)
class Books:
    """The rows of one account, proven against what its calls and the upstream say."""

    rows: dict[str, dict[str, Any]]  # by call
    outcomes: Counter[str]


async def books(station: Station, account: str, calls: Sequence[Call], upstream: UpstreamServer) -> Books:
    """Wait until everything has landed, then hold it against the oracle.

    A whole call has one complete row at its exact price. One that was broken off has one row, complete
    only if its End was written before. A call whose user saw no answer has at most one, and exactly one
    if the upstream was asked. Nothing else is there, and the audit is clean.
    """
    markers = {call.marker for call in calls}
    asked = Counter(marker for r in list(upstream.requests) if (marker := marker_of(r)) in markers)
    assert set(asked.values()) <= {1}, "a call was sent twice"
    answered = {call.id: call for call in calls if call.status == 200}
    unanswered = [call for call in calls if not call.id]
    at_least = sum(call.marker in asked for call in unanswered)
    rows = await _landed(station, account, set(answered), at_least)
    for id_, call in answered.items():
        row = rows[id_]
        if call.is_whole:
            assert (row["state"], row["outcome"]) == ("settled", "complete"), (call, row)
        else:
            assert row["outcome"] in ("interrupted_relay", "complete", "cut"), (call, row)
        if row["outcome"] == "complete":
            assert (row["cost_nanos"], row["provenance"], row["upstream_id"]) == (
                COST_NANOS, "final", call.marker,
            )  # fmt: skip
    others = [row for id_, row in rows.items() if id_ not in answered]
    refused = {call.id for call in calls if call.id and call.status != 200}
    silent = [row for row in others if row["id"].hex not in refused]
    assert at_least <= len(silent) <= len(unanswered), (at_least, len(silent), len(unanswered))
    assert all(row["state"] == "void" and row["cost_nanos"] == 0 for row in others), others
    await _is_sound(station, account, rows)
    return Books(rows, Counter(row["outcome"] for row in rows.values()))


async def _landed(station: Station, account: str, known: set[str], others: int) -> dict[str, dict[str, Any]]:
    database = await station.open_database()

    async def landed() -> tuple[dict[str, dict[str, Any]]] | None:
        found = await database.fetch(
            "SELECT * FROM usage WHERE account = (SELECT id FROM account WHERE name = $1)", account
        )
        rows = {row["id"].hex: dict(row) for row in found}
        return (rows,) if known <= rows.keys() and len(rows.keys() - known) >= others else None

    try:
        (rows,) = await until(landed, f"rows of {len(known)} calls and {others} others")
        return rows
    finally:
        await database.close()


async def _is_sound(station: Station, account: str, rows: dict[str, dict[str, Any]]) -> None:
    database = await station.open_database()
    try:
        charged = await database.fetchval(
            "SELECT coalesce(-sum(amount_nanos), 0) FROM ledger WHERE kind = 'usage'"
            " AND account = (SELECT id FROM account WHERE name = $1)",
            account,
        )
        assert charged == sum(row["cost_nanos"] for row in rows.values())
        found = [*await audit(database), *await audit_journals(database, station.data / "journal")]
        assert not found, "\n".join(map(str, found))
    finally:
        await database.close()
