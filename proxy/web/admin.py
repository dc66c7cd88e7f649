"""The operators' application: health, metrics, status, reload, accounts and keys.

Owns its paths and who may use them (`guard`); what it shows and does is control's and the store's.
"""

from __future__ import annotations

from typing import Any, Protocol

from aiohttp import web

from proxy.store.catalog import Catalog
from proxy.store.reports import Reports
from proxy.web import accounts, callbacks, disputes, margins, money
from proxy.web.answers import BODY_BYTES_MAX, errors_as_json, json_answer
from proxy.web.guard import make_guard


class Control(Protocol):
    """What this application asks of the process that it runs in."""

    catalog: Catalog
    reports: Reports

    def why_not_ready(self) -> str:
        """One line; "" when the node serves."""

    def status(self) -> dict[str, Any]:
        """What an operator wants to see first: generation, workers, journals, database, credentials."""

    async def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""

    async def reload(self) -> dict[str, Any]:
        """Read routes.yaml now. Returns what changed; raises ConfigError and keeps the old table."""

    def enable(self, upstream: str, *, credential: str = "", mirror: str = "") -> int:
        """A credential or a mirror is good again; how many of its cooldowns that ended."""


CONTROL = web.AppKey("CONTROL", Control)


def make_admin_app(control: Control, token: str) -> web.Application:
    """`token` "": only this machine is served, and no web page on it."""
    app = web.Application(
        middlewares=[errors_as_json, make_guard(token)],
        client_max_size=BODY_BYTES_MAX,
    )
    app[CONTROL] = control
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/admin/status", status)
    app.router.add_post("/admin/reload", reload)
    app.router.add_post("/admin/credentials/{upstream}/{credential}/enable", enable)
    app.router.add_post("/admin/mirrors/{upstream}/{mirror}/enable", enable)
    accounts.add_routes(app, control.catalog, control.reports)
    margins.add_routes(app, control.catalog)
    money.add_routes(app, control.catalog.database)
    callbacks.add_admin_routes(app, control.catalog)
    disputes.add_routes(app, control.catalog.database)
    return app


async def healthz(request: web.Request) -> web.Response:
    return json_answer({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    why_not = request.app[CONTROL].why_not_ready()
    if why_not:
        return json_answer({"status": "not ready", "why": why_not}, 503)
    return json_answer({"status": "ready"})


async def metrics(request: web.Request) -> web.Response:
    body = await request.app[CONTROL].exposition()
    return web.Response(body=body, headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})


async def status(request: web.Request) -> web.Response:
    return json_answer(request.app[CONTROL].status())


async def reload(request: web.Request) -> web.Response:
    return json_answer(await request.app[CONTROL].reload())


async def enable(request: web.Request) -> web.Response:
    """After the vendor's account or the line was mended: do not wait for the cooldown."""
    return json_answer({"ended": request.app[CONTROL].enable(**request.match_info)})
