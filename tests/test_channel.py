"""Both ends of the channel over a real unix socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from proxy import channel, telemetry
from proxy.channel import (
    CallFailed,
    Channel,
    ChannelDown,
    ChannelServer,
    ChannelTimeout,
    Peer,
)
from tests.waiting import until


class Control:
    """A control that counts and echoes; the listener outlives it, as the supervisor's does."""

    def __init__(self) -> None:
        self.greeted: list[str] = []
        self.lost: list[str] = []
        self.told: list[dict] = []
        self.never = asyncio.Event()
        self.server = ChannelServer(
            self.hello,
            lambda peer: self.lost.append(peer.incarnation),
            {"echo": lambda peer, args: args, "later": self.later, "note": self.note, "bad": self.bad},
        )

    def hello(self, peer: Peer, args: dict) -> dict:
        self.greeted.append(peer.incarnation)
        return {"generation": 7}

    async def later(self, peer: Peer, args: dict) -> dict:
        if args.get("never"):
            await self.never.wait()
        await asyncio.sleep(0)
        return {"slot": peer.slot}

    def note(self, peer: Peer, args: dict) -> None:
        self.told.append(args)

    def bad(self, peer: Peer, args: dict) -> dict:
        raise ZeroDivisionError


@pytest.fixture
def listener(tmp_path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "channel.sock"))
    sock.listen()
    sock.setblocking(False)
    yield sock
    sock.close()


@pytest.fixture
async def control(listener: socket.socket) -> AsyncIterator[Control]:
    control = Control()
    await control.server.start(listener)
    yield control
    control.server.close()


@pytest.fixture
async def worker(listener: socket.socket) -> AsyncIterator[Channel]:
    made = worker_end(listener)
    made.start()
    yield made
    await telemetry.cancel_all()


def worker_end(
    listener: socket.socket, handlers: dict | None = None, welcomes: list[dict] | None = None
) -> Channel:
    return Channel(
        listener.getsockname(),
        lambda: {"slot": 3, "incarnation": "w3-1", "pid": os.getpid()},
        handlers or {},
        (welcomes if welcomes is not None else []).append,
    )


async def test_a_call_is_answered_by_plain_and_by_async_handlers(control: Control, worker: Channel) -> None:
    assert await worker.call("echo", {"a": [1, "ü"]}, 5) == {"a": [1, "ü"]}
    assert await worker.call("later", {}, 5) == {"slot": 3}
    assert control.greeted == ["w3-1"]


async def test_calls_in_flight_do_not_wait_for_each_other(control: Control, worker: Channel) -> None:
    slow = asyncio.ensure_future(worker.call("later", {"never": True}, 5))
    assert await worker.call("echo", {"n": 1}, 5) == {"n": 1}
    assert not slow.done()
    control.never.set()
    assert await slow == {"slot": 3}


async def test_a_failing_handler_fails_its_call_and_nothing_else(control: Control, worker: Channel) -> None:
    with pytest.raises(CallFailed):
        await worker.call("bad", {}, 5)
    with pytest.raises(CallFailed):
        await worker.call("no such op", {}, 5)
    assert await worker.call("echo", {}, 5) == {}


async def test_a_call_without_an_answer_times_out(control: Control, worker: Channel) -> None:
    await worker.call("echo", {}, 5)
    with pytest.raises(ChannelTimeout):
        await worker.call("later", {"never": True}, 0.02)


async def test_an_answer_that_comes_too_late_is_handed_over(control: Control, worker: Channel) -> None:
    came: list[dict] = []
    await worker.call("echo", {}, 5)
    with pytest.raises(ChannelTimeout):
        await worker.call("later", {"never": True}, 0.02, came.append)
    assert came == []
    control.never.set()
    await until(lambda: came == [{"slot": 3}])
    assert not worker._waiting


async def test_no_answer_is_handed_over_when_control_goes_away(control: Control, worker: Channel) -> None:
    came: list[dict] = []
    await worker.call("echo", {}, 5)
    with pytest.raises(ChannelTimeout):
        await worker.call("later", {"never": True}, 0.02, came.append)
    control.server.close()
    await until(lambda: not worker._waiting)
    assert came == []


async def test_a_worker_whose_control_never_answered_hello_is_not_connected(listener: socket.socket) -> None:
    worker = worker_end(listener)  # the kernel accepts the connection, no control does
    worker.start()
    with pytest.raises(ChannelDown):
        await worker.call("echo", {}, 0.05)
    assert not worker.connected
    assert worker.notify("note", {}) is False
    await telemetry.cancel_all()


async def test_calls_survive_a_change_of_control(listener: socket.socket) -> None:
    welcomes: list[dict] = []
    worker = worker_end(listener, welcomes=welcomes)
    worker.start()
    for round_ in range(3):
        control = Control()
        await control.server.start(listener)
        assert await worker.call("echo", {"round": round_}, 5) == {"round": round_}
        pending = asyncio.ensure_future(worker.call("later", {"never": True}, 5))
        await worker.call("echo", {}, 5)
        control.server.close()
        with pytest.raises(ChannelDown):
            await pending
        await until(lambda: not worker.connected)
    assert welcomes == [{"generation": 7}] * 3
    await telemetry.cancel_all()


async def test_control_learns_of_a_lost_worker_once(control: Control, listener: socket.socket) -> None:
    worker = worker_end(listener)
    worker.start()
    await worker.call("echo", {}, 5)
    await telemetry.cancel_all()
    worker._link.abort()
    await until(lambda: control.lost == ["w3-1"])
    assert control.server.peers == []


async def test_messages_from_control_arrive_in_order(control: Control, listener: socket.socket) -> None:
    seen: list[int] = []
    worker = worker_end(listener, {"tick": lambda args: seen.append(args["n"])})
    worker.start()
    await worker.wait_connected()
    for n in range(500):
        control.server.broadcast("tick", {"n": n, "fill": "x" * 1000})
    await until(lambda: len(seen) == 500)
    assert seen == list(range(500))
    await telemetry.cancel_all()


async def test_frames_may_be_cut_anywhere(listener: socket.socket) -> None:
    control = Control()
    await control.server.start(listener)
    hello = {"op": "hello", "id": 1, "args": {"slot": 0, "incarnation": "w0-1", "pid": 1}}
    wire = b"".join(
        len(d).to_bytes(4, "big") + d
        for d in map(orjson.dumps, [hello, *({"op": "note", "args": {"n": n}} for n in range(5))])
    )
    _, writer = await asyncio.open_unix_connection(listener.getsockname())
    for byte in wire:
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    await until(lambda: len(control.told) == 5)
    assert [args["n"] for args in control.told] == list(range(5))
    writer.close()
    control.server.close()


async def test_a_message_over_the_bound_is_refused_at_both_ends(control: Control, worker: Channel) -> None:
    await worker.call("echo", {}, 5)
    with pytest.raises(ValueError, match="message"):
        worker.notify("note", {"x": "y" * channel.MESSAGE_BYTES_MAX})
    reader, writer = await asyncio.open_unix_connection(worker._path)
    writer.write((channel.HELLO_BYTES_MAX + 1).to_bytes(4, "big"))
    assert await reader.read() == b""
    writer.close()
    assert await worker.call("echo", {"still": 1}, 5) == {"still": 1}


async def test_a_worker_may_hold_more_than_fits_into_another_message(
    control: Control, listener: socket.socket
) -> None:
    slices = [[account, "f" * 32, 10**12] for account in range(20_000)]
    hello = {"slot": 3, "incarnation": "w3-1", "pid": os.getpid(), "slices": slices}
    worker = Channel(listener.getsockname(), lambda: hello, {})
    worker.start()
    async with asyncio.timeout(30):
        await worker.wait_connected()
        assert await worker.call("echo", {"x": 1}, 30) == {"x": 1}
    await telemetry.cancel_all()


async def test_whatever_is_said_before_hello_is_not_served(control: Control, listener: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(listener.getsockname())
    data = orjson.dumps({"op": "echo", "id": 9, "args": {}})
    writer.write(len(data).to_bytes(4, "big") + data)
    head = await reader.readexactly(4)
    assert "error" in orjson.loads(await reader.readexactly(int.from_bytes(head, "big")))
    writer.close()
