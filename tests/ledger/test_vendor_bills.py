"""Exports of vendors and stations as they come, read into lines of one kind."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from proxy.ledger import receipt as paper
from proxy.ledger.vendor_bills import UnreadableBillError, each_row, read_bill
from tests.ledger.test_receipt import CALL, PRICE

DAY_MS = 86_400_000


def at(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp() * 1000)


def read(text: str, **how):
    return read_bill(csv.DictReader(io.StringIO(text)), **how)


OPENAI_USAGE = """\
start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,user_id,api_key_id,model,batch,\
service_tier,input_tokens,output_tokens,input_cached_tokens,input_uncached_tokens,input_audio_tokens
1759622400,1759708800,2025-10-05T00:00:00+00:00,2025-10-06T00:00:00+00:00,proj_1,10.0,user-1,key_1,\
gpt-4o-2024-08-06,FALSE,default,59200.0,10646.0,5760.0,53440.0,0.0
1759708800,1759795200,2025-10-06T00:00:00+00:00,2025-10-07T00:00:00+00:00,,,,,,,,,,,,
"""


def test_openais_usage_is_totals_of_days_and_models():
    bill = read(OPENAI_USAGE)
    (line,) = bill.lines
    assert (bill.kind, line.model, line.is_total) == ("OpenAI usage", "gpt-4o-2024-08-06", True)
    assert (line.at_ms, line.until_ms) == (at(2025, 10, 5), at(2025, 10, 6))
    assert line.figures == {"calls": 10, "input_tokens": 59200, "output_tokens": 10646, "cache_read": 5760}
    assert bill.idle == [(at(2025, 10, 6), at(2025, 10, 7))]


OPENAI_COSTS = """\
start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item,project_id
1759622400,1759708800,,,0.8958740000000000,usd,"gpt-4o-2024-08-06, input",proj_1
1759622400,1759708800,,,0.25,usd,"gpt-4o-2024-08-06, output",proj_1
1759968000,1760054400,,,,,,
"""


def test_openais_costs_are_amounts_of_line_items():
    bill = read(OPENAI_COSTS)
    assert [(line.model, line.cost) for line in bill.lines] == [
        ("gpt-4o-2024-08-06", Decimal("0.895874")), ("gpt-4o-2024-08-06", Decimal("0.25")),
    ]  # fmt: skip
    assert (bill.currency, bill.rounding, len(bill.idle)) == ("USD", Decimal("0.0000005"), 1)


ANTHROPIC_USAGE = """\
usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,\
usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,\
usage_output_tokens,web_search_count,inference_geo,speed
2026-03-22,claude-sonnet-4-20250514,test-key,Default,standard,≤ 200k,100000,1,2,3,5000,10,not_available,
2026-03-22,claude-sonnet-4-20250514,test-key,Default,standard,≤ 200k,100000,1,2,3,5000,10,not_available,
"""


def test_anthropics_usage_has_disjoint_buckets_and_a_line_twice_counts_once():
    bill = read(ANTHROPIC_USAGE)
    (line,) = bill.lines
    assert line.figures == {
        "input": 100_000, "cache_write_5m": 1, "cache_write_1h": 2, "cache_read": 3, "output_tokens": 5000,
        "web_search": 10,
    }  # fmt: skip
    assert (line.at_ms, line.until_ms) == (at(2026, 3, 22), at(2026, 3, 23))
    assert [line.number for line in bill.doubled] == [3]


@pytest.mark.parametrize(
    ("times", "length_ms"),
    [
        (("2026-03-22", "2026-03-21"), DAY_MS),
        (("2026-03-22 01:00", "2026-03-22 00:00"), 3_600_000),
        (("2026-03-22T01:01:00Z", "2026-03-22T00:00:00Z"), 60_000),
    ],
)
def test_a_period_is_as_long_as_the_finest_time_of_the_file(times, length_ms):
    rows = "".join(f"{time},claude-x,7\n" for time in times)
    bill = read("usage_date_utc,model_version,usage_output_tokens\n" + rows)
    assert {line.until_ms - line.at_ms for line in bill.lines} == {length_ms}


def test_anthropics_costs_are_in_dollars_to_the_cent():
    bill = read(
        "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd\n"
        "2026-08-04,Claude Haiku 4.5,Default,k,message,≤ 200k,input_no_cache,0.05,0.05\n"
    )
    assert (bill.kind, bill.currency, bill.rounding) == ("Anthropic costs", "USD", Decimal("0.005"))
    assert (bill.lines[0].model, bill.lines[0].cost) == ("Claude Haiku 4.5", Decimal("0.05"))


def test_another_headrace_is_read_from_its_receipts():
    """Its id is what it answered as x-request-id; top-ups and corrections are no calls."""
    document = paper.document({**CALL, "ended_ms": at(2026, 11, 3)}, "CNY", {PRICE.id: PRICE})
    payment = {"object": "topup", "id": 1, "currency": "CNY", "amount": "5", "ended_ms": 1}
    rows = [paper.COLUMNS, *(paper.cells(line, paper.COLUMNS) for line in (payment, document))]
    of_csv = read("".join(map(paper.csv_line, rows)))
    of_json = read_bill(each_row({"object": "list", "data": [payment, document], "next": None}))
    for bill in (of_csv, of_json):
        (line,) = bill.lines
        assert (bill.kind, bill.currency, line.id) == ("Headrace receipts", "CNY", document["id"])
        assert (line.cost, line.at_ms, line.model) == (Decimal("0.000045"), at(2026, 11, 3), "gpt-4o-mini")
        assert (line.figures["input_tokens"], line.figures["output_tokens"]) == (10, 20)


def test_a_one_api_log_counts_in_quota():
    """500,000 of it are a dollar; type 1 is a top-up."""
    log = [
        {"id": 1, "created_at": 1759622400, "type": 2, "model_name": "gpt-4", "quota": 1000,
         "prompt_tokens": 8, "completion_tokens": 9, "other": None},
        {"id": 2, "created_at": 1759622400, "type": 1, "model_name": "", "quota": 500000, "prompt_tokens": 0,
         "completion_tokens": 0},
    ]  # fmt: skip
    bill = read_bill(each_row({"success": True, "data": {"items": log, "total": 2}}))
    (line,) = bill.lines
    assert (bill.currency, line.cost, line.id, line.is_total) == ("USD", Decimal("0.002"), "", False)
    assert bill.rounding == Decimal("0.000001")


def test_any_list_of_calls_is_read_by_the_usual_names():
    bill = read(
        "Request_ID,Timestamp,Model,Prompt_Tokens,Completion_Tokens,Total_Tokens,Cost_USD\n"
        "chatcmpl-1,2024-12-01 10:30:45,gpt-4o-mini,150,75,225,$0.0012\n",
        zone=ZoneInfo("Asia/Shanghai"),
    )
    (line,) = bill.lines
    assert (line.id, line.at_ms) == ("chatcmpl-1", at(2024, 12, 1, 2, 30, 45))
    assert line.figures == {"input_tokens": 150, "output_tokens": 75}
    assert (line.cost, bill.currency) == (Decimal("0.0012"), "USD")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a,b\n1,2\n", "it has a, b"),
        ("timestamp,cost\n", "no lines"),
        ("timestamp,cost\nsoon,1\n", "line 2"),
        ("timestamp,cost\n1,much\n", "line 2"),
        ("timestamp,output_tokens\n,5\n", "without a time"),
        ("timestamp,cost,currency\n1,1,usd\n2,1,cny\n", "CNY and USD"),
    ],
)
def test_what_cannot_be_read_is_said(text, why):
    with pytest.raises(UnreadableBillError, match=why):
        read(text)


def test_json_that_is_no_list_is_refused():
    for document in (7, {"data": "x"}, [1]):
        with pytest.raises(UnreadableBillError):
            list(each_row(document))
