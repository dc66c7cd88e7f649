"""What key holders see of themselves: account, receipts, and the two paths that chat clients ask.

Served on control's unix socket to workers, which have verified the key and name it in a header that
clients cannot set. Owns the shape of these documents. Upstreams and credentials are never in them.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from aiohttp import web

from proxy.errors import ClientFault
from proxy.ledger.amounts import as_text
from proxy.store.catalog import Account, Catalog
from proxy.store.reports import Reports
from proxy.web.answers import errors_as_json, json_answer

KEY_HEADER = "x-headrace-key"  # the id of the verified key; relay/pages.py sets it
RECEIPTS_MAX = 100  # of one page

CATALOG = web.AppKey("CATALOG", Catalog)
REPORTS = web.AppKey("REPORTS", Reports)


def make_holder_app(catalog: Catalog, reports: Reports) -> web.Application:
    """Paths without /v1: workers have taken it off."""
    app = web.Application(middlewares=[errors_as_json])
    app[CATALOG], app[REPORTS] = catalog, reports
    app.router.add_get("/me", me)
    app.router.add_get("/receipts", receipts)
    app.router.add_get("/receipts/{id}", receipt)
    app.router.add_get("/dashboard/billing/subscription", subscription)
    app.router.add_get("/dashboard/billing/usage", usage)
    return app


async def key_and_account(request: web.Request) -> tuple[dict[str, Any], Account]:
    """Raises LookupError for a key that is gone since the worker looked."""
    catalog = request.app[CATALOG]
    key = await catalog.key(int(request.headers[KEY_HEADER]))
    return key, await catalog.account(key["account"])


async def me(request: web.Request) -> web.Response:
    key, account = await key_and_account(request)
    return json_answer(
        {
            "object": "account",
            "account": account.name,
            "currency": await request.app[CATALOG].currency(),
            "balance": as_text(account.balance_nanos),
            "held": as_text(account.balance_nanos - account.available_nanos),
            "available": as_text(account.available_nanos),
            "tier": key["tier"] or None,
            "tier_until_ms": key["tier_until_ms"],
            "key": key["masked"],
            "label": key["label"],
            "models": key["models"],
            "limits": key["limits"],
            "mirror": key["mirror"],
            "expires_ms": key["expires_ms"],
        }
    )


# -- receipts ----------------------------------------------------------------------------------------


async def receipts(request: web.Request) -> web.Response:
    """The newest first; `next` is the `before` of the page behind it."""
    _, account = await key_and_account(request)
    before = request.query.get("before")
    limit = request.query.get("limit", str(RECEIPTS_MAX))
    if not limit.isascii() or not limit.isdigit() or not 0 < int(limit) <= RECEIPTS_MAX:
        raise ClientFault(f"'limit' must be within 1 and {RECEIPTS_MAX}.", param="limit")
    page = await request.app[REPORTS].calls(account.id, before=before and call_id(before), limit=int(limit))
    currency = await request.app[CATALOG].currency()
    data = [receipt_of(line, currency) for line in page.rows]
    return json_answer({"object": "list", "data": data, "next": page.before})


async def receipt(request: web.Request) -> web.Response:
    """404 until the call is settled, and for everybody else's."""
    _, account = await key_and_account(request)
    call = call_id(request.match_info["id"])
    line = await request.app[REPORTS].receipt(account.id, call)
    if line is None:
        raise LookupError("There is no receipt of this id, or the call is not settled yet.")
    currency = await request.app[CATALOG].currency()
    return json_answer({**receipt_of(line, currency), "price": line["price_content"]})


def call_id(text: str) -> str:
    """A call's id as the store wants it, with or without its dashes. Raises LookupError."""
    try:
        return UUID(text).hex
    except ValueError as e:
        raise LookupError("There is no receipt of this id.") from e


def receipt_of(line: dict[str, Any], currency: str) -> dict[str, Any]:
    """One call as its payer may see it. Times of a duration in ms; `ttft_ms` -1: no answer came."""
    return {
        "object": "receipt",
        "id": str(UUID(line["id"])),
        "ended_ms": line["ended_ms"],
        "model": line["model"],
        "operation": line["operation"],
        "stream": line["stream"],
        "status": line["status"],
        "outcome": line["outcome"],
        "cut": line["cut"],
        "usage": line["usage"],
        "provenance": line["provenance"],
        "currency": currency,
        "cost": as_text(line["cost_nanos"]),
        "corrected": as_text(line["corrected_nanos"]),
        "free": as_text(line["free_nanos"]),
        "model_multiplier": ppm_as_text(line["model_ppm"] if line["multiplied"] else 1_000_000),
        "tier_multiplier": ppm_as_text(line["tier_ppm"] if line["multiplied"] else 1_000_000),
        "tier": line["tier"],
        "endpoint": line["endpoint"],
        "mirror": line["mirror"],
        "rurt_ms": line["rurt_ms"],
        "ttft_ms": line["ttft_ms"],
        "took_ms": line["took_ms"],
    }


def ppm_as_text(ppm: int) -> str:
    return as_text(ppm * 1000)


# -- what chat clients ask ---------------------------------------------------------------------------


async def subscription(request: web.Request) -> web.Response:
    """The balance as OpenAI's old dashboard told it; the figures are in the station's currency."""
    _, account = await key_and_account(request)
    used = await used_nanos(request, account, datetime.now(UTC).date())
    limit = float(Decimal(account.balance_nanos + used).scaleb(-9))
    return json_answer(
        {
            "object": "billing_subscription",
            "has_payment_method": True,
            "soft_limit_usd": limit,
            "hard_limit_usd": limit,
            "system_hard_limit_usd": limit,
        }
    )


async def usage(request: web.Request) -> web.Response:
    """What the month of `start_date` has cost, in hundredths."""
    _, account = await key_and_account(request)
    start = request.query.get("start_date", "")
    try:
        day = date.fromisoformat(start) if start else datetime.now(UTC).date()
    except ValueError as e:
        raise ClientFault("'start_date' must be a date such as 2026-01-31.", param="start_date") from e
    used = await used_nanos(request, account, day)
    return json_answer({"object": "list", "total_usage": float(Decimal(used).scaleb(-7))})


async def used_nanos(request: web.Request, account: Account, day: date) -> int:
    """Of the month that `day` is in."""
    month = await request.app[REPORTS].month(account.id, day.replace(day=1))
    return month.used_nanos
