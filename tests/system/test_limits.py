"""Four nodes of one station share an account's money and limits: not one call more than there is, and
nobody starves."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from proxy.embedded import EmbeddedPostgres, dsn_for
from proxy.store.catalog import Catalog, KeySettings
from tests.fakes.upstream_server import Pause, UpstreamServer, whole
from tests.station import CANARIES, Station, routes
from tests.system.operated import CALL_NANOS, OK, TOKENS, Answer, completion, headrace
from tests.waiting import DEADLINE_S, until

NODES = 4
RELAXED = {"fsync": "off", "full_page_writes": "off"}  # nothing here has to survive a power loss
ASKED_BY_CALLS = ("account_locked", "draw_limit", "WHERE d.digest = $1")  # leases, limits, keys
CHAT = "/v1/chat/completions"
TIERS = """
  Exact: {rank: 1, models: ["*"], hold: max, limits: {concurrency: 2000}}
  Guessed: {rank: 2, models: ["*"], hold: estimate, limits: {concurrency: 7}}
  Metered: {rank: 3, models: ["*"], hold: max, limits: {concurrency: 2000, requests: 120/day}}
  Rich: {rank: 4, models: ["*"], hold: max, limits: {concurrency: 2000, tokens: 5000/day}}
prices: {"*": {input: 0 USD, output: 10000 USD}}
"""


UPSTREAMS = """
  small:
    dialect: openai
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:ONE_KEY}}"}}
    limits: {{requests: 6/day, concurrency: 50}}
models:
  capped: {{candidates: [{{upstream: one}}], limits: {{requests: 5/day}}}}
  spilling: {{candidates: [{{upstream: small}}, {{upstream: one, priority: 2}}]}}
  stuck: {{candidates: [{{upstream: small}}]}}
"""


class Nodes:
    """The station, by any of its nodes."""

    def __init__(self, stations: list[Station]) -> None:
        self.stations = stations

    async def customer(self, name: str, tier: str, credit_nanos: int, *keys: KeySettings) -> list[str]:
        database = await self.stations[0].open_database()
        try:
            catalog = Catalog(database)
            await catalog.create_account(name, tier=tier)
            await catalog.top_up(name, credit_nanos, f"test-{name}")
            return [(await catalog.create_key(name, how))[1] for how in keys or (KeySettings(),)]
        finally:
            await database.close()

    @asynccontextmanager
    async def session(self, key: str) -> AsyncIterator[aiohttp.ClientSession]:
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"authorization": f"Bearer {key}"}
        timeout = aiohttp.ClientTimeout(DEADLINE_S)
        async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
            yield session

    async def ask(self, session: aiohttp.ClientSession, node: int, **members: Any) -> Answer:
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], **members}
        async with session.post(self.stations[node].url + CHAT, json=body) as r:
            return Answer(r.status, {k.lower(): v for k, v in r.headers.items()}, await r.read())

    async def calls(self, key: str, each: int, **members: Any) -> list[Answer]:
        """So many at each node, all at once."""
        async with self.session(key) as session:
            asks = [self.ask(session, n % NODES, **members) for n in range(each * NODES)]
            return await asyncio.gather(*asks)

    async def succeeds(self, session: aiohttp.ClientSession, node: int) -> bool:
        return (await self.ask(session, node)).status == 200

    async def settled(self, name: str, count: int) -> None:
        """Until so many calls of an account are in Postgres."""
        sql = f"SELECT u.id FROM usage u JOIN account a ON a.id = u.account WHERE a.name = '{name}'"

        async def all_there() -> bool:
            return len(await self.stations[0].rows(f"{sql} AND u.state = 'settled'")) == count

        await until(all_there, f"{count} calls in Postgres")

    async def log_statements(self, which: str) -> None:
        database = await self.stations[0].open_database()
        try:
            await database.execute(f"ALTER SYSTEM SET log_statement = '{which}'")
            await database.execute("SELECT pg_reload_conf()")
        finally:
            await database.close()

    async def balance(self, name: str) -> int:
        rows = await self.stations[0].rows(f"SELECT balance_nanos FROM account WHERE name = '{name}'")
        return int(rows[0]["balance_nanos"])


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamServer]:
    with UpstreamServer() as server:
        server.script(CHAT, OK)
        yield server


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server of its own: its statements are counted."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("shared"), settings=RELAXED)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres, upstream: UpstreamServer
) -> Iterator[Nodes]:
    more = UPSTREAMS.format(url=upstream.url).lstrip("\n")
    config = routes(upstream.url).replace("models:\n", more) + TIERS
    dsn = dsn_for(postgres.data_dir)
    folders = [tmp_path_factory.mktemp(f"node{n}") / "data" for n in range(NODES)]
    stations = [Station(folder, config, dsn) for folder in folders]
    with ExitStack() as stack, ThreadPoolExecutor(NODES) as threads:
        for station in stations:
            stack.callback(station.kill)
        stations[0].start()  # it migrates the database
        list(threads.map(Station.start, stations[1:]))
        yield Nodes(stations)
        assert list(threads.map(Station.stop, stations)) == [0] * NODES


def statuses(answers: Iterable[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


async def test_credit_for_a_hundred_calls_answers_exactly_a_hundred_of_sixteen_hundred(nodes: Nodes) -> None:
    (key,) = await nodes.customer("hundred", "Exact", 100 * CALL_NANOS)
    answers = await nodes.calls(key, 400, max_tokens=TOKENS)
    assert statuses(answers) == {200: 100, 429: 1500}
    assert {a.json()["error"]["code"] for a in answers if a.status == 429} == {"insufficient_quota"}
    await nodes.settled("hundred", 100)
    assert await nodes.balance("hundred") == 0


async def test_with_uncapped_output_the_printed_bound_holds(nodes: Nodes, upstream: UpstreamServer) -> None:
    asked = ("POST", CHAT, "--model", "gpt-4o-mini", "--config", nodes.stations[0].config_path, "--json")
    (key,) = await nodes.customer("uncapped", "Guessed", CALL_NANOS * 20)
    told = json.loads(headrace("explain", *asked, "--key", key, dsn=nodes.stations[0].dsn, environ=CANARIES))
    bound = told["hold"]["overspend_bound_nanos"]
    upstream.script(CHAT, [whole(completion(16_000))])  # far beyond what is expected of a call
    answers = await nodes.calls(key, 25)
    upstream.script(CHAT, OK)
    answered = statuses(answers)[200]
    assert 0 < answered < 100
    await nodes.settled("uncapped", answered)
    assert -bound <= await nodes.balance("uncapped") < 0


async def test_calls_at_once_are_counted_over_all_nodes(nodes: Nodes, upstream: UpstreamServer) -> None:
    (key,) = await nodes.customer("at-once", "Guessed", 10**15)
    pause = Pause()
    upstream.script(CHAT, [pause, whole(completion())])
    before = len(upstream.requests)
    async with nodes.session(key) as session:
        asks = [asyncio.ensure_future(nodes.ask(session, n % NODES)) for n in range(10 * NODES)]
        refused = 10 * NODES - 7
        await until(lambda: _true(sum(ask.done() for ask in asks) >= refused), "all others refused")
        await until(lambda: _true(len(upstream.requests) - before >= 7), "seven at the upstream")
        pause.end()
        answers = await asyncio.gather(*asks)
        assert statuses(answers) == {200: 7, 429: refused}
        upstream.script(CHAT, OK)
        for node in range(NODES):  # and when they ended there is room again, at every node
            await until(lambda node=node: nodes.succeeds(session, node), "room again")


async def _true(value: bool) -> bool:
    return value


async def test_a_limit_of_a_day_is_used_up_to_the_last_call_whichever_nodes_are_asked(nodes: Nodes) -> None:
    """A busy key on one node holds slices of what both keys share; the idle one gets all the rest."""
    busy, idle = await nodes.customer("shared", "Metered", 10**15, KeySettings(), KeySettings())
    async with nodes.session(busy) as session:
        answers = [await nodes.ask(session, 0) for _ in range(3)]
    assert statuses(answers) == {200: 3}
    assert answers[0].headers["x-ratelimit-limit-requests"] == "120"
    assert int(answers[0].headers["x-ratelimit-remaining-requests"]) <= 119
    answers = await nodes.calls(idle, 60)
    assert set(statuses(answers)) == {200, 429}
    used = 3 + statuses(answers)[200]
    assert used <= 120
    async with nodes.session(idle) as session:
        for n in range(used, 120):  # what a node still had and did not need comes back
            await until(lambda n=n: nodes.succeeds(session, n % NODES), "the rest of the limit")
        for node in range(NODES):
            refused = await nodes.ask(session, node)
            assert refused.status == 429
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            assert int(refused.headers["retry-after"]) > 1


async def test_tokens_are_settled_at_what_was_used(nodes: Nodes) -> None:
    """5,000 a day: each call is expected to use more than the 109 that it uses."""
    (key,) = await nodes.customer("tokens", "Rich", 10**15)
    async with nodes.session(key) as session:
        answered = 0
        while (answer := await nodes.ask(session, 0, max_tokens=200)).status == 200:
            answered += 1
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert answer.headers["x-ratelimit-limit-tokens"] == "5000"
    assert 5_000 - 250 < answered * 109 <= 5_000


async def test_a_key_that_was_sold_with_an_amount_spends_that_and_no_more(nodes: Nodes) -> None:
    sold = KeySettings(spend_total=7 * CALL_NANOS)
    key, other = await nodes.customer("sold", "Exact", 10**15, sold, KeySettings())
    answers = await nodes.calls(key, 20, max_tokens=TOKENS)
    assert statuses(answers) == {200: 7, 429: 73}
    refused = next(a for a in answers if a.status == 429)
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert "retry-after" not in refused.headers
    assert set(statuses(await nodes.calls(other, 1, max_tokens=TOKENS))) == {200}


async def test_a_model_has_one_limit_for_the_whole_station(nodes: Nodes) -> None:
    keys = [(await nodes.customer(f"capped-{n}", "Exact", 10**15))[0] for n in range(2)]
    answers = [*await nodes.calls(keys[0], 1, model="capped"), *await nodes.calls(keys[1], 1, model="capped")]
    assert statuses(answers) == {200: 5, 429: 3}


async def test_an_upstream_that_is_used_up_gives_way_to_the_next_one(nodes: Nodes) -> None:
    (key,) = await nodes.customer("spilling", "Exact", 10**15)
    assert statuses(await nodes.calls(key, 5, model="spilling")) == {200: 20}
    await nodes.settled("spilling", 20)
    rows = await nodes.stations[0].rows("SELECT upstream FROM usage WHERE model = 'spilling'")
    assert Counter(row["upstream"] for row in rows) == {"small": 6, "one": 14}
    (refused, *_) = await nodes.calls(key, 1, model="stuck")
    assert refused.status == 429
    assert "x-ratelimit-limit-requests" not in refused.headers  # whose limit it is concerns nobody


async def test_a_warm_call_asks_postgres_for_nothing(nodes: Nodes, postgres: EmbeddedPostgres) -> None:
    (key,) = await nodes.customer("warm", "Exact", 10**15)
    log = postgres.folder / "postgres.log"
    async with nodes.session(key) as session:
        burst = [nodes.ask(session, 0, max_tokens=TOKENS) for _ in range(100)]
        assert statuses(await asyncio.gather(*burst)) == {200: 100}  # this node holds enough from now on
        await nodes.log_statements("all")
        await until(lambda: _true("pg_is_in_recovery" in log.read_text()), "statements in the log")
        start = log.stat().st_size
        answers = [await nodes.ask(session, 0, max_tokens=TOKENS) for _ in range(30)]
        said = log.read_text()[start:]
        await nodes.log_statements("none")
    assert statuses(answers) == {200: 30}
    asked = [line for line in said.splitlines() if any(word in line for word in ASKED_BY_CALLS)]
    assert asked == []
