"""Submits that are one, in Postgres: whose turn it is, and what the first was answered.

Owns the table `submission`. A row belongs to the call that made it until that call's end shows that
nothing was started, or until its time is over. What that end was is read from the books: a worker that
died tells nobody.
"""

from __future__ import annotations

from typing import Any

from proxy.ledger import entry
from proxy.ledger.submissions import Submission, Turn
from proxy.store.database import Connection, Database

TRIES = 5  # others take what was free, again and again


class Submissions:
    """Every method raises DatabaseUnavailable; asking again is harmless."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, it: Submission, incarnation: str, now_ms: int) -> tuple[Turn, dict[str, Any]]:
        """What a submit of a worker's life finds, and the answer of the first one."""
        for _ in range(TRIES):
            is_own = await self._database.fetchval(
                _CLAIM, it.account, it.name, it.request, it.call, incarnation, it.until_ms, now_ms
            )
            if is_own:
                return Turn.OWN, {}
            row = await self._database.fetchrow(_LOOK, it.account, it.name)
            if row is None:
                continue
            if row["request"] != it.request:
                return Turn.DIFFERENT, {}
            if row["answer"] is not None:
                return (Turn.ANSWERED, row["answer"]) if row["answer"] else (Turn.LOST, {})
            if not _came_to_nothing(row):
                return Turn.LOST if _is_lost(row) else Turn.WAITING, {}
            await self.release(row["call"].hex)
        return Turn.WAITING, {}

    async def answered(self, call: str, answer: dict[str, Any], until_ms: int | None) -> None:
        """The call has started its task; {}: its answer cannot be kept. None: its time stays as it is."""
        await self._database.execute(
            "UPDATE submission SET answer = $2, until_ms = coalesce($3, until_ms) WHERE call = $1",
            call, answer, until_ms,
        )  # fmt: skip

    async def release(self, call: str) -> None:
        """The call came to nothing: the next one is the first."""
        await self._database.execute("DELETE FROM submission WHERE call = $1 AND answer IS NULL", call)

    async def forget(self, now_ms: int) -> None:
        """Drop those whose time is over."""
        await self._database.execute("DELETE FROM submission WHERE until_ms <= $1", now_ms)


async def keep_answer(connection: Connection, call: str, answer: dict[str, Any]) -> None:
    """The call was bound to a task: should its worker have died before it told the answer."""
    await connection.execute(
        "UPDATE submission SET answer = $2 WHERE call = $1 AND answer IS NULL", call, answer
    )


def _came_to_nothing(row: Any) -> bool:
    """It was not charged and no vendor has it. A call without Begin was sent nowhere."""
    if row["outcome"] is None:
        return row["is_over"] and not row["is_bound"]
    return row["cost_nanos"] == 0 and row["outcome"] != entry.INTERRUPTED_RELAY and not row["is_bound"]


def _is_lost(row: Any) -> bool:
    return row["outcome"] is not None or (row["is_over"] and row["is_bound"])


_CLAIM = """
INSERT INTO submission AS s (account, name, request, call, incarnation, until_ms)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (account, name) DO UPDATE
SET request = excluded.request, call = excluded.call, incarnation = excluded.incarnation,
    until_ms = excluded.until_ms, answer = NULL
WHERE s.until_ms <= $7 OR s.call = excluded.call
RETURNING true
"""

_LOOK = """
SELECT s.request, s.call, s.answer, u.outcome, u.cost_nanos, b.id IS NOT NULL AS is_bound,
       i.closed_at IS NOT NULL AS is_over
FROM submission s
LEFT JOIN usage u ON u.id = s.call
LEFT JOIN binding b ON b.id = s.call
LEFT JOIN incarnation i ON i.id = s.incarnation
WHERE s.account = $1 AND s.name = $2
"""
