"""An operator sees what is kept of tasks, and removes it."""

from __future__ import annotations

import asyncio
import json

import pytest

from proxy.cli import main
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.results import File, Results, order
from tests.store.journals import NODE, NOW_MS, new_id

KEPT, WAITING = "K" * 32, "W" * 32
URL = "https://cdn.test/\x1b[31m.png"


@pytest.fixture
def headrace(database_dsn, monkeypatch, capsys, tmp_path):
    """Runs `headrace result ...` on a station with one file that is kept and one that is not yet."""
    monkeypatch.setenv("DATABASE_URL", database_dsn)

    async def prepare() -> None:
        database = await Database.connect(database_dsn)
        account = (await Catalog(database).create_account("ada")).id
        async with database.transaction() as connection:
            await order(connection, new_id(), account, {KEPT: URL, WAITING: URL}, NOW_MS)
        rows = Results(database, NODE)
        for fetched in await rows.claim(2, NOW_MS, NOW_MS + 1000):
            if fetched.id == KEPT:
                file = File(10, b"\1" * 32, "image/png")
                assert await rows.keep(fetched, file, "directory", NOW_MS, NOW_MS + 10**12) == "kept"
            else:
                await rows.put_off(fetched, NOW_MS + 10**12, "its vendor answers 500", is_refusal=False)
        await database.close()

    asyncio.run(prepare())

    def run(*words: str, status: int = 0):
        assert main(["result", *words, "--data", str(tmp_path)]) == status, capsys.readouterr()
        said = capsys.readouterr()
        return json.loads(said.out) if "--json" in words else said.out + said.err

    return run


def test_a_list_says_what_has_become_of_each(headrace):
    lines = headrace("list").splitlines()
    assert lines[0].split()[:3] == ["id", "account", "ended"]
    assert {(line.split()[0], line.split()[4]) for line in lines[1:]} == {
        (KEPT, "kept"),
        (WAITING, "ordered"),
    }
    assert any(line.endswith("its vendor answers 500") for line in lines)
    assert [row["id"] for row in headrace("list", "--state", "kept", "--json")] == [KEPT]
    assert headrace("list", "--account", "ben", "--json") == []
    call = headrace("show", KEPT, "--json")["binding"]
    assert len(headrace("list", "--call", call, "--json")) == 2


def test_one_is_shown_with_its_vendors_url_and_nothing_that_a_terminal_obeys(headrace):
    said = headrace("show", f"https://api.example.com/results/{KEPT}")
    assert "\x1b" not in said and "https://cdn.test/" in said and "image/png" in said
    assert "no result x" in headrace("show", "x", status=1)


def test_what_is_removed_is_gone_or_is_not_fetched(headrace):
    assert "removed: 2 of 2" in headrace("delete", KEPT, WAITING)
    shown = {row["id"]: row for row in headrace("list", "--json")}
    assert shown[WAITING]["state"] == "gone"
    assert shown[KEPT]["state"] == "kept" and shown[KEPT]["expires_ms"] < NOW_MS + 10**12  # the next sweep's
    assert "removed: 0 of 1" in headrace("delete", "x", status=1)
