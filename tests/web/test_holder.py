"""What key holders see, over HTTP, of calls that went through a journal into a real Postgres."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import quote

import pytest

from proxy.broker.limits import FOREVER_MS
from proxy.ledger.entry import Settle
from proxy.routing.tiers import Limits, Tier
from proxy.store.catalog import Catalog, KeySettings
from proxy.store.leases import Leases
from proxy.store.reports import Reports
from proxy.store.windows import Windows
from proxy.web.caller import KEY_HEADER
from proxy.web.holder import make_holder_app
from tests.midday import MIDDAY
from tests.store.conftest import accounts, drainer, journal_dir  # noqa: F401 - fixtures
from tests.store.journals import NODE, NOW_MS, PRICE, PRICE_ENTRY, Life, day_of_station, end, new_id

HIDDEN = {"upstream": "an-upstream", "credential": "a-credential", "upstream_id": "req-of-a-vendor"}


@pytest.fixture
async def catalog(database):
    catalog = Catalog(database)
    await catalog.open_station("CNY", MIDDAY)
    return catalog


@pytest.fixture
async def calls(journal_dir, accounts, drainer, catalog):  # noqa: F811
    """Three calls of ada and one of ben, settled."""
    life = Life(journal_dir)
    mine = [end(accounts[0], **HIDDEN) for _ in range(3)]
    other = end(accounts[1])
    await life.write([PRICE_ENTRY, *mine, other])
    await drainer.run_once()
    await life.die()
    return [*mine, other]


@pytest.fixture
async def ada(catalog, accounts, database, aiohttp_client):  # noqa: F811
    """A client as a worker is one: with ada's verified key."""
    key_id, _ = await catalog.create_key("ada", KeySettings(label="laptop", models=("gpt-*",)))
    app = make_holder_app(catalog, Reports(database), lambda: {"direct", "hk"}, lambda name: None)
    return await aiohttp_client(app, headers={KEY_HEADER: str(key_id)})


async def test_me_tells_balance_tier_and_what_the_key_may(ada):
    document = await (await ada.get("/me")).json()
    assert (document["account"], document["currency"]) == ("ada", "CNY")
    assert (document["balance"], document["held"], document["available"]) == ("100", "0", "100")
    assert (document["models"], document["label"], document["tier"]) == (["gpt-*"], "laptop", None)


async def test_what_is_left_of_the_free_quota_is_available_too(ada, accounts, database):  # noqa: F811
    await database.execute(
        "INSERT INTO pocket (account, period_start, period_end, amount_nanos)"
        " VALUES ($1, now() - interval '1 hour', now() + interval '1 hour', 700000000)",
        accounts[0],
    )
    document = await (await ada.get("/me")).json()
    assert (document["balance"], document["free"]) == ("100", "0.7")
    assert (document["held"], document["available"]) == ("0", "100.7")


async def test_a_receipt_says_what_was_used_at_which_price(ada, calls):
    id_ = calls[0].id
    for spelling in (id_, f"{id_[:8]}-{id_[8:12]}-{id_[12:16]}-{id_[16:20]}-{id_[20:]}"):
        document = await (await ada.get(f"/receipts/{spelling}")).json()
        assert document["usage"] == {"input": 10, "output": 20}
        assert (document["cost"], document["currency"]) == ("0.000045", "CNY")
        assert (document["model_multiplier"], document["tier_multiplier"]) == ("1", "0.5")
        assert document["price"] == dict(PRICE.content)
        assert [(i["bucket"], i["count"], i["price"]) for i in document["items"]] == [
            ("input", 10, "1"), ("output", 20, "4"),
        ]  # fmt: skip
        assert (document["prompt_tokens"], document["completion_tokens"]) == (10, 20)
        assert (document["mirror"], document["ttft_ms"], document["provenance"]) == ("direct", 210, "final")
        assert (document["retries"], document["free"], document["free_amount"]) == (0, False, "0")


async def test_receipts_come_newest_first_and_page_by_page(ada, calls):
    first = await (await ada.get("/receipts?limit=2")).json()
    rest = await (await ada.get(f"/receipts?limit=2&cursor={first['next']}")).json()
    seen = [receipt["id"].replace("-", "") for receipt in first["data"] + rest["data"]]
    assert seen == sorted((call.id for call in calls[:3]), reverse=True)
    assert rest["next"] is None


async def test_receipts_are_asked_for_by_days(ada, calls):
    today = day_of_station(NOW_MS)
    for query, count in (
        (f"from={today}", 3),
        (f"from={today}&to={today}", 3),
        (f"to={today - timedelta(days=1)}", 0),
        (f"from={today + timedelta(days=1)}", 0),
        ("to=9999-12-31", 3),
    ):
        assert len((await (await ada.get(f"/receipts?{query}")).json())["data"]) == count


@pytest.mark.parametrize(("query", "accept"), [("format=csv&", ""), ("", "text/csv, */*;q=0.5")])
async def test_receipts_are_a_table_too(ada, calls, query, accept):
    first = await ada.get(f"/receipts?{query}limit=2", headers={"accept": accept})
    assert first.content_type == "text/csv"
    rest = await ada.get(str(first.links["next"]["url"].relative()), headers={"accept": accept})
    assert "next" not in rest.links
    rows = [row for page in (first, rest) for row in csv.DictReader(io.StringIO(await page.text()))]
    assert [row["id"].replace("-", "") for row in rows] == sorted((c.id for c in calls[:3]), reverse=True)
    assert {(row["cost"], row["amount"], row["input"]) for row in rows} == {("0.000045", "-0.000045", "10")}


async def test_a_month_adds_up_to_its_receipts_and_to_the_ledger(ada, calls):
    month = f"{day_of_station(NOW_MS):%Y-%m}"
    sums = await (await ada.get(f"/receipts/{month}")).json()
    data = (await (await ada.get(f"/receipts?from={month}-01")).json())["data"]
    assert sums["used"] == sums["charged"] == "0.000135"
    assert -sum(Decimal(receipt["amount"]) for receipt in data) == Decimal(sums["charged"])
    assert Decimal(sums["opening"]) + sum(map(Decimal, sums["posted"].values())) == Decimal(sums["closing"])
    assert [(line["model"], line["calls"]) for line in sums["models"]] == [("gpt-4o-mini", 3)]
    empty = await (await ada.get("/receipts/2020-12")).json()
    assert (empty["used"], empty["models"], empty["closing"]) == ("0", [], "0")


@pytest.fixture
async def two_keys(journal_dir, accounts, drainer, catalog, database, aiohttp_client):  # noqa: F811
    """Two keys of ada with a call each; the second sees its own, the first is corrected."""
    first, _ = await catalog.create_key("ada", KeySettings(label="boss"))
    second, _ = await catalog.create_key("ada", KeySettings(label="app", own_receipts=True))
    life = Life(journal_dir)
    calls = [end(accounts[0], key=key) for key in (first, second)]
    late = Settle(new_id(), NOW_MS, 90_000, "final", {"input": 20, "output": 40}, corrects=calls[0].id)
    await life.write([PRICE_ENTRY, *calls])
    await drainer.run_once()
    await life.write([late])
    await drainer.run_once()
    await life.die()
    app = make_holder_app(catalog, Reports(database), lambda: (), lambda name: None)
    holders = [await aiohttp_client(app, headers={KEY_HEADER: str(key)}) for key in (first, second)]
    return holders, calls, (first, second)


async def test_receipts_are_asked_for_by_key(two_keys):
    (boss, _), calls, (first, second) = two_keys
    shown = (await (await boss.get("/me")).json())["key"]
    for query, ids in (
        ("", {calls[0].id, calls[1].id}),
        ("?key=self", {calls[0].id}),
        (f"?key={first}", {calls[0].id}),
        ("?key=app", {calls[1].id}),
        (f"?key={quote(shown)}", {calls[0].id}),
    ):
        lines = (await (await boss.get(f"/receipts{query}")).json())["data"]
        assert {line.get("corrects", line["id"]).replace("-", "") for line in lines} == ids, query
    month = f"{day_of_station(NOW_MS):%Y-%m}"
    of_app = await (await boss.get(f"/receipts/{month}?key=app")).json()
    assert (of_app["key"], of_app["used"], of_app["corrections"]) == (second, "0.000045", "0")
    of_boss = await (await boss.get(f"/receipts/{month}?key=self")).json()
    assert (of_boss["used"], of_boss["corrections"]) == ("0.00009", "0.000045")
    assert (await boss.get("/receipts?key=nobodys")).status == 404


async def test_a_key_that_sees_its_own_receipts_sees_no_others(two_keys):
    (_, app), calls, (first, second) = two_keys
    assert (await (await app.get("/me")).json())["own_receipts"] is True
    lines = (await (await app.get("/receipts")).json())["data"]
    assert [line["id"].replace("-", "") for line in lines] == [calls[1].id]
    assert (await app.get(f"/receipts/{calls[0].id}")).status == 404
    assert (await app.get(f"/receipts?key={first}")).status == 404
    month = await (await app.get(f"/receipts/{day_of_station(NOW_MS):%Y-%m}")).json()
    assert (month["key"], month["used"], "closing" in month) == (second, "0.000045", False)
    used = await (await app.get("/dashboard/billing/usage")).json()
    assert used["total_usage"] == 0.0045


async def test_nobody_sees_anothers_receipt(ada, calls):
    answer = await ada.get(f"/receipts/{calls[3].id}")
    assert (answer.status, (await answer.json())["error"]["code"]) == (404, "not_found")


async def test_no_document_names_an_upstream_or_a_credential(ada, calls):
    for path in ("/me", "/receipts", f"/receipts/{calls[0].id}", "/dashboard/billing/subscription"):
        text = await (await ada.get(path)).text()
        assert json.loads(text)["object"]
        assert not [secret for secret in HIDDEN.values() if secret in text]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/receipts/none", 404),
        ("/receipts?cursor=none", 400),
        ("/receipts?limit=0", 400),
        ("/receipts?limit=x", 400),
        ("/receipts?limit=1001", 400),
        ("/receipts?from=today", 400),
        ("/receipts?to=2026-13-01", 400),
        ("/receipts?format=pdf", 400),
        ("/receipts/2026-13", 404),
        ("/dashboard/billing/usage?start_date=today", 400),
        ("/portal", 404),
        ("/admin/status", 404),
    ],
)
async def test_what_is_not_there_is_refused_as_json(ada, path, status):
    answer = await ada.get(path)
    assert answer.status == status
    assert (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    "asked",
    [
        "",  # whoever knows no dates
        "?start_date={month}-01&end_date={later}",  # NextChat: the month up to the day after tomorrow
        "?start_date={month}-01&end_date={today}",  # one-api: up to today
    ],
)
async def test_chat_clients_see_what_is_left(ada, calls, asked):
    today = day_of_station(NOW_MS)
    dates = {"month": f"{today:%Y-%m}", "today": today, "later": today + timedelta(days=2)}
    limit = (await (await ada.get("/dashboard/billing/subscription")).json())["hard_limit_usd"]
    used = (await (await ada.get("/dashboard/billing/usage" + asked.format_map(dates))).json())["total_usage"]
    assert used == pytest.approx(3 * 45e-6 * 100)
    assert limit - used / 100 == pytest.approx(100 - 3 * 45e-6)


async def test_usage_is_that_of_the_days_that_are_asked_for(ada, calls):
    today = day_of_station(NOW_MS)
    for dates, count in (
        (f"start_date={today}", 3),
        (f"start_date={today - timedelta(days=99)}&end_date={today}", 3),
        (f"start_date=2020-01-01&end_date={today - timedelta(days=1)}", 0),
    ):
        told = await (await ada.get(f"/dashboard/billing/usage?{dates}")).json()
        assert told["total_usage"] == pytest.approx(count * 45e-6 * 100)


async def test_a_key_that_expires_says_so_to_chat_clients(ada, catalog, accounts, database, aiohttp_client):  # noqa: F811
    ends = datetime(2099, 1, 1, tzinfo=UTC)
    key_id, _ = await catalog.create_key("ada", KeySettings(expires_at=ends))
    app = make_holder_app(catalog, Reports(database), lambda: {"direct", "hk"}, lambda name: None)
    other = await aiohttp_client(app, headers={KEY_HEADER: str(key_id)})
    path = "/dashboard/billing/subscription"
    assert (await (await other.get(path)).json())["access_until"] == ends.timestamp()
    assert (await (await ada.get(path)).json())["access_until"] == 0


# -- mirrors -----------------------------------------------------------------------------------------


async def test_a_holder_chooses_mirrors_for_a_key_and_for_all_keys_that_say_nothing(ada):
    assert (await (await ada.get("/me")).json())["mirror"] == "auto"
    told = await (await ada.put("/me", json={"account_mirror": "hk"})).json()
    assert (told["mirror"], told["account_mirror"]) == ("hk", "hk")
    told = await (await ada.put("/me", json={"mirror": ["direct", "auto"]})).json()
    assert (told["mirror"], told["account_mirror"]) == (["direct", "auto"], "hk")
    told = await (await ada.put("/me", json={"mirror": "auto"})).json()
    assert told["mirror"] == "hk"


async def test_curl_need_not_say_that_it_sends_json(ada):
    told = await ada.put(
        "/me", data=b'{"mirror": "hk"}', headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert (told.status, (await told.json())["mirror"]) == (200, "hk")
    assert (await ada.put("/me", data=b"mirror=hk", headers={"Content-Type": "text/plain"})).status == 415


@pytest.mark.parametrize(
    "body", [{"mirror": "nowhere"}, {"mirror": ["auto", "hk"]}, {"mirror": 1}, {"balance": "1000"}, ["hk"]]
)
async def test_what_is_no_preference_changes_nothing(ada, body):
    assert (await ada.put("/me", json=body)).status == 400
    assert (await (await ada.get("/me")).json())["mirror"] == "auto"


async def test_me_tells_all_limits_that_hold_for_the_key_and_what_is_left_of_them(
    catalog, database, aiohttp_client
):
    account = await catalog.create_account("limited")
    await catalog.set_account_limits("limited", {"tokens_per_day": 9_000})
    key_id, _ = await catalog.create_key("limited", KeySettings(spend_total=2_500_000_000))
    bank = Windows(database, NODE, "life1")
    await Leases(database, NODE, "life1").register()
    await bank.draw(f"k{key_id}:spend_total", FOREVER_MS, 2_500_000_000, 10**9, 10**9)
    free = Tier("Free", 0, ("*",), 1_000_000, Limits(requests_per_minute=3), "max", None, None, ())
    app = make_holder_app(catalog, Reports(database), lambda: {"direct"}, lambda name: free)
    client = await aiohttp_client(app, headers={KEY_HEADER: str(key_id)})
    assert (await (await client.get("/me")).json())["limits"] == [
        {"of": "key", "kind": "spend_total", "limit": "2.5", "left": "1.5"},
        {"of": "account", "kind": "tokens_per_day", "limit": 9_000, "left": 9_000},
        {"of": "tier", "kind": "requests_per_minute", "limit": 3, "left": 3},
    ]
    assert account.limits == {}
