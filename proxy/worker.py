"""One worker: builds the relay, starts it, drains it. Composition root.

Owns the order in which things are built, start and stop, and what control tells a worker. Holds no
logic of a call. Never imports asyncpg, pydantic or yaml: those are control's.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import ssl
from collections.abc import Callable
from logging import getLogger
from time import monotonic, time_ns
from typing import Any

import uvloop

from proxy import telemetry
from proxy.access.admission import Gate
from proxy.access.keyring import KeyCache, KeyRecord
from proxy.access.limits import LimitBook
from proxy.channel import Channel
from proxy.errors import InvalidKey, StationFault
from proxy.journal.segments import Journal
from proxy.ledger.balances import Slices
from proxy.logs import redactor
from proxy.metering.count import load_vocabulary
from proxy.relay.admission import Admission, Desk
from proxy.relay.body import Bodies
from proxy.relay.cooldown import Cooldowns
from proxy.relay.dialler import Dialler
from proxy.relay.handler import Relay
from proxy.relay.hooks import Hooks
from proxy.relay.ids import IdSource
from proxy.relay.ingress import Ingress
from proxy.relay.linking import Links
from proxy.relay.metering_task import MeterQueue
from proxy.relay.ownership import Ownership
from proxy.relay.pages import Pages
from proxy.relay.plan import Tools
from proxy.relay.pool import Pool, tls_context
from proxy.relay.realtime import Sessions
from proxy.relay.results import ResultPages
from proxy.relay.returns import Returns
from proxy.relay.settling import Settler
from proxy.relay.spool import Spool
from proxy.relay.submissions import Submissions
from proxy.relay.sweep import Sweeper
from proxy.relay.turns import Books
from proxy.routing.selection import Place
from proxy.settings import Settings
from proxy.snapshot import Assembly, secrets_in
from proxy.telemetry import Stats

log = getLogger("headrace.worker")

CONNECTIONS_MAX = 50_000  # of clients; below the descriptor limit, which is raised at start
SECOND_S = 1.0
DRAIN_LOOK_S = 0.05  # connections come to their end without telling
BACKLOG = 4096


def wall_ms() -> int:
    return time_ns() // 1_000_000


class Worker:
    """All parts of one worker, wired."""

    def __init__(self, settings: Settings, slot: int, incarnation: str) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self.settings = settings
        self.slot = slot
        self.incarnation = incarnation
        self.stats = Stats()
        self.sweeper = Sweeper(loop)
        self.journal = Journal(
            settings.journal_dir / incarnation,
            loop=loop,
            fsync_interval_s=settings.journal_fsync_interval_s,
            segment_bytes=settings.journal_segment_bytes,
            reserve_bytes=settings.journal_reserve_bytes,
        )
        self.gate = Gate(Slices(), LimitBook(settings.workers))
        self.keys = KeyCache()
        self.channel = Channel(settings.channel_path, self._hello, self._handlers(), self._welcome)
        self.returns = Returns(self.channel, self.gate, wall_ms)
        self.desk = Desk(self.channel, self.keys, self.gate, self.stats, wall_ms)
        self.meters = MeterQueue(loop)
        self.settler = Settler(self.gate, self.journal, self.channel.notify, self.stats, loop, wall_ms)
        cooldowns = Cooldowns(wall_ms, self.channel.notify)
        admission = Admission(self.desk)
        tls = tls_context()
        books = Books(admission, self.settler, self.journal, IdSource().next)
        self.pool = Pool(loop, ssl_context=tls, clock=monotonic)
        self.dialler = Dialler(tls)
        self.hooks = Hooks(self.channel.notify, wall_ms)
        self.links = Links()
        self.results = ResultPages(
            self.channel, lambda: self.links.linker, settings.data, wall_ms, self.stats
        )
        self.relay = Relay(
            admission=admission,
            bodies=Bodies(Spool(settings.spool_dir)),
            pages=Pages(admission, self.hooks, self.results.serve, settings.web_path, self.is_ready),
            pool=self.pool,
            journal=self.journal,
            settler=self.settler,
            cooldowns=cooldowns,
            ownership=Ownership(self.channel, self.journal, wall_ms, self.links),
            submissions=Submissions(self.channel, wall_ms),
            hooks=self.hooks,
            sessions=Sessions(books, cooldowns.report, self.dialler),
            tools=Tools(loop, wall_ms, self.meters, self.sweeper, self.settler, cooldowns),
        )
        self.ingress = Ingress(
            self.relay.handle,
            loop=loop,
            sweeper=self.sweeper,
            stats=self.stats,
            connections_max=CONNECTIONS_MAX,
        )
        self._assembly: Assembly | None = None
        self._assembling = -1
        self._server: asyncio.Server | None = None
        self._stopping: asyncio.Future[None] = loop.create_future()
        self._has_table = asyncio.Event()
        self._knows_keys = False

    def is_ready(self) -> bool:
        """A table is installed, keys can be looked up, and calls can be recorded."""
        return (
            self.relay.heads is not None
            and self._knows_keys
            and self.journal.available
            and not self.relay.is_draining
        )

    # -- life --

    async def run(self, listener: socket.socket, lifeline: int) -> None:
        """Serve until SIGTERM, then drain. Returns when the journal is on disk."""
        self.loop.add_signal_handler(signal.SIGTERM, self.stop)
        self.loop.add_signal_handler(signal.SIGINT, lambda: None)  # the supervisor decides
        self.loop.add_signal_handler(signal.SIGHUP, lambda: None)
        self.loop.add_reader(lifeline, self._orphaned)
        self.channel.start()
        self.sweeper.start()
        telemetry.spawn("second", self._each_second())
        serving = self.loop.create_task(self._serve(listener))
        await asyncio.wait({serving, self._stopping}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
            await self._stopping
        else:
            serving.cancel()  # told to stop before there was a table
        await self._drain()

    async def _serve(self, listener: socket.socket) -> None:
        """Accept connections once there is a table."""
        load_vocabulary()  # at the first client that hangs up it would hold up every stream
        await self._has_table.wait()
        gc.collect()
        gc.freeze()  # what lives for ever needs no look at each collection
        gc.set_threshold(10_000, 20, 50)  # calls are no cycles: it is rare, and takes 4 ms
        self._server = await self.loop.create_server(
            self.ingress, sock=listener.dup(), backlog=BACKLOG, ssl=self._tls()
        )
        log.info("serving")

    def stop(self) -> None:
        if not self._stopping.done():
            self._stopping.set_result(None)

    def _orphaned(self) -> None:
        """The supervisor is gone. What is journaled is safe; calls are adopted by the next life."""
        os._exit(0)

    def _tls(self) -> ssl.SSLContext | None:
        if not self.settings.tls_cert:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.settings.tls_cert, self.settings.tls_key)
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def _drain(self) -> None:
        """Accept no new connection, serve those that there are, cut what does not end within the grace."""
        self.relay.is_draining = True
        self.relay.sessions.drain()
        if self._server is not None:
            self._server.close()  # who is not accepted yet waits for the next worker
        deadline = self.loop.time() + self.settings.drain_grace_s
        is_busy = True
        while is_busy and self.loop.time() < deadline:
            await self.settler.wait_for_change(min(DRAIN_LOOK_S, deadline - self.loop.time()))
            is_busy = self.ingress.close_idle() or bool(self.settler.live)
        for x in list(self.settler.live.values()):
            if x.pump is not None:
                x.pump.cut("shutdown", StationFault(retry_after_s=1.0))
        self._tell_numbers()
        await self.relay.pages.close()
        await self.results.close()
        await self.dialler.close()
        await self.ingress.shutdown(1.0)
        self.pool.close()
        await self.journal.close()

    async def _each_second(self) -> None:
        while True:
            due = self.loop.time() + SECOND_S
            await asyncio.sleep(SECOND_S)
            self.stats.observe("loop_lag_seconds", self.loop.time() - due)
            self.settler.checkpoint()
            self.returns.idle()
            self._tell_numbers()

    def _tell_numbers(self) -> None:
        stats = self.stats
        stats.set("connections", len(self.ingress.connections))
        stats.set("calls_open", len(self.settler.live))
        stats.set("streams_open", sum(x.is_stream for x in self.settler.live.values()))
        stats.set("upstream_connects_total", self.pool.stats.opened)
        stats.set("upstream_connections", self.pool.open - self.pool.idle, "busy")
        stats.set("upstream_connections", self.pool.idle, "idle")
        stats.set("journal_available", int(self.journal.available))
        journal = self.journal.counters
        stats.set("journal_entries_total", journal.frames)
        stats.set("journal_bytes_total", journal.bytes)
        stats.set("journal_syncs_total", journal.syncs)
        stats.set("table_generation", self.relay.heads.snapshot.generation if self.relay.heads else 0)
        stats.set("memory_bytes", _resident_bytes())
        for place, seconds in self.relay.cooldowns.measures.first_bytes(wall_ms()).items():
            stats.set("mirror_first_byte_seconds", seconds, place.upstream, place.mirror)
        self.channel.notify("stats", stats.snapshot())
        if news := self.relay.cooldowns.measures.news():
            self.channel.notify("measures", {"news": news})

    # -- what control tells --

    def _handlers(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        return {
            "table": self._table,
            "keys": self._keys,
            "cool": self._cool,
            "uncool": self._uncool,
            "estimates": self._estimates,
            "measures": self._measures,
            "endpoints": self._endpoints,
            "recall": self._recall,
        }

    def _hello(self) -> dict[str, Any]:
        return {
            "slot": self.slot,
            "incarnation": self.incarnation,
            "pid": os.getpid(),
            "generation": self.relay.heads.snapshot.generation if self.relay.heads else -1,
            "slices": self.gate.slices.hello(),
            "limits_held": self.gate.limits.held(),
        }

    def _welcome(self, reply: dict[str, Any]) -> None:
        """An outage of Postgres that comes later does not take readiness away: warm keys go on."""
        self._knows_keys = self._knows_keys or reply["has_postgres"]
        secret = bytes.fromhex(reply["secret"])
        self.hooks.know(secret)
        self.links.know(secret)

    def _table(self, args: dict[str, Any]) -> None:
        """One piece of a compiled table; each takes about a millisecond, streams move in between."""
        if args["part"] == 0 or self._assembly is None or args["generation"] != self._assembling:
            self._assembly, self._assembling = Assembly(), args["generation"]
        self._assembly.add(args["data"])
        if args["part"] + 1 < args["parts"]:
            return
        assembly, self._assembly = self._assembly, None
        snapshot = assembly.snapshot()
        self.relay.install(snapshot)
        redactor.conceal(secrets_in(snapshot.table))
        self._has_table.set()
        self.channel.notify("ack", {"generation": args["generation"]})

    def _keys(self, args: dict[str, Any]) -> None:
        """Changed keys; an empty list says that what is cached is current."""
        now = wall_ms()
        self.keys.confirm(now)
        for change in args["changed"]:
            record = KeyRecord.from_message(change["record"]) if change.get("record") else None
            self.keys.change(bytes.fromhex(change["digest"]), record, now)
            if record is None or record.status != "active" or record.account_status != "active":
                self._cut_streams(change["digest"])

    def _cut_streams(self, digest: str) -> None:
        for x in list(self.settler.live.values()):
            if x.key is not None and x.key.digest == digest and x.pump is not None:
                x.pump.cut("revoked", InvalidKey())

    def _cool(self, args: dict[str, Any]) -> None:
        self.relay.cooldowns.cool(Place.of(args), args["until_ms"])

    def _uncool(self, args: dict[str, Any]) -> None:
        self.relay.cooldowns.uncool(Place.of(args))

    def _measures(self, args: dict[str, Any]) -> None:
        self.relay.cooldowns.measures.heard(args["news"], wall_ms())

    def _recall(self, args: dict[str, Any]) -> None:
        self.returns.recall(args)

    def _endpoints(self, args: dict[str, Any]) -> None:
        self.relay.pages.measured = args

    def _estimates(self, args: dict[str, Any]) -> None:
        self.desk.estimates.update(args)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def main(
    settings: Settings, slot: int, listen_fd: int, channel_path: str, lifeline_fd: int, incarnation: str
) -> None:
    """Run one worker until it is told to stop."""
    _raise_descriptor_limit()
    listener = socket.socket(fileno=listen_fd)

    async def serve() -> None:
        await Worker(settings, slot, incarnation).run(listener, lifeline_fd)

    uvloop.run(serve())


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
