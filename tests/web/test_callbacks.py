"""Callbacks over HTTP: an account sees its own, an operator everybody's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from proxy.store.catalog import Catalog, KeySettings
from proxy.store.outbox import DELIVERED, Outbox
from proxy.store.reports import Reports
from proxy.web.admin import make_admin_app
from proxy.web.caller import KEY_HEADER
from proxy.web.holder import make_holder_app
from tests.store.journals import NOW_MS, YUAN
from tests.store.told import HOOK, tell


@pytest.fixture
async def catalog(database):
    catalog = Catalog(database)
    await catalog.open_station("CNY", "UTC")
    for name in ("ada", "ben"):
        await catalog.create_account(name)
        await catalog.top_up(name, 10 * YUAN, f"R-{name}")
    return catalog


@pytest.fixture
def holder(catalog, database, aiohttp_client):
    async def holder(name: str):
        key_id, _ = await catalog.create_key(name, KeySettings())
        app = make_holder_app(catalog, Reports(database), lambda: {"direct"}, lambda name: None)
        return await aiohttp_client(app, headers={KEY_HEADER: str(key_id)})

    return holder


@pytest.fixture
async def admin(catalog, database, aiohttp_client):
    return await aiohttp_client(
        make_admin_app(SimpleNamespace(catalog=catalog, reports=Reports(database)), "")
    )


@pytest.fixture
async def call(catalog, database, tmp_path) -> str:
    """A task of ada's with three events; the first was taken."""
    call = await tell(database, tmp_path, (await catalog.account("ada")).id, ("1", "2", "3"))
    outbox = Outbox(database)
    [event] = await outbox.claim([], NOW_MS + 60_000, NOW_MS + 90_000)
    await outbox.close(event, DELIVERED, NOW_MS + 60_100, status=204)
    return call


async def test_a_holder_sees_its_accounts_events_page_by_page(holder, call):
    ada, ben = await holder("ada"), await holder("ben")
    page = await (await ada.get("/me/callbacks?limit=2")).json()
    assert [event["sequence"] for event in page["data"]] == [3, 2]
    rest = await (await ada.get(f"/me/callbacks?limit=2&cursor={page['next']}")).json()
    assert [(e["sequence"], e["state"], e["status"]) for e in rest["data"]] == [(1, "delivered", 204)]
    assert rest["next"] is None
    waiting = await (await ada.get(f"/me/callbacks?state=waiting&call={call}")).json()
    assert {(event["url"], event["call"]) for event in waiting["data"]} == {(HOOK, call)}
    assert (await (await ben.get("/me/callbacks")).json())["data"] == []
    assert (await ada.get("/me/callbacks?state=lost")).status == 400
    assert (await ada.get("/me/callbacks?call=nonsense")).status == 404


async def test_one_event_is_shown_with_its_body_and_sent_again_to_its_owner_only(holder, call):
    ada, ben = await holder("ada"), await holder("ben")
    [event] = (await (await ada.get("/me/callbacks?state=delivered")).json())["data"]
    path = f"/me/callbacks/{event['id']}"
    assert "body" not in event
    assert (await (await ada.get(path)).json())["body"] == '{"mark":"1"}'
    for client, statuses in ((ben, (404, 404)), (ada, (200, 202))):
        assert ((await client.get(path)).status, (await client.post(f"{path}/resend")).status) == statuses
    assert (await (await ada.get(path)).json())["state"] == "waiting"


async def test_a_secret_is_an_accounts_own_and_can_be_rotated(holder, admin):
    ada, ben = await holder("ada"), await holder("ben")
    first, other = [await (await c.get("/me/callback-secret")).json() for c in (ada, ben)]
    assert first["secret"].startswith("whsec_") and first["previous_until_ms"] is None
    assert first["secret"] != other["secret"]
    second = await (await ada.post("/me/callback-secret")).json()
    assert second["secret"] != first["secret"] and second["previous_until_ms"] > NOW_MS
    assert await (await admin.get("/admin/accounts/ada/callback-secret")).json() == second
    assert (await ada.post("/me/callback-secret")).status == 409
    third = await (await admin.post("/admin/accounts/ada/callback-secret?revoke=true")).json()
    assert await (await ada.get("/me/callback-secret")).json() == third != second


async def test_an_operator_sees_and_resends_everybodys(admin, call):
    shown = await (await admin.get("/admin/callbacks?account=ada")).json()
    assert {event["account"] for event in shown["data"]} == {"ada"} and len(shown["data"]) == 3
    assert (await (await admin.get("/admin/callbacks?account=ben")).json())["data"] == []
    assert (await admin.get("/admin/callbacks?account=nobody")).status == 404
    id_ = shown["data"][-1]["id"]
    assert (await (await admin.get(f"/admin/callbacks/{id_}")).json())["body"] == '{"mark":"1"}'
    assert (await (await admin.post(f"/admin/callbacks/{id_}/resend")).json())["state"] == "waiting"
