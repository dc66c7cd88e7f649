"""Accounts, keys and top-ups: what differs by customer.

Owns the SQL that creates and changes them and the plain key record that control hands to workers.
A key itself is never stored, only its digest. Prices, tiers and routes are routes.yaml's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import asyncpg

from proxy.access.keyformat import SECRET_BYTES, digest_of, make_key, masked
from proxy.errors import StateError
from proxy.store.database import Connection, Database

CHANGED_MAX = 10_000  # keys per answer; the rest follows with the next poll

PERMISSIONS = ("models", "routes", "endpoints")
LIMITS = ("requests_per_minute", "concurrency")


@dataclass(frozen=True, slots=True)
class Account:
    id: int
    name: str
    status: str
    tier: str | None
    note: str
    balance_nanos: int
    available_nanos: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Posting:
    """A ledger row that a person caused. `is_new` False: the same one was made before."""

    id: int
    is_new: bool
    account: int
    amount_nanos: int


@dataclass(frozen=True, slots=True)
class KeySettings:
    """What of a key an operator chooses. None leaves a permission or a limit to the tier."""

    label: str = ""
    mirror: str | tuple[str, ...] = "auto"
    models: tuple[str, ...] | None = None
    routes: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    concurrency: int | None = None
    ip_allow: tuple[str, ...] | None = None
    expires_at: datetime | None = None

    def columns(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "mirror": self.mirror,
            "permissions": {n: v for n in PERMISSIONS if (v := getattr(self, n)) is not None},
            "limits": {n: v for n in LIMITS if (v := getattr(self, n)) is not None},
            "ip_allow": self.ip_allow,
            "expires_at": self.expires_at,
        }


@dataclass(frozen=True, slots=True)
class Changes:
    """Key records newer than a generation, and the generation that they bring a reader to."""

    generation: int
    records: list[dict[str, Any]]


_RECORD = """
SELECT k.*, a.name AS account_name, a.status AS account_status, a.tier, g.grants
FROM api_key k
JOIN account a ON a.id = k.account
CROSS JOIN LATERAL (
    SELECT jsonb_agg(jsonb_build_array(tier, (extract(epoch FROM until) * 1000)::bigint)
                     ORDER BY rank DESC, until DESC NULLS FIRST) AS grants
    FROM tier_grant
    WHERE account = a.id AND revoked_at IS NULL AND starts_at <= now() AND (until IS NULL OR until > now())
) g
"""


class Catalog:
    """Reads and changes accounts and keys of one station. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open_station(self, currency: str, timezone: str) -> None:
        """Say which station this database belongs to. Raises StateError if its amounts are in another
        currency: they would silently change their worth."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow("SELECT currency, timezone FROM station_state FOR UPDATE")
            if row["currency"] not in (None, currency):
                raise StateError(f"this database counts in {row['currency']}, routes.yaml in {currency}")
            if (row["currency"], row["timezone"]) != (currency, timezone):
                await connection.execute(
                    "UPDATE station_state SET currency = $1, timezone = $2", currency, timezone
                )

    async def currency(self) -> str:
        """The station's currency; "" before its first start."""
        return await self._database.fetchval("SELECT currency FROM station_state") or ""

    async def today(self) -> date:
        """The station's day."""
        day: date = await self._database.fetchval(
            "SELECT (now() AT TIME ZONE timezone)::date FROM station_state"
        )
        return day

    # -- accounts --------------------------------------------------------------------------------------

    async def create_account(self, name: str, *, tier: str | None = None, note: str = "") -> Account:
        """Raises StateError if the name is taken."""
        try:
            await self._database.execute(
                "INSERT INTO account (name, tier, note) VALUES ($1, $2, $3)", name, tier, note
            )
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
        rows = await self._database.fetch(
            "SELECT id, name, status, tier, note, balance_nanos, available_nanos, created_at"
            " FROM account WHERE $1::text IS NULL OR name = $1 ORDER BY name",
            name,
        )
        return [Account(**row) for row in rows]

    async def set_account_status(self, name: str, status: str) -> None:
        """active, frozen or closed. Raises LookupError."""
        done = await self._database.fetchval(
            "UPDATE account SET status = $2 WHERE name = $1 RETURNING id", name, status
        )
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
        if amount_nanos <= 0:
            raise StateError("a top-up is more than 0")
        amount, currency = paid or (None, None)
        async with self._database.transaction() as connection:
            account = await connection.fetchval("SELECT id FROM account WHERE name = $1", name)
            if account is None:
                raise LookupError(f"there is no account {name!r}")
            new_id = await connection.fetchval(
                "INSERT INTO ledger (account, contra, kind, amount_nanos, source, reference,"
                " paid_amount, paid_currency, posted_day)"
                " SELECT $1, 'cash', 'topup', $2, $3, $4, $5, $6, (now() AT TIME ZONE timezone)::date"
                " FROM station_state ON CONFLICT (source, reference) DO NOTHING RETURNING id",
                account, amount_nanos, source, reference, amount, currency,
            )  # fmt: skip
            if new_id is None:
                return await _first_posting(connection, account, amount_nanos, source, reference)
            return Posting(new_id, True, account, amount_nanos)

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
            key_id = await self._database.fetchval(
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
        done = await self._database.fetchval(
            f"UPDATE api_key SET {changes} WHERE id = $1 RETURNING id",  # noqa: S608 - our own names
            key_id,
            *columns.values(),
        )
        if done is None:
            raise LookupError(f"there is no key {key_id}")

    async def key_settings(self, key_id: int) -> KeySettings:
        """Raises LookupError."""
        row = await self._database.fetchrow("SELECT * FROM api_key WHERE id = $1", key_id)
        if row is None:
            raise LookupError(f"there is no key {key_id}")
        values = {
            "label": row["label"],
            "mirror": row["mirror"],
            "ip_allow": row["ip_allow"],
            "expires_at": row["expires_at"],
            **row["permissions"],
            **row["limits"],
        }
        frozen: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return KeySettings(**frozen)

    async def revoke_key(self, key_id: int) -> bool:
        """For good. False: it was revoked before. Raises LookupError."""
        row = await self._database.fetchrow(
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
        rows = await self._database.fetch(
            f"{_RECORD} WHERE $1::text IS NULL OR a.name = $1 ORDER BY k.id",
            account,
        )
        return [_record(row) for row in rows]

    async def key(self, key_id: int) -> dict[str, Any]:
        """The record of one key. Raises LookupError."""
        row = await self._database.fetchrow(f"{_RECORD} WHERE k.id = $1", key_id)
        if row is None:
            raise LookupError(f"there is no key {key_id}")
        return _record(row)

    # -- what control asks -----------------------------------------------------------------------------

    async def key_record(self, digest: bytes) -> dict[str, Any] | None:
        """What a call with this key needs to know; None: there is no such key."""
        row = await self._database.fetchrow(f"{_RECORD} WHERE k.digest = $1", digest)
        return None if row is None else _record(row)

    async def generation(self) -> int:
        return int(await self._database.fetchval("SELECT generation FROM station_state"))

    async def changed_keys(self, since: int) -> Changes:
        """Records that changed after generation `since`, oldest change first."""
        rows = await self._database.fetch(
            f"{_RECORD} WHERE k.generation > $1 ORDER BY k.generation LIMIT $2",
            since,
            CHANGED_MAX,
        )
        return Changes(rows[-1]["generation"] if rows else since, [_record(row) for row in rows])

    async def known_keys(self, digests: Iterable[bytes]) -> list[dict[str, Any]]:
        """The records of those that exist: control's caches after a restart."""
        rows = await self._database.fetch(f"{_RECORD} WHERE k.digest = ANY($1)", list(digests))
        return [_record(row) for row in rows]


async def _first_posting(
    connection: Connection, account: int, amount_nanos: int, source: str, reference: str
) -> Posting:
    row = await connection.fetchrow(
        "SELECT id, account, amount_nanos FROM ledger WHERE source = $1 AND reference = $2", source, reference
    )
    if (row["account"], row["amount_nanos"]) != (account, amount_nanos):
        raise StateError(f"reference {reference!r} was used before, for another account or amount")
    return Posting(row["id"], False, account, amount_nanos)


def _record(row: asyncpg.Record) -> dict[str, Any]:
    """The contract between control and workers; "" is the station's default tier."""
    own_tier = row["tier"] or ""
    held = [*(row["grants"] or []), [own_tier, None]]
    tier, until_ms = held[0]
    permissions, expires = row["permissions"], row["expires_at"]
    return {
        "digest": row["digest"].hex(),
        "key_id": row["id"],
        "account_id": row["account"],
        "account": row["account_name"],
        "status": row["status"],
        "account_status": row["account_status"],
        "tier": tier,
        "tier_until_ms": until_ms,
        "tier_fallback": next((t for t, end in held[1:] if end is None or (until_ms or 0) < end), own_tier),
        **{name: permissions.get(name) for name in PERMISSIONS},
        "mirror": row["mirror"],
        "expires_ms": None if expires is None else int(expires.timestamp() * 1000),
        "ip_allow": None if row["ip_allow"] is None else list(row["ip_allow"]),
        "limits": row["limits"],
        "label": row["label"],
        "masked": row["masked"],
        "version": row["generation"],
    }
