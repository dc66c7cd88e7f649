"""Account holders who sign up and log in.

Owns passwords' kept form, sessions (by the digest of their token) and the trial credit of a new account.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

import asyncpg

from proxy.errors import StateError
from proxy.store.database import Database
from proxy.store.payments import Movement, post

SOURCE = "sign-up"  # of trial credit; the reference is the account's id


def token_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class Holders:
    """Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sign_up(self, name: str, password: str, contact: str, trial_nanos: int) -> int:
        """A new account with its trial credit; its id. `password` is in its kept form. Raises StateError:
        the name is taken, or is none."""
        try:
            async with self._database.transaction() as connection:
                account: int = await connection.fetchval(
                    "INSERT INTO account (name, password, contact) VALUES ($1, $2, $3) RETURNING id",
                    name, password, contact,
                )  # fmt: skip
                if trial_nanos:
                    await post(connection, account, Movement("trial", trial_nanos, SOURCE, str(account)))
                return account
        except asyncpg.UniqueViolationError as e:
            raise StateError("this name is taken") from e
        except asyncpg.CheckViolationError as e:
            raise StateError("an account's name has 1 to 200 characters") from e

    async def password_of(self, name: str) -> tuple[int, str] | None:
        """(account, kept password); None: nobody logs in by that name."""
        row = await self._database.fetchrow(
            "SELECT id, password FROM account WHERE name = $1 AND password IS NOT NULL", name
        )
        return None if row is None else (row["id"], row["password"])

    async def set_password(self, name: str, password: str) -> None:
        """In its kept form; every session of the account ends. Raises LookupError."""
        async with self._database.transaction() as connection:
            account = await connection.fetchval(
                "UPDATE account SET password = $2 WHERE name = $1 RETURNING id", name, password
            )
            if account is None:
                raise LookupError(f"there is no account {name!r}")
            await connection.execute("DELETE FROM session WHERE account = $1", account)

    async def open_session(self, token: str, account: int, expires_at: datetime) -> None:
        async with self._database.transaction() as connection:
            await connection.execute("DELETE FROM session WHERE account = $1 AND expires_at < now()", account)
            await connection.execute(
                "INSERT INTO session (digest, account, expires_at) VALUES ($1, $2, $3)",
                token_digest(token), account, expires_at,
            )  # fmt: skip

    async def account_of(self, token: str) -> str | None:
        """The name of the account that a session belongs to; None: there is no such session any more."""
        name: str | None = await self._database.fetchval(
            "SELECT a.name FROM session s JOIN account a ON a.id = s.account"
            " WHERE digest = $1 AND expires_at > now()",
            token_digest(token),
        )
        return name

    async def close_session(self, token: str) -> None:
        await self._database.execute("DELETE FROM session WHERE digest = $1", token_digest(token))
