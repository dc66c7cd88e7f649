"""A station with accounts, and what drains its journals."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.store.adoption import Adopter
from proxy.store.catalog import Catalog
from proxy.store.drainer import Drainer
from tests.store.journals import NODE, NOW_MS, YUAN, Station


@pytest.fixture
def journal_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "journal"
    folder.mkdir()
    return folder


@pytest.fixture
async def accounts(database) -> list[int]:
    """Three accounts with 100 yuan each."""
    catalog = Catalog(database)
    ids = []
    for name in ("ada", "ben", "cy"):
        ids.append((await catalog.create_account(name)).id)
        await catalog.top_up(name, 100 * YUAN, f"start-{name}")
    return ids


@pytest.fixture
def drainer(database, journal_dir) -> Drainer:
    return Drainer(database, journal_dir, NODE, Station(), now_ms=lambda: NOW_MS)


@pytest.fixture
def adopter(database, journal_dir, drainer) -> Adopter:
    return Adopter(database, journal_dir, drainer, now_ms=lambda: NOW_MS)
