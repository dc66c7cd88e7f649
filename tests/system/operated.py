"""A station as its operator runs it: two workers, several mirrors, credentials and tiers.

All upstreams are one scripted server, each under a path of its own, so that what was asked tells which
mirror, with which credential.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from tests.fakes.upstream_server import Action, Pause, Request, UpstreamServer, chunk, chunked_head, whole
from tests.midday import MIDDAY
from tests.station import ROOT, Station, free_port
from tests.waiting import DEADLINE_S, until

WORKERS = 2
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
TOKENS = 100  # of every answer
TOKEN_NANOS = 10_000_000  # of every token of output; input is free: what a call costs is known exactly
CALL_NANOS = TOKENS * TOKEN_NANOS
SECRETS = {f"SECRET_{name}": f"sk-upstream-canary-operated-{name.lower()}" for name in "ABC"}


def routes(url: str, dead: int) -> dict[str, Any]:
    """`dead`: a port where nobody listens."""

    def upstream(name: str, **how: Any) -> dict[str, Any]:
        plain = {
            "dialect": "openai",
            "mirrors": {"direct": {"url": f"{url}/{name}"}},
            "credentials": {"a": "${env:SECRET_A}"},
        }
        return {**plain, **how}

    def model(*candidates: dict[str, Any]) -> dict[str, Any]:
        return {"context": 100_000, "max_output": 1_000, "candidates": list(candidates)}

    mirrors = {
        "direct": {"url": f"{url}/direct"},
        "cdn": {"url": f"{url}/cdn", "proxy_read_timeout": "100s"},
        "hk": {"url": f"{url}/hk"},
    }
    return {
        "station": {"timezone": MIDDAY, "default_tier": "Open", "no_credit": {"status": 402}},
        "endpoints": {
            "direct": {"url": "http://direct.test", "label": "Direct", "region": "us", "cors": True},
            "cdn": {"url": "http://cdn.test", "proxy_read_timeout": "100s", "tags": ["stable"]},
        },
        "upstreams": {
            "plain": upstream("plain"),
            "claude": upstream("claude", dialect="anthropic"),
            "mirrored": upstream("mirrored", mirrors=mirrors),
            "halved": upstream(
                "halved",
                mirrors={"direct": {"url": f"http://127.0.0.1:{dead}"}, "hk": {"url": f"{url}/alive"}},
            ),
            "heavy": upstream("heavy"),
            "light": upstream("light"),
            "down": upstream("down", mirrors={"direct": {"url": f"http://127.0.0.1:{dead}"}}),
            "pool": upstream("pool", credentials={n.lower(): f"${{env:SECRET_{n}}}" for n in "ABC"}),
            "absent": upstream("absent", credentials={"a": "${env:NOT_SET?}"}),
        },
        "models": {
            "m-plain": model({"upstream": "plain"}),
            "m-renamed": model({"upstream": "plain", "as": "vendor/name-there"}),
            "m-claude": model({"upstream": "claude"}),
            "m-mirrored": model({"upstream": "mirrored"}),
            "m-halved": model({"upstream": "halved"}),
            "m-weighted": model({"upstream": "heavy", "weight": 3}, {"upstream": "light"}),
            "m-second": model({"upstream": "down"}, {"upstream": "plain", "priority": 2}),
            "m-first": model({"upstream": "plain"}, {"upstream": "down", "priority": 2}),
            "m-pool": model({"upstream": "pool"}),
            "m-absent": model({"upstream": "absent"}),
        },
        "routes": [
            {"path": "/v1/easy", "operation": "chat", "default_model": "m-plain"},
            {
                "path": "/v1/strict",
                "operation": "chat",
                "parameters": {"drop": ["logit_bias", "user"], "range": {"temperature": [0, 1]}},
            },
        ],
        "prices": {"m-*": {"input": "0 USD", "output": "10000 USD"}},
        "tiers": {
            "Open": {"rank": 0, "models": ["*"], "limits": {"concurrency": 2000}},
            "Exact": {"rank": 1, "models": ["*"], "hold": "max", "limits": {"concurrency": 2000}},
            "Claude": {"rank": 2, "models": ["m-claude"], "limits": {"concurrency": 2000}},
        },
    }


def completion(tokens: int = TOKENS) -> bytes:
    usage = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}
    message = {"role": "assistant", "content": "Hello"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return orjson.dumps({"id": "c1", "object": "chat.completion", "choices": choices, "usage": usage})


MESSAGE = (
    b'{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"text","text":"Hello"}],'
    b'"stop_reason":"end_turn","usage":{"input_tokens":9,"output_tokens":100}}'
)
WORD = b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
LAST = b'data: {"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = (
    b'data: {"id":"c1","choices":[],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":100,"total_tokens":109}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def words(count: int, gap: Pause) -> list[Action]:
    """A stream with a pause behind each word."""
    ending: list[Action] = [chunk(LAST), chunk(USAGE), chunk(DONE), chunk(b"")]
    return [chunked_head(), *[chunk(WORD), gap] * count, *ending]


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def code(self) -> str:
        """Of one of our own refusals."""
        error = self.json()["error"]
        return str(error.get("code") or error["type"])


@dataclass
class Operated:
    """The station, its upstream server, and what people do with them."""

    station: Station
    upstream: UpstreamServer
    ssl: bool = True  # whether certificates are checked
    _names: int = field(default=0, init=False)

    @classmethod
    def at(cls, folder: Path, upstream: UpstreamServer, dsn: str, **how: Any) -> Operated:
        config = orjson.dumps(routes(upstream.url, free_port())).decode()  # JSON is YAML too
        environ = {**SECRETS, **how.pop("environ", {})}
        return cls(Station(folder / "data", config, dsn, WORKERS, environ, **how), upstream)

    # -- upstream --

    def script(self, place: str, *answers: list[Action], path: str = CHAT) -> None:
        """What an upstream (or one mirror of it) answers, one after the other; the last repeats."""
        self.upstream.script(f"/{place}{path}", *answers)

    def asked(self, place: str) -> list[Request]:
        return [r for r in list(self.upstream.requests) if r.target.startswith(f"/{place}/")]

    # -- key holder --

    async def customer(self, *, credit_nanos: int = 10**15, tier: str | None = None, **settings: Any) -> str:
        """A key of a new account."""
        name = self.new_name()
        if tier:
            await self.run("account", "create", name, "--tier", tier)
            await self.top_up(name, credit_nanos)
            return await self.key(name, **settings)
        return await self.station.customer(name, credit_nanos, **settings)

    def new_name(self) -> str:
        self._names += 1
        return f"customer-{self._names}"

    @contextlib.asynccontextmanager
    async def session(self, key: str) -> AsyncIterator[aiohttp.ClientSession]:
        """Each request on a connection of its own: any worker may get it."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        headers = {"authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(
            self.station.url, connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(DEADLINE_S)
        ) as session:
            yield session

    async def get(self, path: str, key: str, **headers: str) -> Answer:
        async with self.session(key) as session:
            return await self.ask(session, path, method="GET", headers=headers)

    async def call(self, key: str, model: str = "m-plain", path: str = CHAT, **members: Any) -> Answer:
        async with self.session(key) as session:
            return await self.ask(session, path, chat(model, **members))

    async def calls(self, count: int, key: str, model: str = "m-plain", **members: Any) -> list[Answer]:
        """All at once."""
        async with self.session(key) as session:
            asks = (self.ask(session, CHAT, chat(model, **members)) for _ in range(count))
            return await asyncio.gather(*asks)

    async def ask(
        self, session: aiohttp.ClientSession, path: str, body: Any = None, *, method: str = "POST", **how: Any
    ) -> Answer:
        async with session.request(method, path, json=body, ssl=self.ssl, **how) as r:
            return Answer(r.status, {k.lower(): v for k, v in r.headers.items()}, await r.read())

    # -- operator --

    async def run(self, *command: str, status: int = 0) -> Any:
        """`headrace ... --json` on this station; what it says."""
        said = await asyncio.to_thread(headrace, *command, "--json", dsn=self.station.dsn, status=status)
        return json.loads(said) if status == 0 else said

    async def top_up(self, account: str, nanos: int) -> None:
        amount = f"{nanos // 10**9}.{nanos % 10**9:09}"
        await self.run("account", "topup", account, "--amount", amount, "--ref", f"{account}-{nanos}")

    async def key(self, account: str, **settings: Any) -> str:
        database = await self.station.open_database()
        try:
            from proxy.store.catalog import Catalog, KeySettings

            return (await Catalog(database).create_key(account, KeySettings(**settings)))[1]
        finally:
            await database.close()

    async def admin(self, path: str, method: str = "GET", **how: Any) -> Answer:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self.station.admin_port}") as session:
            return await self.ask(session, path, how.pop("body", None), method=method, **how)

    async def row(self, call: str) -> dict[str, Any]:
        """The usage row of a call, once it is there."""

        async def find() -> Any:
            return await self.station.rows(f"SELECT * FROM usage WHERE id = '{call}'")

        [row] = await until(find, "a usage row")
        return dict(row)


def chat(model: str, **members: Any) -> dict[str, Any]:
    named = {"model": model} if model else {}
    return {**named, "messages": [{"role": "user", "content": "Hi"}], **members}


def headrace(*command: object, dsn: str = "", status: int = 0, environ: dict[str, str] | None = None) -> str:
    """Run a command as a user does; what it said: stdout, or on failure stderr."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")} | (environ or {})
    env.pop("DATABASE_URL", None)
    if dsn:
        env["DATABASE_URL"] = dsn
    done = subprocess.run(
        [sys.executable, "-m", "proxy", *map(str, command)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == status, (command, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr or done.stdout


OK = [whole(completion())]
