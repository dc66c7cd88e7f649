"""An operator sees what customers were told of their tasks, and sends it again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.outbox import FAILED, Outbox
from tests.midday import MIDDAY
from tests.store.journals import NOW_MS, YUAN
from tests.store.told import HOOK, tell


@pytest.fixture
def headrace(database_dsn, monkeypatch, capsys, tmp_path):
    """Runs `headrace callback ...`; what it says."""
    monkeypatch.setenv("DATABASE_URL", database_dsn)

    def run(*words: str, status: int = 0):
        assert main(["callback", *words, "--data", str(tmp_path)]) == status, capsys.readouterr()
        said = capsys.readouterr()
        return json.loads(said.out) if "--json" in words else said.out if status == 0 else said.err

    return run


@pytest.fixture
def call(database_dsn, tmp_path: Path) -> str:
    """Ada has a task with two events; the first was given up."""

    async def prepare() -> str:
        database = await Database.connect(database_dsn)
        catalog = Catalog(database)
        await catalog.open_station("CNY", MIDDAY)
        account = (await catalog.create_account("ada")).id
        await catalog.top_up("ada", 100 * YUAN, "R1")
        call = await tell(database, tmp_path, account)
        outbox = Outbox(database)
        [event] = await outbox.claim([], NOW_MS + 60_000, NOW_MS + 90_000)
        await outbox.close(event, FAILED, NOW_MS + 60_100, status=503, note="answered 503")
        await database.close()
        return call

    return asyncio.run(prepare())


def test_events_are_listed_with_what_became_of_them(headrace, call):
    lines = headrace("list", "--account", "ada").splitlines()
    assert lines[0].split()[:6] == ["event", "account", "call", "nth", "state", "tries"]
    assert "waiting" in lines[1] and HOOK in lines[1]
    assert "failed" in lines[2] and "answered 503" in lines[2] and call in lines[2]
    assert len(headrace("list", "--state", "failed", "--json")) == 1
    assert headrace("list", "--call", call, "--state", "delivered", "--json") == []
    assert "no account" in headrace("list", "--account", "nobody", status=1)


def test_what_was_given_up_is_sent_again(headrace, call):
    [event] = headrace("list", "--state", "failed", "--json")
    assert '{"mark":"1"}' in headrace("show", event["id"])
    assert headrace("resend", "--account", "ada", "--json") == {"resent": 1}
    assert headrace("show", event["id"], "--json")["state"] == "waiting"
    assert headrace("resend", event["id"], "--json") == {"resent": 1}
    assert "name events" in headrace("resend", status=1)
    assert "no such event" in headrace("resend", "evt_" + "0" * 32, status=1)


def test_the_secret_is_shown_and_rotated(headrace, call):
    first = headrace("secret", "--account", "ada")
    assert first.startswith("whsec_") and headrace("secret", "--account", "ada") == first
    assert headrace("secret", "--account", "ada", "--rotate") != first
    assert "within a day" in headrace("secret", "--account", "ada", "--rotate", status=1)
    assert headrace("secret", "--account", "ada", "--revoke") != first
