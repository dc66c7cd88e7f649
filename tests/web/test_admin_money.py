"""What operators do to money over HTTP: adjustments, refunds, codes, prices of single accounts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from proxy.store.audit import audit
from proxy.store.catalog import Catalog, KeySettings
from proxy.store.deadlines import Deadline
from proxy.store.drainer import Drainer
from proxy.store.due import DueTasks
from proxy.store.reports import Reports
from proxy.web.admin import make_admin_app
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, YUAN, Life, Station, end
from tests.store.tasks import HOLD, submitted


@pytest.fixture
async def catalog(database):
    catalog = Catalog(database)
    await catalog.open_station("CNY", "UTC")
    await catalog.create_account("acme")
    await catalog.top_up("acme", 10 * YUAN, "R1")
    return catalog


@pytest.fixture
async def admin(catalog, database, aiohttp_client):
    node = SimpleNamespace(catalog=catalog, reports=Reports(database))
    return await aiohttp_client(make_admin_app(node, ""))


def once(reference: str) -> dict[str, str]:
    return {"Idempotency-Key": reference}


async def test_an_adjustment_is_one_row_with_its_reason(admin, catalog, database):
    path, body = "/admin/accounts/acme/adjustments", {"amount": "-2.5", "reason": "double top-up"}
    statuses = [(await admin.post(path, json=body, headers=once("A1"))).status for _ in range(3)]
    assert statuses == [201, 200, 200]
    assert (await catalog.account("acme")).balance_nanos == 7_500_000_000
    assert (await admin.post(path, json=body)).status == 400
    assert (await admin.post(path, json={"amount": "1", "reason": " "}, headers=once("A2"))).status == 409
    assert (await admin.post(path, json=body | {"amount": "1"}, headers=once("A1"))).status == 409
    assert await audit(database) == []


async def test_a_payment_goes_back_once_per_key_and_never_twice(admin, catalog):
    path = "/admin/payments/cli/R1/refund"
    for status in (201, 200):
        answer = await admin.post(path, json={"amount": "4"}, headers=once("B1"))
        assert (answer.status, (await answer.json())["amount_nanos"]) == (status, -4 * YUAN)
    assert (await admin.post(path, json={"kind": "chargeback"}, headers=once("B2"))).status == 201
    assert (await admin.post(path, json={}, headers=once("B3"))).status == 409
    assert (await admin.post("/admin/payments/cli/R9/refund", json={}, headers=once("B4"))).status == 404
    assert (await catalog.account("acme")).balance_nanos == 0


async def test_a_call_is_refunded_once(admin, catalog, database, tmp_path):
    account = await catalog.account("acme")
    call, life = end(account.id), Life(tmp_path)
    await life.write([PRICE_ENTRY, call])
    await Drainer(database, tmp_path, NODE, Station(), now_ms=lambda: NOW_MS).run_once()
    for status in (201, 200):
        answer = await admin.post(f"/admin/calls/{call.id}/refund", json={"reason": "stalled"})
        assert answer.status == status
    assert (await catalog.account("acme")).balance_nanos == 10 * YUAN
    await life.die()


async def test_codes_are_told_once(admin):
    answer = await admin.post("/admin/codes", json={"amount": "5", "count": 2, "note": "spring"})
    codes = (await answer.json())["codes"]
    assert (answer.status, len(set(codes))) == (201, 2)
    listed = await (await admin.get("/admin/codes?note=spring")).text()
    assert not any(code in listed for code in codes)


async def test_an_accounts_own_prices(admin):
    path = "/admin/accounts/acme/prices"
    assert (await admin.put(path, json={"model": "gpt-*", "multiplier": "0.9"})).status == 200
    assert (await admin.put(path, json={"model": "o3", "price": {"output": 5}})).status == 200
    for wrong in ({"model": "o3"}, {"model": "o3", "price": {"outptu": 5}}, {"model": "", "multiplier": "1"}):
        assert (await admin.put(path, json=wrong)).status == 400
    prices = (await (await admin.get(path)).json())["data"]
    assert [(p["model"], p["ppm"], p["content"]) for p in prices] == [
        ("gpt-*", 900_000, None),
        ("o3", None, {"output": 5}),
    ]
    assert (await (await admin.delete(path + "?model=o3")).json())["ended"] is True


async def test_keys_are_changed_and_rotated_and_addresses_are_networks(admin, catalog):
    key_id, _ = await catalog.create_key("acme", KeySettings(label="app"))
    path = f"/admin/keys/{key_id}"
    shown = await (await admin.patch(path, json={"spend_per_day": "1.5", "ip_allow": ["10.0.0.9/8"]})).json()
    assert (shown["label"], shown["limits"]) == ("app", {"spend_per_day": "1.5"})
    assert shown["ip_allow"] == ["10.0.0.0/8"]
    assert (await admin.patch(path, json={"ip_allow": ["everywhere"]})).status == 400
    rotated = await admin.post(path + "/rotate", json={"old_until": "2099-01-01T00:00:00+00:00"})
    assert (await rotated.json())["key"].startswith("sk-")


async def test_an_account_changes_tier_contact_and_status(admin):
    changed = await admin.patch("/admin/accounts/acme", json={"tier": "VIP", "contact": "a@b.example"})
    document = await changed.json()
    assert (document["tier"], document["contact"], document["status"]) == ("VIP", "a@b.example", "active")
    back = await (await admin.patch("/admin/accounts/acme", json={"tier": "", "status": "frozen"})).json()
    assert (back["tier"], back["status"]) == (None, "frozen")


async def test_margins_are_told_by_upstream_for_a_month_or_some_days(admin, catalog, database, tmp_path):
    account, life = await catalog.account("acme"), Life(tmp_path)
    await life.write([PRICE_ENTRY, end(account.id)])
    await Drainer(database, tmp_path, NODE, Station(), now_ms=lambda: NOW_MS).run_once()
    await life.die()
    answer = await (await admin.get("/admin/margin?from=2020-01-01&by=upstream")).json()
    assert [(line["upstream"], line["model"], line["calls"]) for line in answer["data"]] == [
        ("openai", "", 1)
    ]
    assert (answer["total"]["sale"], answer["total"]["uncosted"]) == ("0.000045", 1)
    assert answer["equals_ledger"]
    assert (await (await admin.get("/admin/margin?month=2020-01")).json())["data"] == []
    assert (await admin.get("/admin/margin?by=key")).status == 400
    assert (await admin.get("/admin/margin?month=2020")).status == 400


async def test_a_dispute_is_listed_and_decided_once(admin, catalog, database, tmp_path):
    account, life = await catalog.account("acme"), Life(tmp_path)
    ids = ("t1", "t2", "t3")
    await life.write([PRICE_ENTRY, *(e for id_ in ids for e in submitted(account.id, id_))])
    await Drainer(database, tmp_path, NODE, Station(), now_ms=lambda: NOW_MS).run_once()
    await life.die()
    await DueTasks(database, "c-1").sweep([Deadline(("openai", "response"), NOW_MS + 1, NOW_MS * 2)], 0, 0)
    found = (await (await admin.get("/admin/disputes")).json())["data"]
    assert [(d["account"], d["vendor_id"], d["hold_nanos"]) for d in found] == [
        ("acme", id_, HOLD) for id_ in ids
    ]
    for dispute, decision in zip(found, ("charge", "release", "ask"), strict=True):
        path = f"/admin/disputes/{dispute['id']}"
        assert (await admin.post(path, json={"decision": "forget"})).status == 400
        answer = await admin.post(path, json={"decision": decision})
        assert (answer.status, (await answer.json())["decision"]) == (200, decision)
    assert (await admin.post(f"/admin/disputes/{found[0]['id']}", json={"decision": "release"})).status == 404
    assert [d["vendor_id"] for d in (await (await admin.get("/admin/disputes")).json())["data"]] == ["t3"]
    assert await database.fetchval("SELECT next_poll_ms IS NOT NULL FROM binding WHERE state = 'disputed'")
    assert (await catalog.account("acme")).balance_nanos == 10 * YUAN - HOLD
    assert await audit(database) == []
