"""The portal's JSON API: what holders do with their own account, logged in.

Owns its paths below /portal/api. A holder reaches nothing of another account: every id is looked up
beside the session's account.
"""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

from aiohttp import web

from proxy.errors import ClientFault, LimitExceeded, UnknownPath
from proxy.ledger import notices
from proxy.ledger.amounts import as_text
from proxy.metering.quote import quote
from proxy.routing import units
from proxy.store.catalog import Account, Catalog
from proxy.store.codes import Codes
from proxy.store.key_records import KeySettings
from proxy.store.orders import Order, Orders
from proxy.store.overrides import Overrides
from proxy.store.payments import Payments
from proxy.web import payments, receipts, sessions, site
from proxy.web.answers import json_answer, read_object, text_member
from proxy.web.attempts import Attempts
from proxy.web.members import KEY_MEMBERS, amount_member, settings_of, shown_key
from proxy.web.mirrors import preference_member
from proxy.web.sessions import holder
from proxy.web.shop import SHOP, Shop

KEYS_MAX = 100  # of one account; active ones
ROWS_MAX = 100
CODES = web.AppKey("CODES", Attempts)
FOR_OPERATORS = ("note", "overrides")
MEMBERS = KEY_MEMBERS - {"note"}
KEY_PATH = "/portal/api/keys/{id:[0-9]{1,18}}"


def add_routes(app: web.Application, shop: Shop) -> None:
    app[SHOP], app[CODES] = shop, Attempts(10, 600)
    sessions.add_routes(app)
    payments.add_routes(app)
    site.add_routes(app)
    app.router.add_get("/portal/api/station", station)
    app.router.add_get("/portal/api/account", account)
    app.router.add_patch("/portal/api/account", set_account)
    app.router.add_get("/portal/api/receipts", list_receipts)
    app.router.add_get("/portal/api/prices", prices)
    app.router.add_get("/portal/api/payments", history)
    app.router.add_post("/portal/api/codes", redeem)
    app.router.add_get("/portal/api/orders", list_orders)
    app.router.add_post("/portal/api/orders", order)
    app.router.add_get("/portal/api/keys", list_keys)
    app.router.add_post("/portal/api/keys", create_key)
    app.router.add_patch(KEY_PATH, set_key)
    app.router.add_post(KEY_PATH + "/rotate", rotate_key)
    app.router.add_delete(KEY_PATH, revoke_key)


def _catalog(request: web.Request) -> Catalog:
    return Catalog(request.app[SHOP].database)


async def station(request: web.Request) -> web.Response:
    """What whoever is not logged in may know."""
    shop = request.app[SHOP]
    return json_answer({"name": shop.name(), "sign_up": shop.trial_nanos() is not None})


async def set_account(request: web.Request) -> web.Response:
    """`{"mirror"}`: for all keys of the account that say "auto"."""
    found = await active_holder(request)
    document = await read_object(request, frozenset({"mirror"}))
    chosen = preference_member(document, "mirror", request.app[SHOP].mirrors())
    await _catalog(request).set_account_mirror(found.name, chosen)
    return await account(request)


async def list_receipts(request: web.Request) -> web.Response:
    """Of all keys of the account, as /v1/receipts gives them."""
    return await receipts.listed(request, (await holder(request)).id, None)


async def account(request: web.Request) -> web.Response:
    found = await holder(request)
    catalog, shop = _catalog(request), request.app[SHOP]
    return json_answer(
        {
            "account": found.name,
            "status": found.status,
            "contact": found.contact,
            "currency": await catalog.currency(),
            "balance": as_text(found.balance_nanos),
            "free": as_text(found.free_nanos),
            "held": as_text(found.held_nanos),
            "available": as_text(found.available_nanos),
            "tiers": [
                {"tier": tier or None, "until_ms": until_ms}
                for tier, until_ms in await catalog.tiers_of(found.id)
            ],
            "gateways": sorted(shop.gateways()),
            "mirror": found.mirror,
            "mirrors": sorted(shop.mirrors()),
            "endpoints": [
                {"name": e.name, "url": e.url, "label": e.label, "region": e.region} for e in shop.endpoints()
            ],
        }
    )


async def prices(request: web.Request) -> web.Response:
    """What each model costs this account: by the function that bills."""
    found = await holder(request)
    shop = request.app[SHOP]
    snapshot = shop.snapshot()
    if snapshot is None:
        return json_answer({"data": []})
    line = await _catalog(request).tiers_of(found.id)
    tier = snapshot.tier(line[0].tier)
    overrides = await Overrides(shop.database).of(found.name)
    data = []
    for model in snapshot.table.models:
        sale = snapshot.sale(model, tier, overrides) if "*" not in model else None
        if sale is not None and snapshot.permitted(tier.models, model):
            figures = [
                {**line._asdict(), "official": as_text(line.official_nanos), "price": as_text(line.nanos)}
                for line in quote(sale)
            ]
            data.append({"model": model, "free": sale.price.free, "figures": figures})
    return json_answer({"currency": snapshot.table.station.currency, "tier": tier.name, "data": data})


# -- money -------------------------------------------------------------------------------------------


async def history(request: web.Request) -> web.Response:
    """Payments, codes, refunds: `?before=` the id of the last one shown."""
    found = await holder(request)
    before = request.query.get("before", "")
    if before and not (before.isascii() and before.isdigit() and len(before) < 19):
        raise ClientFault("'before' must be a number.", param="before")
    rows = await Payments(request.app[SHOP].database).history(
        found.id, int(before) if before else None, ROWS_MAX
    )
    shown = ("id", "kind", "reference", "paid_currency", "note", "posted_ms")
    data = [
        {n: row[n] for n in shown}
        | {"amount": as_text(row["amount_nanos"]), "paid": row["paid_amount"] and f"{row['paid_amount']:f}"}
        for row in rows
    ]
    return json_answer({"data": data})


async def redeem(request: web.Request) -> web.Response:
    found = await active_holder(request)
    code = text_member(await read_object(request, frozenset({"code"})), "code")
    request.app[CODES].count(found.name, time.time())
    posting = await Codes(request.app[SHOP].database).redeem(found.id, code)
    return json_answer({"amount": as_text(posting.amount_nanos), "is_new": posting.is_new})


async def list_orders(request: web.Request) -> web.Response:
    found = await holder(request)
    orders = await Orders(request.app[SHOP].database).of(found.id, ROWS_MAX)
    return json_answer({"data": [_order(o) for o in orders]})


async def order(request: web.Request) -> web.Response:
    """Begin to pay: `{"gateway", "amount"}` -> the order, and where to pay it if the gateway has a page."""
    found, shop = await active_holder(request), request.app[SHOP]
    document = await read_object(request, frozenset({"gateway", "amount"}))
    gateway = shop.gateways().get(text_member(document, "gateway"))
    if gateway is None:
        raise ClientFault("There is no such gateway.", param="gateway")
    nanos = await station_nanos(_catalog(request), document, "amount")
    made = await Orders(shop.database).create(shop.new_id(), found.id, gateway, nanos)
    told = _order(made)
    if gateway.kind == "epay":
        base = shop.public_url()
        told["pay_url"] = notices.epay_link(
            gateway, made.id, made.price, f"{base}{payments.HOOKS}/{gateway.name}", f"{base}/portal/"
        )
    return json_answer(told, 201)


def _order(made: Order) -> dict[str, Any]:
    return {
        "order": made.id,
        "gateway": made.gateway,
        "amount": as_text(made.amount_nanos),
        "price": f"{made.price:f}",
        "currency": made.currency,
        "paid": made.is_paid,
    }


async def station_nanos(catalog: Catalog, document: dict[str, Any], name: str) -> int:
    """An amount in the station's currency, more than nothing. Raises ClientFault."""
    value, currency = amount_member(document, name)
    if currency not in (None, await catalog.currency()) or value <= 0:
        raise ClientFault(f"{name!r} must be more than nothing, in the station's currency.", param=name)
    return units.nanos(value, Decimal(1))


# -- keys --------------------------------------------------------------------------------------------


async def active_holder(request: web.Request) -> Account:
    """Whoever is frozen looks and changes nothing."""
    found = await holder(request)
    if found.status != "active":
        raise ClientFault("This account is not active.", status=403)
    return found


async def list_keys(request: web.Request) -> web.Response:
    found = await holder(request)
    return json_answer({"data": [_shown(key) for key in await _catalog(request).keys(found.name)]})


def _shown(key: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown_key(key).items() if name not in FOR_OPERATORS}


async def create_key(request: web.Request) -> web.Response:
    """The only answer that ever holds the key itself."""
    found, catalog = await active_holder(request), _catalog(request)
    settings = settings_of(await read_object(request, MEMBERS), KeySettings())
    active = sum(key["status"] == "active" for key in await catalog.keys(found.name))
    if active >= KEYS_MAX:
        raise LimitExceeded(f"An account has at most {KEYS_MAX} keys.")
    key_id, key = await catalog.create_key(found.name, settings)
    return json_answer({"key_id": key_id, "key": key}, 201)


async def set_key(request: web.Request) -> web.Response:
    """What is named changes, the rest stays."""
    catalog, key_id = _catalog(request), await _own_key(request)
    document = await read_object(request, MEMBERS)
    settings = settings_of(document, await catalog.key_settings(key_id))
    await catalog.set_key(key_id, settings)
    return json_answer(_shown(await catalog.key(key_id)))


async def rotate_key(request: web.Request) -> web.Response:
    """The old secret is refused from now on."""
    key_id = await _own_key(request)
    return json_answer({"key_id": key_id, "key": await _catalog(request).rotate_key(key_id)})


async def revoke_key(request: web.Request) -> web.Response:
    was_active = await _catalog(request).revoke_key(await _own_key(request))
    return json_answer({"revoked": True, "was_active": was_active})


async def _own_key(request: web.Request) -> int:
    """Raises UnknownPath for everybody else's."""
    found = await active_holder(request)
    key_id = int(request.match_info["id"])
    try:
        key = await _catalog(request).key(key_id)
    except LookupError as e:
        raise UnknownPath from e
    if key["account_id"] != found.id:
        raise UnknownPath
    return key_id
