"""Tasks whose owner wants to be told of them, with events that wait."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from proxy.dialects.owned import RUNNING
from proxy.ledger.entry import Bind
from proxy.store.drainer import Drainer
from proxy.store.due import DueTasks
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, Life, Station
from tests.store.tasks import DAYS, seen, submitted

HOOK = "https://hooks.example.com/mj?x=1"


def hooked(
    account: int, vendor_id: str, hook: str = HOOK, *, key: int = 1, kind: str = "response"
) -> list[Any]:
    """What a worker writes of such a submit."""
    entries = submitted(account, vendor_id, kind=kind)
    for e in entries:
        if isinstance(e, Bind):
            e.hook, e.key = hook, key
    return entries


def look(state: str = RUNNING, mark: str = "m", after_ms: int = 1000, vendor_id: str = "t1") -> Any:
    """A look at it; other marks are other changes."""
    entry = seen(vendor_id, state, mark=mark, body=f'{{"mark":"{mark}"}}')
    entry.at_ms = NOW_MS + after_ms
    return entry


async def tell(database: Any, folder: Path, account: int, marks: Iterable[str] = ("1", "2")) -> str:
    """A task in the books with an event per mark; the id of its call."""
    (folder / "journal").mkdir()
    life = Life(folder / "journal")
    entries = hooked(account, "t1")
    await life.write([PRICE_ENTRY, *entries])
    await Drainer(database, folder / "journal", NODE, Station(), now_ms=lambda: NOW_MS).run_once()
    looks = [look(RUNNING, mark, n * 1000) for n, mark in enumerate(marks, start=1)]
    await DueTasks(database, "c-1").settle(looks, DAYS)
    await life.die()
    return str(entries[0].id)
