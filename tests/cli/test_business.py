"""What operators sell, by command: adjustments, refunds, codes, tiers given, prices of single accounts."""

from __future__ import annotations

import csv
import io
import json

import pytest

from proxy.cli import main

YUAN = 1_000_000_000
MARGIN = ("calls", "uncosted", "sale", "free", "refunded", "cost", "margin")


@pytest.fixture
def headrace(database_dsn, monkeypatch, capsys, tmp_path):
    """Runs a command line; gives stdout, or stderr of one that fails."""
    monkeypatch.setenv("DATABASE_URL", database_dsn)

    def run(*words: str, status: int = 0, stdin: str = ""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        assert main([*words, "--data", str(tmp_path)]) == status, capsys.readouterr()
        said = capsys.readouterr()
        return json.loads(said.out) if "--json" in words else said.out if status == 0 else said.err

    return run


@pytest.fixture
def acme(headrace):
    headrace("account", "create", "acme", "--contact", "ops@acme.example")
    headrace("account", "topup", "acme", "--amount", "10", "--ref", "R1")
    return "acme"


def balance(headrace) -> int:
    return headrace("account", "show", "acme", "--json")[0]["balance_nanos"]


def test_an_adjustment_takes_or_gives_once_and_says_why(headrace, acme):
    words = ("account", "adjust", acme, "--amount=-2.5", "--reason", "double top-up", "--ref", "A1")
    assert "-2.5" in headrace(*words)
    assert "before" in headrace(*words)
    assert balance(headrace) == 7_500_000_000


def test_a_payment_is_refunded_in_part_and_charged_back(headrace, acme):
    words = ("refund", "--payment", "cli/R1", "--amount", "4", "--ref", "B1", "--json")
    assert headrace(*words)["amount_nanos"] == -4 * YUAN
    assert headrace(*words)["is_new"] is False
    headrace("refund", "--payment", "cli/R1", "--chargeback", "--ref", "B2")
    assert balance(headrace) == 0
    assert "left" in headrace("refund", "--payment", "cli/R1", "--amount", "1", "--ref", "B3", status=1)
    assert "no payment" in headrace("refund", "--payment", "cli/R9", "--ref", "B4", status=1)


def test_a_receipt_that_nobody_has_is_not_refunded(headrace, acme):
    assert "no call" in headrace("refund", "0199a0000000700080000000000000ff", status=1)


def test_codes_go_into_a_file_that_is_never_overwritten(headrace, acme, tmp_path):
    file = tmp_path / "codes.csv"
    words = ("code", "create", "--amount", "5", "--count", "3", "--csv", str(file), "--note", "spring")
    headrace(*words)
    rows = list(csv.DictReader(file.open()))
    assert len({row["code"] for row in rows}) == 3
    assert {row["amount"] for row in rows} == {"5"}
    assert "exists" in headrace(*words, status=1)
    listed = headrace("code", "list", "--note", "spring")
    assert listed.count("spring") == 3
    assert rows[0]["code"] not in listed


def test_an_accounts_own_prices_are_set_listed_and_ended(headrace, acme):
    headrace("account", "price", acme, "--model", "gpt-*", "--multiplier", "0.9")
    own = headrace("account", "price", acme, "--model", "o3", "--figures", "input=2,output=8", "--json")
    assert [(o["model"], o["ppm"], o["content"]) for o in own] == [
        ("gpt-*", 900_000, None),
        ("o3", None, {"input": 2 * YUAN, "output": 8 * YUAN}),
    ]
    price = headrace("price", "gpt-4o-mini", "--account", acme, "--json")
    assert (price["override"], price["model_multiplier_ppm"]) == (str(own[0]["id"]), 900_000)
    headrace("account", "price", acme, "--model", "gpt-*", "--end")
    assert headrace("price", "gpt-4o-mini", "--account", acme, "--json")["override"] is None


def test_a_tier_is_given_until_a_day_and_shows_in_prices(headrace, acme):
    headrace("account", "grant", acme, "--tier", "VIP", "--until", "2099-01-01")
    assert headrace("price", "gpt-4o-mini", "--account", acme, "--json")["tier"] == "VIP"
    assert "no tier" in headrace("account", "grant", acme, "--tier", "Gold", "--until", "never", status=1)


def test_a_key_is_sold_with_a_fixed_amount_and_rotated(headrace, acme):
    made = headrace("key", "create", "--account", acme, "--spend-total", "2.5", "--note", "app", "--json")
    (key,) = headrace("key", "list", "--account", acme, "--json")
    assert (key["limits"], key["note"]) == ({"spend_total": 2_500_000_000}, "app")
    fresh = headrace("key", "rotate", str(made["id"]), "--json")
    assert fresh["id"] == made["id"] and fresh["key"] != made["key"]
    assert "spend_total=2.5" in headrace("key", "list")


def test_a_password_for_the_portal_is_read_from_stdin(headrace, acme):
    assert headrace("account", "set", acme, "--password", stdin="correct horse battery\n")
    assert "10 to 200" in headrace("account", "set", acme, "--password", status=1, stdin="short\n")


def test_margins_are_told_as_text_as_csv_and_as_json(headrace, acme):
    empty = {name: 0 if name in ("calls", "uncosted") else "0" for name in MARGIN}
    assert headrace("ledger", "margin", "--json")["total"] == empty
    assert json.loads(headrace("ledger", "margin", "--format", "json", "--by", "model"))["equals_ledger"]
    assert headrace("ledger", "margin", "--month", "2026-01", "--format", "csv").split() == [
        "upstream,model," + ",".join(MARGIN)
    ]
    head = headrace("ledger", "margin", "--from", "2026-01-01", "--by", "upstream").split()
    assert head[:2] == ["upstream", "calls"]
    assert "either" in headrace("ledger", "margin", "--month", "2026-01", "--from", "2026-01-01", status=1)
