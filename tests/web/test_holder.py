"""What key holders see, over HTTP, of calls that went through a journal into a real Postgres."""

from __future__ import annotations

import json

import pytest

from proxy.store.catalog import Catalog, KeySettings
from proxy.store.reports import Reports
from proxy.web.holder import KEY_HEADER, make_holder_app
from tests.store.conftest import accounts, drainer, journal_dir  # noqa: F401 - fixtures
from tests.store.journals import NOW_MS, PRICE, PRICE_ENTRY, Life, day_in_shanghai, end

HIDDEN = {"upstream": "an-upstream", "credential": "a-credential", "upstream_id": "req-of-a-vendor"}


@pytest.fixture
async def catalog(database):
    catalog = Catalog(database)
    await catalog.open_station("CNY", "Asia/Shanghai")
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
    app = make_holder_app(catalog, Reports(database))
    return await aiohttp_client(app, headers={KEY_HEADER: str(key_id)})


async def test_me_tells_balance_tier_and_what_the_key_may(ada):
    document = await (await ada.get("/me")).json()
    assert (document["account"], document["currency"]) == ("ada", "CNY")
    assert (document["balance"], document["held"], document["available"]) == ("100", "0", "100")
    assert (document["models"], document["label"], document["tier"]) == (["gpt-*"], "laptop", None)


async def test_a_receipt_says_what_was_used_at_which_price(ada, calls):
    id_ = calls[0].id
    for spelling in (id_, f"{id_[:8]}-{id_[8:12]}-{id_[12:16]}-{id_[16:20]}-{id_[20:]}"):
        document = await (await ada.get(f"/receipts/{spelling}")).json()
        assert document["usage"] == {"input": 10, "output": 20}
        assert (document["cost"], document["currency"]) == ("0.000045", "CNY")
        assert (document["model_multiplier"], document["tier_multiplier"]) == ("1", "0.5")
        assert document["price"] == dict(PRICE.content)
        assert (document["mirror"], document["ttft_ms"], document["provenance"]) == ("direct", 210, "final")


async def test_receipts_come_newest_first_and_page_by_page(ada, calls):
    first = await (await ada.get("/receipts?limit=2")).json()
    rest = await (await ada.get(f"/receipts?limit=2&before={first['next']}")).json()
    seen = [receipt["id"].replace("-", "") for receipt in first["data"] + rest["data"]]
    assert seen == sorted((call.id for call in calls[:3]), reverse=True)
    assert rest["next"] is None


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
        ("/receipts?before=none", 404),
        ("/receipts?limit=0", 400),
        ("/receipts?limit=x", 400),
        ("/dashboard/billing/usage?start_date=today", 400),
        ("/portal", 404),
        ("/admin/status", 404),
    ],
)
async def test_what_is_not_there_is_refused_as_json(ada, path, status):
    answer = await ada.get(path)
    assert answer.status == status
    assert (await answer.json())["error"]["message"]


async def test_chat_clients_see_the_balance(ada, calls):
    limit = (await (await ada.get("/dashboard/billing/subscription")).json())["hard_limit_usd"]
    month = f"?start_date={day_in_shanghai(NOW_MS)}"
    used = (await (await ada.get(f"/dashboard/billing/usage{month}")).json())["total_usage"]
    assert limit == pytest.approx(100, abs=0.001)
    assert used == pytest.approx(3 * 45e-6 * 100)
