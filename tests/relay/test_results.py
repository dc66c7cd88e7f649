"""Kept files are served within bounds: to so many at once, without holding them in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.links import Home, Linker
from proxy.errors import Overloaded, StationFault, UnknownId
from proxy.relay import results
from proxy.relay.results import AT_ONCE, AT_ONCE_EACH, READ_BYTES, ResultPages, span_of
from proxy.routing.results import path_of
from proxy.snapshot import Snapshot
from proxy.telemetry import Stats
from tests.fakes.calls import call
from tests.routing.compiling import MINIMAL, compile_text
from tests.waiting import until

LINKER = Linker(b"s" * 32)
ID = LINKER.id_of(Home("one", "main", "t"), "0")
CONTENT = bytes(range(256)) * (READ_BYTES // 128)  # two reads


class Client:
    """Takes nothing more from its first byte on, until it is told to."""

    is_gone = is_paused = False

    def __init__(self, *, is_slow: bool = False) -> None:
        self.received = b""
        self.is_slow = is_slow
        self.x: Any = None

    def write(self, data: bytes) -> None:
        self.received += data
        if self.is_slow:
            self.x.pump.client_paused()

    def go_on(self) -> None:
        self.is_slow = False
        self.x.pump.client_resumed()

    @property
    def body(self) -> bytes:
        return self.received.partition(b"\r\n\r\n")[2]


class Control:
    """What the channel brings."""

    def __init__(self, **told: Any) -> None:
        self.told = {"state": "kept", "shelf": "directory", "size": len(CONTENT), "type": "image/png",
                     "etag": "e" * 32, "until_ms": 2_000_000, **told}  # fmt: skip
        self.asked = 0

    async def call_again(self, op: str, args: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert (op, args) == ("result", {"id": ID})
        self.asked += 1
        return self.told


class Rig:
    def __init__(self, folder: Path) -> None:
        text = MINIMAL + f"results: {{keep: {{directory: {folder / 'kept'}}}}}"
        self.snapshot = Snapshot.from_document(compile_text(text).document)
        self.path = folder / "kept" / path_of(ID)
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(CONTENT)
        self.control = Control()
        self.now_ms = 1_000_000
        self.linker: Linker | None = LINKER
        self.pages = ResultPages(
            self.control,  # type: ignore[arg-type]
            lambda: self.linker,
            folder,
            lambda: self.now_ms,
            Stats(),
        )

    def call(self, client: Client, address: str = "10.0.0.1") -> Any:
        client.x = call(
            "/x", method="GET", path=f"/results/{ID}", snapshot=self.snapshot, client=client, address=address
        )
        return client.x

    async def get(self, **how: Any) -> Client:
        client = Client()
        await self.pages.serve(self.call(client, **how))
        return client


@pytest.fixture
async def rig(tmp_path):
    rig = Rig(tmp_path)
    yield rig
    await rig.pages.close()


async def test_a_file_goes_out_whole(rig):
    client = await rig.get()
    assert client.body == CONTENT and client.x.response_bytes == len(CONTENT)
    assert client.x.pump is None


async def test_so_many_at_once_and_so_many_of_one_address(rig):
    slow = [Client(is_slow=True) for _ in range(AT_ONCE)]
    tasks = []
    for number, client in enumerate(slow):
        x = rig.call(client, address=f"10.0.0.{number // AT_ONCE_EACH}")
        tasks.append(asyncio.ensure_future(rig.pages.serve(x)))
    await until(lambda: all(client.received for client in slow))
    assert all(len(client.body) == READ_BYTES for client in slow)  # no more is read than is taken
    for address in ("10.0.0.0", "10.9.9.9"):
        with pytest.raises(Overloaded):
            await rig.get(address=address)
    slow[0].go_on()
    await tasks[0]
    assert slow[0].body == CONTENT
    assert (await rig.get(address="10.0.0.0")).body == CONTENT
    tasks[1].cancel()  # its client has left
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    slow[2].go_on()
    await tasks[2]
    assert len(await asyncio.gather(*(rig.get(address="10.0.0.0") for _ in range(2)))) == 2
    for client in slow[3:]:
        client.go_on()
    await asyncio.gather(*tasks[3:])
    assert rig.pages._sending.total() == 0


async def test_control_is_asked_once_for_a_while(rig):
    for _ in range(5):
        await rig.get()
    assert rig.control.asked == 1
    rig.now_ms += results.KNOWN_MS
    await rig.get()
    assert rig.control.asked == 2


async def test_a_file_that_is_not_there_is_asked_for_anew(rig):
    await rig.get()
    rig.path.unlink()
    with pytest.raises(StationFault):
        await rig.get()
    rig.control.told = {"state": "gone"}
    with pytest.raises(UnknownId) as refused:
        await rig.get()
    assert refused.value.status == 410


async def test_a_file_that_has_changed_is_not_served(rig):
    rig.path.write_bytes(CONTENT[:-1])
    with pytest.raises(StationFault):
        await rig.get()


async def test_without_the_stations_secret_nothing_is_served(rig):
    rig.linker = None
    with pytest.raises(StationFault):
        await rig.get()


async def test_what_lies_on_another_shelf_than_the_file_names_is_not_found_by_chance(rig):
    rig.control.told["shelf"] = "bucket"
    with pytest.raises(StationFault):
        await rig.get()


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_parts_are_those_of_rfc_9110(size, first, last):
    content = bytes(range(50))[:size]

    def part(asked: str) -> bytes | None:
        span = span_of(asked, size)
        return None if span is None else content[span.first : span.first + span.size]

    assert part(f"bytes={first}-") == (content[first:] if first < size else None)
    assert part(f"bytes=-{last}") == ((content[-last:] if last else None) if size and last else None)
    if first <= last:
        assert part(f"bytes={first}-{last}") == (content[first : last + 1] if first < size else None)
    else:
        assert part(f"bytes={first}-{last}") == content
