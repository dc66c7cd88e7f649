"""Replay recordings through a relay of our own, one after the other, and judge what came of each.

Owns the client's part and the order of things: all calls first, then their bills, which the relay writes a
moment later.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import aiohttp
import orjson
from aiohttp import WSMsgType

from proxy.conform import verdict
from proxy.conform.plan import CREDENTIAL, Plan, Replay, compiled, plan, with_key
from proxy.conform.player import Answer, Player, SocketPlayer
from proxy.conform.recordings import Frame, Recording
from proxy.conform.relay import Relay, Row
from proxy.conform.verdict import Outcome, Result, result
from proxy.dialects.owned import found
from proxy.metering.usage import Usage
from proxy.snapshot import Snapshot

SECRET = "conform:sk-upstream-conform-0123456789abcdef"  # noqa: S105 - of no vendor; must reach no client
CODINGS = ("identity", "gzip")
FRAME_S = 20.0
PATIENCE = aiohttp.ClientTimeout(total=180.0)  # a live model may think
FRAMING = frozenset({
    "connection", "content-encoding", "content-length", "keep-alive", "transfer-encoding", "upgrade",
})  # fmt: skip

Say = Callable[[str], None]


AnswerTo = Callable[[Replay, str], Answer]


def answer_to(replay: Replay, coding: str) -> Answer:
    """What was recorded, in a coding."""
    recording = replay.recording
    headers = [(n, v) for n, v in recording.headers.items() if n not in FRAMING]
    answer = Answer(recording.method, recording.status, headers, recording.body)
    if coding != "identity":
        answer.coding, answer.coded = coding, gzip.compress(recording.body)
    return answer


async def run(
    recordings: Sequence[Recording], seed: int, say: Say, dsn: str = "", *,
    answer_to: AnswerTo = answer_to, secret: str = SECRET,
) -> list[Result]:  # fmt: skip
    """Every recording, each over HTTP once per coding. `dsn`: an empty database; "": an embedded one.
    `answer_to`: what the vendor's part is; `secret`: what it is shown.

    Raises StateError where the relay does not run, ConfigError where this build cannot serve a vendor.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-conform-")))
        stage = Stage(
            await stack.enter_async_context(Player(seed)),
            await stack.enter_async_context(SocketPlayer()),
            answer_to,
            secret.rpartition(":")[2],
        )
        made = plan(recordings, stage.player.url, stage.sockets.url)
        environ = {CREDENTIAL: secret}
        snapshot = Snapshot.from_document(compiled(made.document, environ))
        relay = await stack.enter_async_context(Relay(folder, made.document, environ, dsn))
        client = await stack.enter_async_context(
            aiohttp.ClientSession(auto_decompress=False, timeout=PATIENCE)
        )
        replayer = Replayer(relay, client, stage, snapshot, random.Random(seed))  # noqa: S311
        return await replayer.all(made, say)


@dataclass(frozen=True, slots=True)
class Stage:
    """The vendor's part."""

    player: Player
    sockets: SocketPlayer
    answer_to: AnswerTo
    secret: str  # that must reach no client


@dataclass(frozen=True, slots=True)
class _Heard:
    """An answer as the client got it; names of header fields in lower case."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes


@dataclass(slots=True)
class _Call:
    """A replay whose bill is still to be looked at."""

    replay: Replay
    result: Result
    id: str


class Replayer:
    """The client of one relay."""

    def __init__(
        self, relay: Relay, client: aiohttp.ClientSession, stage: Stage, snapshot: Snapshot,
        chance: random.Random,
    ) -> None:  # fmt: skip
        self._relay, self._client, self._stage = relay, client, stage
        self._snapshot, self._chance = snapshot, chance
        self._key_id, self._key = 0, ""

    async def all(self, made: Plan, say: Say) -> list[Result]:
        self._key_id, self._key = await self._relay.make_key()
        await self._relay.bind(self._key_id, ((r.upstream, id_) for r in made.replays for id_ in r.ids))
        results = [result(r, outcome=Outcome.UNKNOWN, note=why) for r, why in made.unknown]
        here = "the station answers it itself"
        results += [result(r, outcome=Outcome.MAPPED, note=here) for r in made.answered_here]
        calls: list[_Call] = []
        for number, replay in zip(count(1), made.replays, strict=False):
            if number % 50 == 0:
                say(f"{number} of {len(made.replays)} recordings")
            if replay.place.operation.request == "socket":
                results.append(await self._session(replay))
                continue
            codings: Sequence[str] = CODINGS
            if verdict.is_mapped(replay.recording.status, replay.recording.body):
                codings = (self._chance.choice(CODINGS),)  # its credential rests from then on
            calls += [await self._call(replay, coding) for coding in codings]
        await self._bills(calls)
        return sorted([*results, *(call.result for call in calls)], key=lambda r: (r.family, r.name, r.how))

    # -- over HTTP -------------------------------------------------------------------------------------

    async def _call(self, replay: Replay, coding: str) -> _Call:
        answer = self._stage.answer_to(replay, coding)
        answer.is_chunked = self._chance.random() < 0.5
        self._stage.player.say(answer)
        heard = await self._ask(replay, coding)
        recording = answer.recorded(replay.recording)
        replay = replace(replay, recording=recording)
        judged = result(recording, f"{coding} {'chunked' if answer.is_chunked else 'length'}")
        judged.differ(*answer.differences())
        if self._stage.secret.encode() in heard.content:
            judged.differ("the upstream's credential reached the client")
        if answer.asked is None:
            judged.differ(f"the upstream was not asked: {heard.status} {heard.content[:200]!r}")
        elif self._key in f"{answer.asked.target}{answer.asked.headers}":
            judged.differ("the caller's key reached the upstream")
        elif verdict.is_mapped(recording.status, recording.body):
            judged.note = f"{recording.status} is mapped to {heard.status} by policy"
            judged.outcome = Outcome.DIFFERS if judged.differences else Outcome.MAPPED
            if heard.status < 400:
                judged.differ(f"{recording.status} became {heard.status}")
        else:
            self._hold(judged, replay, answer, heard)
        call = dict(heard.headers).get("x-request-id", "").replace("-", "")
        return _Call(replay, judged, call)

    async def _ask(self, replay: Replay, coding: str) -> _Heard:
        """What the client gets; status 0 where it gets no answer."""
        target, headers = with_key(replay, self._key)
        try:
            async with self._client.request(
                replay.recording.method, self._relay.url + target, data=replay.body or None,
                headers={**headers, "accept-encoding": coding},
            ) as response:  # fmt: skip
                received = [(name.lower(), value) for name, value in response.headers.items()]
                try:
                    content = await response.read()
                except (aiohttp.ClientPayloadError, TimeoutError) as e:
                    content = f"[broken off: {e!r}]".encode()
                return _Heard(response.status, received, content)
        except (aiohttp.ClientError, TimeoutError, ValueError) as e:
            return _Heard(0, [], f"[{e!r}]".encode())

    def _hold(self, judged: Result, replay: Replay, answer: Answer, heard: _Heard) -> None:
        """The answer against the recording."""
        assert answer.asked
        if heard.status != answer.status:
            judged.differ(f"status {heard.status}, not {answer.status}")
        offered = self._snapshot.offered(replay.upstream, replay.place.operation.name)
        upstream = self._snapshot.upstream(replay.upstream)
        vendor = self._snapshot.dialects[(offered and offered.dialect) or upstream.dialect]
        caller = self._snapshot.dialects[replay.place.dialect]
        is_coded = answer.coding and answer.sent is answer.coded
        sent = [*answer.headers, ("content-encoding", answer.coding)] if is_coded else answer.headers
        judged.differ(*verdict.path_differences(answer.asked.target, replay.theirs))
        judged.differ(*verdict.header_differences(sent, heard.headers, vendor, upstream.headers, caller))
        differences = list(verdict.byte_differences("body", answer.sent, heard.content))
        judged.bytes_equal = not differences
        judged.differ(*differences)

    async def _bills(self, calls: list[_Call]) -> None:
        due = {
            call.id for call in calls
            if call.replay.place.operation.billed and call.result.outcome is Outcome.EQUAL
            and call.replay.recording.status < 400 and not call.replay.starts_task()
        }  # fmt: skip
        rows = await self._relay.rows(self._key_id, lambda rows: due <= {_hex(row) for row in rows})
        by_id = {_hex(row): row for row in rows}
        for call in calls:
            replay = call.replay
            row = by_id.get(call.id)
            if row is None and (replay.starts_task() or call.result.outcome is not Outcome.EQUAL):
                continue
            differences = list(verdict.bill_differences(replay.recording, replay.place.operation, row))
            if replay.recording.told is not None and replay.place.operation.billed:
                call.result.usage_equal = not differences
            elif row is not None:
                call.result.note = call.result.note or f"its vendor told no usage: {row['provenance']}"
            call.result.differ(*differences)

    # -- over a WebSocket ------------------------------------------------------------------------------

    async def _session(self, replay: Replay) -> Result:
        """With a key of its own, by which its turns are found."""
        recording, judged = replay.recording, result(replay.recording, "websocket")
        key_id, key = await self._relay.make_key()
        frames = tuple(f for f in _renamed(replay) if f["kind"] in ("text", "binary"))
        played = self._stage.sockets.play(frames)
        target, headers = with_key(replay, key)
        heard: list[tuple[str, bytes]] = []
        try:
            async with self._client.ws_connect(
                self._relay.url + target, headers=headers, autoping=False, decode_text=False, max_msg_size=0
            ) as socket:
                for frame in frames:
                    if frame["dir"] == "client":
                        await socket.send_frame(frame["data"].encode(), WSMsgType[frame["kind"].upper()])
                    else:
                        message = await socket.receive(timeout=FRAME_S)
                        heard.append((message.type.name.lower(), _bytes(message.data)))
                await socket.close()
            await asyncio.wait_for(played.ended.wait(), FRAME_S)
        except (aiohttp.ClientError, TimeoutError, ValueError) as e:
            judged.differ(f"the session failed: {e!r}")
            return judged
        differences = [
            *verdict.path_differences(played.target, replay.theirs),
            *_frame_differences("server", frames, heard),
            *_frame_differences("client", frames, played.heard),
        ]
        judged.bytes_equal = not differences
        judged.differ(*differences)
        if recording.told is not None:
            told = recording.told

            def is_enough(rows: list[Row]) -> bool:
                return not list(verdict.usage_differences(told, _total(rows)))

            rows = await self._relay.rows(key_id, is_enough)
            unlike = list(verdict.usage_differences(told, _total(rows)))
            judged.usage_equal = not unlike
            judged.differ(*unlike)
        return judged


def _hex(row: Row) -> str:
    return str(row["id"]).replace("-", "")


def _bytes(data: object) -> bytes:
    return data if isinstance(data, bytes) else str(data).encode()


def _renamed(replay: Replay) -> tuple[Frame, ...]:
    """The frames, with our name for the model where the first one names it."""
    session, frames = replay.place.operation.session, replay.recording.frames
    if session is None or not session.model_in_first or not frames:
        return frames
    first = frames[0]
    for told in found(orjson.loads(first["data"]), session.model_in_first):
        ours = "".join((*str(told).rpartition("/")[:2], replay.model))
        return ({**first, "data": first["data"].replace(str(told), ours, 1)}, *frames[1:])
    return frames


def _frame_differences(side: str, frames: Sequence[Frame], heard: Sequence[tuple[str, bytes]]) -> list[str]:
    said = [(f["kind"], f["data"].encode()) for f in frames if f["dir"] == side]
    if len(said) != len(heard):
        return [f"{len(heard)} frames of the {side}, not {len(said)}"]
    differences: list[str] = []
    for number, ((kind, data), (kind_heard, data_heard)) in enumerate(zip(said, heard, strict=True)):
        if kind != kind_heard:
            differences.append(f"frame {number} of the {side} is {kind_heard}, not {kind}")
        differences += verdict.byte_differences(f"frame {number} of the {side}", data, data_heard)
    return differences


def _total(rows: Sequence[Row]) -> Usage:
    """All turns. What was heard is told apart: of it only how long it lasted counts here."""
    total = Usage()
    for row in rows:
        usage = verdict.usage_of(row)
        is_turn = not str(row["operation"]).endswith(".transcript")
        total = total.plus(usage if is_turn else Usage(seconds_ms=usage.seconds_ms))
    return total
