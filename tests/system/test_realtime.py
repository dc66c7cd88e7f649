"""Sessions over a WebSocket: every frame as it was, every turn a bill, every end a clean one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from proxy.metering.usage import Usage
from proxy.store.audit import audit
from proxy.store.catalog import Catalog
from tests.conftest import Databases
from tests.fakes.socket_server import Frame, SocketServer
from tests.station import Station
from tests.waiting import DEADLINE_S, until, wait_for

ROUTES = """
upstreams:
  voice:
    dialect: openai
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:CANARY}}"}}
  google:
    dialect: gemini
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:CANARY}}"}}
  grumpy:
    dialect: openai
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:CANARY}}"}}
models:
  grumpy-*: {{candidates: [{{upstream: grumpy}}]}}
  voice-*: {{candidates: [{{upstream: voice}}]}}
  voice-alias: {{candidates: [{{upstream: voice, as: voice-theirs}}]}}
  hearing-1: {{candidates: [{{upstream: voice}}]}}
  live-*: {{candidates: [{{upstream: google}}]}}
routes:
  - {{path: /v1/realtime, default_model: voice-default}}
prices:
  grumpy-*: {{input: 1 USD, output: 4 USD}}
  voice-*: {{input: 1 USD, cache_read: 0.1 USD, input_audio: 10 USD, output: 4 USD, output_audio: 20 USD}}
  live-*: {{input: 1 USD, input_audio: 10 USD, output: 4 USD, output_audio: 20 USD}}
  hearing-1: {{second: 0.001 USD}}
tiers:
  Free: {{rank: 0, models: ["*"]}}
"""

CANARY = "sk-upstream-canary-voice"


def text(**event: Any) -> Frame:
    return {"dir": "server", "kind": "text", "data": json.dumps(event)}


def said(**event: Any) -> Frame:
    return {"dir": "client", "kind": "text", "data": json.dumps(event)}


CREATED = text(type="session.created", session={"model": "voice-1"})
ASK = said(type="response.create")


def done(output: int = 5, **usage: Any) -> Frame:
    figures = {"input_tokens": 10, "output_tokens": output, "total_tokens": 10 + output, **usage}
    return text(type="response.done", response={"id": "resp_1", "status": "completed", "usage": figures})


@pytest.fixture(scope="module")
def vendor() -> Iterator[SocketServer]:
    with SocketServer() as server:
        yield server


@pytest.fixture(scope="module")
def station(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, vendor: SocketServer
) -> Iterator[Station]:
    config = ROUTES.format(url=vendor.url)
    running = Station(
        tmp_path_factory.mktemp("voice") / "data", config, databases.take(), environ={"CANARY": CANARY}
    )
    running.start()
    yield running
    assert running.stop() == 0
    assert CANARY not in running.log() and "Traceback" not in running.log()


@asynccontextmanager
async def session(
    station: Station, path: str, key: str, **options: Any
) -> AsyncIterator[ClientWebSocketResponse[bool]]:
    options.setdefault("headers", {"Authorization": f"Bearer {key}"})
    async with (
        ClientSession() as client,
        client.ws_connect(
            station.url + path, autoclose=False, autoping=False, decode_text=False, max_msg_size=0, **options
        ) as socket,
    ):
        yield socket


async def play(socket: ClientWebSocketResponse[bool], frames: list[Frame]) -> list[tuple[str, bytes]]:
    """The client's part of a script; what the server said."""
    heard: list[tuple[str, bytes]] = []
    for frame in frames:
        if frame["dir"] == "client":
            await socket.send_frame(frame["data"].encode(), WSMsgType[frame["kind"].upper()])
        elif frame["kind"] != "close":
            message = await socket.receive(timeout=DEADLINE_S)
            heard.append((message.type.name.lower(), message.data))
    return heard


async def turns(station: Station, key: str, count: int) -> list[dict[str, Any]]:
    """The usage rows of a key, once there are so many."""
    sql = (
        "SELECT u.* FROM usage u JOIN api_key k ON k.id = u.key "
        f"WHERE k.digest = sha256('{key}'::bytea) ORDER BY u.id"
    )

    async def there() -> list[dict[str, Any]] | None:
        rows = await station.rows(sql)
        return rows if len(rows) >= count else None

    return list(await until(there, f"{count} rows"))


def usage_of(row: dict[str, Any]) -> Usage:
    raw = row["usage"]
    return Usage.from_dict(orjson.loads(raw) if isinstance(raw, str | bytes) else raw)


# -- turns -----------------------------------------------------------------------------------------


async def test_each_turn_is_a_call_of_the_session(station: Station, vendor: SocketServer) -> None:
    key = await station.customer("turns")
    script = [CREATED, ASK, done(5), ASK, done(7)]
    vendor.script("voice-turns", script)
    async with session(station, "/v1/realtime?model=voice-turns", key) as socket:
        await play(socket, script)
        rows = await turns(station, key, 2)
        await socket.close()
    assert [usage_of(row).output for row in rows[:2]] == [5, 7]
    assert {row["operation"] for row in rows[:2]} == {"realtime"}
    assert [row["cost_nanos"] for row in rows[:2]] == [30_000, 38_000]  # (10 + 4 x output) micro-USD


async def test_a_session_without_a_turn_costs_nothing(station: Station, vendor: SocketServer) -> None:
    key = await station.customer("silent")
    vendor.script("voice-silent", [CREATED])
    async with session(station, "/v1/realtime?model=voice-silent", key) as socket:
        await play(socket, [CREATED])
        await socket.close()
    (row,) = await turns(station, key, 1)
    assert (row["cost_nanos"], row["outcome"]) == (0, "failed")


async def test_a_turn_that_is_broken_off_is_billed_for_what_was_said(
    station: Station, vendor: SocketServer
) -> None:
    key = await station.customer("broken")
    sound = text(type="response.output_audio.delta", delta="A" * 6400)
    words = text(type="response.output_audio_transcript.delta", delta="one two three four")
    vendor.script("voice-broken", [CREATED, ASK, sound, words])
    async with session(station, "/v1/realtime?model=voice-broken", key) as socket:
        await play(socket, [CREATED, ASK, sound, words])
        await socket.close()
    (row,) = await turns(station, key, 1)
    assert row["outcome"] == "interrupted_client" and row["provenance"] == "early"
    assert usage_of(row).output_audio == 2 and usage_of(row).output == 4


async def test_what_was_heard_is_billed_at_the_transcribers_price(
    station: Station, vendor: SocketServer
) -> None:
    key = await station.customer("heard")
    updated = text(
        type="session.updated", session={"audio": {"input": {"transcription": {"model": "hearing-1"}}}}
    )
    heard = text(
        type="conversation.item.input_audio_transcription.completed",
        item_id="item_1",
        usage={"type": "duration", "seconds": 3},
    )
    script = [CREATED, updated, ASK, heard, done()]
    vendor.script("voice-heard", script)
    async with session(station, "/v1/realtime?model=voice-heard", key) as socket:
        await play(socket, script)
        rows = await turns(station, key, 2)
        await socket.close()
    costs = {row["operation"]: (row["model"], row["cost_nanos"]) for row in rows[:2]}
    assert costs["realtime.transcript"] == ("hearing-1", 3_000_000)
    assert costs["realtime"] == ("voice-heard", 30_000)


async def test_the_next_turn_is_refused_without_credit(station: Station, vendor: SocketServer) -> None:
    """Balance is looked at for each turn; the one that was paid for is delivered."""
    key = await station.customer("poor", credit_nanos=67_000_000)
    script = [CREATED, ASK, done(16_000), ASK, done()]
    vendor.script("voice-poor", script)
    async with session(station, "/v1/realtime?model=voice-poor", key) as socket:
        heard = await play(socket, script[:3])
        assert len(heard) == 2
        refused = await socket.receive(timeout=DEADLINE_S)
        assert orjson.loads(refused.data)["error"]["code"] == "insufficient_quota"
        closed = await socket.receive(timeout=DEADLINE_S)
        assert (closed.type, closed.data, closed.extra) == (WSMsgType.CLOSE, 1008, "insufficient_quota")


# -- handshakes ------------------------------------------------------------------------------------


async def test_the_key_may_be_a_subprotocol_and_never_reaches_the_vendor(
    station: Station, vendor: SocketServer
) -> None:
    key = await station.customer("browser")
    vendor.script("voice-browser", [CREATED])
    protocols = ("realtime", f"openai-insecure-api-key.{key}", "openai-beta.realtime-v1")
    path = "/v1/realtime?model=voice-browser"
    async with session(station, path, "", headers={}, protocols=protocols) as socket:
        assert socket.protocol == "realtime"
        await play(socket, [CREATED])
    seen = vendor.sessions[-1]
    assert seen.headers["sec-websocket-protocol"] == "realtime,openai-beta.realtime-v1"
    assert seen.headers["authorization"] == f"Bearer {CANARY}"
    assert key not in str(seen.headers) + seen.path


async def test_the_model_is_called_as_it_is_there(station: Station, vendor: SocketServer) -> None:
    key = await station.customer("alias")
    vendor.script("voice-theirs", [CREATED])
    async with session(station, "/v1/realtime?model=voice-alias&call_id=x", key) as socket:
        await play(socket, [CREATED])
    assert vendor.sessions[-1].path == "/v1/realtime?model=voice-theirs"


REFUSED = {
    "unknown key": ("/v1/realtime?model=voice-1", "sk-wrong", 401),
    "unknown model": ("/v1/realtime?model=nobody", None, 404),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refused_handshake_is_an_error_in_http(station: Station, case: str) -> None:
    path, key, status = REFUSED[case]
    key = key or await station.customer(case)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with session(station, path, key):
            pass
    assert refused.value.status == status


async def test_a_request_that_is_no_handshake_is_told_so(station: Station) -> None:
    key = await station.customer("plain")
    async with (
        ClientSession() as client,
        client.get(
            f"{station.url}/v1/realtime?model=voice-1", headers={"Authorization": f"Bearer {key}"}
        ) as answer,
    ):
        assert answer.status == 400
        assert "WebSocket" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize(("theirs", "ours"), [(404, 404), (500, 502), (401, 502)])
async def test_a_vendor_that_refuses_costs_nothing(
    station: Station, vendor: SocketServer, theirs: int, ours: int
) -> None:
    key = await station.customer(f"refused {theirs}")
    vendor.refuses_with = theirs
    try:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with session(station, f"/v1/realtime?model=grumpy-{theirs}", key):
                pass
    finally:
        vendor.refuses_with = None
    assert refused.value.status in (ours, 503)
    (row,) = await turns(station, key, 1)
    assert row["cost_nanos"] == 0


# -- ends ------------------------------------------------------------------------------------------


async def test_close_codes_and_pings_pass(station: Station, vendor: SocketServer) -> None:
    key = await station.customer("signs")
    ping = {"dir": "server", "kind": "ping", "data": "are you there"}
    script = [CREATED, ping, {"dir": "client", "kind": "ping", "data": "me too"}]
    vendor.script("voice-signs", [*script, {"dir": "server", "kind": "close", "data": "3001"}])
    async with session(station, "/v1/realtime?model=voice-signs", key) as socket:
        assert (await play(socket, script))[1] == ("ping", b"are you there")
        closed = await socket.receive(timeout=DEADLINE_S)
        assert (closed.type, closed.data) == (WSMsgType.CLOSE, 3001)
    assert (WSMsgType.PING, b"me too") in vendor.sessions[-1].received


async def test_a_client_that_vanishes_leaves_nothing_open(station: Station, vendor: SocketServer) -> None:
    key = await station.customer("vanishes")
    vendor.script("voice-vanishes", [CREATED, ASK])
    async with session(station, "/v1/realtime?model=voice-vanishes", key) as socket:
        await play(socket, [CREATED, ASK])
        socket._response.connection.transport.abort()
    wait_for(vendor.sessions[-1].ended.is_set, "the vendor's end")
    (row,) = await turns(station, key, 1)
    assert row["cost_nanos"] == 0


async def test_a_frame_of_twelve_megabytes_passes_compressed_or_not(
    station: Station, vendor: SocketServer
) -> None:
    key = await station.customer("large")
    sound = said(type="input_audio_buffer.append", audio="A" * (12 << 20))
    for compress in (0, 15):
        vendor.script("voice-large", [CREATED, sound, done()])
        path = "/v1/realtime?model=voice-large"
        async with session(station, path, key, compress=compress) as socket:
            await play(socket, [CREATED, sound, done()])
            await socket.close()
        assert vendor.sessions[-1].received[0] == (WSMsgType.TEXT, sound["data"].encode())


# -- floods ----------------------------------------------------------------------------------------

WAIT: Frame = {"dir": "server", "kind": "wait"}
FLOODS = {  # (kind, payload, how many)
    "large frames": ("text", "A" * (256 << 10), 400),
    "small frames": ("text", json.dumps({"type": "x", "pad": "A" * 4096}), 8_000),
}
GROWTH_MAX = 16 << 20


def worker_bytes(station: Station) -> int:
    pid = station.child("w0")
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def stands_still(count: Callable[[], int]) -> int:
    """What is counted, once it does not grow any more."""
    known = -1
    async with asyncio.timeout(DEADLINE_S):
        while known != (known := count()):
            await asyncio.sleep(0.25)
    return known


async def another_is_served(station: Station, vendor: SocketServer, name: str) -> None:
    key = await station.customer(f"beside {name}")
    vendor.script("voice-beside", script := [CREATED, ASK, done()])
    async with session(station, "/v1/realtime?model=voice-beside", key) as socket:
        assert len(await play(socket, script)) == 2


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_vendor_that_floods_waits_for_a_slow_client(
    station: Station, vendor: SocketServer, flood: str
) -> None:
    kind, data, times = FLOODS[flood]
    key = await station.customer(f"slow reader of {flood}")
    vendor.script("voice-flooding", [CREATED, *[{"dir": "server", "kind": kind, "data": data}] * times])
    before = worker_bytes(station)
    async with session(station, "/v1/realtime?model=voice-flooding", key) as socket:
        await play(socket, [CREATED])
        played = vendor.sessions[-1]
        assert await stands_still(lambda: played.sent) < times
        await another_is_served(station, vendor, f"vendor {flood}")
        assert worker_bytes(station) - before < GROWTH_MAX
        for _ in range(times):
            assert (await socket.receive(timeout=DEADLINE_S)).data == data.encode()
        await socket.close()
    wait_for(played.ended.is_set, "the vendor's end")
    assert played.sent == times + 1


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_client_that_floods_waits_for_a_slow_vendor(
    station: Station, vendor: SocketServer, flood: str
) -> None:
    kind, data, times = FLOODS[flood]
    key = await station.customer(f"flooder with {flood}")
    frame = {"dir": "client", "kind": kind, "data": data}
    vendor.script("voice-flooded", [CREATED, WAIT, *[frame] * times])
    before = worker_bytes(station)
    sent = 0
    async with session(station, "/v1/realtime?model=voice-flooded", key) as socket:

        async def pour() -> None:
            nonlocal sent
            for _ in range(times):
                await play(socket, [frame])
                sent += 1

        await play(socket, [CREATED])
        pouring = asyncio.create_task(pour())
        assert await stands_still(lambda: sent) < times
        await another_is_served(station, vendor, f"client {flood}")
        assert worker_bytes(station) - before < GROWTH_MAX
        played = next(
            played
            for played in vendor.sessions
            if "voice-flooded" in played.path and not played.ended.is_set()
        )
        played.go_on.set()
        await asyncio.wait_for(pouring, 60)
        await socket.close()
    wait_for(played.ended.is_set, "the vendor's end")
    assert [message for _, message in played.received[:times]] == [data.encode()] * times


async def test_a_client_that_does_not_read_can_be_cut_off(station: Station, vendor: SocketServer) -> None:
    key = await station.customer("deaf")
    sound = text(type="response.output_audio.delta", delta="A" * (256 << 10))
    vendor.script("voice-deaf", [CREATED, ASK, *[sound] * 400])
    async with session(station, "/v1/realtime?model=voice-deaf", key) as socket:
        await play(socket, [CREATED, ASK])
        played = vendor.sessions[-1]
        await stands_still(lambda: played.sent)
        database = await station.open_database()
        try:
            await Catalog(database).set_account("deaf", status="frozen")
        finally:
            await database.close()
        assert await asyncio.to_thread(played.ended.wait, 30)
    (row,) = await turns(station, key, 1)
    assert row["outcome"] == "cut"


@pytest.mark.parametrize("compress", [0, 15], ids=["plain", "a bomb"])
async def test_a_frame_beyond_every_limit_ends_its_session_only(
    station: Station, vendor: SocketServer, compress: int
) -> None:
    key = await station.customer(f"too large {compress}")
    vendor.script("voice-too-large", [CREATED, ASK])
    before = worker_bytes(station)
    path = "/v1/realtime?model=voice-too-large"
    async with session(station, path, key, compress=compress) as socket:
        await play(socket, [CREATED])
        with contextlib.suppress(ConnectionError):
            await socket.send_frame(bytes(64 << 20), WSMsgType.BINARY)
        ended = await socket.receive(timeout=DEADLINE_S)
        assert ended.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)
        assert ended.type is not WSMsgType.CLOSE or ended.data == 1009
    wait_for(vendor.sessions[-1].ended.is_set, "the vendor's end")
    assert worker_bytes(station) - before < 2 * GROWTH_MAX
    await another_is_served(station, vendor, f"too large {compress}")


async def test_a_revoked_key_ends_its_sessions_in_words(station: Station, vendor: SocketServer) -> None:
    key = await station.customer("revoked")
    words = text(type="response.output_text.delta", delta="one two")
    vendor.script("voice-revoked", [CREATED, ASK, words])
    async with session(station, "/v1/realtime?model=voice-revoked", key) as socket:
        await play(socket, [CREATED, ASK, words])
        database = await station.open_database()
        try:
            await Catalog(database).set_account("revoked", status="frozen")
        finally:
            await database.close()
        told = await socket.receive(timeout=DEADLINE_S)
        assert orjson.loads(told.data)["type"] == "error"
        closed = await socket.receive(timeout=DEADLINE_S)
        assert (closed.type, closed.data) == (WSMsgType.CLOSE, 1008)
    (row,) = await turns(station, key, 1)
    assert row["outcome"] == "cut" and usage_of(row).output == 2


@pytest.fixture
def stopping(tmp_path: Path, databases: Databases, vendor: SocketServer) -> Iterator[Station]:
    config = ROUTES.format(url=vendor.url)
    running = Station(tmp_path / "data", config, databases.take(), environ={"CANARY": CANARY})
    yield running.start()
    running.kill()


async def test_a_worker_that_stops_lets_a_turn_end(stopping: Station, vendor: SocketServer) -> None:
    key = await stopping.customer("drained")
    words = text(type="response.output_text.delta", delta="one two")
    go_on = said(type="go on")
    vendor.script("voice-idle", [CREATED])
    vendor.script("voice-busy", [CREATED, ASK, words, go_on, done()])
    path = "/v1/realtime?model=voice-"
    async with session(stopping, path + "idle", key) as idle, session(stopping, path + "busy", key) as busy:
        await play(idle, [CREATED])
        await play(busy, [CREATED, ASK, words])
        assert stopping.process is not None
        stopping.process.terminate()
        await idle.receive(timeout=DEADLINE_S)  # the error event
        closed = await idle.receive(timeout=DEADLINE_S)
        assert (closed.type, closed.data) == (WSMsgType.CLOSE, 1012)
        assert (await play(busy, [go_on, done()]))[0][1] == done()["data"].encode()
        closed = await busy.receive(timeout=DEADLINE_S)
        assert (closed.type, closed.data) == (WSMsgType.CLOSE, 1012)
    status = await asyncio.to_thread(stopping.process.wait, 30)
    assert status == 0


async def test_the_books_are_clean(station: Station) -> None:
    database = await station.open_database()
    try:
        findings = await audit(database)
    finally:
        await database.close()
    assert findings == []
