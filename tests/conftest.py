"""Fixtures for everybody: one embedded Postgres per run, a fresh migrated database per test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import asyncpg
import pytest
from hypothesis import settings

from proxy.embedded import EmbeddedPostgres
from proxy.store.database import Database
from tests.midday import MIDDAY

# Hypothesis' own: the same examples on every machine, and no limits in time.
settings.load_profile("ci")

TEMPLATE = "headrace_template"
# Minutes of one process each: they begin first, so that no process is left with one at the end.
LONG = ("tests/store/test_books.py", "tests/system/", "tests/clients/", "tests/control/", "tests/conform/")
_numbers = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def postgres_dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running embedded server. Tests that stop or kill a server start their own."""
    # Short statements of many databases; nothing here has to survive a power loss.
    relaxed = {"fsync": "off", "full_page_writes": "off", "max_connections": "200"}
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), settings=relaxed)
    try:
        yield server.start()
    finally:
        server.stop()


def database_dsn_of(dsn: str, name: str) -> str:
    """The same server, another database."""
    return dsn.replace("/postgres?", f"/{name}?")


async def run_sql(dsn: str, statement: str) -> None:
    """On a connection of its own: CREATE DATABASE wants no transaction around it."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


# What a test left behind goes: its connections, rows, partitions and numbers. Not what it did to the
# schema; PRINT tells whether it did something.
CLEAN = """
SET session_replication_role = replica;
DO $$
DECLARE
    it record;
BEGIN
    PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend';
    FOR it IN SELECT oid::regclass AS name, relispartition FROM pg_class
              WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                AND relname <> 'schema_version' ORDER BY relispartition DESC LOOP
        EXECUTE format(CASE WHEN it.relispartition THEN 'DROP TABLE %s' ELSE 'DELETE FROM %s' END, it.name);
    END LOOP;
    PERFORM setval(format('%I', sequencename)::regclass, start_value, false) FROM pg_sequences;
    INSERT INTO station_state (timezone) VALUES ('MIDDAY');
END $$;
""".replace("MIDDAY", MIDDAY)
PRINT = """
SELECT md5(string_agg(thing, ' ' ORDER BY thing)) FROM (
    SELECT relname::text AS thing FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT tgrelid::regclass || ' ' || tgname || tgenabled::text FROM pg_trigger
    WHERE NOT tgisinternal
    UNION ALL SELECT encode(sha256, 'hex') FROM schema_version
) things
"""


class Databases:
    """Fresh databases of one server. Cloning the migrated template takes 100 ms, cleaning a used clone 10."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._clean: list[str] = []
        asyncio.run(self._make_template())

    def take(self) -> str:
        """Its DSN."""
        return self._clean.pop() if self._clean else asyncio.run(self._clone())

    def give_back(self, dsn: str) -> None:
        if asyncio.run(self._wash(dsn)) == self._print:
            self._clean.append(dsn)

    async def _make_template(self) -> None:
        await run_sql(self._dsn, f"CREATE DATABASE {TEMPLATE}")
        dsn = database_dsn_of(self._dsn, TEMPLATE)
        database = await Database.connect(dsn)
        await database.migrate()
        await database.close()
        self._print = await self._wash(dsn)

    async def _clone(self) -> str:
        name = f"test_{next(_numbers)}"
        await run_sql(self._dsn, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy")
        return database_dsn_of(self._dsn, name)

    async def _wash(self, dsn: str) -> str:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(CLEAN)
            return await connection.fetchval(PRINT)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def databases(postgres_dsn: str) -> Databases:
    return Databases(postgres_dsn)


@pytest.fixture
def database_dsn(databases: Databases) -> Iterator[str]:
    """The DSN of a fresh, migrated, empty database."""
    dsn = databases.take()
    yield dsn
    databases.give_back(dsn)


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    """A pool on a fresh, migrated, empty database."""
    database = await Database.connect(database_dsn)
    yield database
    await database.close()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty data folder."""
    return tmp_path / "headrace"
