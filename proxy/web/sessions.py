"""Sign-up, login and logout of account holders.

Owns the session cookie. It is sent to our own pages only (SameSite=Strict, Path=/portal), no script reads
it, and bodies are JSON: no page of another site can act for a holder.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from secrets import token_urlsafe

from aiohttp import web

from proxy.access import passwords
from proxy.errors import ClientFault, RouteNotPermitted, SignInFailed
from proxy.store.catalog import Account, Catalog
from proxy.store.holders import Holders
from proxy.web.answers import json_answer, read_object, text_member
from proxy.web.attempts import Attempts
from proxy.web.shop import SHOP

COOKIE = "headrace_session"
LASTS = timedelta(days=14)
ADDRESS_HEADER = "x-headrace-address"  # of the client; relay/pages.py sets it
CONTACT_CHARACTERS_MAX = 200
HASHING_MAX = 2  # passwords at once: 16 MiB and a core each

LOGINS = web.AppKey("LOGINS", Attempts)
SIGN_UPS = web.AppKey("SIGN_UPS", Attempts)
HASHING = web.AppKey("HASHING", asyncio.Semaphore)


def add_routes(app: web.Application) -> None:
    app[LOGINS], app[SIGN_UPS] = Attempts(10, 300), Attempts(5, 3600)
    app[HASHING] = asyncio.Semaphore(HASHING_MAX)
    app.router.add_post("/portal/api/signup", sign_up)
    app.router.add_post("/portal/api/login", login)
    app.router.add_post("/portal/api/logout", logout)
    app.router.add_post("/portal/api/password", change_password)


async def sign_up(request: web.Request) -> web.Response:
    """A new account with the station's trial credit, and a session of it."""
    shop = request.app[SHOP]
    trial = shop.trial_nanos()
    if trial is None:
        raise RouteNotPermitted("Accounts are opened by the operator of this station.")
    document = await read_object(request, frozenset({"name", "password", "contact"}))
    name = text_member(document, "name").strip()
    contact = text_member(document, "contact", "")[:CONTACT_CHARACTERS_MAX]
    request.app[SIGN_UPS].count(address_of(request), time.time())
    kept = await _kept(request, text_member(document, "password"))
    account = await Holders(shop.database).sign_up(name, kept, contact, trial)
    answer = json_answer({"account": name}, 201)
    return await _with_session(request, answer, account)


async def login(request: web.Request) -> web.Response:
    """The same answer, as late, for an unknown name and for a wrong password."""
    document = await read_object(request, frozenset({"name", "password"}))
    name, password = text_member(document, "name").strip(), text_member(document, "password")
    for who in (f"name {name}", f"address {address_of(request)}"):
        request.app[LOGINS].count(who, time.time())
    found = await Holders(request.app[SHOP].database).password_of(name)
    async with request.app[HASHING]:
        stored = found[1] if found else passwords.NOBODY
        is_right = await asyncio.to_thread(passwords.is_right, password, stored)
    if found is None or not is_right:
        raise SignInFailed
    return await _with_session(request, json_answer({"account": name}), found[0])


async def logout(request: web.Request) -> web.Response:
    await Holders(request.app[SHOP].database).close_session(request.cookies.get(COOKIE, ""))
    answer = json_answer({"ok": True})
    answer.del_cookie(COOKIE, path="/portal")
    return answer


async def change_password(request: web.Request) -> web.Response:
    """Every session of the account ends, this one is opened anew."""
    account = await holder(request)
    document = await read_object(request, frozenset({"old", "new"}))
    request.app[LOGINS].count(f"name {account.name}", time.time())
    holders = Holders(request.app[SHOP].database)
    found = await holders.password_of(account.name)
    async with request.app[HASHING]:
        stored = found[1] if found else passwords.NOBODY
        if not await asyncio.to_thread(passwords.is_right, text_member(document, "old"), stored):
            raise SignInFailed
    await holders.set_password(account.name, await _kept(request, text_member(document, "new")))
    return await _with_session(request, json_answer({"account": account.name}), account.id)


async def holder(request: web.Request) -> Account:
    """Whose session this is. Raises SignInFailed."""
    token = request.cookies.get(COOKIE, "")
    database = request.app[SHOP].database
    name = await Holders(database).account_of(token) if token else None
    if name is None:
        raise SignInFailed("Log in first.")
    return await Catalog(database).account(name)


def address_of(request: web.Request) -> str:
    return request.headers.get(ADDRESS_HEADER, "")


async def _kept(request: web.Request, password: str) -> str:
    """Raises ClientFault."""
    async with request.app[HASHING]:
        try:
            return await asyncio.to_thread(passwords.kept, password, os.urandom(passwords.SALT_BYTES))
        except ValueError as e:
            raise ClientFault(f"'password': {e}.", param="password") from e


async def _with_session(request: web.Request, answer: web.Response, account: int) -> web.Response:
    shop, token = request.app[SHOP], token_urlsafe(32)
    await Holders(shop.database).open_session(token, account, datetime.now(UTC) + LASTS)
    answer.set_cookie(
        COOKIE,
        token,
        max_age=int(LASTS.total_seconds()),
        path="/portal",
        httponly=True,
        samesite="Strict",
        secure=shop.public_url().startswith("https:"),
    )
    return answer
