"""A live upstream, called directly and through a relay of our own, with the relay's upstream side watched.

No two answers of a model are alike: what the relay was sent is what its client must have got. The direct
answer tells what kind of answer it has to be. Owns the handful of calls, per dialect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import orjson

from proxy.conform import replay
from proxy.conform.player import Answer, Asked
from proxy.conform.recordings import Figures, Recording, figures
from proxy.conform.replay import FRAMING, Replay, Say
from proxy.conform.verdict import Result
from proxy.dialects import DIALECTS
from proxy.metering.decode import Decoder

ANSWER_S = 120.0
_EVENT = re.compile(rb"^event: ?(.*?)\r?$", re.MULTILINE)
_SAY = [{"role": "user", "content": "Count from one to five."}]
_CONTENTS = [{"role": "user", "parts": [{"text": "Count from one to five."}]}]


@dataclass(frozen=True, slots=True)
class Call:
    """One standard call. `target`: path and query, with {model}."""

    name: str
    operation: str
    target: str
    body: Mapping[str, Any]
    is_stream: bool = False


_CHAT = Call("whole", "chat", "/v1/chat/completions", {"messages": _SAY, "max_tokens": 64})
_TOLD = {"stream": True, "stream_options": {"include_usage": True}}
_MESSAGE = Call("whole", "messages", "/v1/messages", {"messages": _SAY, "max_tokens": 64})
_GENERATE = Call(
    "whole",
    "generate_content",
    "/v1beta/models/{model}:generateContent",
    {"contents": _CONTENTS, "generationConfig": {"maxOutputTokens": 256}},
)
CALLS: dict[str, tuple[Call, ...]] = {
    "openai": (
        _CHAT,
        replace(_CHAT, name="stream", body={**_CHAT.body, **_TOLD}, is_stream=True),
        replace(_CHAT, name="refused", body={"messages": "none"}),
    ),
    "anthropic": (
        _MESSAGE,
        replace(_MESSAGE, name="stream", body={**_MESSAGE.body, "stream": True}, is_stream=True),
        replace(_MESSAGE, name="refused", body={"messages": "none", "max_tokens": 64}),
    ),
    "gemini": (
        _GENERATE,
        replace(
            _GENERATE,
            name="stream",
            operation="stream_generate_content",
            target="/v1beta/models/{model}:streamGenerateContent?alt=sse",
            is_stream=True,
        ),
        replace(_GENERATE, name="refused", body={"contents": "none"}),
    ),
}
_HEADERS = {"anthropic": {"anthropic-version": "2023-06-01"}}


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where the calls go."""

    url: str
    key: str
    model: str
    dialect: str


@dataclass(frozen=True, slots=True)
class Said:
    """One answer of the upstream, as it came over the wire."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes

    def header(self, name: str) -> str:
        return next((value for known, value in self.headers if known == name), "")

    def plain(self) -> bytes:
        return Decoder(self.header("content-encoding") or "identity").feed(self.content)


async def run(upstream: Upstream, seed: int, say: Say, dsn: str = "") -> list[Result]:
    """Each call directly, then through the relay. Raises OSError where the upstream cannot be reached."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as client:
        direct: dict[str, Said] = {}
        recordings = []
        for call in CALLS[upstream.dialect]:
            asked = _asked(upstream, call)
            direct[call.name] = said = await ask(client, upstream.url, asked)
            say(f"{call.name}: {said.status} from {upstream.url}")
            recordings.append(_recording(upstream, call, asked, said))

        def answer_to(made: Replay, coding: str) -> Answer:
            name = made.recording.name
            return _LiveAnswer(client, upstream.url, direct[name], made.recording)

        return await replay.run(recordings, seed, say, dsn, answer_to=answer_to, secret=upstream.key)


def _asked(upstream: Upstream, call: Call) -> Asked:
    name, prefix = DIALECTS[upstream.dialect].auth
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    headers |= _HEADERS.get(upstream.dialect, {}) | {name.decode(): prefix.decode() + upstream.key}
    body = dict(call.body) if "{model}" in call.target else {"model": upstream.model, **call.body}
    return Asked("POST", call.target.replace("{model}", upstream.model), headers, orjson.dumps(body))


async def ask(client: aiohttp.ClientSession, url: str, asked: Asked) -> Said:
    headers = {name: value for name, value in asked.headers.items() if name not in ("host", "content-length")}
    async with client.request(asked.method, url + asked.target, data=asked.body, headers=headers) as answer:
        received = [(name.lower(), value) for name, value in answer.headers.items()]
        return Said(answer.status, received, await answer.read())


def _recording(upstream: Upstream, call: Call, asked: Asked, said: Said) -> Recording:
    return Recording(
        name=call.name,
        family=upstream.dialect,
        protocol=f"{upstream.dialect}:{call.operation}",
        method=asked.method,
        host="",
        target=asked.target,
        status=said.status,
        request_headers=_HEADERS.get(upstream.dialect, {}),
        request_body=asked.body,
        headers=dict(said.headers),
        body=said.plain(),
        is_stream=call.is_stream,
        model=upstream.model,
    )


class _LiveAnswer(Answer):
    """What the live upstream says to what the relay asks it."""

    def __init__(self, client: aiohttp.ClientSession, url: str, direct: Said, recording: Recording) -> None:
        super().__init__(recording.method, recording.status, [], b"")
        self._client, self._url, self._direct, self._recording = client, url, direct, recording
        self._said = direct

    async def prepare(self, asked: Asked) -> None:
        await super().prepare(asked)
        self._said = said = await ask(self._client, self._url, asked)
        coding = [field for field in said.headers if field[0] == "content-encoding"]
        self.headers = [field for field in said.headers if field[0] not in FRAMING] + coding
        self.status, self.plain = said.status, said.content

    def recorded(self, recording: Recording) -> Recording:
        body = self._said.plain()
        told = _told(recording, body, "event-stream" in self._said.header("content-type"))
        return replace(recording, status=self.status, body=body, told=told if self.status < 400 else None)

    def differences(self) -> Iterable[str]:
        """Is it the kind of answer that the upstream gives when it is asked directly?"""
        if self._said.status != self._direct.status:
            yield f"status {self._said.status} through the relay, {self._direct.status} directly"
        for what, ours, theirs in zip(_KINDS, _kind(self._said), _kind(self._direct), strict=True):
            if ours != theirs:
                yield f"{what} {ours!r} through the relay, {theirs!r} directly"


_KINDS = ("content type", "line end", "end of the stream", "events", "members")


def _kind(said: Said) -> tuple[object, ...]:
    """The form of an answer, without what a model may say differently each time."""
    body = said.plain()
    kind = said.header("content-type").partition(";")[0].strip()
    if kind == "text/event-stream":
        last = body.split()[-1:] == [b"[DONE]"]
        return kind, b"\r\n" if b"\r\n" in body else b"\n", last, sorted(set(_EVENT.findall(body))), []
    try:
        document = orjson.loads(body)
    except ValueError:
        document = None
    return kind, b"", False, [], sorted(document) if isinstance(document, dict) else []


def _told(recording: Recording, body: bytes, is_event_stream: bool) -> Figures | None:
    """The usage in an answer, as its dialect reads it in one piece."""
    dialect, _, name = recording.protocol.partition(":")
    meter = DIALECTS[dialect].make_meter(DIALECTS[dialect].operations[name], is_event_stream)
    meter.feed(body)
    meter.finish()
    usage = meter.usage()
    return figures(usage) if usage is not None else None
