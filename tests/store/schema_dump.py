"""Writes sql/schema.sql, what the migrations make as one file: `python -m tests.store.schema_dump`."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
from pathlib import Path

from proxy import resources
from proxy.embedded import EmbeddedPostgres, wheel_binaries
from proxy.store.database import Database

PATH = resources.sql() / "schema.sql"
HEAD = "-- Made by `python -m tests.store.schema_dump` from the migrations beside it; a test compares it.\n\n"


def dump(dsn: str) -> str:
    """The schema of a migrated database, without what differs between builds of pg_dump."""
    ran = subprocess.run(
        [wheel_binaries() / "pg_dump", "--schema-only", "--no-owner", "--no-privileges", dsn],
        capture_output=True,
        text=True,
        check=True,
    )
    kept = [
        line
        for line in ran.stdout.splitlines()
        if not line.startswith(("--", "SET ", "\\", "SELECT pg_catalog.set_config"))
    ]
    return HEAD + re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip() + "\n"


async def migrated(dsn: str) -> None:
    database = await Database.connect(dsn)
    await database.migrate()
    await database.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder))
        try:
            dsn = server.start()
            asyncio.run(migrated(dsn))
            PATH.write_text(dump(dsn))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
