"""The operators' application over HTTP, with a real catalog in a real Postgres."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.access.keyformat import digest_of
from proxy.errors import ConfigError
from proxy.store.catalog import Catalog
from proxy.store.reports import Reports
from proxy.web.admin import make_admin_app
from tests.midday import MIDDAY

TOKEN = "operator-token-of-this-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Node:
    """What the application asks of control, with answers that a test sets."""

    def __init__(self, catalog: Catalog, reports: Reports) -> None:
        self.catalog = catalog
        self.reports = reports
        self.missing = ""
        self.mistakes: list[str] = []

    def why_not_ready(self) -> str:
        return self.missing

    def status(self) -> dict[str, Any]:
        return {"generation": 7}

    async def exposition(self) -> bytes:
        return b"headrace_calls_total 1\n"

    def enable(self, upstream: str, *, credential: str = "", mirror: str = "") -> int:
        return {("openai", "main", ""): 2, ("openai", "", "hk"): 1}.get((upstream, credential, mirror), 0)

    async def reload(self) -> dict[str, Any]:
        if self.mistakes:
            raise ConfigError(self.mistakes)
        return {"generation": 8}


@pytest.fixture
async def node(database):
    catalog = Catalog(database)
    await catalog.open_station("CNY", MIDDAY)
    return Node(catalog, Reports(database))


@pytest.fixture
async def admin(node, aiohttp_client):
    """With the token in every request."""
    return await aiohttp_client(make_admin_app(node, TOKEN), headers=BEARER)


@pytest.fixture
async def open_admin(node, aiohttp_client):
    """Of a station without a token."""
    return await aiohttp_client(make_admin_app(node, ""))


async def error_of(answer) -> tuple[int, str]:
    return answer.status, (await answer.json())["error"]["code"]


# -- who may use it --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/admin/status", "/admin/accounts", "/metrics", "/admin/nothing"])
async def test_without_the_token_nothing_is_told(admin, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {TOKEN}x"}):
        answer = await admin.get(path, headers={"Authorization": ""} | headers)
        assert await error_of(answer) == (401, "invalid_api_key")
        assert TOKEN not in await answer.text()


async def test_health_and_readiness_need_no_token(admin, node):
    assert (await admin.get("/healthz", headers={"Authorization": ""})).status == 200
    assert (await admin.get("/readyz", headers={"Authorization": ""})).status == 200
    node.missing = "no worker is ready"
    answer = await admin.get("/readyz", headers={"Authorization": ""})
    assert (answer.status, (await answer.json())["why"]) == (503, "no worker is ready")


async def test_without_a_token_this_machine_is_served(open_admin):
    assert (await (await open_admin.get("/admin/status")).json()) == {"generation": 7}


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "rebound.example"},
        {"X-Forwarded-For": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9"},
    ],
    ids=lambda headers: " ".join(f"{k}: {v}" for k, v in headers.items()),
)
async def test_without_a_token_no_page_and_no_front_gets_in(open_admin, headers):
    answer = await open_admin.post("/admin/reload", headers=headers)
    assert await error_of(answer) == (403, "route_not_permitted")


async def test_a_page_of_our_own_gets_in(open_admin):
    own = f"http://{open_admin.host}:{open_admin.port}"
    answer = await open_admin.get("/admin/status", headers={"Origin": own, "Sec-Fetch-Site": "same-origin"})
    assert answer.status == 200


# -- the node --------------------------------------------------------------------------------------


async def test_metrics_are_prometheus_text(admin):
    answer = await admin.get("/metrics")
    assert answer.content_type == "text/plain"
    assert await answer.text() == "headrace_calls_total 1\n"


async def test_a_reload_tells_every_mistake(admin, node):
    assert (await (await admin.post("/admin/reload")).json()) == {"generation": 8}
    node.mistakes = ["routes.yaml:3:5: models: unknown upstream 'opnai' (did you mean 'openai'?)"]
    answer = await admin.post("/admin/reload")
    assert answer.status == 422
    assert (await answer.json())["error"]["mistakes"] == node.mistakes


async def test_a_mended_credential_or_mirror_need_not_wait(admin):
    for path, ended in (
        ("credentials/openai/main", 2),
        ("credentials/openai/spare", 0),
        ("mirrors/openai/hk", 1),
    ):
        answer = await admin.post(f"/admin/{path}/enable")
        assert await answer.json() == {"ended": ended}


async def test_an_operator_chooses_mirrors_of_a_key_and_of_an_account(admin):
    await admin.post("/admin/accounts", json={"name": "acme"})
    key_id = (await (await admin.post("/admin/accounts/acme/keys", json={})).json())["key_id"]
    account = await admin.patch("/admin/accounts/acme", json={"mirror": ["hk", "auto"]})
    assert (await account.json())["mirror"] == ["hk", "auto"]
    key = await admin.put(f"/admin/keys/{key_id}/mirror", json={"mirror": "auto"})
    assert (await key.json())["mirror"] == ["hk", "auto"]
    key = await admin.put(f"/admin/keys/{key_id}/mirror", json={"mirror": "cdn"})
    assert (await key.json())["mirror"] == "cdn"
    assert await error_of(await admin.put(f"/admin/keys/{key_id}/mirror", json={"mirror": []})) == (
        400,
        "invalid_request",
    )


# -- accounts --------------------------------------------------------------------------------------


async def test_an_account_is_created_once_shown_and_frozen(admin):
    created = await admin.post("/admin/accounts", json={"name": "acme", "note": "pays by invoice"})
    assert created.status == 201
    assert await error_of(await admin.post("/admin/accounts", json={"name": "acme"})) == (409, "conflict")
    frozen = await admin.patch("/admin/accounts/acme", json={"status": "frozen"})
    assert (await frozen.json())["status"] == "frozen"
    listed = (await (await admin.get("/admin/accounts")).json())["data"]
    assert [(a["name"], a["status"], a["balance_nanos"]) for a in listed] == [("acme", "frozen", 0)]
    assert await error_of(await admin.get("/admin/accounts/nobody")) == (404, "not_found")


async def test_a_top_up_asked_for_twice_is_one(admin):
    await admin.post("/admin/accounts", json={"name": "acme"})
    ask = {"json": {"amount": "10.5", "paid": "1.46 USD"}, "headers": BEARER | {"Idempotency-Key": "inv-1"}}
    first = await admin.post("/admin/accounts/acme/topups", **ask)
    again = await admin.post("/admin/accounts/acme/topups", **ask)
    assert (first.status, again.status) == (201, 200)
    assert (await first.json())["id"] == (await again.json())["id"]
    account = await (await admin.get("/admin/accounts/acme")).json()
    assert account["balance_nanos"] == account["available_nanos"] == 10_500_000_000
    ask["json"] = {"amount": "11"}
    assert await error_of(await admin.post("/admin/accounts/acme/topups", **ask)) == (409, "conflict")


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, {"amount": "10"}),
        ({"Idempotency-Key": "x" * 201}, {"amount": "10"}),
        ({"Idempotency-Key": "r"}, {"amount": 10.5}),
        ({"Idempotency-Key": "r"}, {"amount": "ten"}),
        ({"Idempotency-Key": "r"}, {"amount": "-1"}),
        ({"Idempotency-Key": "r"}, {"amount": "10 USD"}),
        ({"Idempotency-Key": "r"}, {"amount": "10", "account": "other"}),
        ({"Idempotency-Key": "r"}, {}),
    ],
)
async def test_a_top_up_that_could_be_misread_is_refused(admin, headers, body):
    await admin.post("/admin/accounts", json={"name": "acme"})
    answer = await admin.post("/admin/accounts/acme/topups", json=body, headers=BEARER | headers)
    assert await error_of(answer) == (400, "invalid_request")
    assert (await (await admin.get("/admin/accounts/acme")).json())["balance_nanos"] == 0


async def test_a_bill_says_what_the_ledger_charged(admin):
    await admin.post("/admin/accounts", json={"name": "acme"})
    month = await (await admin.get("/admin/accounts/acme/bill?month=2026-12")).json()
    assert (month["first"], month["next_first"]) == ("2026-12-01", "2027-01-01")
    assert month["used_nanos"] == month["charged_nanos"] == 0
    for wrong in ("", "?month=december", "?month=2026-13"):
        answer = await admin.get(f"/admin/accounts/acme/bill{wrong}")
        assert await error_of(answer) == (400, "invalid_request")


# -- keys ------------------------------------------------------------------------------------------


async def test_a_key_is_told_once_and_works_until_it_is_revoked(admin, node):
    await admin.post("/admin/accounts", json={"name": "acme"})
    settings = {
        "label": "laptop",
        "mirror": ["cdn", "direct"],
        "models": ["gpt-*"],
        "concurrency": 3,
        "expires_at": "2099-01-01T00:00:00+08:00",
    }
    created = await (await admin.post("/admin/accounts/acme/keys", json=settings)).json()
    record = await node.catalog.key_record(digest_of(created["key"]))
    assert (record["models"], record["limits"], record["status"]) == (["gpt-*"], {"concurrency": 3}, "active")
    listed = await (await admin.get("/admin/accounts/acme/keys")).text()
    assert created["key"] not in listed
    assert "digest" not in listed
    revoked = await admin.delete(f"/admin/keys/{created['key_id']}")
    assert await revoked.json() == {"revoked": True, "was_active": True}
    assert (await node.catalog.key_record(digest_of(created["key"])))["status"] == "revoked"


@pytest.mark.parametrize(
    "body",
    [
        {"models": "gpt-*"},
        {"models": [1]},
        {"concurrency": "3"},
        {"concurrency": True},
        {"expires_at": "2099-01-01T00:00:00"},
        {"expires_at": "tomorrow"},
        {"admin": True},
    ],
)
async def test_a_key_setting_of_the_wrong_kind_is_refused(admin, body):
    await admin.post("/admin/accounts", json={"name": "acme"})
    answer = await admin.post("/admin/accounts/acme/keys", json=body)
    assert await error_of(answer) == (400, "invalid_request")


async def test_a_body_must_say_that_it_is_json(admin):
    answer = await admin.post("/admin/accounts", data=b'{"name": "acme"}')
    assert answer.status == 415
    answer = await admin.post(
        "/admin/accounts", data=b"{nope", headers=BEARER | {"Content-Type": "application/json"}
    )
    assert answer.status == 400
    assert "nope" not in await answer.text()


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("PUT", "/admin/status", 405)])
async def test_other_paths_and_methods_are_refused_as_json(admin, method, path, status):
    answer = await admin.request(method, path)
    assert answer.status == status
    assert (await answer.json())["error"]["message"]


async def test_limits_that_all_keys_of_an_account_share_are_set_told_and_taken_away(admin, node):
    catalog = node.catalog
    await catalog.create_account("limited")
    limits = {"requests_per_day": 100, "spend_per_month": "12.5"}
    answer = await admin.patch("/admin/accounts/limited", json=limits)
    assert (await answer.json())["limits"] == limits
    assert (await catalog.account("limited")).limits == {
        "requests_per_day": 100, "spend_per_month": 12_500_000_000,
    }  # fmt: skip
    answer = await admin.patch("/admin/accounts/limited", json={"requests_per_day": None, "note": "x"})
    assert (await answer.json())["limits"] == {"spend_per_month": "12.5"}
    for wrong in ({"concurrency": "3"}, {"spend_total": 3.5}, {"tokens_per_day": -1}):
        assert (await admin.patch("/admin/accounts/limited", json=wrong)).status == 400
