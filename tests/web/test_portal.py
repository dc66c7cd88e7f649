"""The portal's JSON API and the webhooks of payment gateways, with a real Postgres behind them."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest
from aiohttp import DummyCookieJar

from proxy.access.keyformat import digest_of
from proxy.access.keyring import KeyRecord
from proxy.ledger.notices import epay_signature, signature
from proxy.snapshot import Snapshot
from proxy.store.audit import audit
from proxy.store.catalog import Catalog, KeySettings
from proxy.store.codes import Codes
from proxy.store.reports import Reports
from proxy.web import portal
from proxy.web.holder import make_holder_app
from proxy.web.sessions import COOKIE
from proxy.web.shop import Shop
from tests.routing.compiling import compile_text
from tests.store.journals import YUAN, new_id

EPAY_SECRET = "89unJUB8HZ54Hj7x4nUj56HN4nUzUJ8i"
STRIPE_SECRET = "whsec_0123456789abcdef"
STATION = f"""
station: {{currency: CNY, rates: {{USD: 7}}, sign_up: {{trial: 0.5}}}}
endpoints: {{direct: {{url: "https://api.example"}}}}
upstreams:
  vendor: {{dialect: openai, mirrors: {{d: {{url: "https://v.example"}}}}, credentials: none}}
models:
  gpt-4: {{candidates: [{{upstream: vendor}}]}}
prices: {{gpt-4: {{input: 10, output: 20}}}}
multipliers: {{gpt-4: 0.5}}
gateways:
  ali: {{kind: epay, secret: {EPAY_SECRET}, pid: "1001", url: "https://pay.example"}}
  card: {{kind: stripe, secret: {STRIPE_SECRET}, currency: USD}}
"""
HOLDER = {"name": "ada", "password": "correct horse battery"}


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return Snapshot.from_document(compile_text(STATION).document)


@pytest.fixture
async def catalog(database):
    catalog = Catalog(database)
    await catalog.open_station("CNY", "UTC")
    return catalog


class Browser:
    """A client with a memory for one cookie. aiohttp's own keeps secure ones from plain HTTP."""

    def __init__(self, client) -> None:
        self._client = client
        self.cookie = ""

    def __getattr__(self, method: str):
        async def ask(path: str, *, headers=None, **options):
            headers = {"Cookie": f"{COOKIE}={self.cookie}"} | (headers or {})
            answer = await getattr(self._client, method)(path, headers=headers, **options)
            if COOKIE in answer.cookies:
                self.cookie = answer.cookies[COOKIE].value
            return answer

        return ask


@pytest.fixture
async def visit(database, catalog, snapshot, aiohttp_client):
    """Makes a browser that knows no cookie yet; all of them visit the same application."""
    app = make_holder_app(catalog, Reports(database), lambda: ("cdn",), lambda name: None)
    portal.add_routes(app, Shop(database, lambda: snapshot, new_id))
    client = await aiohttp_client(app, cookie_jar=DummyCookieJar())
    return lambda: Browser(client)


@pytest.fixture
async def ada(visit):
    """Signed up and logged in."""
    browser = visit()
    assert (await browser.post("/portal/api/signup", json=HOLDER)).status == 201
    return browser


async def told(answer, status: int = 200):
    assert answer.status == status, await answer.text()
    return await answer.json()


async def test_who_signs_up_has_the_trial_credit_and_a_session(ada, database):
    account = await told(await ada.get("/portal/api/account"))
    assert (account["account"], account["balance"], account["available"]) == ("ada", "0.5", "0.5")
    assert account["tiers"] == [{"tier": None, "until_ms": None}]
    assert await audit(database) == []


async def test_a_password_is_stored_as_its_scrypt_and_a_session_by_its_digest(ada, database):
    stored = await database.fetchval("SELECT password FROM account")
    assert stored.startswith("scrypt$16384$8$1$") and HOLDER["password"] not in stored
    assert ada.cookie and ada.cookie not in str(await database.fetch("SELECT * FROM session"))


async def test_the_cookie_is_for_our_pages_only(visit):
    browser = visit()
    answer = await browser.post("/portal/api/signup", json=HOLDER)
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Secure", "Path=/portal"))


async def test_without_a_session_nothing_is_told(visit, catalog):
    await catalog.create_account("bob")
    browser = visit()
    for path in ("account", "keys", "prices", "payments", "orders"):
        assert (await browser.get(f"/portal/api/{path}")).status == 401
    assert (await browser.post("/portal/api/keys", json={})).status == 401


async def test_a_wrong_password_and_an_unknown_name_are_the_same(ada, visit):
    browser = visit()
    wrong = await browser.post("/portal/api/login", json=HOLDER | {"password": "something else"})
    unknown = await browser.post("/portal/api/login", json=HOLDER | {"name": "nobody"})
    assert (wrong.status, await wrong.text()) == (unknown.status, await unknown.text())
    assert (await browser.post("/portal/api/login", json=HOLDER)).status == 200
    assert (await browser.get("/portal/api/account")).status == 200


async def test_passwords_cannot_be_tried_for_ever(ada, visit):
    browser = visit()
    statuses = set()
    for _ in range(25):  # of two windows at most
        answer = await browser.post("/portal/api/login", json={"name": "eve", "password": "x"})
        statuses.add(answer.status)
        if answer.status == 429:
            break
    assert statuses == {401, 429}


async def test_logging_out_and_a_new_password_end_sessions(ada, visit):
    other = visit()
    await told(await other.post("/portal/api/login", json=HOLDER))
    await told(
        await ada.post("/portal/api/password", json={"old": HOLDER["password"], "new": "another phrase"})
    )
    assert (await other.get("/portal/api/account")).status == 401
    assert (await ada.get("/portal/api/account")).status == 200
    await told(await ada.post("/portal/api/logout"))
    assert (await ada.get("/portal/api/account")).status == 401


async def test_a_name_is_taken_once(ada, visit):
    assert (await visit().post("/portal/api/signup", json=HOLDER)).status == 409
    short = await visit().post("/portal/api/signup", json={"name": "x", "password": "short"})
    assert short.status == 400


# -- keys ------------------------------------------------------------------------------------------


async def test_holders_make_change_rotate_and_revoke_their_keys(ada, catalog):
    wish = {"label": "app", "models": ["gpt-*"], "spend_total": "2.5", "ip_allow": ["10.0.0.1/8"]}
    made = await told(await ada.post("/portal/api/keys", json=wish), 201)
    record = await catalog.key_record(digest_of(made["key"]))
    assert (record["limits"], record["ip_allow"]) == ({"spend_total": 2_500_000_000}, ["10.0.0.0/8"])
    path = f"/portal/api/keys/{made['key_id']}"
    shown = await told(await ada.patch(path, json={"models": None, "mirror": "cdn"}))
    assert (shown["models"], shown["label"], shown["limits"]) == (None, "app", {"spend_total": "2.5"})
    assert "digest" not in shown and "overrides" not in shown
    rotated = await told(await ada.post(path + "/rotate"))
    now_ms = int(time.time() * 1000) + 1000
    old = KeyRecord.from_message(await catalog.key_record(digest_of(made["key"])))
    new = KeyRecord.from_message(await catalog.key_record(digest_of(rotated["key"])))
    assert (old.key_id, old.expires_ms <= now_ms, new.key_id, new.expires_ms) == (
        new.key_id, True, made["key_id"], None,
    )  # fmt: skip
    await told(await ada.delete(path))
    keys = await told(await ada.get("/portal/api/keys"))
    assert [(key["key_id"], key["status"]) for key in keys["data"]] == [(made["key_id"], "revoked")]


async def test_a_rotated_key_is_told_to_those_who_hold_the_old_one(catalog):
    await catalog.create_account("acme")
    key_id, key = await catalog.create_key("acme", KeySettings())
    seen = (await catalog.changed_keys(0)).generation
    fresh = await catalog.rotate_key(key_id)
    changed = {record["digest"] for record in (await catalog.changed_keys(seen)).records}
    assert changed == {digest_of(key).hex(), digest_of(fresh).hex()}


async def test_keys_of_others_do_not_exist(ada, catalog):
    await catalog.create_account("bob")
    key_id, _ = await catalog.create_key("bob", KeySettings(label="secret"))
    for answer in (
        await ada.patch(f"/portal/api/keys/{key_id}", json={"label": "mine"}),
        await ada.post(f"/portal/api/keys/{key_id}/rotate"),
        await ada.delete(f"/portal/api/keys/{key_id}"),
    ):
        assert answer.status == 404
    assert (await catalog.key(key_id))["label"] == "secret"


async def test_a_frozen_holder_looks_and_changes_nothing(ada, catalog):
    await catalog.set_account("ada", status="frozen")
    assert (await ada.get("/portal/api/account")).status == 200
    assert (await ada.post("/portal/api/keys", json={})).status == 403


async def test_operators_notes_are_not_for_holders(ada):
    assert (await ada.post("/portal/api/keys", json={"note": "x"})).status == 400


async def test_prices_are_those_that_are_billed(ada):
    prices = await told(await ada.get("/portal/api/prices"))
    [model] = prices["data"]
    assert [(f["figure"], f["official"], f["price"]) for f in model["figures"]] == [
        ("input", "10", "5"),
        ("output", "20", "10"),
    ]


# -- payments --------------------------------------------------------------------------------------


async def test_a_code_is_redeemed_once(ada, database):
    [code] = await Codes(database).create(5 * YUAN, 1)
    answers = await asyncio.gather(*(ada.post("/portal/api/codes", json={"code": code}) for _ in range(3)))
    assert sorted([(await told(a))["is_new"] for a in answers]) == [False, False, True]
    assert (await told(await ada.get("/portal/api/account")))["balance"] == "5.5"
    assert (await ada.post("/portal/api/codes", json={"code": "00000"})).status == 404


async def test_codes_cannot_be_guessed_for_long(ada):
    answers = [await ada.post("/portal/api/codes", json={"code": str(n)}) for n in range(25)]
    assert {a.status for a in answers} == {404, 429}


async def order(ada, gateway: str) -> dict:
    return await told(await ada.post("/portal/api/orders", json={"gateway": gateway, "amount": "20"}), 201)


def epay_query(made: dict, **changes: str) -> dict[str, str]:
    parameters = {
        "pid": "1001", "trade_no": "E1", "out_trade_no": made["order"], "type": "wxpay", "name": "x",
        "money": made["price"], "trade_status": "TRADE_SUCCESS",
    } | changes  # fmt: skip
    return {**parameters, "sign": epay_signature(parameters, EPAY_SECRET), "sign_type": "MD5"}


async def test_epays_signed_get_is_answered_success_and_brings_20_yuan_once(ada, visit, database):
    made = await order(ada, "ali")
    assert made["pay_url"].startswith("https://pay.example/submit.php?pid=1001&out_trade_no=")
    gateway = visit()
    for _ in range(3):
        answer = await gateway.get("/portal/hooks/ali", params=epay_query(made))
        assert (answer.status, await answer.text()) == (200, "success")
    assert (await told(await ada.get("/portal/api/account")))["balance"] == "20.5"
    history = await told(await ada.get("/portal/api/payments"))
    assert [(row["kind"], row["amount"]) for row in history["data"]] == [("topup", "20"), ("trial", "0.5")]
    assert (await told(await ada.get("/portal/api/orders")))["data"][0]["paid"] is True
    assert await audit(database) == []


async def test_a_forged_or_cheaper_epay_notice_brings_nothing(ada, visit):
    made = await order(ada, "ali")
    gateway = visit()
    forged = epay_query(made) | {"money": "0.01"}
    cheaper = epay_query(made, money="0.01")
    assert (await gateway.get("/portal/hooks/ali", params=forged)).status == 401
    assert (await gateway.get("/portal/hooks/ali", params=cheaper)).status == 409
    twice = [*epay_query(made).items(), ("money", "99")]
    assert (await gateway.get("/portal/hooks/ali", params=twice)).status == 401
    assert (await gateway.get("/portal/hooks/nobody", params=epay_query(made))).status == 404
    assert (await told(await ada.get("/portal/api/account")))["balance"] == "0.5"


async def card(gateway, kind: str, *, secret: str = STRIPE_SECRET, age_s: int = 0, **thing):
    body = orjson.dumps({"type": kind, "data": {"object": thing}})
    at_s = int(time.time()) - age_s
    headers = {"stripe-signature": f"t={at_s},v1={signature(secret, at_s, body)}"}
    return await gateway.post("/portal/hooks/card", data=body, headers=headers)


async def test_a_card_pays_is_refunded_and_charged_back(ada, visit, database):
    made = await order(ada, "card")
    assert (made["price"], made["currency"]) == ("2.86", "USD")
    gateway = visit()
    paid = {
        "id": "cs", "payment_intent": "pi", "client_reference_id": made["order"], "amount_total": 286,
        "currency": "usd", "payment_status": "paid",
    }  # fmt: skip
    assert (await card(gateway, "checkout.session.completed", secret="x" * 20, **paid)).status == 401
    assert (await card(gateway, "checkout.session.completed", age_s=400, **paid)).status == 401
    for _ in range(2):
        assert (await card(gateway, "checkout.session.completed", **paid)).status == 200
    assert (await told(await ada.get("/portal/api/account")))["balance"] == "20.5"
    back = {"payment_intent": "pi", "currency": "usd"}
    for _ in range(2):
        assert (await card(gateway, "refund.created", id="re", amount=143, **back)).status == 200
    assert (await told(await ada.get("/portal/api/account")))["balance"] == "10.5"
    assert (await card(gateway, "charge.dispute.created", id="dp", amount=143, **back)).status == 200
    assert (await told(await ada.get("/portal/api/account")))["balance"] == "0.5"
    assert await audit(database) == []
