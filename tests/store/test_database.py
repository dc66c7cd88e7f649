"""Migrations and the border to asyncpg."""

from __future__ import annotations


async def test_a_fresh_database_has_the_whole_schema(database):
    assert await database.fetchval("SELECT count(*) FROM schema_version") == 3
    assert await database.migrate() == []
