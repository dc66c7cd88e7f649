"""A session whose model is named in its first frame is ended in words, whoever keeps it waiting."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from proxy.dialects import DIALECTS
from proxy.ledger.entry import FAILED
from proxy.relay import realtime
from proxy.relay.exchange import Exchange
from proxy.relay.realtime import Sessions
from tests.fakes.front import Open

LIVE = DIALECTS["gemini"].operations["live"]
SETUP = b'{"setup": {"model": "models/live-1"}}'


class Deaf:
    """An upstream that takes no frame, as one whose buffers are full."""

    closed = False
    protocol = None

    async def send_frame(self, data: bytes, opcode: object) -> None:
        await asyncio.get_running_loop().create_future()

    async def close(self, **_: Any) -> None:
        self.closed = True


class Office:
    """Admits every turn, and notes how it ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str]] = []
        self.upstream = Deaf()
        self.admission, self.settler, self.journal = self, self, self
        self.available = True

    def authorize(self, x: Exchange) -> None:
        assert x.model == "live-1"

    async def admit(self, x: Exchange) -> None:
        """There is always room."""

    def begin(self, x: Exchange) -> Any:
        return SimpleNamespace(encode=None)

    def append(self, payload: object, then: Any) -> None:
        then(None)

    def next_id(self, at_ms: int) -> str:
        return "0199" + "1" * 28

    def interrupt(self, x: Exchange, tap: object, outcome: str, why: str) -> None:
        self.ends.append((outcome, why))

    async def dial(self, x: Exchange, choice: object) -> Deaf:
        return self.upstream


async def ending(front: Open, office: Office, *frames: bytes) -> tuple[int, str]:
    """The close code and its reason, after the client has said `frames`."""
    sessions = Sessions(office, lambda *_: None, office)  # type: ignore[arg-type]
    there = SimpleNamespace(name="google", operations={"live": SimpleNamespace(dialect="gemini")})
    choice: Any = SimpleNamespace(
        upstream=there, mirror=SimpleNamespace(name="a"), credential=SimpleNamespace(name="b"), model="live-1"
    )

    async def handle(x: Exchange) -> None:
        x.dialect, x.operation = DIALECTS["gemini"], LIVE
        x.route = SimpleNamespace(default_model=None)  # type: ignore[assignment]
        x.heads = SimpleNamespace(snapshot=SimpleNamespace(dialects=DIALECTS))  # type: ignore[assignment]
        await sessions.serve(x, lambda _: [choice])

    opened = await front(handle)
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(f"http://127.0.0.1:{opened.port}/ws/live") as socket,
    ):
        for frame in frames:
            await socket.send_bytes(frame)
        message = await socket.receive()
        assert message.type is aiohttp.WSMsgType.CLOSE
        return message.data, message.extra


async def test_a_client_that_says_nothing_is_told_that_it_was_waited_for(
    open_front: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime, "FIRST_FRAME_S", 0.05)
    assert await ending(open_front, Office()) == (realtime.POLICY, "request_timeout")


async def test_an_upstream_that_takes_no_first_frame_ends_the_session_and_costs_nothing(
    open_front: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realtime._send, "__defaults__", (0.05,))
    monkeypatch.setattr("proxy.ledger.entry.encode", lambda _: b"")
    office = Office()
    assert await ending(open_front, office, SETUP) == (realtime.POLICY, "upstream_closed")
    assert office.ends == [(FAILED, "upstream_closed")]
