"""Control's own journal: what was granted on trust while Postgres was away.

Owns this life's journal directory, made when it is first needed, and the reading back of earlier ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from proxy.journal import directory as folder
from proxy.journal.frame import START
from proxy.journal.reader import JournalDamageError, read_past_damage
from proxy.journal.segments import Journal
from proxy.ledger.entry import Allowance, decode, encode

log = logging.getLogger("headrace.allowances")

SEGMENT_BYTES = 4 << 20
RESERVE_BYTES = 1 << 20
KIND = "c-"  # how control's lives are named


class Allowances:
    """Journals each change of credit on trust before it counts."""

    def __init__(
        self, journal_dir: Path, incarnation: str, new_id: Callable[[], str], now_ms: Callable[[], int]
    ) -> None:
        self._journal_dir = journal_dir
        self._incarnation = incarnation
        self._new_id = new_id
        self._now_ms = now_ms
        self._journal: Journal | None = None

    async def write(self, account: int, amount: int) -> None:
        """Resolved once it is written. Raises JournalUnavailable."""
        loop = asyncio.get_running_loop()
        if self._journal is None:
            self._journal = Journal(
                self._journal_dir / self._incarnation,
                loop=loop,
                segment_bytes=SEGMENT_BYTES,
                reserve_bytes=RESERVE_BYTES,
            )
        written: asyncio.Future[None] = loop.create_future()

        def then(error: BaseException | None) -> None:
            if written.done():
                return  # its asker is gone; the entry stands
            if error is None:
                written.set_result(None)
            else:
                written.set_exception(error)

        entry = Allowance(self._new_id(), self._now_ms(), account, amount)
        self._journal.append(encode(entry), then)
        await written

    async def close(self) -> None:
        if self._journal is not None:
            await self._journal.close()


def earlier(journal_dir: Path) -> Iterator[Allowance]:
    """What earlier controls of this node granted, in order. Blocking; reads control's journals only."""
    lives = [d for d in folder.incarnations(journal_dir) if d.name.startswith(KIND)]
    for directory in lives:  # named by UUIDv7: sorted by age
        for path in folder.segments(directory):
            try:
                for payload, _ in read_past_damage(path, START, _told, upto="end"):
                    if payload[:1] == Allowance.TAG:
                        found = decode(payload)
                        assert isinstance(found, Allowance)
                        yield found
            except JournalDamageError as e:
                _told(e)


def _told(damage: JournalDamageError) -> None:
    log.error("a part of an allowance journal is lost: %s", damage)
