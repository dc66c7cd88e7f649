"""Disputes as operators see and decide them: tasks whose end their vendor never told.

Owns what an operator may do about one: take its hold, give it back, or have its vendor asked once more.
That a decision counts once is store.due's.
"""

from __future__ import annotations

from hashlib import sha256

from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.drainer import days_of
from proxy.store.due import Dispute, DueTasks, decided

WHO = "operator"  # stands for the life of a process in what is posted


class Disputes:
    """Every method raises DatabaseUnavailable; `call` is the one that submitted the task, with or without
    dashes."""

    def __init__(self, database: Database) -> None:
        self._due = DueTasks(database, WHO)
        self._catalog = Catalog(database)

    async def all(self) -> list[Dispute]:
        """Those that are open, the oldest first."""
        return await self._due.disputes()

    async def decide(self, call: str, is_charged: bool, now_ms: int) -> Dispute:
        """Take the hold, or give it back as a loss of the station's. Raises LookupError: there is no such
        dispute (any more)."""
        dispute = await self._find(call)
        word = decided(dispute, _id_of(dispute.id, now_ms), is_charged, now_ms)
        if not await self._due.settle([word], days_of(await self._catalog.timezone(), now_ms)):
            raise LookupError(f"the dispute about {call} was decided meanwhile")
        return dispute

    async def ask(self, call: str, now_ms: int) -> Dispute:
        """Have the vendor asked once more, soon: an end that it tells then counts. Raises LookupError."""
        dispute = await self._find(call)
        await self._due.hurry([dispute.id], now_ms)
        return dispute

    async def _find(self, call: str) -> Dispute:
        wanted = call.replace("-", "")
        found = next((d for d in await self._due.disputes() if d.id == wanted), None)
        if found is None:
            raise LookupError(f"no open dispute about {call}")
        return found


def _id_of(call: str, at_ms: int) -> str:
    """A UUIDv7: what is decided about a call at one moment is decided once."""
    mark = sha256(call.encode()).hexdigest()
    return f"{at_ms:012x}7{mark[:3]}8{mark[3:18]}"
