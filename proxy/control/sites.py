"""What control serves over HTTP: the operators' application, and pages for the workers to pass on.

Owns the listeners that the supervisor gave, and what operators are shown of this process.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from aiohttp import web

from proxy import telemetry
from proxy.control.endpoints import EndpointProbes
from proxy.routing.table import Endpoint, Tier
from proxy.snapshot import Snapshot
from proxy.store.catalog import Catalog
from proxy.store.reports import Reports
from proxy.web import portal
from proxy.web.admin import make_admin_app
from proxy.web.holder import make_holder_app
from proxy.web.shop import Shop

if TYPE_CHECKING:
    from proxy.control.process import Control

STOP_S = 2.0


class Sites:
    """The face of control for `proxy/web`; opened once Postgres was reached."""

    catalog: Catalog
    reports: Reports

    def __init__(self, control: Control) -> None:
        self._control = control
        self._runners: list[web.AppRunner] = []
        self._priced: Snapshot | None = None

    async def open(self) -> None:
        assert self._control.database is not None
        outage = self._control.outage
        database = self._control.database.unless(lambda: outage.is_away)
        self.catalog = Catalog(database)
        self.reports = Reports(database)
        settings, orders = self._control.settings, self._control.orders
        probes = EndpointProbes(self._control.server.broadcast)
        telemetry.spawn("endpoints", probes.keep_going(self._endpoints))
        await self._serve(make_admin_app(self, settings.admin_token), orders.admin_fd)
        holders = make_holder_app(self.catalog, self.reports, self._mirrors, self._tier)
        portal.add_routes(holders, Shop(database, self._snapshot, self._control.new_id))
        await self._serve(holders, orders.web_fd)

    async def _serve(self, app: web.Application, listener_fd: int) -> None:
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=STOP_S)
        await runner.setup()
        await web.SockSite(runner, socket.socket(fileno=listener_fd)).start()
        self._runners.append(runner)

    async def close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    def _snapshot(self) -> Snapshot | None:
        """The routes in force with their prices; built once per generation, when a page first asks."""
        document = self._control.routes.document
        if self._priced is None or self._priced.generation != self._control.routes.generation:
            self._priced = Snapshot.from_document(document) if document else None
        return self._priced

    def _endpoints(self) -> dict[str, Endpoint]:
        return self._control.table.endpoints if self._control.table is not None else {}

    def _tier(self, name: str) -> Tier | None:
        table = self._control.table
        return table.tier(name) if table is not None else None

    def _mirrors(self) -> frozenset[str]:
        table = self._control.table
        return table.mirror_names if table is not None else frozenset()

    # -- what the operators' application asks ---------------------------------------------------

    def why_not_ready(self) -> str:
        return self._control.why_not_ready()

    async def exposition(self) -> bytes:
        await self._control.count()  # ours as they are now; those of workers are up to a second old
        return self._control.numbers.exposition()

    async def reload(self) -> dict[str, Any]:
        """Raises ConfigError, and the old table stays."""
        routes = self._control.routes
        is_new = await routes.load()
        return {"generation": routes.generation, "changed": is_new, "warnings": routes.warnings}

    def enable(self, upstream: str, *, credential: str = "", mirror: str = "") -> int:
        return self._control.rests.enable(upstream, credential=credential, mirror=mirror)

    def status(self) -> dict[str, Any]:
        control = self._control
        routes, journals, settings = control.routes, control.journals, control.settings
        return {
            "node": settings.node,
            "incarnation": settings.node_incarnation,
            "routes": {
                "file": str(settings.config),
                "generation": routes.generation,
                "content_hash": routes.document.get("content_hash", ""),
                "warnings": routes.warnings,
                "mistakes": routes.mistakes,
            },
            "workers": [
                {
                    "slot": state.worker.slot,
                    "incarnation": state.worker.incarnation,
                    "pid": state.worker.pid,
                    "generation": state.generation,
                }
                for state in sorted(control.broker.workers.values(), key=lambda s: s.worker.slot)
            ],
            "postgres": {"away": control.outage.is_away},
            "journals": {
                "lag_s": round(journals.lag_s, 3) if journals else None,
                "alarms": journals.alarms if journals else [],
            },
            "leased_nanos": control.desks.money.leased(),
            "keys_cached": len(control.desks.keys),
            "resting": control.rests.rows(),
        }
