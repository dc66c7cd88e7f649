"""The key holders' application: what they see of themselves.

Served on control's unix socket to workers. Owns its paths and the shape of the account. Upstreams and
credentials are in none of its documents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from aiohttp import web

from proxy.access.keyring import KeyRecord
from proxy.access.limits import told
from proxy.ledger.amounts import as_text
from proxy.routing.tiers import Tier
from proxy.store.catalog import Catalog
from proxy.store.reports import Reports
from proxy.store.windows import drawn
from proxy.web import callbacks, receipts
from proxy.web.answers import UNTOLD, errors_as_json, json_answer, read_object
from proxy.web.caller import CATALOG, REPORTS, key_and_account
from proxy.web.mirrors import preference_member

TIER: web.AppKey[Callable[[str], Tier | None]] = web.AppKey("TIER")
MIRRORS: web.AppKey[Callable[[], Collection[str]]] = web.AppKey("MIRRORS")


def make_holder_app(
    catalog: Catalog,
    reports: Reports,
    mirrors: Callable[[], Collection[str]],
    tier: Callable[[str], Tier | None],
) -> web.Application:
    """Paths without /v1: workers have taken it off. `mirrors` are the names that the station has, `tier` is
    one of its tiers by name, None before the file was read."""
    app = web.Application(middlewares=[errors_as_json])
    app[CATALOG], app[REPORTS], app[MIRRORS], app[TIER] = catalog, reports, mirrors, tier
    app.router.add_get("/me", me)
    app.router.add_put("/me", set_me)
    receipts.add_routes(app)
    callbacks.add_holder_routes(app)
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
            "own_receipts": bool(key["own_receipts"]),
            "models": key["models"],
            "limits": await _limits(request, key),
            "mirror": key["mirror"],
            "account_mirror": account.mirror,
            "expires_ms": key["expires_ms"],
        }
    )


async def _limits(request: web.Request, key: dict[str, Any]) -> list[dict[str, Any]]:
    """Its own, its account's and its tier's, with what is left at least."""
    tier = request.app[TIER](key["tier"])
    limits = KeyRecord.from_message(key).limits(
        tier.name if tier else key["tier"], tier.limits.amounts() if tier else {}
    )
    buckets = [limit.bucket for limit in limits]
    return told(limits, await drawn(request.app[CATALOG].database, buckets, int(time.time() * 1000)))


async def set_me(request: web.Request) -> web.Response:
    """What a holder chooses: mirrors for this key, and for all keys of the account that say "auto"."""
    document = await read_object(request, frozenset({"mirror", "account_mirror"}), UNTOLD)
    chosen = {name: preference_member(document, name, request.app[MIRRORS]()) for name in document}
    catalog = request.app[CATALOG]
    key, account = await key_and_account(request)
    if "mirror" in chosen:
        await catalog.set_key_mirror(key["key_id"], chosen["mirror"])
    if "account_mirror" in chosen:
        await catalog.set_account_mirror(account.name, chosen["account_mirror"])
    return await me(request)
