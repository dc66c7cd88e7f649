"""Accounts, keys and top-ups as JSON, on the store's catalog.

Owns the members that bodies may have. A top-up needs an Idempotency-Key: asked twice, it is one.
"""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import Any

from aiohttp import web

from proxy.access.limits import KINDS
from proxy.errors import ClientFault
from proxy.routing import units
from proxy.store.catalog import Account, Catalog, KeySettings
from proxy.store.reports import Reports
from proxy.web.answers import json_answer, read_object, text_member
from proxy.web.members import (
    KEY_MEMBERS,
    amount_member,
    limit_member,
    reference_of,
    settings_of,
    shown_key,
    shown_limits,
    time_of,
)
from proxy.web.mirrors import preference_member
from proxy.web.receipts import month_of

CATALOG = web.AppKey("CATALOG", Catalog)
REPORTS = web.AppKey("REPORTS", Reports)
SOURCE = "admin"  # of ledger rows made here; references are unique within it
STATUSES = ("active", "frozen", "closed")

ACCOUNT_MEMBERS = frozenset({"name", "tier", "note", "contact"})
TEXT_MEMBERS = frozenset({"status", "tier", "note", "contact"})
CHANGED_MEMBERS = TEXT_MEMBERS | {"mirror"} | frozenset(KINDS)
TOPUP_MEMBERS = frozenset({"amount", "paid"})


def add_routes(app: web.Application, catalog: Catalog, reports: Reports) -> None:
    app[CATALOG], app[REPORTS] = catalog, reports
    app.router.add_get("/admin/accounts", list_accounts)
    app.router.add_post("/admin/accounts", create_account)
    app.router.add_get("/admin/accounts/{name}", show_account)
    app.router.add_patch("/admin/accounts/{name}", set_account)
    app.router.add_post("/admin/accounts/{name}/topups", top_up)
    app.router.add_get("/admin/accounts/{name}/bill", bill)
    app.router.add_get("/admin/accounts/{name}/keys", list_keys)
    app.router.add_post("/admin/accounts/{name}/keys", create_key)
    app.router.add_put("/admin/keys/{id:[0-9]{1,18}}/mirror", set_key_mirror)
    app.router.add_patch("/admin/keys/{id:[0-9]{1,18}}", set_key)
    app.router.add_post("/admin/keys/{id:[0-9]{1,18}}/rotate", rotate_key)
    app.router.add_delete("/admin/keys/{id:[0-9]{1,18}}", revoke_key)


# -- accounts ----------------------------------------------------------------------------------------


async def list_accounts(request: web.Request) -> web.Response:
    accounts = await request.app[CATALOG].accounts()
    return json_answer({"data": [as_document(account) for account in accounts]})


async def create_account(request: web.Request) -> web.Response:
    document = await read_object(request, ACCOUNT_MEMBERS)
    tier = text_member(document, "tier", "") or None
    account = await request.app[CATALOG].create_account(
        text_member(document, "name"),
        tier=tier,
        note=text_member(document, "note", ""),
        contact=text_member(document, "contact", ""),
    )
    return json_answer(as_document(account), 201)


async def show_account(request: web.Request) -> web.Response:
    account = await request.app[CATALOG].account(request.match_info["name"])
    return json_answer(as_document(account))


async def set_account(request: web.Request) -> web.Response:
    """Freeze, close or open again; another tier, "" for the default one; its mirrors; limits that all its
    keys share, null takes one away."""
    catalog, name = request.app[CATALOG], request.match_info["name"]
    document = await read_object(request, CHANGED_MEMBERS)
    changes = {member: text_member(document, member) for member in document if member in TEXT_MEMBERS}
    limits = {kind: limit_member(document, kind) for kind in KINDS if kind in document}
    if changes.get("status", "active") not in STATUSES:
        raise ClientFault(f"'status' must be one of {', '.join(STATUSES)}.", param="status")
    if "mirror" in document:
        await catalog.set_account_mirror(name, preference_member(document, "mirror"))
    if limits:
        await catalog.set_account_limits(name, limits)
    await catalog.set_account(name, **changes)
    return json_answer(as_document(await catalog.account(name)))


async def top_up(request: web.Request) -> web.Response:
    """201 for a new posting, 200 when this Idempotency-Key has made it before."""
    catalog = request.app[CATALOG]
    reference = reference_of(request)
    document = await read_object(request, TOPUP_MEMBERS)
    value, currency = amount_member(document, "amount")
    station_currency = await catalog.currency()
    if currency not in (None, station_currency):
        raise ClientFault(
            f"'amount' is in {station_currency}; what was really paid may stand in 'paid'.", param="amount"
        )
    paid = None
    if "paid" in document:
        paid_value, paid_currency = amount_member(document, "paid")
        paid = (paid_value, paid_currency or station_currency)
    posting = await catalog.top_up(
        request.match_info["name"],
        units.nanos(value, Decimal(1)),
        reference,
        source=SOURCE,
        paid=paid,
    )
    return json_answer(asdict(posting), 201 if posting.is_new else 200)


async def bill(request: web.Request) -> web.Response:
    """`?month=2026-01`: what each model cost, and whether that is what the ledger charged."""
    account = await request.app[CATALOG].account(request.match_info["name"])
    month = await request.app[REPORTS].month(account.id, month_of(request))
    return json_answer(
        {**asdict(month), "used_nanos": month.used_nanos, "charged_nanos": month.charged_nanos}
    )


def as_document(account: Account) -> dict[str, Any]:
    times = {"created_at": account.created_at.isoformat()}
    return {**asdict(account), **times, "limits": shown_limits(account.limits)}


# -- keys --------------------------------------------------------------------------------------------


async def list_keys(request: web.Request) -> web.Response:
    """Without the digests: whoever sees a list needs none."""
    catalog, name = request.app[CATALOG], request.match_info["name"]
    await catalog.account(name)
    keys = await catalog.keys(name)
    return json_answer({"data": [shown_key(key) for key in keys]})


async def create_key(request: web.Request) -> web.Response:
    """The only answer that ever holds the key itself."""
    settings = settings_of(await read_object(request, KEY_MEMBERS), KeySettings())
    key_id, key = await request.app[CATALOG].create_key(request.match_info["name"], settings)
    return json_answer({"key_id": key_id, "key": key}, 201)


async def set_key_mirror(request: web.Request) -> web.Response:
    document = await read_object(request, frozenset({"mirror"}))
    if "mirror" not in document:
        raise ClientFault("'mirror' is missing.", param="mirror")
    catalog, key_id = request.app[CATALOG], int(request.match_info["id"])
    await catalog.set_key_mirror(key_id, preference_member(document, "mirror"))
    return json_answer({"key_id": key_id, "mirror": (await catalog.key(key_id))["mirror"]})


async def set_key(request: web.Request) -> web.Response:
    """What is named changes, the rest stays."""
    catalog, key_id = request.app[CATALOG], int(request.match_info["id"])
    document = await read_object(request, KEY_MEMBERS)
    await catalog.set_key(key_id, settings_of(document, await catalog.key_settings(key_id)))
    return json_answer(shown_key(await catalog.key(key_id)))


async def rotate_key(request: web.Request) -> web.Response:
    """A new secret; the old one is good until `old_until`, or no more."""
    document = await read_object(request, frozenset({"old_until"}))
    until = time_of("old_until", document["old_until"]) if document else None
    key_id = int(request.match_info["id"])
    key = await request.app[CATALOG].rotate_key(key_id, until)
    return json_answer({"key_id": key_id, "key": key})


async def revoke_key(request: web.Request) -> web.Response:
    was_active = await request.app[CATALOG].revoke_key(int(request.match_info["id"]))
    return json_answer({"revoked": True, "was_active": was_active})
