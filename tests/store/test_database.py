"""Migrations, and the border to asyncpg."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import asyncpg
import pytest

from proxy import resources
from proxy.store.database import Database, DatabaseUnavailable, MigrationError
from tests.conftest import database_dsn_of, run_sql
from tests.store import schema_dump
from tests.waiting import DEADLINE_S

NEXT = "0999_more.sql"
MIGRATIONS = len(list(resources.sql().glob("0*.sql")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of sql/ that a test may change."""
    return Path(shutil.copytree(resources.sql(), tmp_path / "sql"))


async def test_the_schema_file_is_what_the_migrations_make(database, database_dsn):
    assert schema_dump.PATH.read_text() == await asyncio.to_thread(schema_dump.dump, database_dsn)


async def test_every_migration_begins_with_why_and_what_it_locks():
    for path in sorted(resources.sql().glob("0*.sql")):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("-- Why: "), path
        assert any(line.startswith("-- Locks: ") for line in lines[:6]), path


async def test_a_migrated_database_has_nothing_to_apply(database):
    assert await database.migrate() == []


async def test_a_new_file_is_applied_once(database, folder):
    (folder / NEXT).write_text("CREATE TABLE more (id int); INSERT INTO more VALUES (1)")
    assert await database.migrate(folder) == [NEXT]
    assert await database.migrate(folder) == []
    assert await database.fetchval("SELECT count(*) FROM more") == 1


async def test_an_edited_file_is_refused(database, folder):
    path = next(folder.glob("0001_*"))
    path.write_text(path.read_text() + "\n-- edited\n")
    with pytest.raises(MigrationError, match=path.name):
        await database.migrate(folder)


async def test_a_database_newer_than_the_build_is_refused(database, folder):
    (folder / NEXT).write_text("CREATE TABLE more (id int)")
    await database.migrate(folder)
    with pytest.raises(MigrationError, match=NEXT):
        await database.migrate()


async def test_a_failing_file_leaves_nothing_behind(database, folder):
    (folder / NEXT).write_text("CREATE TABLE more (id int); SELECT 1/0")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await database.migrate(folder)
    assert await database.fetchval("SELECT to_regclass('more')") is None
    assert await database.fetchval("SELECT count(*) FROM schema_version") == MIGRATIONS


async def test_two_processes_may_migrate_at_once(postgres_dsn):
    await run_sql(postgres_dsn, "CREATE DATABASE twice")
    databases = [await Database.connect(database_dsn_of(postgres_dsn, "twice")) for _ in range(2)]
    applied = await asyncio.gather(*(d.migrate() for d in databases))
    assert sorted(len(names) for names in applied) == [0, MIGRATIONS]
    for database in databases:
        await database.close()


async def test_what_passes_by_itself_is_told_apart_from_bugs(database):
    with pytest.raises(DatabaseUnavailable) as caught:
        async with database.connection() as connection:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert isinstance(caught.value.__cause__, asyncpg.PostgresError | asyncpg.InterfaceError)
    with pytest.raises(asyncpg.UndefinedTableError):
        await database.execute("SELECT * FROM nothing")
    assert await database.fetchval("SELECT 1") == 1


async def test_a_server_that_is_away_is_unavailable(tmp_path):
    with pytest.raises(DatabaseUnavailable):
        await Database.connect(f"postgresql://headrace@/postgres?host={tmp_path}")


async def test_a_deadlock_is_tried_again(database, accounts):
    """Two transactions in opposite order: the one that Postgres ends runs again and both are done."""
    first_locks = asyncio.Barrier(2)
    runs = []

    async def move(order: list[int]) -> None:
        async def work(connection: asyncpg.Connection) -> None:
            runs.append(order)
            for number, account in enumerate(order):
                await connection.execute("UPDATE account SET note = note || 'x' WHERE id = $1", account)
                if number == 0 and len(runs) <= 2:
                    await first_locks.wait()

        await database.retry(work, deadline_s=DEADLINE_S)

    await asyncio.gather(move(accounts[:2]), move(accounts[1::-1]))
    assert len(runs) > 2
    assert await database.fetchval("SELECT min(note) FROM account WHERE id = ANY($1)", accounts[:2]) == "xx"


async def test_money_rows_cannot_be_changed_and_a_balance_only_by_them(database, accounts):
    for statement in (
        "UPDATE ledger SET amount_nanos = 1",
        "DELETE FROM ledger",
        "TRUNCATE ledger",
        "UPDATE account SET balance_nanos = balance_nanos + 1",
        "INSERT INTO account (name, balance_nanos) VALUES ('rich', 1)",
        "UPDATE correction SET delta_nanos = 0",
    ):
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await database.execute(statement)


@pytest.mark.parametrize(
    ("said", "kept"),
    [("a\0b\0\0", "ab"), ("\\u0000", "\\u0000"), ("\\\0", "\\"), ("\\\\u0000\0", "\\\\u0000"), ("\0", "")],
)
async def test_vendors_objects_are_kept_but_for_what_postgres_cannot_hold(database, said, kept):
    assert await database.fetchval("SELECT $1::jsonb", {"title": said, said: 1}) == {"title": kept, kept: 1}
