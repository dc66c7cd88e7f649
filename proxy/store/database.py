"""Connections to Postgres, transactions with retry, and the migrations in sql/.

Owns the border to asyncpg: a lost connection, a deadlock or a standby becomes `DatabaseUnavailable`
with its cause kept; every other SQL error is a bug and stays what it is. Knows no table but its own
version table.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import asyncpg
import orjson
from asyncpg.pool import PoolConnectionProxy as Connection
from msgspec import to_builtins

from proxy import resources
from proxy.errors import StateError, StationFault

log = logging.getLogger("headrace.store")

T = TypeVar("T")
POOL_MAX = 4  # connections per node: drain, leases and keys, the poller, one for an operator's page
COMMAND_TIMEOUT_S = 10.0  # a batch takes 20 ms; after this the connection is given up
CONNECT_TIMEOUT_S = 5.0
RETRY_FIRST_S = 0.02
RETRY_MAX_S = 1.0
LOCK_TIMEOUT = "5s"  # a migration that waits longer would hold up everybody behind it
MIGRATION_WAIT_S = 60.0  # for another process that is migrating
MIGRATION_TIMEOUT_S = 3600.0  # an index on a large table
MIGRATION_LOCK = 0x68656164  # "head"

NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")  # in JSON; behind an odd backslash it is text

# What passes by itself: try again, or go on without Postgres for a while.
PASSING = (
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,  # shutdown, restart, a cancelled statement
    asyncpg.TransactionRollbackError,  # deadlock, serialization
    asyncpg.ReadOnlySQLTransactionError,  # a standby: the primary has moved
    asyncpg.LockNotAvailableError,
    asyncpg.InterfaceError,  # the connection is closed
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class DatabaseUnavailable(StationFault):
    """Postgres could not do it now; the same may work later. The cause is kept."""

    text = "The station's database does not answer."


class MigrationError(StateError):
    """The database and this build do not belong together; the message says which is newer."""


@asynccontextmanager
async def border() -> AsyncIterator[None]:
    """asyncpg's passing failures become DatabaseUnavailable here and nowhere else."""
    try:
        yield
    except PASSING as e:
        raise DatabaseUnavailable(detail=f"{type(e).__name__}: {e}") from e


class Database:
    """A pool of connections to one station's Postgres."""

    def __init__(self, pool: asyncpg.Pool, dsn: str, is_away: Callable[[], bool] = lambda: False) -> None:
        self._pool = pool
        self.dsn = dsn
        self._is_away = is_away

    @classmethod
    async def connect(cls, dsn: str, *, size: int = POOL_MAX) -> Database:
        """Raises DatabaseUnavailable."""
        async with border():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=size,
                command_timeout=COMMAND_TIMEOUT_S,
                timeout=CONNECT_TIMEOUT_S,
                init=_prepare,
                reset=_leave_as_it_is,
                server_settings={"application_name": "headrace", "timezone": "UTC"},
            )
            return cls(pool, dsn)

    def unless(self, is_away: Callable[[], bool]) -> Database:
        """The same connections for those who rather hear at once that Postgres is away than wait for it."""
        return Database(self._pool, self.dsn, is_away)

    async def close(self) -> None:
        try:
            await asyncio.wait_for(self._pool.close(), CONNECT_TIMEOUT_S)
        except PASSING:
            self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for single statements. Raises DatabaseUnavailable."""
        if self._is_away():
            raise DatabaseUnavailable(detail="Postgres is away")
        async with border(), self._pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self, *, readonly: bool = False) -> AsyncIterator[Connection]:
        """All or nothing; a read-only one sees a single snapshot. Raises DatabaseUnavailable: then it
        is unknown whether it was committed, so what it does must be harmless when done again."""
        isolation = "repeatable_read" if readonly else None
        async with (
            self.connection() as connection,
            connection.transaction(isolation=isolation, readonly=readonly),
        ):
            yield connection

    async def retry(self, work: Callable[[Connection], Awaitable[T]], *, deadline_s: float) -> T:
        """Run `work` in a transaction, again after each passing failure, with growing pauses.

        Raises DatabaseUnavailable once `deadline_s` is over.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_s
        pause_s = RETRY_FIRST_S
        while True:
            try:
                async with self.transaction() as connection:
                    return await work(connection)
            except DatabaseUnavailable:
                if loop.time() + pause_s > deadline:
                    raise
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - spreads out rivals
            pause_s = min(pause_s * 2, RETRY_MAX_S)

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        async with self.connection() as connection:
            return await connection.fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: Any) -> asyncpg.Record | None:
        async with self.connection() as connection:
            return await connection.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        async with self.connection() as connection:
            return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        async with self.connection() as connection:
            return await connection.execute(sql, *args)

    async def probe(self, timeout_s: float) -> bool:
        """Does Postgres answer and take writes? Never raises for a database that is away."""
        try:
            async with asyncio.timeout(timeout_s), self.connection() as connection:
                return not await connection.fetchval("SELECT pg_is_in_recovery()")
        except (DatabaseUnavailable, TimeoutError):
            return False

    async def migrate(self, folder: Path | None = None) -> list[str]:
        """Apply what of sql/ is missing, in order; the names of what was applied.

        Raises MigrationError (an applied file was edited, the database is newer than this build) and
        DatabaseUnavailable.
        """
        async with self.connection() as connection:
            await _take_migration_lock(connection)
            try:
                return await _migrate(connection, _migrations(folder or resources.sql()))
            finally:
                await connection.execute("SELECT pg_advisory_unlock($1)", MIGRATION_LOCK)


async def _prepare(connection: asyncpg.Connection) -> None:
    """jsonb as plain Python values; in binary, because COPY knows no text."""
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        format="binary",
        encoder=_jsonb,
        decoder=lambda data: orjson.loads(data[1:]),
    )


def _jsonb(value: Any) -> bytes:
    """Vendors' objects may hold U+0000 in strings, which jsonb refuses: left out."""
    data = orjson.dumps(value, default=to_builtins)  # what orjson does not know: the journal's records
    if b"\\u0000" in data:
        data = NUL.sub(rb"\1", data)
    return b"\x01" + data


async def _leave_as_it_is(connection: asyncpg.Connection) -> None:
    """Saves the round trip of a reset after each use. A session has nothing to reset: settings are SET LOCAL,
    the advisory lock of a migration is given back, asyncpg itself rolls a transaction back."""


# -- migrations ----------------------------------------------------------------------------------------


async def _take_migration_lock(connection: Connection) -> None:
    """Polled: waiting inside pg_advisory_lock() holds a snapshot and deadlocks with a concurrent
    index build of the migration that is waited for."""
    for _ in range(int(MIGRATION_WAIT_S / 0.1)):
        if await connection.fetchval("SELECT pg_try_advisory_lock($1)", MIGRATION_LOCK):
            return
        await asyncio.sleep(0.1)
    raise DatabaseUnavailable(detail="another process has been migrating it for a minute")


class Migration(NamedTuple):
    version: int
    name: str
    text: bytes

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.text).digest()


def _migrations(folder: Path) -> dict[int, Migration]:
    """The files NNNN_name.sql in their order."""
    paths = sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    files = [Migration(int(path.name[:4]), path.name, path.read_bytes()) for path in paths]
    return {file.version: file for file in files}


async def _migrate(connection: Connection, files: dict[int, Migration]) -> list[str]:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_version (version int PRIMARY KEY, name text NOT NULL,"
        " sha256 bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    for row in await connection.fetch("SELECT version, name, sha256 FROM schema_version ORDER BY version"):
        file = files.pop(row["version"], None)
        if file is None:
            raise MigrationError(f"the database has migration {row['name']}, this build does not: upgrade it")
        if file.sha256 != row["sha256"]:
            raise MigrationError(f"{file.name} was edited after it was applied: put it back, add a new file")
    for file in files.values():
        await _apply(connection, file)
    return [file.name for file in files.values()]


async def _apply(connection: Connection, file: Migration) -> None:
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        await connection.execute(file.text.decode(), timeout=MIGRATION_TIMEOUT_S)
        await connection.execute(
            "INSERT INTO schema_version (version, name, sha256) VALUES ($1, $2, $3)",
            file.version,
            file.name,
            file.sha256,
        )
    log.info("migrated", extra={"file": file.name})
