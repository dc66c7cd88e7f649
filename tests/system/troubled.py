"""A station whose upstreams have trouble: many small ones, so that no test meets another's cooldown.

A `Lane` is one model with the upstreams behind it. All of them are one scripted server, each under a path
of its own; a test takes a fresh lane, says what its upstreams answer, and reads what they were asked.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import orjson

from proxy.ledger import entry
from proxy.store.audit import audit
from proxy.store.catalog import Catalog, KeySettings
from tests.fakes.raw_client import Answer, RawClient, request
from tests.fakes.upstream_server import Action, Request, UpstreamServer, whole
from tests.midday import MIDDAY
from tests.station import Station
from tests.waiting import wait_for

INPUT, OUTPUT = 1_000, 2_000  # nanos per token: 1 and 2 USD per million
IMAGE = 10_000_000  # nanos per image

# Every credential of every upstream begins like this: none may be seen by a client or in a log.
CANARY = "sk-upstream-canary-"
CHAT, MESSAGES, IMAGES = "/v1/chat/completions", "/v1/messages", "/v1/images/generations"

LANES = 40  # of each kind that says nothing else
# kind -> what its upstreams are. `places`: upstreams by priority, or mirrors of one upstream.
KINDS: dict[str, dict[str, Any]] = {
    "solo": {"lanes": 240},
    "claude": {"dialect": "anthropic"},
    "pair": {"places": 2},
    "quad": {"places": 4},
    "mirrors": {"mirrors": 2},
    "credentials": {"credentials": 2},
    "drained": {"on_disconnect": {"drain": "1s"}},
    "impatient": {"timeouts": {"first_byte": "1s", "idle": "1s"}},
    "hurried": {"timeouts": {"total": "1s"}},
    "distrusted": {"trust": "low"},
    "renamed": {"as": "their-model"},
}


def routes(url: str) -> str:
    """The file; JSON is YAML too."""
    upstreams: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for kind, how in KINDS.items():
        how = dict(how)
        places, mirrors, credentials = (how.pop(n, 1) for n in ("places", "mirrors", "credentials"))
        named = {"as": how.pop("as")} if "as" in how else {}
        for number in range(how.pop("lanes", LANES)):
            lane = f"lane-{kind}-{number}"
            for place in range(places):
                upstreams[f"{lane}-{place}"] = {
                    "dialect": "openai",
                    "mirrors": {f"m{m}": {"url": f"{url}/{lane}/{place + m}"} for m in range(mirrors)},
                    "credentials": {
                        f"c{c}": "${env:CANARY}" + f"{lane}-{place}-{c}" for c in range(credentials)
                    },
                    **how,
                }
            candidates = [{"upstream": f"{lane}-{p}", "priority": p + 1, **named} for p in range(places)]
            models[lane] = {"context": 100_000, "max_output": 1_000, "candidates": candidates}
    # Permitted, but without a price; and the names that no upstream of a test answers to.
    models["wild-*"] = {"candidates": [{"upstream": "lane-solo-0-0"}]}
    document = {
        "station": {
            "timezone": MIDDAY,
            "default_tier": "All",
            "on_outage": "unlimited",
            "trusted_proxies": ["127.0.0.1"],
        },
        "endpoints": {
            "open": {"url": "http://station.test", "cors": True},
            "plain": {"url": "http://plain.test"},
        },
        "upstreams": upstreams,
        "models": models,
        "routes": [
            {"path": "/v1/small", "operation": "chat", "body_limit": "2KiB"},
            {"path": "/v1/default", "operation": "chat", "default_model": "lane-solo-0"},
            {"path": "/v1/ranged", "operation": "chat", "parameters": {"range": {"temperature": [0, 1]}}},
            {"path": "/v1/raw", "operation": "call", "candidates": [{"upstream": "lane-solo-0-0"}]},
            {"path": "/v1/audio/transcriptions", "operation": "transcriptions", "body_limit": "128MiB"},
            {"path": "/v1/generous", "operation": "chat", "on_break": "free"},
        ],
        "prices": {
            "lane-*": {"input": "1 USD", "output": "2 USD", "image": "0.01 USD"},
            "call": {"call": "0.01 USD"},
        },
        "tiers": {
            "All": {"rank": 0, "models": ["*"], "limits": {"concurrency": 2000}},
            "None": {"rank": 1, "models": ["no-lane"], "limits": {"concurrency": 2000}},
        },
    }
    return orjson.dumps(document).decode()


@dataclass
class Lane:
    """One model and its upstreams."""

    model: str
    server: UpstreamServer

    def script(
        self, *answers: Sequence[Action], place: int = 0, path: str = "", at_head: bool = False
    ) -> None:
        """What one of its upstreams (or mirrors) answers, one after the other; the last repeats."""
        self.server.script(f"/{self.model}/{place}{path or self.path}", *answers, at_head=at_head)

    @property
    def path(self) -> str:
        return MESSAGES if "claude" in self.model else CHAT

    def asked(self, place: int | None = None) -> list[Request]:
        """What its upstreams were asked so far."""
        start = f"/{self.model}/" + ("" if place is None else f"{place}/")
        return [r for r in list(self.server.requests) if r.target.startswith(start)]

    def body(self, text: str = "Hi", **members: Any) -> bytes:
        """A chat request."""
        messages = [{"role": "user", "content": text}]
        return orjson.dumps({"model": self.model, "messages": messages, **members})


class Troubled:
    """The station, its upstream server and its books."""

    def __init__(self, folder: Path, server: UpstreamServer, dsn: str) -> None:
        self.server = server
        environ = {"CANARY": CANARY, "HEADRACE_LOG_LEVEL": "DEBUG"}  # all that could ever be logged
        self.station = Station(folder / "data", routes(server.url), dsn, environ=environ)
        self._runner = asyncio.Runner()
        self._numbers = count()
        self._keys: list[str] = []
        self._lanes = Counter[str]()
        self._addresses = count(1)

    @contextmanager
    def running(self) -> Iterator[Troubled]:
        self.station.start()
        self._database = self._runner.run(self.station.open_database())
        self.key = self.customer()  # one for tests that need nothing special
        try:
            yield self
        finally:
            status = self.station.stop()
            self._runner.run(self._database.close())
            self._runner.close()
        assert status == 0
        log = self.station.log()
        for secret in (CANARY, "Traceback", *self._keys):
            assert secret not in log

    # -- what a test takes --

    def lane(self, kind: str = "solo") -> Lane:
        """A fresh one."""
        self._lanes[kind] += 1
        assert self._lanes[kind] < KINDS[kind].get("lanes", LANES), f"more lanes of kind {kind} are needed"
        return Lane(f"lane-{kind}-{self._lanes[kind]}", self.server)

    def customer(self, *, tier: str | None = None, credit_nanos: int = 10**12, **settings: Any) -> str:
        """A key of a new account. `settings` are those of KeySettings."""
        name = f"customer-{next(self._numbers)}"

        async def make(catalog: Catalog) -> str:
            await catalog.create_account(name, tier=tier)
            if credit_nanos:
                await catalog.top_up(name, credit_nanos, f"test-{name}")
            return (await catalog.create_key(name, KeySettings(**settings)))[1]

        self._keys.append(self._runner.run(make(Catalog(self._database))))
        return self._keys[-1]

    def drop_upstream_connections(self) -> None:
        """All lanes share a pool: from here on every connection is a fresh one."""
        self.server.close_connections()
        wait_for(lambda: not self.server.open_connections, "upstream connections closed")

    def address(self) -> str:
        """A client address that nobody else has, for X-Forwarded-For."""
        number = next(self._addresses)
        return f"10.0.{number // 250}.{number % 250}"

    def connect(self, **options: Any) -> RawClient:
        return RawClient(self.station.port, **options)

    def ask(
        self, body: bytes, *fields: str, path: str = CHAT, key: str | None = None, version: str = "1.1"
    ) -> Answer:
        """One request on a connection of its own."""
        key = self.key if key is None else key
        with self.connect() as client:
            return client.ask(
                request("POST", path, f"authorization: Bearer {key}", *fields, body=body, version=version)
            )

    def call(self, lane: Lane, **options: Any) -> Answer:
        """An ordinary call of a lane, in its own dialect; `options` are those of `ask`."""
        return self.ask(lane.body(max_tokens=5), path=lane.path, **options)

    # -- what is in the books --

    def revoke(self, key: str) -> None:
        self._change("UPDATE api_key SET status = 'revoked' WHERE digest = sha256($1::bytea)", key.encode())

    def set_account_status(self, key: str, status: str) -> None:
        """Of the account that a key belongs to."""
        self._change(
            "UPDATE account SET status = $2"
            " WHERE id = (SELECT account FROM api_key WHERE digest = sha256($1::bytea))",
            key.encode(),
            status,
        )

    def _change(self, statement: str, *args: Any) -> None:
        """By hand, as an operator might: triggers tell control."""
        self._runner.run(self._database.execute(statement, *args))

    def row(self, call: str) -> dict[str, Any]:
        """The usage row of a call, once it is there."""
        return self._one("SELECT * FROM usage WHERE id = $1::uuid", call)

    def row_of(self, key: str) -> dict[str, Any]:
        """The usage row of a key that has made one call."""
        return self._one(
            "SELECT u.* FROM usage u JOIN api_key k ON k.id = u.key WHERE k.digest = sha256($1::bytea)",
            key.encode(),
        )

    def _one(self, sql: str, arg: Any) -> dict[str, Any]:
        [row] = wait_for(lambda: self._runner.run(self._database.fetch(sql, arg)), "a usage row")
        return dict(row)

    def held_nanos(self, key: str) -> int:
        """What `/v1/me` shows as held."""
        with self.connect() as client:
            me = client.ask(request("GET", "/v1/me", f"authorization: Bearer {key}"), method="GET").json()
        whole_units, _, part = me["held"].partition(".")
        return int(whole_units) * 10**9 + int(part.ljust(9, "0"))

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels, or one of them: `calls_open`, `connections{process="w0"}`."""
        with RawClient(self.station.admin_port) as client:
            host = f"host: 127.0.0.1:{self.station.admin_port}"
            text = client.ask(request("GET", "/metrics", host), method="GET").body.decode()
        lines = [line for line in text.splitlines() if line.startswith("headrace_" + name)]
        assert lines, f"no metric {name}"
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def worker_bytes(self) -> int:
        """What its one worker has in memory."""
        pid = self.station.child("w0")
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def violations(self) -> list[Any]:
        """What `headrace ledger audit` would complain of."""
        return self._runner.run(audit(self._database))


def cost(input_tokens: int, output_tokens: int) -> int:
    """In nanos."""
    return input_tokens * INPUT + output_tokens * OUTPUT


USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}


def completion(text: str = "Hello", usage: dict[str, int] | None = USAGE) -> bytes:
    """An answer of OpenAI's that is whole."""
    message = {"role": "assistant", "content": text}
    document = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    return orjson.dumps(document | ({"usage": usage} if usage else {}))


HELLO = [whole(completion())]
SETTLED, VOID = entry.SETTLED, entry.VOID


def unhappy(status: int, body: bytes = b'{"error": {"message": "m"}}', *fields: str) -> list[Action]:
    """What an upstream says with a status of 300 and above."""
    return [whole(body, status, *fields)]
