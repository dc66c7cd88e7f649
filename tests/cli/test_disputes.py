"""An operator sees the tasks whose end nobody told, and decides each once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.store.audit import audit
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.drainer import Drainer
from proxy.store.due import DueTasks
from tests.midday import MIDDAY
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, YUAN, Life, Station
from tests.store.tasks import HOLD, submitted

SORT = ("openai", "response")


@pytest.fixture
def headrace(database_dsn, monkeypatch, capsys, tmp_path):
    """Runs `headrace dispute ...`; what it says."""
    monkeypatch.setenv("DATABASE_URL", database_dsn)

    def run(*words: str, status: int = 0):
        assert main(["dispute", *words, "--data", str(tmp_path)]) == status, capsys.readouterr()
        said = capsys.readouterr()
        return json.loads(said.out) if "--json" in words else said.out if status == 0 else said.err

    return run


@pytest.fixture
def disputed(database_dsn, tmp_path: Path) -> None:
    """Ada has two tasks that were not told of in time."""

    async def prepare() -> None:
        database = await Database.connect(database_dsn)
        catalog = Catalog(database)
        await catalog.open_station("CNY", MIDDAY)
        account = (await catalog.create_account("ada")).id
        await catalog.top_up("ada", 100 * YUAN, "R1")
        (tmp_path / "journal").mkdir()
        life = Life(tmp_path / "journal")
        await life.write([PRICE_ENTRY, *submitted(account, "resp_1"), *submitted(account, "resp_2")])
        await Drainer(database, tmp_path / "journal", NODE, Station(), now_ms=lambda: NOW_MS).run_once()
        tasks = DueTasks(database, "c-1")
        for due in await tasks.claim({SORT: 5}, NOW_MS + 5000, NOW_MS + 6000):
            await tasks.dispute([(due, "no answer", NOW_MS + 86_400_000)])
        await life.die()
        await database.close()

    asyncio.run(prepare())


def balance(database_dsn) -> tuple[int, int, list[str]]:
    async def look() -> tuple[int, int, list[str]]:
        database = await Database.connect(database_dsn)
        row = await database.fetchrow("SELECT balance_nanos, available_nanos FROM account")
        broken = [str(violation) for violation in await audit(database)]
        await database.close()
        return row["balance_nanos"], row["available_nanos"], broken

    return asyncio.run(look())


def test_disputes_are_listed_and_decided_once(headrace, disputed, database_dsn):
    both = headrace("list", "--json")
    assert [(d["account"], d["vendor_id"], d["hold_nanos"], d["note"]) for d in both] == [
        ("ada", "resp_1", HOLD, "no answer"), ("ada", "resp_2", HOLD, "no answer"),
    ]  # fmt: skip
    lines = headrace("list").splitlines()
    assert len(lines) == 3 and "resp_1" in lines[1]
    assert balance(database_dsn) == (100 * YUAN, 100 * YUAN - 2 * HOLD, [])
    assert "asked about" in headrace("ask", both[1]["id"])
    assert len(headrace("list", "--json")) == 2
    assert "charged" in headrace("charge", both[0]["id"])
    assert "released" in headrace("release", both[1]["id"])
    assert balance(database_dsn) == (100 * YUAN - HOLD, 100 * YUAN - HOLD, [])
    assert headrace("list", "--json") == []
    assert both[0]["id"] in headrace("release", both[0]["id"], status=1)
