"""The key holders' application: what they see of themselves.

Served on control's unix socket to workers. Owns its paths and the shape of the account. Upstreams and
credentials are in none of its documents.
"""

from __future__ import annotations

from aiohttp import web

from proxy.ledger.amounts import as_text
from proxy.store.catalog import Catalog
from proxy.store.reports import Reports
from proxy.web import receipts
from proxy.web.answers import errors_as_json, json_answer
from proxy.web.caller import CATALOG, REPORTS, key_and_account


def make_holder_app(catalog: Catalog, reports: Reports) -> web.Application:
    """Paths without /v1: workers have taken it off."""
    app = web.Application(middlewares=[errors_as_json])
    app[CATALOG], app[REPORTS] = catalog, reports
    app.router.add_get("/me", me)
    receipts.add_routes(app)
    return app


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
