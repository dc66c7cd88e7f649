"""The commands of operators, as they are typed, on a station of their own."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from decimal import Decimal
from pathlib import Path

import pytest

from proxy.access.keyformat import is_well_formed
from proxy.cli import main
from proxy.embedded import EmbeddedPostgres
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.drainer import Drainer
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, Life, Station, begin, end


@pytest.fixture
def headrace(database_dsn, monkeypatch, capsys, tmp_path):
    """Runs a command line; gives (exit status, stdout, stderr). The data folder has journals only."""
    monkeypatch.setenv("DATABASE_URL", database_dsn)

    def run(*words: str, status: int = 0):
        assert main([*words, "--data", str(tmp_path)]) == status, capsys.readouterr()
        said = capsys.readouterr()
        return json.loads(said.out) if "--json" in words else said.out if status == 0 else said.err

    return run


@pytest.fixture
def acme(headrace):
    headrace("account", "create", "acme", "--tier", "VIP")
    headrace("account", "topup", "acme", "--amount", "10", "--ref", "R1", "--paid", "1.40 USD")
    return "acme"


def test_a_top_up_counts_once_per_reference(headrace, acme):
    again = headrace("account", "topup", acme, "--amount", "10", "--ref", "R1", "--json")
    assert (again["is_new"], again["balance_nanos"]) == (False, 10_000_000_000)
    (account,) = headrace("account", "show", acme, "--json")
    assert (account["tier"], account["balance_nanos"]) == ("VIP", 10_000_000_000)
    assert "R1" in headrace("account", "topup", acme, "--amount", "11", "--ref", "R1", status=1)


@pytest.mark.parametrize("amount", ["-1", "1e3", "0.0000000001", "10 USD", "ten", "0"])
def test_an_amount_that_is_none_is_refused(headrace, acme, capsys, amount):
    words = ["account", "topup", acme, "--amount", amount, "--ref", "R2"]
    try:
        headrace(*words, status=1)
    except SystemExit as e:
        assert e.code == 2
    (account,) = headrace("account", "show", "--json")
    assert account["balance_nanos"] == 10_000_000_000


@pytest.mark.parametrize("key", ["", "abc", "sk-with a space in it", "sk-" + "ü" * 20, "sk-" + "A" * 49])
def test_what_is_no_key_is_not_imported(headrace, acme, monkeypatch, key):
    """Short enough to guess, not what a header can carry, or one of ours with a wrong checksum."""
    monkeypatch.setattr("sys.stdin", io.StringIO(key + "\n"))
    assert "is no key" in headrace("key", "create", "--account", acme, "--import", status=1)
    assert headrace("key", "list", "--json") == []


def test_a_key_is_shown_once_and_never_again(headrace, acme):
    key = headrace("key", "create", "--account", acme, "--mirror", "cdn", "--models", "gpt-*,o3").strip()
    assert key.startswith("sk-") and len(key) == 52 and is_well_formed(key)
    listed = headrace("key", "list", "--account", acme)
    assert key not in listed and key[:6] in listed and "gpt-*,o3" in listed and "cdn" in listed
    assert key not in headrace("key", "list") and "digest" not in headrace("key", "list", "--json")[0]


def test_a_key_is_changed_where_it_was_told(headrace, acme):
    made = headrace("key", "create", "--account", acme, "--concurrency", "3", "--label", "ci", "--json")
    (key,) = [k for k in headrace("key", "list", "--json") if k["key_id"] == made["id"]]
    assert key["limits"] == {"concurrency": 3}
    headrace("key", "set", str(made["id"]), "--concurrency", "all", "--ip-allow", "10.0.0.0/8")
    (key,) = headrace("key", "list", "--json")
    assert (key["limits"], key["ip_allow"], key["label"]) == ({}, ["10.0.0.0/8"], "ci")
    assert "revoked" in headrace("key", "revoke", str(made["id"]))
    assert "before" in headrace("key", "revoke", str(made["id"]))
    assert headrace("key", "list", "--json")[0]["status"] == "revoked"


def test_mirrors_of_an_account_are_those_of_its_keys_that_say_nothing(headrace, acme):
    headrace("key", "create", "--account", acme)
    headrace("account", "set", acme, "--mirror", "hk,auto")
    (key,) = headrace("key", "list", "--account", acme, "--json")
    assert key["mirror"] == ["hk", "auto"]
    headrace("key", "set", str(key["key_id"]), "--mirror", "cdn")
    (key,) = headrace("key", "list", "--account", acme, "--json")
    assert key["mirror"] == "cdn"


def test_what_is_not_there_is_said(headrace, acme):
    assert "nobody" in headrace("account", "show", "nobody", status=1)
    assert "nobody" in headrace("key", "create", "--account", "nobody", status=1)
    assert "99" in headrace("key", "revoke", "99", status=1)
    assert "nobody" in headrace("bill", "nobody", status=1)
    assert "acme" in headrace("account", "create", "acme", status=1)
    assert NODE in headrace("node", "retire", NODE, status=1)


def test_a_frozen_account_says_so(headrace, acme):
    assert "frozen" in headrace("account", "set", acme, "--status", "frozen")


@pytest.fixture
def used(headrace, acme, database_dsn, tmp_path):
    """Two calls of acme, drained."""

    async def use() -> None:
        database = await Database.connect(database_dsn)
        await Catalog(database).open_station("CNY", Station.timezone)
        account = (await Catalog(database).account(acme)).id
        calls = [end(account), end(account, model="evil\x1b[31m")]
        life = Life(tmp_path / "journal")
        await life.write([PRICE_ENTRY, *(begin(account, id=c.id) for c in calls), *calls])
        drainer = Drainer(database, tmp_path / "journal", NODE, Station(), now_ms=lambda: NOW_MS)
        await drainer.run_once()
        await life.die()
        await database.close()

    asyncio.run(use())


def test_a_bill_adds_up(headrace, used):
    bill = headrace("bill", "acme", "--json")
    assert bill["used_nanos"] == bill["charged_nanos"] == 90_000
    text = headrace("bill", "acme")
    assert "0.00009 CNY" in text and "\x1b" not in text and "evil\\x1b[31m" in text
    page = headrace("bill", "acme", "--calls", "--limit", "1", "--json")
    assert len(page["rows"]) == 1
    assert "input=10 output=20" in headrace("bill", "acme", "--cursor", page["next"])


def test_an_export_has_every_line_and_says_what_they_add_up_to(headrace, used, tmp_path):
    table = list(csv.DictReader(io.StringIO(headrace("ledger", "export", "acme"))))
    assert [row["object"] for row in table] == ["topup", "receipt", "receipt"]
    assert {row["account"] for row in table} == {"acme"} and table[1]["upstream_id"] == "req_1"
    assert sum(Decimal(row["amount"]) for row in table) == Decimal("9.99991")
    assert headrace("ledger", "export", "--json") == headrace("ledger", "export", "acme", "--json")
    assert [line["object"] for line in headrace("ledger", "export", "--json")] == [r["object"] for r in table]
    file = tmp_path / "lines.csv"
    told = headrace("ledger", "export", "acme", "--out", str(file), "--json", "--format", "csv")
    assert told["equal"] and told["lines"] == {"topup": 10_000_000_000, "usage": -90_000}
    assert len(file.read_text().splitlines()) == 4
    assert "equal to the ledger" in headrace("ledger", "export", "acme", "--out", str(file))
    assert headrace("ledger", "export", "--to", "2020-01-01", "--json") == []
    assert "--month" in headrace("ledger", "export", "--month", "2026-01", "--to", "2020-01-01", status=1)


def test_an_audit_says_clean_or_names_the_row(headrace, used, database_dsn, tmp_path):
    assert headrace("ledger", "audit") == "clean\n"
    path = next((tmp_path / "journal").glob("*/*.seg"))
    data = bytearray(path.read_bytes())
    data[4500] ^= 1
    path.write_bytes(data)
    assert main(["ledger", "audit", "--data", str(tmp_path)]) == 1


def test_quarantine_is_listed_and_dismissed(headrace, used, database_dsn):
    assert headrace("ledger", "quarantine") == "nothing waits\n"

    async def add() -> None:
        database = await Database.connect(database_dsn)
        await database.execute(
            "INSERT INTO quarantine (incarnation, segment, position, reason, payload)"
            " SELECT id, 1, 5000, 'evil' || chr(27), 'Znonsense' FROM incarnation"
        )
        await database.close()

    asyncio.run(add())
    (waiting,) = headrace("ledger", "quarantine", "--json")["waiting"]
    assert "evil\\x1b" in headrace("ledger", "quarantine")
    assert main(["ledger", "quarantine", "--apply"]) == 1
    assert "99" in headrace("ledger", "quarantine", "--apply", "99", status=1)
    assert headrace("ledger", "quarantine", "--dismiss", str(waiting["id"])) == "1 dismissed\nnothing waits\n"


def test_nodes_are_listed_and_retired(headrace, used):
    (node,) = headrace("node", "list", "--json")
    assert (node["id"], node["open_lives"]) == (NODE, 1)
    assert "retired" in headrace("node", "retire", NODE)
    assert headrace("node", "list", "--json")[0]["retired_at"]


def test_a_station_that_does_not_run_is_started_for_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    data = tmp_path / "data"
    assert main(["account", "show", "--data", str(data)]) == 1
    assert "headrace serve" in capsys.readouterr().err
    server = EmbeddedPostgres(data, settings={"fsync": "off"})
    server.start()
    server.stop()
    assert main(["account", "create", "acme", "--data", str(data)]) == 0
    assert not (Path(data) / "pg/cluster/postmaster.pid").exists()
    server.start()
    assert main(["account", "show", "--data", str(data)]) == 0
    assert "acme" in capsys.readouterr().out
    assert server.process.poll() is None
    server.stop()
