"""Hold the journals on this node's disk against Postgres.

Owns the audit of frames: each is intact, each call that ended had begun, and what was drained is what
Postgres has. Reads only.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from proxy.journal import directory as folder
from proxy.journal import reader
from proxy.journal.frame import START
from proxy.journal.reader import JournalDamageError, UpTo
from proxy.ledger import entry
from proxy.ledger.entry import Begin, End
from proxy.store.audit import ROWS_MAX, Violation
from proxy.store.database import Database
from proxy.store.drainer import living

_CALLS = {Begin.TAG, End.TAG}
IDS_MAX = 5_000  # per question to Postgres


Place = tuple[str, int]  # incarnation, segment


@dataclass(slots=True)
class _Known:
    """What Postgres says about this node's journals."""

    cursors: dict[Place, int]
    quarantined: set[tuple[str, int, int]]


@dataclass(slots=True)
class _Life:
    """What one incarnation's files hold below their cursors."""

    is_whole: bool  # nothing of it was deleted or cannot be read
    begun: set[str] = field(default_factory=set)
    drained: dict[str, End] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)


async def audit_journals(database: Database, journal_dir: Path) -> list[Violation]:
    """Every violation in the journals below `journal_dir`. Raises DatabaseUnavailable."""
    known = await _known(database)  # first: what dies after this was not drained beyond its watermark
    found: list[Violation] = []
    alive = await asyncio.to_thread(living, journal_dir)
    for directory in await asyncio.to_thread(folder.incarnations, journal_dir):
        upto: UpTo = "watermark" if directory in alive else "end"
        life = await asyncio.to_thread(_read, directory, upto, known)
        found += life.violations
        found += await _compare(database, life.drained)
    return found


async def _known(database: Database) -> _Known:
    async with database.transaction(readonly=True) as connection:
        cursors = await connection.fetch("SELECT incarnation, segment, position FROM segment_cursor")
        refused = await connection.fetch("SELECT incarnation, segment, position FROM quarantine")
    return _Known(
        {(row["incarnation"], row["segment"]): row["position"] for row in cursors},
        {tuple(row) for row in refused},
    )


def _read(directory: Path, upto: UpTo, known: _Known) -> _Life:
    paths = folder.segments(directory)
    life = _Life(is_whole=bool(paths) and int(paths[0].stem) == 1)
    for path in paths:
        try:
            _read_segment(path, upto, known, life)
        except FileNotFoundError:
            continue  # deleted just now
        except (JournalDamageError, ValueError) as e:
            life.violations.append(_broken(path, e))
    return life


def _read_segment(path: Path, upto: UpTo, known: _Known, life: _Life) -> None:
    place = (path.parent.name, int(path.stem))
    at, cursor = START, known.cursors.get(place, START)

    def skip(damage: JournalDamageError) -> None:
        nonlocal at
        at = damage.resume_at or at
        life.is_whole = False
        if (*place, at) not in known.quarantined:  # else it is told there, until it is resolved
            life.violations.append(_broken(path, damage))

    for payload, at in reader.read_past_damage(path, START, skip, upto=upto):
        if payload[:1] not in _CALLS or (*place, at) in known.quarantined:
            continue
        found = entry.decode(payload)
        if isinstance(found, Begin):
            life.begun.add(found.id)
        elif isinstance(found, End):
            if life.is_whole and found.id not in life.begun:
                life.violations.append(Violation("I7 hold first", f"call {found.id}", "never began"))
            if at <= cursor and found.state not in (entry.PENDING, entry.DEFERRED):
                life.drained[found.id] = found
    if at < cursor:
        raise JournalDamageError(path, at, f"the cursor {cursor} is beyond the end")


def _broken(path: Path, why: Exception) -> Violation:
    return Violation("journal", f"{path.parent.name}/{path.name}", str(why))


async def _compare(database: Database, drained: dict[str, End]) -> list[Violation]:
    """Each call that was drained is in Postgres as it was journaled."""
    found: list[Violation] = []
    ids = list(drained)
    for start in range(0, len(ids), IDS_MAX):
        some = ids[start : start + IDS_MAX]
        rows = await database.fetch(
            "SELECT id, account, cost_nanos, usage FROM usage WHERE id = ANY($1::uuid[])", some
        )
        posted = {row["id"].hex: (row["account"], row["cost_nanos"], row["usage"]) for row in rows}
        for id_ in some:
            end = drained[id_]
            if id_ not in posted:
                found.append(Violation("I5 identity", f"call {id_}", "was drained and is not in usage"))
            elif posted[id_] != (end.account, end.cost_nanos, end.usage):
                found.append(Violation("journal", f"call {id_}", "differs from its usage row"))
    return found[:ROWS_MAX]
