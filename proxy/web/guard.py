"""Who may use the operators' application.

With a token: whoever knows it. Without one: this machine only, and no web page that happens to be
open on it. Liveness and readiness are open.
"""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy.errors import InvalidKey, RouteNotPermitted
from proxy.web.answers import Handler

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
# A front on this machine would make everybody a loopback peer.
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")


def make_guard(token: str) -> Middleware:
    """`token` "": loopback only."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in OPEN_PATHS:
            if token:
                check_token(request, token)
            else:
                check_local(request)
        return await handler(request)

    return guard


def check_token(request: web.Request, token: str) -> None:
    """Raises InvalidKey. Takes as long for a wrong token as for a nearly right one."""
    sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), token.encode()):
        raise InvalidKey("The admin token is missing or not valid.")


def check_local(request: web.Request) -> None:
    """Raises RouteNotPermitted unless the peer is this machine and no web page is behind it.

    The Host must be a loopback name too: else a page could reach us under its own name by rebinding
    that name to 127.0.0.1. A page of another site shows in Origin or Sec-Fetch-Site.
    """
    is_local = (
        is_loopback(request.remote or "")
        and is_loopback(urlsplit(f"//{request.host}").hostname or "")
        and not any(name in request.headers for name in FORWARDED)
    )
    origin = request.headers.get("Origin")
    is_cross_site = (origin is not None and urlsplit(origin).netloc != request.host) or request.headers.get(
        "Sec-Fetch-Site", "none"
    ) not in ("none", "same-origin")
    if not is_local or is_cross_site:
        raise RouteNotPermitted("Without HEADRACE_ADMIN_TOKEN only this machine is served.")


def is_loopback(host: str) -> bool:
    """`localhost`, 127.0.0.0/8 and ::1; a unix socket has no address and is local by its permissions."""
    if host in ("", "localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
