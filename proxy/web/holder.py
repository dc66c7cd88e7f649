"""The key holders' application: what they see of themselves.

Served on control's unix socket to workers. Owns its paths and the shape of the account. Upstreams and
credentials are in none of its documents.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from aiohttp import web

from proxy.ledger.amounts import as_text
from proxy.store.catalog import Catalog
from proxy.store.reports import Reports
from proxy.web import receipts
from proxy.web.answers import errors_as_json, json_answer, read_object
from proxy.web.caller import CATALOG, REPORTS, key_and_account
from proxy.web.mirrors import preference_member

MIRRORS: web.AppKey[Callable[[], Collection[str]]] = web.AppKey("MIRRORS")


def make_holder_app(
    catalog: Catalog, reports: Reports, mirrors: Callable[[], Collection[str]]
) -> web.Application:
    """Paths without /v1: workers have taken it off. `mirrors` are the names that the station has."""
    app = web.Application(middlewares=[errors_as_json])
    app[CATALOG], app[REPORTS], app[MIRRORS] = catalog, reports, mirrors
    app.router.add_get("/me", me)
    app.router.add_put("/me", set_me)
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
            "free": as_text(account.free_nanos),
            "held": as_text(account.held_nanos),
            "available": as_text(account.available_nanos),
            "tier": key["tier"] or None,
            "tier_until_ms": key["tier_until_ms"],
            "tiers": [{"tier": tier or None, "until_ms": until_ms} for tier, until_ms in key["tiers"]],
            "key": key["masked"],
            "label": key["label"],
            "models": key["models"],
            "limits": key["limits"],
            "mirror": key["mirror"],
            "account_mirror": account.mirror,
            "expires_ms": key["expires_ms"],
        }
    )


async def set_me(request: web.Request) -> web.Response:
    """What a holder chooses: mirrors for this key, and for all keys of the account that say "auto"."""
    document = await read_object(request, frozenset({"mirror", "account_mirror"}))
    chosen = {name: preference_member(document, name, request.app[MIRRORS]()) for name in document}
    catalog = request.app[CATALOG]
    key, account = await key_and_account(request)
    if "mirror" in chosen:
        await catalog.set_key_mirror(key["key_id"], chosen["mirror"])
    if "account_mirror" in chosen:
        await catalog.set_account_mirror(account.name, chosen["account_mirror"])
    return await me(request)
