"""Fixtures for everybody: one embedded Postgres per run, a fresh migrated database per test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from proxy.embedded import EmbeddedPostgres
from proxy.store.database import Database

TEMPLATE = "headrace_template"
_numbers = count(1)


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


@pytest.fixture(scope="session")
def template(postgres_dsn: str) -> str:
    """A migrated database to clone; migrating takes 100 ms, cloning 20."""

    async def make() -> None:
        await run_sql(postgres_dsn, f"CREATE DATABASE {TEMPLATE}")
        database = await Database.connect(database_dsn_of(postgres_dsn, TEMPLATE))
        await database.migrate()
        await database.close()

    asyncio.run(make())
    return TEMPLATE


async def run_sql(dsn: str, statement: str) -> None:
    """On a connection of its own: CREATE DATABASE wants no transaction around it."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
def database_dsn(postgres_dsn: str, template: str) -> Iterator[str]:
    """The DSN of a fresh, migrated, empty database."""
    name = f"test_{next(_numbers)}"
    asyncio.run(run_sql(postgres_dsn, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy"))
    yield database_dsn_of(postgres_dsn, name)
    asyncio.run(run_sql(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)"))


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
