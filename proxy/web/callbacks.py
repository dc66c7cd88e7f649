"""Callbacks over HTTP: what customers were told of their tasks, what waits, and the secrets that sign it.

Owns the paths of both applications: a key holder sees its account's, an operator everybody's. Bodies are
shown one at a time.
"""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from proxy.errors import ClientFault
from proxy.store.catalog import Catalog
from proxy.store.outbox import STATES, Outbox, Secrets
from proxy.web.answers import json_answer
from proxy.web.caller import CATALOG, key_and_account
from proxy.web.receipts import limit_of

OUTBOX = web.AppKey("OUTBOX", Outbox)


def add_holder_routes(app: web.Application) -> None:
    app[OUTBOX] = Outbox(app[CATALOG].database)
    app.router.add_get("/me/callbacks", own_events)
    app.router.add_get("/me/callbacks/{id}", own_event)
    app.router.add_post("/me/callbacks/{id}/resend", resend_own)
    app.router.add_get("/me/callback-secret", own_secret)
    app.router.add_post("/me/callback-secret", rotate_own)


def add_admin_routes(app: web.Application, catalog: Catalog) -> None:
    app[CATALOG], app[OUTBOX] = catalog, Outbox(catalog.database)
    app.router.add_get("/admin/callbacks", events)
    app.router.add_get("/admin/callbacks/{id}", event)
    app.router.add_post("/admin/callbacks/{id}/resend", resend)
    app.router.add_get("/admin/accounts/{name}/callback-secret", secret)
    app.router.add_post("/admin/accounts/{name}/callback-secret", rotate)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# -- key holders -------------------------------------------------------------------------------------


async def _own(request: web.Request) -> int:
    _, account = await key_and_account(request)
    return account.id


async def own_events(request: web.Request) -> web.Response:
    """The newest first, of a `state`, of a `call`; `next` is the `cursor` of the page behind this one."""
    return await _page(request, await _own(request))


async def own_event(request: web.Request) -> web.Response:
    account = await _own(request)
    return json_answer(await request.app[OUTBOX].event(request.match_info["id"], account))


async def resend_own(request: web.Request) -> web.Response:
    return await _resend(request, await _own(request))


async def own_secret(request: web.Request) -> web.Response:
    return _shown(await request.app[OUTBOX].secrets(await _own(request)))


async def rotate_own(request: web.Request) -> web.Response:
    """A new one; the one before signs beside it for a day, with `revoke=true` no more."""
    return await _rotate(request, await _own(request))


# -- operators ---------------------------------------------------------------------------------------


async def _named(request: web.Request) -> int:
    return (await request.app[CATALOG].account(request.match_info["name"])).id


async def events(request: web.Request) -> web.Response:
    """As a holder's; `account` is one's name."""
    name = request.query.get("account")
    return await _page(request, (await request.app[CATALOG].account(name)).id if name else None)


async def event(request: web.Request) -> web.Response:
    return json_answer(await request.app[OUTBOX].event(request.match_info["id"]))


async def resend(request: web.Request) -> web.Response:
    return await _resend(request, None)


async def secret(request: web.Request) -> web.Response:
    return _shown(await request.app[OUTBOX].secrets(await _named(request)))


async def rotate(request: web.Request) -> web.Response:
    return await _rotate(request, await _named(request))


# -- both --------------------------------------------------------------------------------------------


async def _page(request: web.Request, account: int | None) -> web.Response:
    state, limit = request.query.get("state", ""), limit_of(request)
    if state and state not in STATES:
        raise ClientFault(f"'state' must be one of {', '.join(STATES)}.", param="state")
    call, cursor = request.query.get("call", ""), request.query.get("cursor", "")
    found = await request.app[OUTBOX].events(
        limit + 1, account=account, state=state, call=call, before=cursor
    )
    page = found[:limit]
    is_more = len(found) > limit
    return json_answer({"object": "list", "data": page, "next": page[-1]["id"] if is_more else None})


async def _resend(request: web.Request, account: int | None) -> web.Response:
    """Once more, under the same id."""
    id_ = request.match_info["id"]
    if not await request.app[OUTBOX].resend([id_], now_ms(), account):
        raise LookupError(f"there is no callback {id_}")
    return json_answer(await request.app[OUTBOX].event(id_, account), 202)


async def _rotate(request: web.Request, account: int) -> web.Response:
    revoke = request.query.get("revoke") == "true"
    return _shown(await request.app[OUTBOX].rotate(account, now_ms(), revoke=revoke))


def _shown(secrets: Secrets) -> web.Response:
    shown: dict[str, Any] = {"object": "callback_secret", "secret": secrets.text}
    overlaps = len(secrets.in_force(now_ms())) > 1
    return json_answer(shown | {"previous_until_ms": secrets.previous_until_ms if overlaps else None})
