"""The control process: builds its parts, starts them in order, keeps them going, stops them in order.

Composition root. Workers are served before Postgres is there and while it is away; what needs it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any
from zoneinfo import ZoneInfo

import uvloop

from proxy import telemetry
from proxy.broker.health import HealthBook
from proxy.broker.keys import KeyDesk, Record
from proxy.broker.limits import LimitDesk
from proxy.broker.money import MoneyDesk
from proxy.broker.node import Broker, Desks
from proxy.broker.outage import Outage
from proxy.broker.recall import NODES_S
from proxy.broker.trust import Trust
from proxy.channel import ChannelServer, Peer
from proxy.control import demo
from proxy.control.allowances import Allowances, earlier
from proxy.control.journals import NO_STATION, EstimatingDrainer, Journals
from proxy.control.keyfeed import KeyFeed
from proxy.control.metrics import Numbers
from proxy.control.rests import Rests
from proxy.control.routes import Routes
from proxy.control.tasks import Tasks
from proxy.errors import ConfigError, StateError
from proxy.logs import redactor
from proxy.relay.ids import IdSource
from proxy.routing.table import OnOutage, Table
from proxy.settings import Orders
from proxy.snapshot import secrets_in
from proxy.store.adoption import Adopted, Adopter
from proxy.store.catalog import Catalog
from proxy.store.database import Database, DatabaseUnavailable
from proxy.store.leases import Leases
from proxy.store.retention import Retention
from proxy.store.reviews import Reviews
from proxy.telemetry import Stats

log = logging.getLogger("headrace.control")

KEYS_S = 1.0
PROBE_S, PROBE_TIMEOUT_S = 0.5, 0.5
SECOND_S = 1.0
TIDY_S = 5.0
ESTIMATES_S = 10.0
RETENTION_S = 3600.0
REVIEWS_S = 0.5  # a top-up earns its tier, and a new day its free quota, within 2 s
CONNECT_RETRY_S = 0.5
CONNECT_PATIENCE_S = 5.0  # how long workers wait for a Postgres that neither answers nor refuses
NO_TRUST = OnOutage("refuse", 0)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Control:
    """All parts of control, wired."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.settings = settings = orders.settings
        ids = IdSource()
        self.new_id = lambda: ids.next(now_ms())
        self.stats = Stats()
        self.numbers = Numbers()
        self.outage = Outage()
        self._allowances = Allowances(settings.journal_dir, orders.incarnation, self.new_id, now_ms)
        self.trust = Trust(self._allowances.write)
        self.desks = Desks(
            KeyDesk(self._look_up, int(settings.key_stale_s * 1000)),
            LimitDesk(self.outage, settings.workers, now_ms),
            MoneyDesk(self.outage, self.trust, self.new_id, now_ms),
            HealthBook(),
        )
        self.broker = Broker(self.desks, self._policy, self._tell, self.stats, now_ms)
        self._tasks = Tasks(self, self.new_id)
        self.server = ChannelServer(
            self._hello,
            self._lost,
            {**self.broker.handlers(), **self._tasks.handlers(), "stats": self._numbers, "ack": self._ack},
        )
        self.keys = KeyFeed(self.desks.keys, self.server, settings.data / "keys.generation")
        self.routes = Routes(settings.config, settings.data / "routes.generation", self.stats, self._install)
        self._sites: Any = None
        self.database: Database | None = None  # once it was reached
        self.journals: Journals | None = None  # once it was made ready
        self.rests = Rests(settings.data / "health.json", self.desks.health, self._tell, now_ms)
        self.table: Table | None = None
        self._demo_key = ""
        self._is_announced = False
        self._knew_away = False
        self._has_postgres = asyncio.Event()  # keys and money can be asked for
        self._tried_postgres = asyncio.Event()
        self._is_open = False  # so can everything else
        self._stopping = asyncio.Event()

    # -- life -----------------------------------------------------------------------------------

    async def run(self, lifeline_fd: int) -> int:
        """Until SIGTERM; then drain. The exit status."""
        loop = asyncio.get_running_loop()
        # Without a supervisor: what is journaled is safe, the rest is rebuilt.
        loop.add_reader(lifeline_fd, os._exit, 1)
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # the supervisor decides
        loop.add_signal_handler(signal.SIGHUP, self.routes.reload_soon)
        telemetry.spawn("routes", self._begin_routes())
        telemetry.spawn("postgres", self._begin_postgres())
        telemetry.spawn("channel", self._begin_channel())
        self._keep_going("second", SECOND_S, self.count)
        await self._stopping.wait()
        await self._drain()
        return 0

    async def _begin_routes(self) -> None:
        try:
            await self.routes.load()
        except ConfigError as e:
            self._refuse("\n".join(e.mistakes))

    async def _begin_channel(self) -> None:
        """Workers say once what they hold: best when the leases are loaded. Not if that has to wait."""
        self.trust.restore(await asyncio.to_thread(list, earlier(self.settings.journal_dir)))
        self.rests.recall()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_PATIENCE_S):
                await self._tried_postgres.wait()
        if not self._has_postgres.is_set():
            log.warning("serving workers without Postgres")
        await self.server.start(socket.socket(fileno=self.orders.channel_fd))

    async def _begin_postgres(self) -> None:
        """Reach Postgres, however long it takes, and start what needs it."""
        while not self._is_open:
            try:
                self.database = self.database or await Database.connect(self.settings.database_url)
                await self._open(self.database)
            except DatabaseUnavailable as e:
                log.warning("waiting for Postgres: %s", e.detail)
                self._tried_postgres.set()
                await asyncio.sleep(CONNECT_RETRY_S)
            except StateError as e:
                self._refuse(str(e))
                return
        # Only now, and beside the loop: it takes a quarter of a second, and workers were waiting.
        sites = await asyncio.to_thread(import_module, "proxy.control.sites")
        self._sites = sites.Sites(self)
        await self._sites.open()
        self._announce()

    async def _open(self, database: Database) -> None:
        """Raises DatabaseUnavailable, StateError; may be called again after that."""
        settings = self.settings
        if not self._has_postgres.is_set():
            await database.migrate()
        catalog = Catalog(database)
        leases = self._leases(database)
        drainer = EstimatingDrainer(database, settings.journal_dir, settings.node, NO_STATION)
        adopter = Adopter(database, settings.journal_dir, drainer)
        if not self._has_postgres.is_set():
            await self._open_desks(catalog, leases, adopter)
        drainer.follow(await self._open_station(catalog))
        self.journals = Journals(drainer, adopter, self.stats, self._adopted)
        self._is_open = True
        telemetry.spawn("journals", self.journals.keep_draining())
        telemetry.spawn("earlier lives", self._close_earlier_lives(leases, adopter))
        self._keep_going("estimates", ESTIMATES_S, self._tell_estimates)
        self._tasks.start(database, drainer, self._keep_going)
        self._keep_going("reviews", REVIEWS_S, Reviews(database, lambda: self.table).run_once)
        self._keep_going(
            "retention", RETENTION_S, Retention(database, settings.journal_dir, drainer).run_once
        )

    async def _open_desks(self, catalog: Catalog, leases: Leases, adopter: Adopter) -> None:
        """What workers wait for; nothing is drained yet. Raises DatabaseUnavailable, StateError."""
        await leases.register()
        if self.settings.demo:  # whoever sees the node ready may look for the key
            await self._open_station(catalog)
            self._demo_key = await demo.prepare(catalog, self.settings.demo_key_path)
        await self._tasks.open(catalog)
        await self.keys.open(catalog)
        unadopted = [name for name in await adopter.unadopted() if not self._is_earlier(name)]
        await self.broker.open(leases, leases.windows(), unadopted)
        self.desks.keys.confirm(now_ms())
        self.outage.probed(True)
        self._has_postgres.set()
        self._tried_postgres.set()
        for peer in self.server.peers:
            peer.abort()  # served without Postgres so far: it says again what it holds
        self._keep_going("probe", PROBE_S, self._probe)
        self._keep_going("keys", KEYS_S, lambda: self.keys.poll(catalog, now_ms()))
        self._keep_going("leases", TIDY_S, self.broker.tidy)
        self._keep_going("recalls", NODES_S, self.broker.answer_recalls)

    def _leases(self, database: Database) -> Leases:
        return Leases(database, self.settings.node, self.settings.node_incarnation)

    async def _open_station(self, catalog: Catalog) -> Table:
        """Raises DatabaseUnavailable, StateError."""
        await self.routes.loaded.wait()
        assert self.table is not None
        await catalog.open_station(self.table.station.currency, self.table.station.timezone)
        return self.table

    def _refuse(self, why: str) -> None:
        """This node cannot start, and the operator is told. One that serves already goes on with what
        its workers hold, until the reason is gone."""
        log.error("cannot start: %s", why)
        os.write(self.orders.ready_fd, json.dumps({"refused": why}).encode() + b"\n")

    def _announce(self) -> None:
        """Tell the supervisor when the node serves for the first time in this life."""
        if self._is_announced or self.why_not_ready():
            return
        if not self.broker.everybody_has(self.routes.generation, self.settings.workers):
            return
        self._is_announced = True
        said = {"generation": self.routes.generation, "demo_key": self._demo_key}
        os.write(self.orders.ready_fd, json.dumps(said).encode() + b"\n")

    async def _drain(self) -> None:
        """The workers have ended: bring everything into Postgres, give all leases back."""
        await telemetry.cancel_all()
        self.server.close()
        if self.database is not None and self.journals is not None and not self.outage.is_away:
            try:
                if await self.journals.finish(self.orders.incarnation):
                    await self.broker.close()
                    await self._leases(self.database).close_earlier_lives()
            except DatabaseUnavailable as e:
                log.warning("leases stay open until the next start: %s", e.detail)
        await self._allowances.close()
        await self._tasks.close()
        if self._sites is not None:
            await self._sites.close()
        if self.database is not None:
            await self.database.close()

    # -- workers --------------------------------------------------------------------------------

    def _hello(self, peer: Peer, args: dict[str, Any]) -> dict[str, Any]:
        self.broker.hello(peer, args)
        # After the reply: a worker answers nobody before it was welcomed.
        asyncio.get_running_loop().call_soon(self._bring_up_to_date, peer, args["generation"])
        has_postgres = self._has_postgres.is_set()
        return {"generation": self.routes.generation, "has_postgres": has_postgres, **self._tasks.welcome()}

    def _bring_up_to_date(self, peer: Peer, generation: int) -> None:
        if self.routes.generation and generation != self.routes.generation:
            for message in self.routes.messages():
                peer.send("table", message)
        if estimates := self._estimates():
            peer.send("estimates", estimates)
        if self.database is not None and self._has_postgres.is_set():
            telemetry.spawn("greet", self._quietly("greet", self.keys.greet(peer, Catalog(self.database))))
        self._announce()

    def _lost(self, peer: Peer) -> None:
        self.broker.lost(peer)
        self.keys.lost(peer)

    def _ack(self, peer: Peer, args: dict[str, Any]) -> None:
        self.broker.installed(peer, args["generation"])
        self._announce()

    def _numbers(self, peer: Peer, args: dict[str, Any]) -> None:
        self.numbers.update(f"w{peer.slot}", peer.incarnation, args)

    def _tell(self, op: str, args: dict[str, Any]) -> None:
        self.server.broadcast(op, args)
        if op in ("cool", "uncool"):
            self.rests.save()

    # -- what the desks ask ---------------------------------------------------------------------

    async def _look_up(self, digest: bytes) -> Record | None:
        """Raises DatabaseUnavailable, at once while Postgres is known to be away."""
        if self.database is None or self.outage.is_away:
            raise DatabaseUnavailable(detail="Postgres is away")
        return await Catalog(self.database).key_record(digest)

    async def _policy(self, tier: str) -> OnOutage:
        if self.table is None and self.outage.is_away:
            await self.routes.loaded.wait()  # it decides, and a new control has it in a moment
        if self.table is None:
            return NO_TRUST
        return self.table.tier(tier).on_outage or self.table.station.on_outage

    def _install(self, document: dict[str, Any]) -> None:
        """A new table: for the node, for every worker."""
        old, self.table = self.table, Table.from_document(document)
        self.rests.renewed(old, self.table)
        self.desks.limits.zone = ZoneInfo(self.table.station.timezone)
        redactor.conceal(secrets_in(self.table))
        for message in self.routes.messages():
            self.server.broadcast("table", message)
        if self.journals is not None and self.database is not None:
            self.journals.drainer.follow(self.table)
            telemetry.spawn("station", self._quietly("station", self._open_station(Catalog(self.database))))

    def _adopted(self, adopted: Adopted) -> None:
        self.desks.money.adopted(adopted.incarnation, adopted.used)
        telemetry.spawn("adopted", self._quietly("limits", self.desks.limits.adopted(adopted.incarnation)))

    def _is_earlier(self, incarnation: str) -> bool:
        """Is it of an earlier life of the node? Ids of a life sort behind the life's own."""
        return incarnation.rpartition("-")[2] < self.settings.node_incarnation

    async def _close_earlier_lives(self, leases: Leases, adopter: Adopter) -> None:
        """Free what earlier lives of the node had leased, once all their journals were adopted."""
        while True:
            try:
                if not any(map(self._is_earlier, await adopter.unadopted())):
                    closed = await leases.close_earlier_lives()
                    await self.desks.limits.close_earlier_lives()
                    log.info("leases of earlier lives closed", extra={"leases": closed})
                    return
            except DatabaseUnavailable as e:
                log.warning("leases of earlier lives stay open: %s", e.detail)
            await asyncio.sleep(SECOND_S)

    # -- again and again ------------------------------------------------------------------------

    def _keep_going(self, name: str, pause_s: float, work: Callable[[], Awaitable[Any]]) -> None:
        async def again() -> None:
            while True:
                await self._quietly(name, work())
                await asyncio.sleep(pause_s)

        telemetry.spawn(name, again())

    async def _quietly(self, name: str, work: Awaitable[Any]) -> None:
        """Postgres may be away; the next time is soon."""
        try:
            await work
        except DatabaseUnavailable as e:
            log.info("%s waits for Postgres: %s", name, e.detail)
        except Exception:
            log.exception("%s failed", name)

    async def _probe(self) -> None:
        assert self.database is not None
        self.outage.probed(not self._stopping.is_set() and await self.database.probe(PROBE_TIMEOUT_S))
        if self.outage.is_away != self._knew_away:
            self._knew_away = self.outage.is_away
            log.warning("Postgres is away" if self._knew_away else "Postgres is back")
            if not self._knew_away:
                await self.trust.end()

    async def count(self) -> None:
        stats = self.stats
        stats.set("workers", len(self.broker.workers))
        stats.set("postgres_away", int(self.outage.is_away))
        stats.set("keys_cached", len(self.desks.keys))
        stats.set("credentials_resting", len(self.desks.health.current(now_ms())))
        stats.set("table_generation", self.routes.generation)
        if self.journals is not None:
            stats.set("drain_lag_seconds", self.journals.lag_s)
        self.numbers.update("control", self.orders.incarnation, stats.snapshot())

    async def _tell_estimates(self) -> None:
        if estimates := self._estimates():
            self.server.broadcast("estimates", estimates)

    def _estimates(self) -> dict[str, int]:
        return self.journals.drainer.estimates.figures() if self.journals is not None else {}

    def why_not_ready(self) -> str:
        """One line; "" when the node can serve."""
        if not self.routes.generation:
            return "routes.yaml is not loaded" if not self.routes.mistakes else self.routes.mistakes[0]
        if not self._is_open:
            return "Postgres was not reached yet"
        if not self.broker.workers:
            return "no worker is connected"
        return ""


def run(orders: Orders, lifeline_fd: int) -> int:
    """Run control until it is told to stop; the exit status."""
    return int(uvloop.run(Control(orders).run(lifeline_fd)))
