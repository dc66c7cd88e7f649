"""What a station's FAQ promises, on a whole station: VIP by top-up, multipliers, free amount, 401s."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import aiohttp
import pytest

from proxy.store.catalog import Catalog, KeySettings
from proxy.store.overrides import Overrides
from tests.conftest import Databases
from tests.fakes.upstream_server import UpstreamServer, whole
from tests.midday import MIDDAY
from tests.station import Station
from tests.waiting import DEADLINE_S

YUAN = 1_000_000_000
ANSWER = (
    b'{"id":"c1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":0,"completion_tokens":50000}}'
)
ROUTES = """
station: {{currency: CNY, rates: {{USD: 7}}, timezone: {zone}, default_tier: Free,
          no_credit: {{status: 401}}, not_permitted: {{status: 401}}, sign_up: {{trial: 3}}}}
upstreams:
  vendor:
    dialect: openai
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:ONE_KEY}}"}}
    costs: {{"*": 0.3}}
models:
  gpt-4: {{context: 128000, candidates: [{{upstream: vendor}}]}}
  gpt-3.5-turbo: {{context: 128000, candidates: [{{upstream: vendor}}]}}
prices:
  gpt-4: {{input: 10, output: 20}}
  gpt-3.5-turbo: {{input: 1, output: 2}}
multipliers: {{gpt-4: 0.5}}
tiers:
  Free: {{rank: 0, models: [gpt-3.5-turbo], free_quota: {{amount: 0.15, every: day}}}}
  VIP:
    rank: 1
    models: ["*"]
    earned_by: [{{top_up: 20, lasts: 1 month}}, {{top_up: 40, lasts: 6 months}}]
"""


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Station]:
    dsn = databases.take()
    with UpstreamServer() as upstream:
        upstream.script("/v1/chat/completions", [whole(ANSWER)])
        data = tmp_path_factory.mktemp("business") / "data"
        station = Station(data, ROUTES.format(url=upstream.url, zone=MIDDAY), dsn)
        station.start()
        yield station
        assert station.stop() == 0
    databases.give_back(dsn)


@pytest.fixture
async def shop(station):
    database = await station.open_database()
    yield Catalog(database)
    await database.close()


async def ask(station: Station, key: str, model: str, dialect: str = "openai") -> tuple[int, dict]:
    body = {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}
    path = "/v1/chat/completions" if dialect == "openai" else "/v1/messages"
    async with (
        aiohttp.ClientSession() as session,
        session.post(station.url + path, json=body, headers={"authorization": f"Bearer {key}"}) as answer,
    ):
        return answer.status, await answer.json()


async def until(station: Station, key: str, model: str, status: int, within_s: float = 30.0) -> dict:
    """The first answer with that status."""
    async with asyncio.timeout(within_s):
        while True:
            found, answer = await ask(station, key, model)
            if found == status:
                return answer
            await asyncio.sleep(0.1)


async def rows_of(shop: Catalog, account: int, count: int) -> list[dict]:
    database = shop.database
    async with asyncio.timeout(DEADLINE_S):
        while True:
            rows = await database.fetch("SELECT * FROM usage WHERE account = $1 ORDER BY id", account)
            if len(rows) >= count:
                return [dict(row) for row in rows]
            await asyncio.sleep(0.05)


async def test_vip_after_20_is_refused_gpt_4_with_401_before(station, shop):
    account = await shop.create_account("vip")
    _, key = await shop.create_key("vip", KeySettings())
    status, answer = await ask(station, key, "gpt-4")
    assert (status, answer["error"]["code"]) == (401, "model_not_permitted")
    await shop.top_up("vip", 20 * YUAN, "R1")
    await until(station, key, "gpt-4", 200)
    [row] = await rows_of(shop, account.id, 1)
    # 50,000 tokens at 20 yuan per million are 1 yuan; the multiplier of 0.5 makes it 50 fen. The free
    # quota of the tier that the account had before is used first.
    assert (row["cost_nanos"], row["tier"], row["model_ppm"]) == (YUAN // 2, "VIP", 500_000)
    assert row["upstream_nanos"] == YUAN * 3 // 10


async def test_the_free_amount_serves_without_a_balance_and_then_401_for_no_credit(station, shop):
    account = await shop.create_account("free")
    _, key = await shop.create_key("free", KeySettings())
    await until(station, key, "gpt-3.5-turbo", 200)
    [row] = await rows_of(shop, account.id, 1)
    assert (row["cost_nanos"], row["free_nanos"]) == (YUAN // 10, YUAN // 10)
    answer = await until(station, key, "gpt-3.5-turbo", 401)
    assert answer["error"]["code"] == "insufficient_quota"
    rows = await rows_of(shop, account.id, 1)
    free = sum(row["free_nanos"] for row in rows)
    assert free <= YUAN * 15 // 100
    balance = (await shop.account("free")).balance_nanos
    assert balance == free - sum(row["cost_nanos"] for row in rows)


async def test_an_accounts_own_price_is_on_its_rows(station, shop):
    account = await shop.create_account("special")
    own = await Overrides(shop.database).put("special", "gpt-3.5-turbo", ppm=900_000)
    await shop.top_up("special", 10 * YUAN, "S1")
    _, key = await shop.create_key("special", KeySettings())
    await until(station, key, "gpt-3.5-turbo", 200)
    [row, *_] = await rows_of(shop, account.id, 1)
    assert (row["cost_nanos"], row["override"]) == (YUAN * 9 // 100, str(own.id))


async def test_a_rotated_key_is_refused_within_seconds_and_the_new_one_serves(station, shop):
    await shop.create_account("rotating")
    await shop.top_up("rotating", 10 * YUAN, "T1")
    key_id, key = await shop.create_key("rotating", KeySettings())
    await until(station, key, "gpt-3.5-turbo", 200)
    fresh = await shop.rotate_key(key_id)
    await until(station, key, "gpt-3.5-turbo", 401)
    await until(station, fresh, "gpt-3.5-turbo", 200)


async def test_who_signs_up_at_the_public_address_calls_with_a_key_of_the_portal(station, shop):
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as browser:
        portal = station.url + "/portal/api/"
        holder = {"name": "ada", "password": "correct horse battery"}
        async with browser.post(portal + "signup", json=holder) as answer:
            assert answer.status == 201, await answer.text()
        async with browser.post(portal + "keys", json={"label": "first"}) as answer:
            key = (await answer.json())["key"]
        async with browser.get(portal + "account") as answer:
            assert (await answer.json())["balance"] == "3"
    await until(station, key, "gpt-3.5-turbo", 200)


async def test_the_books_hold(station):
    async with asyncio.timeout(DEADLINE_S):
        while await station.violations():
            await asyncio.sleep(0.2)
