"""Accounts, keys and top-ups: what differs by customer.

Owns the SQL that creates and changes them.
A key itself is never stored, only its digest. Prices, tiers and routes are routes.yaml's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import asyncpg

from proxy.access.keyformat import SECRET_BYTES, digest_of, make_key, masked
from proxy.access.tiers import Held
from proxy.errors import StateError
from proxy.store.database import Database
from proxy.store.key_records import LINE, RECORD, KeySettings, line_in, record_of
from proxy.store.payments import Movement, Payments, Posting

CHANGED_MAX = 10_000  # keys per answer; the rest follows with the next poll


@dataclass(frozen=True, slots=True)
class Account:
    id: int
    name: str
    status: str
    tier: str | None
    note: str
    contact: str
    balance_nanos: int
    free_nanos: int  # what is left of the free quota of this period
    available_nanos: int  # balance and free quota, less what is set aside
    mirror: str | list[str]  # of its keys that say only "auto"
    limits: Mapping[str, int]  # that all its keys share, by access.limits.KINDS
    created_at: datetime

    @property
    def held_nanos(self) -> int:
        return self.balance_nanos + self.free_nanos - self.available_nanos


@dataclass(frozen=True, slots=True)
class Changes:
    """Key records newer than a generation, and the generation that they bring a reader to."""

    generation: int
    records: list[dict[str, Any]]


class Catalog:
    """Reads and changes accounts and keys of one station. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def open_station(self, currency: str, timezone: str) -> None:
        """Say which station this database belongs to. Raises StateError if its amounts are in another
        currency: they would silently change their worth."""
        async with self.database.transaction() as connection:
            row = await connection.fetchrow("SELECT currency, timezone FROM station_state FOR UPDATE")
            if row["currency"] not in (None, currency):
                raise StateError(f"this database counts in {row['currency']}, routes.yaml in {currency}")
            if (row["currency"], row["timezone"]) != (currency, timezone):
                await connection.execute(
                    "UPDATE station_state SET currency = $1, timezone = $2", currency, timezone
                )

    async def secret(self) -> bytes:
        """What only the processes of this station know, the same at every node."""
        return bytes(await self.database.fetchval("SELECT secret FROM station_state"))

    async def currency(self) -> str:
        """The station's currency; "" before its first start."""
        return await self.database.fetchval("SELECT currency FROM station_state") or ""

    async def timezone(self) -> str:
        """Whose days are posted to."""
        return str(await self.database.fetchval("SELECT timezone FROM station_state"))

    async def today(self) -> date:
        """The station's day."""
        day: date = await self.database.fetchval(
            "SELECT (now() AT TIME ZONE timezone)::date FROM station_state"
        )
        return day

    # -- accounts --------------------------------------------------------------------------------------

    async def create_account(
        self, name: str, *, tier: str | None = None, note: str = "", contact: str = ""
    ) -> Account:
        """Raises StateError if the name is taken."""
        try:
            await self.database.execute(
                "INSERT INTO account (name, tier, note, contact) VALUES ($1, $2, $3, $4)",
                name, tier, note, contact,
            )  # fmt: skip
        except asyncpg.UniqueViolationError as e:
            raise StateError(f"there is an account {name!r} already") from e
        except asyncpg.CheckViolationError as e:
            raise StateError("an account's name has 1 to 200 characters") from e
        return await self.account(name)

    async def account(self, name: str) -> Account:
        """Raises LookupError."""
        rows = await self.accounts(name)
        if not rows:
            raise LookupError(f"there is no account {name!r}")
        return rows[0]

    async def accounts(self, name: str | None = None) -> list[Account]:
        rows = await self.database.fetch(
            "SELECT a.id, name, status, tier, note, contact, balance_nanos, available_nanos, mirror, limits,"
            " created_at, coalesce(p.amount_nanos - p.used_nanos, 0) AS free_nanos"
            " FROM account a LEFT JOIN pocket p ON p.account = a.id AND p.closed_at IS NULL"
            " WHERE $1::text IS NULL OR name = $1 ORDER BY name",
            name,
        )
        return [Account(**row) for row in rows]

    async def tiers_of(self, account: int) -> list[Held]:
        """The tier of this moment and what comes after it; "": the station's default one."""
        return line_in(await self.database.fetchrow(LINE, account))

    async def set_account(
        self,
        name: str,
        *,
        status: str | None = None,
        tier: str | None = None,
        note: str | None = None,
        contact: str | None = None,
    ) -> None:
        """Change what is given; `status`: active, frozen or closed; `tier` "": the station's default one.

        Raises LookupError.
        """
        done = await self.database.fetchval(
            "UPDATE account SET status = coalesce($2, status), note = coalesce($4, note),"
            " contact = coalesce($5, contact),"
            " tier = CASE WHEN $3::text IS NULL THEN tier ELSE nullif($3, '') END"
            " WHERE name = $1 RETURNING id",
            name, status, tier, note, contact,
        )  # fmt: skip
        if done is None:
            raise LookupError(f"there is no account {name!r}")

    async def set_account_mirror(self, name: str, mirror: str | tuple[str, ...]) -> None:
        """For all keys of an account that say only "auto". Raises LookupError."""
        done = await self.database.fetchval(
            "UPDATE account SET mirror = $2 WHERE name = $1 RETURNING id", name, mirror
        )
        if done is None:
            raise LookupError(f"there is no account {name!r}")

    async def set_account_limits(self, name: str, changes: Mapping[str, int | None]) -> None:
        """Of all its keys together, by access.limits.KINDS; None takes one away. Raises LookupError."""
        done = await self.database.fetchval(
            "UPDATE account SET limits = jsonb_strip_nulls(limits || $2) WHERE name = $1 RETURNING id",
            name, dict(changes),
        )  # fmt: skip
        if done is None:
            raise LookupError(f"there is no account {name!r}")

    async def grant_tier(
        self, name: str, tier: str, rank: int, until: datetime | None, reference: str
    ) -> None:
        """Give a tier until a moment, None: for good; once per reference. Raises LookupError."""
        done = await self.database.fetchval(
            "INSERT INTO tier_grant (account, tier, rank, starts_at, until, source, reference)"
            " SELECT id, $2, $3, now(), $4, 'given', $5 FROM account WHERE name = $1"
            " ON CONFLICT (source, reference, tier) DO UPDATE SET until = excluded.until RETURNING id",
            name, tier, rank, until, reference,
        )  # fmt: skip
        if done is None:
            raise LookupError(f"there is no account {name!r}")

    async def top_up(
        self,
        name: str,
        amount_nanos: int,
        reference: str,
        *,
        source: str = "cli",
        paid: tuple[Decimal, str] | None = None,
    ) -> Posting:
        """Add to a balance, once per (source, reference): asking again answers with the first posting.

        `paid` is what was really paid, in its own currency. Raises LookupError (no such account) and
        StateError (the reference was used for something else).
        """
        movement = Movement("topup", amount_nanos, source, reference, paid)
        return await Payments(self.database).move(name, movement)

    # -- keys ------------------------------------------------------------------------------------------

    async def create_key(
        self, account: str, settings: KeySettings, *, key: str | None = None
    ) -> tuple[int, str]:
        """The new key's id and the key itself, which nobody can tell again. `key` imports one from
        elsewhere. Raises LookupError (no such account) and StateError (the key exists)."""
        key = key or make_key(os.urandom(SECRET_BYTES))
        columns = settings.columns()
        names = list(columns)
        places = ", ".join(f"${n}" for n in range(4, 4 + len(names)))
        try:
            key_id = await self.database.fetchval(
                f"INSERT INTO api_key (account, digest, masked, {', '.join(names)})"  # noqa: S608 - our names
                f" SELECT id, $2, $3, {places} FROM account WHERE name = $1 RETURNING id",
                account, digest_of(key), masked(key), *columns.values(),
            )  # fmt: skip
        except asyncpg.UniqueViolationError as e:
            raise StateError("this key exists already") from e
        if key_id is None:
            raise LookupError(f"there is no account {account!r}")
        return key_id, key

    async def set_key(self, key_id: int, settings: KeySettings) -> None:
        """Replace all settings of a key. Raises LookupError."""
        columns = settings.columns()
        changes = ", ".join(f"{name} = ${n}" for n, name in enumerate(columns, start=2))
        done = await self.database.fetchval(
            f"UPDATE api_key SET {changes} WHERE id = $1 RETURNING id",  # noqa: S608 - our own names
            key_id,
            *columns.values(),
        )
        if done is None:
            raise LookupError(f"there is no key {key_id}")

    async def set_key_mirror(self, key_id: int, mirror: str | tuple[str, ...]) -> None:
        """Raises LookupError."""
        done = await self.database.fetchval(
            "UPDATE api_key SET mirror = $2 WHERE id = $1 RETURNING id", key_id, mirror
        )
        if done is None:
            raise LookupError(f"there is no key {key_id}")

    async def key_settings(self, key_id: int) -> KeySettings:
        """Raises LookupError."""
        row = await self.database.fetchrow("SELECT * FROM api_key WHERE id = $1", key_id)
        if row is None:
            raise LookupError(f"there is no key {key_id}")
        values = {
            "label": row["label"],
            "note": row["note"],
            "mirror": row["mirror"],
            "ip_allow": row["ip_allow"],
            "expires_at": row["expires_at"],
            **row["permissions"],
            **row["limits"],
        }
        frozen: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return KeySettings(**frozen)

    async def rotate_key(self, key_id: int, old_until: datetime | None = None) -> str:
        """A new secret for the same key, which nobody can tell again; the old one is refused from
        `old_until` on, None: from now. Raises LookupError, StateError (it is revoked)."""
        key = make_key(os.urandom(SECRET_BYTES))
        async with self.database.transaction() as connection:
            row = await connection.fetchrow(
                "SELECT digest, masked, status FROM api_key WHERE id = $1 FOR UPDATE", key_id
            )
            if row is None:
                raise LookupError(f"there is no key {key_id}")
            if row["status"] != "active":
                raise StateError(f"key {key_id} is revoked")
            await connection.execute(
                "INSERT INTO old_key (digest, key, masked, until) VALUES ($1, $2, $3, coalesce($4, now()))",
                row["digest"], key_id, row["masked"], old_until,
            )  # fmt: skip
            await connection.execute(
                "UPDATE api_key SET digest = $2, masked = $3 WHERE id = $1",
                key_id,
                digest_of(key),
                masked(key),
            )
        return key

    async def revoke_key(self, key_id: int) -> bool:
        """For good. False: it was revoked before. Raises LookupError."""
        row = await self.database.fetchrow(
            "WITH before AS (SELECT id, status FROM api_key WHERE id = $1 FOR UPDATE)"
            " UPDATE api_key k SET status = 'revoked', revoked_at = coalesce(k.revoked_at, now())"
            " FROM before WHERE k.id = before.id RETURNING before.status",
            key_id,
        )
        if row is None:
            raise LookupError(f"there is no key {key_id}")
        return bool(row["status"] != "revoked")

    async def keys(self, account: str | None = None) -> list[dict[str, Any]]:
        """All key records, of one account or of the station."""
        rows = await self.database.fetch(
            f"{RECORD} WHERE d.until IS NULL AND ($1::text IS NULL OR a.name = $1) ORDER BY k.id",
            account,
        )
        return [record_of(row) for row in rows]

    async def key(self, key_id: int) -> dict[str, Any]:
        """The record of one key. Raises LookupError."""
        row = await self.database.fetchrow(f"{RECORD} WHERE d.until IS NULL AND k.id = $1", key_id)
        if row is None:
            raise LookupError(f"there is no key {key_id}")
        return record_of(row)

    # -- what control asks -----------------------------------------------------------------------------

    async def key_record(self, digest: bytes) -> dict[str, Any] | None:
        """What a call with this key needs to know; None: there is no such key."""
        row = await self.database.fetchrow(f"{RECORD} WHERE d.digest = $1", digest)
        return None if row is None else record_of(row)

    async def generation(self) -> int:
        return int(await self.database.fetchval("SELECT generation FROM station_state"))

    async def changed_keys(self, since: int) -> Changes:
        """Records that changed after generation `since`, oldest change first."""
        rows = await self.database.fetch(
            f"{RECORD} WHERE k.generation > $1 ORDER BY k.generation FETCH FIRST $2 ROWS WITH TIES",
            since,
            CHANGED_MAX,
        )
        return Changes(rows[-1]["generation"] if rows else since, [record_of(row) for row in rows])
