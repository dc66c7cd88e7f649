"""What control does about things that live at vendors: whose they are, and what becomes of tasks.

Owns the desk that workers ask, the poller, and where both get what they need of this process.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from proxy.broker.bindings import BindingDesk
from proxy.broker.results import ResultDesk
from proxy.broker.submissions import SubmissionDesk
from proxy.dialects.links import Linker
from proxy.jobs import callbacks
from proxy.jobs.asking import Asker
from proxy.jobs.guarded import GuardedSession
from proxy.jobs.hints import Hints
from proxy.jobs.poller import Clock, Poller
from proxy.jobs.results import FETCH_S, Keeper
from proxy.routing.foreign import Network
from proxy.snapshot import Snapshot
from proxy.store.bindings import Bindings
from proxy.store.catalog import Catalog
from proxy.store.database import Database, DatabaseUnavailable
from proxy.store.drainer import Drainer
from proxy.store.due import DueTasks
from proxy.store.outbox import Outbox
from proxy.store.results import Results
from proxy.store.submissions import Submissions

if TYPE_CHECKING:
    from proxy.control.process import Control

Args = dict[str, Any]
KeepGoing = Callable[[str, float, Callable[[], Awaitable[Any]]], None]  # name, pause in seconds, work

POLL_S, RESULTS_S = 0.5, 0.5


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Tasks:
    """`new_id` makes UUIDv7s."""

    def __init__(self, control: Control, new_id: Callable[[], str]) -> None:
        self._control = control
        self._new_id = new_id
        self._desk = BindingDesk(self._bindings, now_ms)
        self._results = ResultDesk(lambda: Results(self._database(), control.settings.node), now_ms)
        self._submits = SubmissionDesk(lambda: Submissions(self._database()), now_ms)
        self._hints = Hints(self._due, now_ms, control.stats)
        self._asker: Asker | None = None
        self._sender: GuardedSession | None = None
        self._keeper: Keeper | None = None
        self._secret = b""
        self._snapshot: Snapshot | None = None

    def handlers(self) -> dict[str, Callable[[Any, Args], Awaitable[Args] | Args | None]]:
        """What workers tell and ask."""
        return {
            "bound": lambda worker, args: self._desk.bound(args),
            "binding": lambda worker, args: self._desk.find(args),
            "bindings": lambda worker, args: self._desk.page(args),
            "result": lambda worker, args: self._results.find(args),
            "submit": lambda worker, args: self._submits.submit(worker.incarnation, args),
            "hint": lambda worker, args: self._hints.hear(args["call"]),
            "submitted": lambda worker, args: self._submits.submitted(args),
        }

    async def open(self, catalog: Catalog) -> None:
        """Before workers are welcomed. Raises DatabaseUnavailable."""
        self._secret = await catalog.secret()

    def welcome(self) -> Args:
        """What workers are told when they say hello; the secret is "" until Postgres was reached."""
        self._desk.connected()
        return {"secret": self._secret.hex()}

    def start(self, database: Database, drainer: Drainer, keep_going: KeepGoing) -> None:
        """Within a running loop, once what is written here can be drained."""
        control, database = self._control, self._unless_away(database)
        self._asker = self._asker or Asker()
        due = DueTasks(database, control.orders.incarnation, drainer.costs)
        clock = Clock(now_ms, self._new_id, drainer.days)
        poller = Poller(due, self._asker, self._current, clock, control.stats, Linker(self._secret))
        self._keeper = Keeper(
            Results(database, control.settings.node),
            GuardedSession(self._allowed, total_s=FETCH_S),
            lambda: control.table.results if control.table is not None else None,
            control.settings.data,
            now_ms,
            control.stats,
        )
        self._sender = callbacks.guarded(self._allowed)
        deliverer = callbacks.Deliverer(Outbox(database), self._sender, now_ms, control.stats)
        keep_going("hints", POLL_S, self._hints.run_once)
        keep_going("poller", POLL_S, poller.run_once)
        keep_going("callbacks", POLL_S, deliverer.run_once)
        keep_going("results", RESULTS_S, self._keeper.run_once)

    async def close(self) -> None:
        if self._asker is not None:
            await self._asker.close()
        if self._keeper is not None:
            await self._keeper.close()
        if self._sender is not None:
            await self._sender.close()

    def _allowed(self) -> Iterable[Network]:
        """Networks beside the public ones that foreign URLs may lead to."""
        return self._control.table.callbacks.allow if self._control.table is not None else ()

    def _current(self) -> Snapshot | None:
        """Of the table in force; made when it is first needed."""
        routes = self._control.routes
        if routes.generation and (self._snapshot is None or self._snapshot.generation != routes.generation):
            self._snapshot = Snapshot.from_document(routes.document)
        return self._snapshot

    def _bindings(self) -> Bindings:
        """Raises DatabaseUnavailable."""
        settings = self._control.settings
        return Bindings(self._database(), settings.journal_dir, settings.node)

    def _due(self) -> DueTasks:
        """Raises DatabaseUnavailable."""
        return DueTasks(self._database(), self._control.orders.incarnation)

    def _database(self) -> Database:
        """Raises DatabaseUnavailable."""
        if self._control.database is None:
            raise DatabaseUnavailable(detail="Postgres was not reached yet")
        return self._unless_away(self._control.database)

    def _unless_away(self, database: Database) -> Database:
        """Fails at once while Postgres is known to be away."""
        return database.unless(lambda: self._control.outage.is_away)
