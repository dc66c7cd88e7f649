"""What lives at vendors, in Postgres: whose it is, what it was last seen as, what waits for its end.

Owns the table `binding` as journals write it and workers ask for it. What a poller does with it is
store.due's. Accounts are locked by who posts; a row of money that was moved once is not moved again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from proxy.dialects.owned import ENDED, SUCCEEDED
from proxy.journal import directory as folder
from proxy.journal.frame import START
from proxy.journal.reader import JournalDamageError, read_past_damage
from proxy.ledger import bindings, entry
from proxy.ledger.bindings import Binding, Closing
from proxy.ledger.entry import Bind, End, Observed
from proxy.metering.pricing import Price, price_from_content
from proxy.store import results
from proxy.store.database import Connection, Database
from proxy.store.outbox import Change, tell
from proxy.store.spending import spend
from proxy.store.submissions import keep_answer

FIRST_POLL_MS = 1000  # after a task was submitted; the poller's own intervals follow
PAGE_ROWS_MAX = 1001
SCAN_BYTES_MAX = 64 << 20  # of journals, for ids that were made a moment ago

# -- posting -----------------------------------------------------------------------------------------


async def bind(connection: Connection, made: Bind, incarnation: str) -> str:
    """An id is its account's; why it cannot be, or "".

    The hold of a task moves from its lease to the binding: what is available does not change. An id that
    was bound when a stream named it becomes pending when the stream ends before its task, and a task that is
    only told about becomes that of a call which pays for it (Midjourney's modal).
    """
    waits = bool(made.hold_nanos or made.hook)  # for its end: somebody pays, or wants to hear of it
    is_new = await connection.fetchval(
        _BIND, made.id, made.account, made.key, made.kind, made.vendor_id, made.upstream, made.mirror,
        made.credential, made.at_ms, made.hold_nanos, bindings.PENDING if waits else bindings.BOUND,
        made.at_ms + FIRST_POLL_MS if waits else None, made.content or None, incarnation, made.hook or None,
    )  # fmt: skip
    if is_new and made.hold_nanos:
        await connection.execute(_HOLD, made.lease or None, made.account, made.hold_nanos, incarnation)
        if made.content:
            await keep_answer(connection, made.id, made.content)
    if is_new:
        return ""
    owner = await connection.fetchval(_OWNER, *_identity(made))
    return "" if owner == made.account else f"binds what belongs to account {owner}"


async def defer(connection: Connection, end: End) -> bool:
    """Keep a call's terms with its task. False: the task is another call's, there is nothing to wait for."""
    row = await connection.fetchrow(
        "UPDATE binding SET entry = coalesce(entry, $2),"
        " next_poll_ms = CASE state WHEN 'pending' THEN coalesce(next_poll_ms, $3) END"
        " WHERE id = $1 AND state IN ('pending', 'disputed') RETURNING id", end.id, end, end.at_ms,
    )  # fmt: skip
    if row is not None:
        return True
    # Read again after its task was closed?
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM usage WHERE id = $1)", end.id))


async def observe(connection: Connection, seen: Observed, incarnation: str) -> Closing:
    """Note what was seen. If it is the end of a task, and the first, its hold is free again, and what it
    costs is to be posted."""
    await connection.execute(
        "INSERT INTO observation (id, at_ms, upstream, credential, vendor_id, state, usage, parts,"
        " incarnation) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
        seen.id, seen.at_ms, seen.upstream, seen.credential, seen.vendor_id, seen.state, seen.usage,
        seen.parts, incarnation,
    )  # fmt: skip
    row = await connection.fetchrow(_LOCK, *_identity(seen))
    if row is None:
        return Closing()
    closing, state = Closing(), bindings.NEXT.get((row["state"], seen.state), row["state"])
    is_open = row["state"] in (bindings.PENDING, bindings.DISPUTED)
    if is_open and row["is_told"] and not seen.mark and seen.state in ENDED:
        state = row["state"]  # who saw it did not know that its account is to be told: the next poll does
    elif is_open and not row["hold_nanos"]:
        pass  # nobody pays for it, its account is told
    elif state != row["state"] and seen.state in bindings.FINAL:
        found = await _close(connection, row, seen)
        if found is None:
            state = row["state"]  # the call's End comes from another journal: the next poll finds both
        else:
            closing = found
            if any(end.state == entry.SETTLED for end in found.ends):
                state = bindings.SETTLED  # also a failure, where its family charges for the try
    if seen.body and (state != row["state"] or seen.state not in bindings.FINAL):
        is_end = seen.state in bindings.FINAL
        change = Change(seen.id, row["id"].hex, seen.at_ms, seen.mark, seen.body, is_end)
        await tell(connection, [change])
    if seen.files and seen.state == SUCCEEDED:
        await results.order(connection, row["id"].hex, row["account"], seen.files, seen.at_ms)
    elif seen.state == bindings.GONE:
        await results.forsake(connection, row["id"].hex, seen.at_ms)
    await _note(connection, row, seen, state)
    return closing


async def accounts_of(connection: Connection, seen: Iterable[Observed]) -> set[int]:
    """Whose money the observations may move."""
    ids = [e.vendor_id for e in seen if e.state in bindings.FINAL]
    if not ids:
        return set()
    rows = await connection.fetch("SELECT DISTINCT account FROM binding WHERE vendor_id = ANY($1)", ids)
    return {row["account"] for row in rows}


async def _close(connection: Connection, row: Any, seen: Observed) -> Closing | None:
    end = _end_of(row["entry"]) if row["entry"] is not None else None
    call = end or await _posted(connection, row["id"].hex)
    if call is None:
        return None
    prices = await _prices(connection, [call.price, *(part["price"] for part in seen.parts)])
    if row["hold_nanos"]:
        await connection.execute(
            "UPDATE account SET available_nanos = available_nanos + $2 WHERE id = $1",
            row["account"], row["hold_nanos"],
        )  # fmt: skip
    if end is None:  # its relay died between Bind and End: adoption has closed the call
        closing, cost = bindings.corrected(call, seen, prices[call.price]), call.cost_nanos
    else:
        closing = bindings.closed(end, seen, row["state"], prices)
        cost = sum(part.cost_nanos for part in closing.ends)
    await spend(
        connection, cost - row["hold_nanos"], account=call.account, key=call.key, tier=call.tier,
        began_ms=call.began_ms,
    )  # fmt: skip
    return closing


async def _note(connection: Connection, row: Any, seen: Observed, state: str) -> None:
    is_closed = state in (bindings.SETTLED, bindings.VOID) and state != row["state"]
    is_deleted = state == bindings.DISPUTED and state != row["state"]
    note = "its owner deleted it before its end was known" if is_deleted else None
    await connection.execute(
        "UPDATE binding SET state = $2, hold_nanos = CASE WHEN $3 THEN 0 ELSE hold_nanos END,"
        " closed_ms = CASE WHEN $3 THEN $4 ELSE closed_ms END, content = coalesce($5, content),"
        " gone_ms = CASE WHEN $6 THEN $4 ELSE gone_ms END, note = coalesce($7, note),"
        " next_poll_ms = CASE WHEN $2 NOT IN ('pending', 'disputed') THEN NULL"
        " WHEN $8 THEN least(next_poll_ms, $4) ELSE next_poll_ms END"
        " WHERE id = $1",
        row["id"], state, is_closed, seen.at_ms, seen.content or None, seen.state == bindings.GONE, note,
        seen.state in bindings.FINAL or seen.state == bindings.DUE,
    )  # fmt: skip


async def _posted(connection: Connection, call: str) -> End | None:
    """A call that is in `usage`, as far as a correction needs it."""
    row = await connection.fetchrow(
        "SELECT began_ms, ended_ms, state, outcome, account, key, hold_nanos, cost_nanos, model, operation,"
        " dialect, price, model_ppm, tier_ppm, tier, endpoint, generation, stream, status, provenance, usage"
        " FROM usage WHERE id = $1",
        call,
    )
    if row is None:
        return None
    values = dict(row)
    return End(id=call, at_ms=values.pop("ended_ms"), lease="", **values)


async def _prices(connection: Connection, ids: list[str]) -> Mapping[str, Price]:
    rows = await connection.fetch("SELECT id, content FROM price WHERE id = ANY($1)", ids)
    return {row["id"]: price_from_content(row["content"]) for row in rows}


def _end_of(data: dict[str, Any]) -> End:
    end = entry.decode(End.TAG + orjson.dumps(data))
    assert isinstance(end, End)
    return end


def _identity(record: Bind | Observed) -> tuple[str, str, str]:
    return record.upstream, record.credential, record.vendor_id


# -- asking ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """One thing in a list; `content` is the vendor's object as it was last seen, or None."""

    vendor_id: str
    content: dict[str, Any] | None
    made: str  # what lists are ordered by


class Bindings:
    """What a node's control asks. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database, journal_dir: Path, node: str) -> None:
        self._database = database
        self._journal_dir = journal_dir
        self._node = node

    async def find(self, account: int, vendor_ids: list[str]) -> list[Binding]:
        """Those of the account, the newest first; two upstreams may use the same id."""
        rows = await self._database.fetch(
            "SELECT vendor_id, kind, account, upstream, mirror, credential, hook IS NOT NULL AS is_told,"
            " replace(id::text, '-', '') AS made FROM binding"
            " WHERE vendor_id = ANY($2) AND account = $1 ORDER BY id DESC", account, vendor_ids,
        )  # fmt: skip
        return [Binding(**row) for row in rows]

    async def page(
        self,
        account: int,
        kind: str,
        limit: int,
        *,
        after: str = "",
        before: str = "",
        only_open: bool = False,
    ) -> list[Listed]:
        """The account's own of a kind, at most `limit`, the newest first. `after` and `before` are what
        lists are ordered by (Listed.made); before one: those that are nearest to it."""
        is_back = bool(before) and not after
        rows = await self._database.fetch(
            _PAGE_BEFORE if is_back else _PAGE_AFTER, account, kind, after or before or None,
            min(max(limit, 1), PAGE_ROWS_MAX), only_open,
        )  # fmt: skip
        page = [Listed(row["vendor_id"], row["content"], row["id"].hex) for row in rows]
        return page[::-1] if is_back else page

    async def listed(self, account: int, kind: str, vendor_ids: list[str]) -> list[Listed]:
        """Those of a kind that are the account's, in no order."""
        rows = await self._database.fetch(
            "SELECT id, vendor_id, content FROM binding WHERE account = $1 AND kind = $2"
            " AND vendor_id = ANY($3) AND gone_ms IS NULL", account, kind, vendor_ids,
        )  # fmt: skip
        return [Listed(row["vendor_id"], row["content"], row["id"].hex) for row in rows]

    async def count(self, account: int, kind: str) -> int:
        """How many of a kind the account has."""
        return int(
            await self._database.fetchval(
                "SELECT count(*) FROM binding WHERE account = $1 AND kind = $2 AND gone_ms IS NULL",
                account, kind,
            )
        )  # fmt: skip

    async def journaled(self) -> list[Bind]:
        """What this node's journals hold and Postgres has not."""
        rows = await self._database.fetch(
            "SELECT c.incarnation, c.segment, c.position FROM segment_cursor c"
            " JOIN incarnation i ON i.id = c.incarnation WHERE i.node = $1",
            self._node,
        )
        cursors = {(row["incarnation"], row["segment"]): row["position"] for row in rows}
        return await asyncio.to_thread(lambda: list(journaled(self._journal_dir, cursors)))

    async def has_other_nodes(self) -> bool:
        """Is there a life of another node that may not be drained to its end?"""
        return bool(
            await self._database.fetchval(
                "SELECT EXISTS (SELECT FROM incarnation WHERE node <> $1 AND closed_at IS NULL)", self._node
            )
        )


def journaled(journal_dir: Path, cursors: Mapping[tuple[str, int], int]) -> Iterator[Bind]:
    """What this node's journals hold of bindings that Postgres has not, newest files first. Blocking.

    Reads behind the fsync watermark too: who was answered must find what it was answered.
    """
    left = SCAN_BYTES_MAX
    for directory in reversed(folder.incarnations(journal_dir)):
        for path in reversed(folder.segments(directory)):
            start = cursors.get((directory.name, int(path.stem)), START)
            try:
                for payload, _ in read_past_damage(path, start, lambda _: None, upto="end"):
                    left -= len(payload)
                    if payload[:1] == Bind.TAG:
                        found = entry.decode(payload)
                        assert isinstance(found, Bind)
                        yield found
                    if left < 0:
                        return
            except (JournalDamageError, FileNotFoundError, ValueError):
                continue  # the drain tells of damage


_OWNER = "SELECT account FROM binding WHERE (upstream, credential, vendor_id) = ($1, $2, $3)"
_LOCK = """
SELECT id, account, state, hold_nanos, entry, hook IS NOT NULL AS is_told FROM binding
WHERE (upstream, credential, vendor_id) = ($1, $2, $3) FOR UPDATE
"""
_PAGE_AFTER = """
SELECT id, vendor_id, content FROM binding
WHERE account = $1 AND kind = $2 AND gone_ms IS NULL AND ($3::uuid IS NULL OR id < $3)
  AND (NOT $5 OR state = 'pending')
ORDER BY id DESC LIMIT $4
"""
_PAGE_BEFORE = """
SELECT id, vendor_id, content FROM binding
WHERE account = $1 AND kind = $2 AND gone_ms IS NULL AND id > $3::uuid AND (NOT $5 OR state = 'pending')
ORDER BY id LIMIT $4
"""

_BIND = """
INSERT INTO binding AS b (id, account, key, kind, vendor_id, upstream, mirror, credential, at_ms, hold_nanos,
                          state, next_poll_ms, content, incarnation, hook)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
ON CONFLICT (upstream, credential, vendor_id) DO UPDATE
SET id = excluded.id, hold_nanos = excluded.hold_nanos, state = excluded.state,
    next_poll_ms = excluded.next_poll_ms, content = coalesce(excluded.content, b.content),
    hook = coalesce(excluded.hook, b.hook)
WHERE b.account = excluded.account AND excluded.state = 'pending'
  AND (b.state = 'bound'
       OR (b.state IN ('pending', 'disputed') AND b.hold_nanos = 0 AND excluded.hold_nanos > 0))
RETURNING true
"""

_HOLD = """
WITH spent AS (
    UPDATE lease SET used_nanos = used_nanos + $3
    WHERE id = $1 AND account = $2 AND closed_at IS NULL RETURNING id
), shares AS (
    INSERT INTO lease_use AS u (lease, incarnation, used_nanos) SELECT id, $4, $3 FROM spent
    ON CONFLICT (lease, incarnation) DO UPDATE SET used_nanos = u.used_nanos + excluded.used_nanos
)
UPDATE account SET available_nanos = available_nanos - $3
WHERE id = $2 AND NOT EXISTS (SELECT FROM spent)
"""
