"""What customers are to be told of their tasks, until it was taken or its day is over.

Owns the tables `outbox` and `callback_secret`. A change becomes an event in the transaction that brings it
into the books, once: the row of its task says what was told last. One sender at a time has an event, and
only when all before it of the same task are closed. What is told, and how it is signed, is others'.
"""

from __future__ import annotations

import base64
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from proxy.errors import StateError
from proxy.store.database import Connection, Database

LASTS_MS = 24 * 3_600_000
EVENTS_MAX = 1000  # of one task; its end is told all the same
# Under way of one sender: a receiver is not flooded, and a key whose receivers are slow waits alone.
PER_RECEIVER, PER_KEY = 4, 10
PER_CLAIM = 64
OVERLAP_MS = 24 * 3_600_000  # for which a secret signs beside the one that replaced it
SECRET_BYTES = 32  # Standard Webhooks: 24 to 64
NOTE_CHARS_MAX = 200
KEPT_MS = 30 * 86_400_000
FORGET_ROWS = 20_000  # per statement, so that it is short

WAITING, DELIVERED, FAILED = "waiting", "delivered", "failed"
STATES = (WAITING, DELIVERED, FAILED)


@dataclass(frozen=True, slots=True)
class Change:
    """What was seen of a task, as its owner is told it."""

    id: str  # of the event that it becomes
    call: str  # that submitted the task
    at_ms: int
    mark: str  # what another look must differ in to be another change
    body: str  # JSON text
    is_end: bool


async def tell(connection: Connection, changes: Iterable[Change]) -> int:
    """Within the transaction that notes the changes; how many of them are news to somebody who asked to be
    told. Later looks that say what is known, and looks that come too late, are none.

    Whether an end is the one that counts is its caller's to know.
    """
    newest = {change.call: change for change in sorted(changes, key=lambda c: (c.is_end, c.at_ms))}
    if not newest:
        return 0
    columns = [
        [getattr(change, name) for change in newest.values()]
        for name in ("id", "call", "at_ms", "mark", "body", "is_end")
    ]
    return len(await connection.fetch(_TELL, *columns, LASTS_MS, EVENTS_MAX))


@dataclass(frozen=True, slots=True)
class Event:
    """An event that this sender has until its claim runs out; `tries` is its fence."""

    id: str
    call: str
    sequence: int
    account: int
    key: int
    host: str
    url: str
    body: str
    until_ms: int
    tries: int


@dataclass(frozen=True, slots=True)
class Secrets:
    """What signs the events of an account."""

    secret: bytes
    previous: bytes | None = None  # signs, too, until a moment
    previous_until_ms: int = 0

    @property
    def text(self) -> str:
        """As receivers are given it (Standard Webhooks)."""
        return "whsec_" + base64.b64encode(self.secret).decode()

    def in_force(self, now_ms: int) -> list[bytes]:
        before = [self.previous] if self.previous is not None and now_ms < self.previous_until_ms else []
        return [self.secret, *before]


class Outbox:
    """Every method raises DatabaseUnavailable; asking again is harmless."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- sending --

    async def claim(self, under_way: Collection[Event], now_ms: int, until_ms: int) -> list[Event]:
        """Events that are due, the longest due first: of each receiver and of each key a few, with those that
        this sender has already. Nobody else gets them before `until_ms`."""
        hosts, keys = Counter(e.host for e in under_way), Counter(e.key for e in under_way)
        rows = await self._database.fetch(
            _CLAIM, now_ms, list(hosts), list(hosts.values()), PER_RECEIVER, list(keys), list(keys.values()),
            PER_KEY, PER_CLAIM, until_ms,
        )  # fmt: skip
        events = [Event(**{**row, "id": row["id"].hex, "call": row["call"].hex}) for row in rows]
        return sorted(events, key=lambda event: event.id)

    async def close(self, event: Event, state: str, now_ms: int, *, status: int = 0, note: str = "") -> bool:
        """It was taken, or is given up: the next one of its task may go. False: somebody else has it now."""
        closed = await self._database.fetchval(
            _CLOSE, event.id, event.tries, state, now_ms, status, note[:NOTE_CHARS_MAX]
        )
        return bool(closed)

    async def put_off(self, event: Event, next_try_ms: int, *, status: int = 0, note: str = "") -> None:
        """It was not taken: it waits, and so does what follows it. Not what somebody else has now."""
        await self._database.execute(
            _PUT_OFF, event.id, event.tries, next_try_ms, status, note[:NOTE_CHARS_MAX]
        )

    async def secrets(self, account: int) -> Secrets:
        """Made when they are first needed."""
        row = await self._database.fetchrow(_SECRETS, account)
        if row is None:
            await self._database.execute(
                "INSERT INTO callback_secret (account, secret) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                account, secrets.token_bytes(SECRET_BYTES),
            )  # fmt: skip
            row = await self._database.fetchrow(_SECRETS, account)
        assert row is not None
        return Secrets(**row)

    async def rotate(self, account: int, now_ms: int, *, revoke: bool = False) -> Secrets:
        """A new secret; the one before signs beside it for a day, so that receivers can be changed, or
        (`revoke`) no more. Raises StateError: that day is not over."""
        await self.secrets(account)
        new, until_ms = secrets.token_bytes(SECRET_BYTES), 0 if revoke else now_ms + OVERLAP_MS
        if not await self._database.fetchval(_ROTATE, account, new, until_ms, now_ms):
            raise StateError("the secret was changed within a day: receivers may still use the one before")
        return await self.secrets(account)

    # -- looking --

    async def waiting(self) -> int:
        return int(await self._database.fetchval("SELECT count(*) FROM outbox WHERE state = 'waiting'"))

    async def events(
        self, limit: int, *, account: int | None = None, state: str = "", call: str = "", before: str = ""
    ) -> list[dict[str, Any]]:
        """The newest first, without their bodies; `before` an event's id. Raises LookupError: no such id."""
        return [
            _shown(row)
            for row in await self._database.fetch(
                _EVENTS, account, state, _id(call), _id(before), limit, None
            )
        ]

    async def event(self, id_: str, account: int | None = None) -> dict[str, Any]:
        """Raises LookupError: there is none, or it is another account's."""
        row = await self._database.fetchrow(_EVENTS, account, "", None, None, 1, _id(id_) or UUID(int=0))
        if row is None:
            raise LookupError(f"there is no callback {id_}")
        return _shown(row)

    async def resend(self, ids: Sequence[str], now_ms: int, account: int | None = None) -> int:
        """Once more, with a day of its own, also what was taken or given up; how many."""
        rows = await self._database.fetch(
            _RESEND, [_id(id_) for id_ in ids], now_ms, now_ms + LASTS_MS, account
        )
        return len(rows)

    async def forget(self, now_ms: int) -> int:
        """Drop what was closed long ago; how many."""
        return len(await self._database.fetch(_FORGET, now_ms - KEPT_MS, FORGET_ROWS))


def _id(text: str) -> UUID | None:
    """As it is shown or sent: with `evt_`, with dashes, or bare. Raises LookupError: it is none."""
    if not text:
        return None
    try:
        return UUID(text.removeprefix("evt_"))
    except ValueError as e:
        raise LookupError(f"{text} is not the id of a callback or a call") from e


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = dict(row) | {"id": f"evt_{row['id'].hex}", "call": row["call"].hex}
    return shown if row["body"] is not None else {k: v for k, v in shown.items() if k != "body"}


# The row of the task is the lock, and what was told last the comparison: so nothing is told twice.
_TELL = """
WITH news AS (
    UPDATE binding b SET told = told + 1, told_mark = c.mark, told_ms = greatest(told_ms, c.at_ms)
    FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::bool[])
         AS c (id, call, at_ms, mark, body, is_end)
    WHERE b.id = c.call AND b.hook IS NOT NULL
      AND (c.is_end OR (b.told_mark <> c.mark AND b.told_ms < c.at_ms AND b.told < $8
                        AND b.state IN ('pending', 'disputed')))
    RETURNING c.id, b.id AS binding, b.told, b.account, b.key, b.hook, c.body, c.at_ms
)
INSERT INTO outbox (id, binding, sequence, account, key, host, url, body, at_ms, until_ms, next_try_ms)
SELECT id, binding, told, account, key, lower(substring(hook FROM '^[^:]+://([^/?]+)')), hook, body, at_ms,
       at_ms + $7,
       -- Behind one that its receiver did not take: with that one.
       greatest(at_ms, (SELECT max(next_try_ms) FROM outbox o
                        WHERE o.binding = news.binding AND o.state = 'waiting' AND o.note <> ''))
FROM news ON CONFLICT DO NOTHING RETURNING true
"""

# Receivers are found one by one by the index: a claim costs what is due, not what waits.
_CLAIM = """
WITH RECURSIVE receiver AS (
    (SELECT host, next_try_ms FROM outbox WHERE state = 'waiting' ORDER BY host, next_try_ms LIMIT 1)
    UNION ALL
    SELECT o.* FROM receiver r CROSS JOIN LATERAL (
        SELECT host, next_try_ms FROM outbox WHERE state = 'waiting' AND host > r.host
        ORDER BY host, next_try_ms LIMIT 1
    ) o
), due AS (
    SELECT o.id, o.next_try_ms,
           row_number() OVER (PARTITION BY o.key ORDER BY o.next_try_ms, o.id) + coalesce(k.busy, 0) AS nth
    FROM receiver r LEFT JOIN unnest($2::text[], $3::int[]) AS b (host, busy) USING (host)
    CROSS JOIN LATERAL (
        SELECT w.id, w.key, w.next_try_ms FROM outbox w
        WHERE w.state = 'waiting' AND w.host = r.host AND w.next_try_ms <= $1
          AND NOT EXISTS (SELECT FROM outbox e
                          WHERE e.binding = w.binding AND e.state = 'waiting' AND e.sequence < w.sequence)
        ORDER BY w.next_try_ms LIMIT greatest($4 - coalesce(b.busy, 0), 0)
    ) o LEFT JOIN unnest($5::bigint[], $6::int[]) AS k (key, busy) ON k.key = o.key
    WHERE r.next_try_ms <= $1
), mine AS (
    SELECT id FROM outbox
    WHERE id IN (SELECT id FROM due WHERE nth <= $7 ORDER BY next_try_ms LIMIT $8)
      AND state = 'waiting' AND next_try_ms <= $1
    FOR UPDATE SKIP LOCKED
)
UPDATE outbox o SET tries = tries + 1, next_try_ms = $9 FROM mine WHERE o.id = mine.id
RETURNING o.id, o.binding AS call, o.sequence, o.account, o.key, o.host, o.url, o.body, o.until_ms, o.tries
"""

_CLOSE = """
WITH closed AS (
    UPDATE outbox SET state = $3, closed_ms = $4, status = $5, note = $6
    WHERE id = $1 AND tries = $2 AND state = 'waiting' RETURNING binding
), released AS (
    UPDATE outbox o SET next_try_ms = $4 FROM closed
    WHERE o.binding = closed.binding AND o.state = 'waiting' AND o.next_try_ms > $4 AND o.id <> $1
)
SELECT true FROM closed
"""

_PUT_OFF = """
UPDATE outbox o SET next_try_ms = CASE WHEN o.id = f.id THEN $3 ELSE greatest(o.next_try_ms, $3) END,
       status = CASE WHEN o.id = f.id THEN $4 ELSE o.status END,
       note = CASE WHEN o.id = f.id THEN $5 ELSE o.note END
FROM outbox f
WHERE f.id = $1 AND f.tries = $2 AND f.state = 'waiting'
  AND o.binding = f.binding AND o.sequence >= f.sequence AND o.state = 'waiting'
"""

_SECRETS = "SELECT secret, previous, previous_until_ms FROM callback_secret WHERE account = $1"

_ROTATE = """
UPDATE callback_secret SET previous = secret, previous_until_ms = $3, secret = $2
WHERE account = $1 AND ($3::bigint = 0 OR previous_until_ms <= $4) RETURNING true
"""

_EVENTS = """
SELECT o.id, o.binding AS call, o.sequence, a.name AS account, o.url, o.at_ms, o.state, o.tries, o.status,
       o.note, o.closed_ms, CASE o.state WHEN 'waiting' THEN o.next_try_ms END AS next_try_ms,
       CASE WHEN $6::uuid IS NOT NULL THEN o.body END AS body
FROM outbox o JOIN account a ON a.id = o.account
WHERE ($1::bigint IS NULL OR o.account = $1) AND ($2 = '' OR o.state = $2)
  AND ($3::uuid IS NULL OR o.binding = $3) AND ($4::uuid IS NULL OR o.id < $4)
  AND ($6::uuid IS NULL OR o.id = $6)
ORDER BY o.id DESC LIMIT $5
"""

_RESEND = """
WITH again AS (
    UPDATE outbox SET state = 'waiting', next_try_ms = $2, until_ms = $3, closed_ms = NULL
    WHERE id = ANY($1::uuid[]) AND ($4::bigint IS NULL OR account = $4) RETURNING id, binding
), released AS (
    UPDATE outbox o SET next_try_ms = $2 FROM again
    WHERE o.binding = again.binding AND o.state = 'waiting' AND o.next_try_ms > $2
      AND o.id NOT IN (SELECT id FROM again)
)
SELECT id FROM again
"""

_FORGET = """
DELETE FROM outbox WHERE id IN (
    SELECT id FROM outbox WHERE state <> 'waiting' AND closed_ms < $1 LIMIT $2
) RETURNING true
"""
