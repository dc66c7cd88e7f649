"""Redeem codes in Postgres: made in numbers, used once.

Owns their rows. A code itself is stored nowhere, only its digest.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from proxy.access.codes import SECRET_BYTES, code_digest, make_code, masked_code
from proxy.errors import StateError
from proxy.store.database import Database
from proxy.store.payments import Movement, Posting, post

SOURCE = "code"  # of ledger rows; the reference is the code's id
COUNT_MAX = 100_000  # made at once


class Codes:
    """Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, amount_nanos: int, count: int, *, expires_at: datetime | None = None, note: str = ""
    ) -> list[str]:
        """New codes, which nobody can tell again. Raises StateError: none, or too many at once."""
        if amount_nanos <= 0 or not 0 < count <= COUNT_MAX:
            raise StateError(f"1 to {COUNT_MAX} codes of more than nothing can be made at once")
        codes = [make_code(os.urandom(SECRET_BYTES)) for _ in range(count)]
        async with self._database.transaction() as connection:
            await connection.copy_records_to_table(
                "code",
                columns=("digest", "masked", "amount_nanos", "expires_at", "note"),
                records=[(code_digest(c), masked_code(c), amount_nanos, expires_at, note) for c in codes],
            )
        return codes

    async def redeem(self, account: int, code: str) -> Posting:
        """Once: the same account asking again is told its first posting. Raises LookupError (there is no
        such code) and StateError (it was used, or has expired)."""
        async with self._database.transaction() as connection:
            await connection.execute("SELECT FROM account WHERE id = $1 FOR NO KEY UPDATE", account)
            row = await connection.fetchrow(
                "SELECT id, amount_nanos, redeemed_by, expires_at <= now() AS is_over FROM code"
                " WHERE digest = $1 FOR UPDATE",
                code_digest(code),
            )
            if row is None:
                raise LookupError("there is no such code")
            if row["redeemed_by"] not in (None, account):
                raise StateError("this code was used before")
            if row["redeemed_by"] is None and row["is_over"]:
                raise StateError("this code has expired")
            posting = await post(
                connection, account, Movement("code", row["amount_nanos"], SOURCE, str(row["id"]))
            )
            await connection.execute(
                "UPDATE code SET redeemed_by = $2, redeemed_at = coalesce(redeemed_at, now()) WHERE id = $1",
                row["id"],
                account,
            )
            return posting

    async def all(self, note: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest first, of one note or of all."""
        rows = await self._database.fetch(
            "SELECT c.id, masked, amount_nanos, expires_at::text, c.note, c.created_at::text,"
            " a.name AS redeemed_by, redeemed_at::text FROM code c LEFT JOIN account a ON a.id = redeemed_by"
            " WHERE $1::text IS NULL OR c.note = $1 ORDER BY c.id DESC LIMIT $2",
            note,
            limit,
        )
        return [dict(row) for row in rows]
