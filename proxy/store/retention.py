"""Delete what journals no longer need: a day after it is drained and every call in it is closed.

Owns the deletion of segments and of dead lives' folders. Deletes nothing of a life that has something
in quarantine: its files are the evidence.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from pathlib import Path

from proxy.journal import directory as folder
from proxy.journal import reader
from proxy.journal.crashpoint import crash_point
from proxy.journal.reader import JournalDamageError
from proxy.ledger import entry
from proxy.ledger.entry import Begin
from proxy.store.database import Database
from proxy.store.drainer import Drainer

log = logging.getLogger("headrace.store")

KEEP_S = 86_400  # an operator who notices a wrong bill the next day still finds the journal

_STATE = """
SELECT closed_at IS NULL AS is_open, closed_at < now() - $2 * interval '1 second' AS is_over,
       EXISTS (SELECT FROM quarantine q WHERE q.incarnation = i.id AND resolved_at IS NULL) AS is_kept
FROM incarnation i WHERE id = $1
"""


class Retention:
    """Run it once an hour. `keep_s` is how long drained files stay."""

    def __init__(
        self, database: Database, journal_dir: Path, drainer: Drainer, *, keep_s: float = KEEP_S
    ) -> None:
        self._database = database
        self._journal_dir = journal_dir
        self._drainer = drainer
        self._keep_s = keep_s

    async def run_once(self) -> list[Path]:
        """What was deleted. Raises DatabaseUnavailable."""
        deleted = []
        for directory in await asyncio.to_thread(folder.incarnations, self._journal_dir):
            state = await self._database.fetchrow(_STATE, directory.name, self._keep_s)
            if state is None or state["is_kept"]:
                continue
            if state["is_open"]:
                deleted += await self._old_segments(directory)
            elif state["is_over"]:
                await asyncio.to_thread(shutil.rmtree, directory)
                self._drainer.forget(directory.name)
                deleted.append(directory)
        return deleted

    async def _old_segments(self, directory: Path) -> list[Path]:
        """Of a living process: its finished segments whose calls are all in Postgres, oldest first."""
        deleted = []
        for path in (await asyncio.to_thread(folder.segments, directory))[:-1]:
            position = await self._drainer.position(directory.name, int(path.stem))
            begins = await asyncio.to_thread(finished_begins, path, position, self._keep_s)
            if begins is None or not await self._are_closed(begins):
                break  # in order, so that the newest always tell where the cursor is
            await asyncio.to_thread(path.unlink)
            crash_point("segment-deleted")
            deleted.append(path)
        return deleted

    async def _are_closed(self, calls: list[str]) -> bool:
        closed = await self._database.fetchval(
            "SELECT count(*) FROM (SELECT id FROM usage WHERE id = ANY($1::uuid[])"
            " UNION SELECT id FROM binding WHERE id = ANY($1::uuid[]) AND entry IS NOT NULL) closed",
            calls,
        )
        return bool(closed == len(calls))


def finished_begins(path: Path, position: int, keep_s: float) -> list[str] | None:
    """The calls that begin in a segment; None while it is still needed. Blocking."""
    try:
        head = reader.head(path)
        if head is None or not head.mark.closed or position < head.mark.offset:
            return None
        if time.time() - path.stat().st_mtime < keep_s:
            return None
        begins = (payload for payload, _ in reader.read(path) if payload[:1] == Begin.TAG)
        return [begin.id for begin in map(entry.decode, begins) if isinstance(begin, Begin)]
    except (JournalDamageError, ValueError):
        log.exception("segment kept")
        return None
