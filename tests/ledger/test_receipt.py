"""What a payer reads of a line, as a document and as a row of a table."""

from __future__ import annotations

import csv
import io

import pytest

from proxy.ledger import receipt as paper
from proxy.ledger.settlement import CAPPED, RECONCILE
from proxy.metering.pricing import price_from_content

PRICE = price_from_content({"input": 1_000_000_000, "output": 4_000_000_000})
PER_CALL = price_from_content({"call": 300_000_000, "multiplied": False})
CALL = {
    "kind": "call", "id": "0199a0000000700080000000000000aa", "posted_day": "2026-11-03", "began_ms": 1,
    "ended_ms": 2, "key": 5, "model": "gpt-4o-mini", "operation": "chat", "stream": True, "status": 200,
    "outcome": "complete", "cut": "", "provenance": "final", "usage": {"input": 10, "output": 20},
    "price": PRICE.id, "model_ppm": 1_000_000, "tier_ppm": 500_000, "multiplied": True, "tier": "VIP",
    "endpoint": "direct", "mirror": "cdn", "rurt_ms": 3, "ttft_ms": 210, "took_ms": 480, "flags": [],
    "upstream": "openai", "upstream_model": "gpt-4o-mini-x", "upstream_id": "req_1", "credential": "main",
    "retries": 1, "cost_nanos": 45_000, "free_nanos": 0, "amount_nanos": -45_000, "corrected_nanos": 0,
    "refunded_nanos": 0, "upstream_nanos": 30_000, "override": "",
}  # fmt: skip


def receipt(price=PRICE, **changes):
    return paper.document({**CALL, **changes}, "CNY", {CALL["price"]: price})


def test_a_receipt_tells_buckets_prices_and_multipliers():
    told = receipt()
    assert (told["prompt_tokens"], told["completion_tokens"]) == (10, 20)
    assert told["items"] == [
        {"bucket": "input", "count": 10, "price": "1", "per": 1_000_000, "amount": "0.00001"},
        {"bucket": "output", "count": 20, "price": "4", "per": 1_000_000, "amount": "0.00008"},
    ]
    assert (told["model_multiplier"], told["tier_multiplier"], told["cost"]) == ("1", "0.5", "0.000045")
    assert (told["rurt_ms"], told["ttft_ms"], told["took_ms"], told["retries"]) == (3, 210, 480, 1)
    assert (told["mirror"], told["provenance"], told["cut"], told["free"]) == ("cdn", "final", "", False)


def test_a_call_that_was_partly_free_says_so_and_takes_the_rest():
    told = receipt(free_nanos=40_000, amount_nanos=-5_000)
    assert (told["free"], told["free_amount"], told["cost"], told["amount"]) == (
        True, "0.00004", "0.000045", "-0.000005",
    )  # fmt: skip


def test_a_price_that_is_not_multiplied_shows_no_multiplier():
    told = receipt(PER_CALL, usage={"calls": 1}, cost_nanos=300_000_000)
    assert (told["model_multiplier"], told["tier_multiplier"], told["cost"]) == ("1", "1", "0.3")


def test_a_price_of_the_accounts_own_says_so():
    assert (receipt()["own_price"], receipt(override="7")["own_price"]) == (False, True)


def test_only_flags_that_change_the_bill_are_told():
    assert receipt(flags=[CAPPED, RECONCILE])["notes"] == [CAPPED]


def test_upstream_and_credential_are_an_operators_alone():
    line = {**CALL}
    holder = paper.document(line, "CNY", {})
    assert holder.keys().isdisjoint(paper.OPERATOR_COLUMNS)
    assert "openai" not in str(holder) and "req_1" not in str(holder)
    told = paper.for_operator(line, "acme")
    assert (told["account"], told["upstream_id"], told["upstream_cost"]) == ("acme", "req_1", "0.00003")
    assert paper.for_operator({**line, "upstream_nanos": None}, "acme")["upstream_cost"] is None


def cells_of(document):
    return dict(zip(paper.COLUMNS, paper.cells(document, paper.COLUMNS), strict=True))


def test_a_row_has_a_cell_for_each_column():
    row = cells_of(receipt())
    assert (row["input"], row["output"], row["cache_read"], row["free"]) == ("10", "20", "0", "false")
    assert row["items"] == "10 input at 1 / 1000000; 20 output at 4 / 1000000"
    payment = {
        "kind": "topup", "id": 7, "posted_day": "2026-11-03", "ended_ms": 2, "amount_nanos": 10**10,
        "source": "cli", "reference": "R1", "paid_amount": None, "paid_currency": None, "note": "",
    }  # fmt: skip
    row = dict(
        zip(paper.COLUMNS, paper.cells(paper.document(payment, "CNY", {}), paper.COLUMNS), strict=True)
    )
    assert (row["object"], row["amount"], row["model"], row["input"]) == ("topup", "10", "", "")


@pytest.mark.parametrize("model", ["=1+1", "+cmd", "@x", "-y", "\t=1", 'a"b,c', "line\nbreak", "plain"])
def test_a_cell_is_read_back_and_is_never_a_formula(model):
    (read,) = csv.reader(io.StringIO(paper.csv_line([model, "-0.5", "-5"]), newline=""))
    assert read[1:] == ["-0.5", "-5"]
    assert read[0].removeprefix("'") == model and read[0][0] not in "=+-@\t"
