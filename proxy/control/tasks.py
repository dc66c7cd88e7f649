"""What control does about things that live at vendors: whose they are, and what becomes of tasks.

Owns the desk that workers ask, the poller, and where both get what they need of this process.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from proxy.broker.bindings import BindingDesk
from proxy.broker.submissions import SubmissionDesk
from proxy.jobs.asking import Asker
from proxy.jobs.poller import Clock, Poller
from proxy.snapshot import Snapshot
from proxy.store.bindings import Bindings
from proxy.store.database import Database, DatabaseUnavailable
from proxy.store.drainer import Drainer
from proxy.store.due import DueTasks
from proxy.store.submissions import Submissions

if TYPE_CHECKING:
    from proxy.control.process import Control

Args = dict[str, Any]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Tasks:
    """`new_id` makes UUIDv7s."""

    def __init__(self, control: Control, new_id: Callable[[], str]) -> None:
        self._control = control
        self._new_id = new_id
        self._desk = BindingDesk(self._bindings, now_ms)
        self._submits = SubmissionDesk(lambda: Submissions(self._database()), now_ms)
        self._asker: Asker | None = None
        self._snapshot: Snapshot | None = None

    def handlers(self) -> dict[str, Callable[[Any, Args], Awaitable[Args] | Args | None]]:
        """What workers tell and ask."""
        return {
            "bound": lambda worker, args: self._desk.bound(args),
            "binding": lambda worker, args: self._desk.find(args),
            "bindings": lambda worker, args: self._desk.page(args),
            "submit": lambda worker, args: self._submits.submit(worker.incarnation, args),
            "submitted": lambda worker, args: self._submits.submitted(args),
        }

    def poller(self, database: Database, drainer: Drainer) -> Poller:
        """Within a running loop, once what it writes can be drained."""
        self._asker = self._asker or Asker()
        due = DueTasks(self._unless_away(database), self._control.orders.incarnation, drainer.costs)
        clock = Clock(now_ms, self._new_id, drainer.days)
        return Poller(due, self._asker, self._current, clock, self._control.stats)

    async def close(self) -> None:
        if self._asker is not None:
            await self._asker.close()

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

    def _database(self) -> Database:
        """Raises DatabaseUnavailable."""
        if self._control.database is None:
            raise DatabaseUnavailable(detail="Postgres was not reached yet")
        return self._unless_away(self._control.database)

    def _unless_away(self, database: Database) -> Database:
        """Fails at once while Postgres is known to be away."""
        return database.unless(lambda: self._control.outage.is_away)
