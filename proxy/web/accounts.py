"""Accounts, keys and top-ups as JSON, on the store's catalog.

Owns the members that bodies may have. A top-up needs an Idempotency-Key: asked twice, it is one.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from aiohttp import web

from proxy.errors import ClientFault
from proxy.routing import units
from proxy.store.catalog import Account, Catalog, KeySettings
from proxy.store.reports import Reports
from proxy.web.answers import json_answer, read_object, text_member
from proxy.web.mirrors import preference_member

CATALOG = web.AppKey("CATALOG", Catalog)
REPORTS = web.AppKey("REPORTS", Reports)
SOURCE = "admin"  # of ledger rows made here; references are unique within it
REFERENCE_CHARACTERS_MAX = 200
STATUSES = ("active", "frozen", "closed")

ACCOUNT_MEMBERS = frozenset({"name", "tier", "note"})
TOPUP_MEMBERS = frozenset({"amount", "paid"})
KEY_MEMBERS = frozenset(f.name for f in fields(KeySettings))


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
    app.router.add_delete("/admin/keys/{id:[0-9]{1,18}}", revoke_key)


# -- accounts ----------------------------------------------------------------------------------------


async def list_accounts(request: web.Request) -> web.Response:
    accounts = await request.app[CATALOG].accounts()
    return json_answer({"data": [as_document(account) for account in accounts]})


async def create_account(request: web.Request) -> web.Response:
    document = await read_object(request, ACCOUNT_MEMBERS)
    tier = text_member(document, "tier", "") or None
    account = await request.app[CATALOG].create_account(
        text_member(document, "name"), tier=tier, note=text_member(document, "note", "")
    )
    return json_answer(as_document(account), 201)


async def show_account(request: web.Request) -> web.Response:
    account = await request.app[CATALOG].account(request.match_info["name"])
    return json_answer(as_document(account))


async def set_account(request: web.Request) -> web.Response:
    """Freeze, close or open again; choose its mirrors."""
    catalog, name = request.app[CATALOG], request.match_info["name"]
    document = await read_object(request, frozenset({"status", "mirror"}))
    if "mirror" in document:
        await catalog.set_account_mirror(name, preference_member(document, "mirror"))
    if "status" in document:
        status = text_member(document, "status")
        if status not in STATUSES:
            raise ClientFault(f"'status' must be one of {', '.join(STATUSES)}.", param="status")
        await catalog.set_account_status(name, status)
    return json_answer(as_document(await catalog.account(name)))


async def top_up(request: web.Request) -> web.Response:
    """201 for a new posting, 200 when this Idempotency-Key has made it before."""
    catalog = request.app[CATALOG]
    reference = request.headers.get("Idempotency-Key", "")
    if not 0 < len(reference) <= REFERENCE_CHARACTERS_MAX:
        raise ClientFault("A top-up needs an Idempotency-Key of at most 200 characters.")
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
    try:
        first = date.fromisoformat(request.query.get("month", "") + "-01")
    except ValueError as e:
        raise ClientFault("'month' must be a month such as 2026-01.", param="month") from e
    month = await request.app[REPORTS].month(account.id, first)
    return json_answer(
        {**asdict(month), "used_nanos": month.used_nanos, "charged_nanos": month.charged_nanos}
    )


def as_document(account: Account) -> dict[str, Any]:
    return {**asdict(account), "created_at": account.created_at.isoformat()}


def amount_member(document: dict[str, Any], name: str) -> tuple[Decimal, str | None]:
    """`"10"` or `"10 CNY"`; a text, because a JSON number is a float to most who write one."""
    try:
        amount = units.amount(text_member(document, name))
    except ValueError as e:
        raise ClientFault(f"{name!r}: {e}.", param=name) from e
    return amount.value, amount.currency


# -- keys --------------------------------------------------------------------------------------------


async def list_keys(request: web.Request) -> web.Response:
    """Without the digests: whoever sees a list needs none."""
    catalog, name = request.app[CATALOG], request.match_info["name"]
    await catalog.account(name)
    keys = await catalog.keys(name)
    return json_answer({"data": [{k: v for k, v in key.items() if k != "digest"} for key in keys]})


async def create_key(request: web.Request) -> web.Response:
    """The only answer that ever holds the key itself."""
    settings = settings_of(await read_object(request, KEY_MEMBERS))
    key_id, key = await request.app[CATALOG].create_key(request.match_info["name"], settings)
    return json_answer({"key_id": key_id, "key": key}, 201)


async def set_key_mirror(request: web.Request) -> web.Response:
    document = await read_object(request, frozenset({"mirror"}))
    if "mirror" not in document:
        raise ClientFault("'mirror' is missing.", param="mirror")
    catalog, key_id = request.app[CATALOG], int(request.match_info["id"])
    await catalog.set_key_mirror(key_id, preference_member(document, "mirror"))
    return json_answer({"key_id": key_id, "mirror": (await catalog.key(key_id))["mirror"]})


async def revoke_key(request: web.Request) -> web.Response:
    was_active = await request.app[CATALOG].revoke_key(int(request.match_info["id"]))
    return json_answer({"revoked": True, "was_active": was_active})


def settings_of(document: dict[str, Any]) -> KeySettings:
    """Raises ClientFault."""
    chosen: dict[str, Any] = {}
    for name, value in document.items():
        match name:
            case "label":
                chosen[name] = text_member(document, name)
            case "mirror":
                chosen[name] = preference_member(document, name)
            case "models" | "routes" | "endpoints" | "ip_allow":
                chosen[name] = None if value is None else texts_of(name, value)
            case "requests_per_minute" | "concurrency":
                chosen[name] = None if value is None else count_of(name, value)
            case "expires_at":
                chosen[name] = None if value is None else time_of(name, value)
    return KeySettings(**chosen)


def texts_of(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ClientFault(f"{name!r} must be a list of texts.", param=name)
    return tuple(value)


def count_of(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ClientFault(f"{name!r} must be a whole number.", param=name)
    return value


def time_of(name: str, value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError as e:
        raise ClientFault(f"{name!r} must be a time such as 2026-01-31T00:00:00+08:00.", param=name) from e
    if moment.tzinfo is None:
        raise ClientFault(f"{name!r} needs a time zone.", param=name)
    return moment
