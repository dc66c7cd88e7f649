"""`headrace reconcile` on a station with calls: the bill that is right, and bills that are not."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.ledger import entry
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.drainer import Drainer
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, YUAN, Life, Station, end

DAY_MS = 86_400_000
COST = 45_000  # of each call, at the upstream as here


@pytest.fixture
def reconcile(database_dsn, monkeypatch, capsys, tmp_path):
    """Runs the command on a bill's text; gives what it says as JSON, or as text of a status."""
    monkeypatch.setenv("DATABASE_URL", database_dsn)

    def run(text: str, *words: str, status: int = 0):
        bill = tmp_path / "bill.csv"
        bill.write_text(text)
        args = ["reconcile", str(bill), "--upstream", "openai", "--data", str(tmp_path), *words]
        assert main(args) == status, capsys.readouterr()
        said = capsys.readouterr()
        return json.loads(said.out) if "--json" in words else said.out + said.err

    return run


@pytest.fixture
def calls(database_dsn, tmp_path: Path):
    """Three calls at `openai`, one of them tried there twice; one elsewhere; one that failed."""
    twice = [
        entry.Attempt("openai", "direct", "main", "status:500", 500, "req_failed", NOW_MS - 400, 100),
        entry.Attempt("openai", "cdn", "main", "ok", 200, "req_2"),
    ]
    calls = [
        end(1, upstream_id="req_0"),
        end(1, upstream_id="req_1", at_ms=NOW_MS - 1000, usage={"input": 10, "cache_read": 5, "output": 20}),
        end(1, upstream_id="req_2", attempts=twice),
        end(1, upstream_id="req_elsewhere", upstream="other"),
        end(1, upstream_id="req_void", state=entry.VOID, cost_nanos=0, usage={}, provenance="none"),
    ]

    async def use() -> None:
        database = await Database.connect(database_dsn)
        catalog = Catalog(database)
        await catalog.open_station("CNY", Station.timezone)
        await catalog.create_account("acme")
        await catalog.top_up("acme", YUAN, "start")
        life = Life(tmp_path / "journal")
        await life.write([PRICE_ENTRY, *calls])
        await Drainer(database, tmp_path / "journal", NODE, Station(), now_ms=lambda: NOW_MS).run_once()
        await life.die()
        await database.execute("ALTER TABLE usage DISABLE TRIGGER append_only")
        await database.execute("UPDATE usage SET upstream_nanos = $1", COST)
        await database.close()

    asyncio.run(use())
    return calls


HEAD = "request_id,timestamp,model,input_tokens,output_tokens,cost,currency\n"


def line(call, **changes) -> str:
    usage = call.usage
    values = {
        "id": call.upstream_id, "at": call.at_ms, "model": call.upstream_model,
        "input": usage.get("input", 0) + usage.get("cache_read", 0), "output": usage.get("output", 0),
        "cost": "0.000045", "currency": "CNY",
    }  # fmt: skip
    return ",".join(map(str, (values | changes).values())) + "\n"


def test_a_bill_that_is_right_has_no_difference(reconcile, calls):
    text = HEAD + "".join(line(call) for call in calls[:3])
    said = reconcile(text, "--json")
    assert (said["findings"], said["by_id"], said["lines"]) == ([], 3, 3)
    assert "no difference" in reconcile(text)


def test_each_difference_is_named_with_its_line_its_call_and_what_is_at_stake(reconcile, calls):
    failed = end(1, upstream_id="req_failed")
    stranger = end(1, upstream_id="req_x", at_ms=NOW_MS - 3 * 3_600_000)
    text = HEAD + "".join(
        [
            line(calls[1], cost="0.000075"),  # 2: another price
            line(calls[2], output=21),  # 3: other figures
            line(calls[2], output=21),  # 4: once more
            line(failed),  # 5: an attempt that failed
            line(stranger),  # 6: nobody's
        ]
    )
    said = reconcile(text, "--json", status=1)
    found = {finding["kind"]: finding for finding in said["findings"]}
    assert {kind: f["line"] for kind, f in found.items()} == {
        "price": 2, "usage": 3, "doubled": 4, "void": 5, "unknown": 6, "unbilled": None,
    }  # fmt: skip
    ids = {call.upstream_id: call.id for call in calls}
    assert found["price"]["call"].replace("-", "") == ids["req_1"]
    assert found["void"]["call"].replace("-", "") == ids["req_2"]
    assert found["unbilled"]["call"].replace("-", "") == ids["req_0"]
    assert said["stakes_nanos"] == {
        "price": 30_000, "usage": 0, "doubled": COST, "void": COST, "unknown": COST, "unbilled": -COST,
    }  # fmt: skip
    text = reconcile(text, status=1)
    assert "1 price: 0.00003 CNY at stake" in text and "output_tokens 21, here 20" in text


def test_an_upstream_that_nobody_called_is_told(reconcile, calls):
    said = reconcile(HEAD + line(calls[0]), "--upstream", "opneai", status=1)
    assert "no call of ours went to an upstream of that name" in said and "1 unknown" in said


def test_a_bill_in_another_currency_needs_a_rate(reconcile, calls):
    text = HEAD + "".join(line(call, currency="usd", cost="0.00000625") for call in calls[:3])
    assert "--rate" in reconcile(text, status=1)
    assert reconcile(text, "--rate", "7.2", "--json")["findings"] == []
    (found,) = {f["kind"] for f in reconcile(text, "--rate", "7.3", "--json", status=1)["findings"]}
    assert found == "price"


def test_openais_totals_are_held_against_sums(reconcile, calls):
    start = min(call.began_ms for call in calls) // DAY_MS * DAY_MS // 1000
    end_ = start + 2 * DAY_MS // 1000
    head = "start_time,end_time,num_model_requests,model,input_tokens,output_tokens,input_cached_tokens\n"
    right = f"{start},{end_},3.0,gpt-4o-mini-x,35.0,60.0,5.0\n"
    assert reconcile(head + right, "--json")["findings"] == []
    (found,) = reconcile(head + right.replace("60.0", "90.0"), "--json", status=1)["findings"]
    assert (found["kind"], found["what"]) == ("usage", "output_tokens 90, here 60")


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "no lines"), ("a;b\n1;2\n", "no bill that is known"), ("[1", "not JSON"), ("{}", "list")],
)
def test_what_is_no_bill_is_refused_in_one_line(reconcile, text, why):
    said = reconcile(text, status=1)
    assert why in said and said.count("\n") == 1


def test_a_table_may_be_separated_by_tabs_or_semicolons(reconcile, calls):
    rows = list(csv.reader(io.StringIO(HEAD + "".join(line(call) for call in calls[:3]))))
    for delimiter in ("\t", ";"):
        assert reconcile("\n".join(map(delimiter.join, rows)), "--json")["findings"] == []
