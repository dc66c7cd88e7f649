"""Deadlines of tasks: what is too old is disputed, whether or not somebody could ask about it.

Owns the statements that look at all open tasks, once a minute. They wait for nobody: what another one has
locked is in good hands, and is looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.store.database import Database

Sort = tuple[str, str]  # upstream and kind: tasks that are asked about in the same way


@dataclass(frozen=True, slots=True)
class Deadline:
    """Tasks of a sort from before `before_ms` are too old; disputes about them last until `until_ms`."""

    sort: Sort
    before_ms: int
    until_ms: int


async def sweep(database: Database, deadlines: Sequence[Deadline], overdue_ms: int, until_ms: int) -> int:
    """How many tasks are disputed by it: those that are too old, and those that nobody has been asking about
    since `overdue_ms`, as the file has their upstream no more. Disputes that a client began, by deleting what
    it awaited, get their time. Raises DatabaseUnavailable."""
    late = await database.fetch(
        _LATE,
        [it.sort[0] for it in deadlines],
        [it.sort[1] for it in deadlines],
        [it.before_ms for it in deadlines],
        [it.until_ms for it in deadlines],
    )
    await database.execute(_DATE, until_ms)
    left = await database.fetch(_LEFT, overdue_ms, until_ms)
    return len(late) + len(left)


_LATE = """
WITH late AS (
    SELECT b.id, s.until_ms
    FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS s (upstream, kind, before_ms, until_ms)
    JOIN binding b ON b.upstream = s.upstream AND b.kind = s.kind
    WHERE b.next_poll_ms IS NOT NULL AND b.state = 'pending' AND b.at_ms < s.before_ms
    FOR UPDATE OF b SKIP LOCKED
)
UPDATE binding b SET state = 'disputed', deadline_ms = late.until_ms, next_poll_ms = NULL,
       note = 'nobody could tell its end in time'
FROM late WHERE b.id = late.id RETURNING true
"""

_DATE = """
UPDATE binding SET deadline_ms = $1 WHERE id IN (
    SELECT id FROM binding WHERE state = 'disputed' AND deadline_ms IS NULL FOR UPDATE SKIP LOCKED
)
"""

_LEFT = """
UPDATE binding SET state = 'disputed', deadline_ms = $2, next_poll_ms = NULL,
       note = 'nobody could be asked about it: is its upstream still in the file?'
WHERE id IN (SELECT id FROM binding WHERE next_poll_ms < $1 AND state = 'pending' FOR UPDATE SKIP LOCKED)
RETURNING true
"""
