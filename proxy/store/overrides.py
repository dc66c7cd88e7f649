"""Prices of single accounts: a multiplier or a price in place of what routes.yaml says.

Owns their rows. One is never changed, it ends and another begins: calls name the one that they were
priced by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.access.overrides import Override
from proxy.metering.pricing import price_from_content
from proxy.store.database import Database
from proxy.store.payments import account_id


class Overrides:
    """Every method raises DatabaseUnavailable and, for an account that does not exist, LookupError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self, account: str, model: str, *, ppm: int | None = None, content: Mapping[str, Any] | None = None
    ) -> Override:
        """From now on; what was there for the same name or glob ends. Raises ValueError: no such price."""
        if (ppm is None) == (content is None):
            raise ValueError("an override is either a multiplier or a price")
        if content is not None:
            price_from_content(content)
        async with self._database.transaction() as connection:
            owner = await account_id(connection, account)
            await connection.execute(_END, owner, model)
            new_id = await connection.fetchval(
                "INSERT INTO price_override (account, model, ppm, content) VALUES ($1, $2, $3, $4)"
                " RETURNING id",
                owner, model, ppm, content,
            )  # fmt: skip
        return Override(new_id, model, ppm, content)

    async def end(self, account: str, model: str) -> bool:
        """False: there was none."""
        async with self._database.transaction() as connection:
            done = await connection.execute(_END, await account_id(connection, account), model)
        return bool(done != "UPDATE 0")

    async def of(self, account: str) -> list[Override]:
        rows = await self._database.fetch(
            "SELECT o.id, model, ppm, content FROM price_override o JOIN account a ON a.id = o.account"
            " WHERE a.name = $1 AND ended_at IS NULL ORDER BY o.id",
            account,
        )
        return [Override(**row) for row in rows]


_END = "UPDATE price_override SET ended_at = now() WHERE account = $1 AND model = $2 AND ended_at IS NULL"
