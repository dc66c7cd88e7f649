"""The poller asks what is due, brings each end into the books once, and gives up by rule."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from msgspec import structs

from proxy.dialects import DIALECTS
from proxy.dialects.base import OperationSpec, UsagePointers
from proxy.dialects.owned import ANY, FAILED, SUCCEEDED, Callback, IdOut, Many, Results, Task
from proxy.jobs.asking import Answer, Asker
from proxy.jobs.poller import Clock, Poller, pause
from proxy.ledger.entry import Bind
from proxy.metering.usage import Usage
from proxy.routing.loader import Vendors, load
from proxy.routing.table import Table
from proxy.snapshot import Rates, Snapshot
from proxy.store.audit import audit
from proxy.store.catalog import Catalog
from proxy.store.drainer import Drainer
from proxy.store.due import DueTasks
from proxy.store.overrides import Overrides
from proxy.telemetry import Stats
from tests.routing.compiling import official
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, YUAN, Life, Station, new_id
from tests.store.tasks import COST, DAYS, HOLD, USAGE
from tests.store.told import HOOK, hooked

STATES = {"done": SUCCEEDED, "failed": FAILED}
READ = UsagePointers((("usage",),), lambda told: Usage(**told))
COMMON: dict[str, Any] = {"state": (("status",),), "states": STATES, "shortest_s": 5.0}
TASKS = {
    "response": Task("response", "get", usage=READ, **COMMON),
    "batch": Task("batch", "get", usage=READ, model=("model",), headers=((b"x-version", b"1"),), **COMMON),
    "lines": Task("lines", "get", results=Results("content", ("output",), READ, ("model",)), **COMMON),
    "told": Task("told", "get", callback=Callback(("hook",)), progress=(("progress",),), **COMMON),
    "mj": Task("mj", "get", many=Many("list", "ids", (), ("id",), at_once=10), **COMMON),
}
SPECS = {
    "get": OperationSpec("get", "t/{id}", ("GET",), ids_out=(IdOut("file", (("files", ANY),), days=30),)),
    "content": OperationSpec("content", "t/{id}/content", ("GET",)),
    "list": OperationSpec("list", "list"),
    **{kind: OperationSpec(kind, kind, task=task) for kind, task in TASKS.items()},
}
VENDOR = replace(
    DIALECTS["openai"], name="vendor", operations=SPECS, paths=dict.fromkeys(SPECS, "/v1/{operation_path}")
)
ROUTES = """
upstreams:
  openai:
    dialect: vendor
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:VENDOR_KEY}}"}}
prices: {{gpt-4o-mini: {{input: 1 USD, output: 4 USD}}, o3: {{input: 2 USD, output: 2 USD}}}}
station: {{currency: USD}}
tiers: {{VIP: {{rank: 1, models: ['*'], multiplier: 0.5}}}}
"""


class Vendor:
    """Answers by id; counts what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: Counter[str] = Counter()
        self.headers: list[Any] = []
        self.at_once = self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.list_status = 200
        self.app = web.Application()
        self.app.router.add_get("/v1/t/{id}", self.get)
        self.app.router.add_get("/v1/t/{id}/content", self.content)
        self.app.router.add_post("/v1/list", self.list)

    async def get(self, request: web.Request) -> web.Response:
        id_ = request.match_info["id"]
        self.asked[id_] += 1
        self.headers.append(request.headers)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.gate.wait()
        self.at_once -= 1
        answer = self.answers.get(id_, 404)
        if answer == 429:
            return web.Response(status=answer, headers={"Retry-After": "30"})
        return web.Response(status=answer) if isinstance(answer, int) else web.json_response(answer)

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(text=self.answers[request.match_info["id"] + "/content"])

    async def list(self, request: web.Request) -> web.Response:
        ids = (await request.json())["ids"]
        self.asked["list"] += 1
        if self.list_status != 200:
            return web.Response(status=self.list_status)
        return web.json_response([{"id": i, **self.answers[i]} for i in ids if i in self.answers])


class Rig:
    """A poller with a vendor and a clock that stands until it is moved."""

    def __init__(self, database: Any, drainer: Drainer, life: Life, vendor: Vendor, url: str) -> None:
        self.database = database
        self.vendor = vendor
        self.now_ms = NOW_MS
        self.life = life
        self.drainer = drainer
        self.asker = Asker()
        dialects = {**DIALECTS, "vendor": VENDOR}
        compiled = load(
            ROUTES.format(url=url),
            "r.yaml",
            {"VENDOR_KEY": "sk-vendor"},
            _no_file,
            Vendors(dialects, official),
        )
        document = compiled.document
        rates = Rates(document["prices"], document["official_prices"])
        self.snapshot = Snapshot(Table.from_document(document), rates, dialects, 1)
        self.poller = self.make()

    def make(self, name: str = "c-1") -> Poller:
        clock = Clock(lambda: self.now_ms, new_id, lambda: DAYS)
        return Poller(DueTasks(self.database, name), self.asker, lambda: self.snapshot, clock, Stats())

    async def submit(self, account: int, *ids: str, kind: str = "response", hook: str = "") -> None:
        entries = [e for id_ in ids for e in hooked(account, id_, hook, kind=kind)]
        await self.life.write([PRICE_ENTRY, *entries])
        await self.drainer.run_once()

    async def round(self, *pollers: Poller, after_s: float = 0) -> int:
        """One round of each, and everything that it learned is written."""
        self.now_ms += int(after_s * 1000)
        pollers = pollers or (self.poller,)
        claimed = sum(await asyncio.gather(*(p.run_once() for p in pollers)))
        await self.settle(*pollers)
        return claimed

    async def settle(self, *pollers: Poller) -> None:
        async with asyncio.timeout(30):
            for poller in pollers or (self.poller,):
                while any(line.under_way for line in poller._lines.values()):
                    await asyncio.sleep(0.002)
                await poller._write()

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.database.fetch(sql)]

    async def money(self, account: int) -> tuple[int, int]:
        sql = "SELECT balance_nanos, available_nanos FROM account WHERE id = $1"
        return tuple(await self.database.fetchrow(sql, account))


def _no_file(name: str) -> str:
    raise FileNotFoundError(name)


@pytest.fixture
async def accounts(database) -> list[int]:
    catalog = Catalog(database)
    ids = []
    for name in ("ada", "ben"):
        ids.append((await catalog.create_account(name)).id)
        await catalog.top_up(name, 100 * YUAN, f"start-{name}")
    return ids


@pytest.fixture
async def rig(database, tmp_path: Path, accounts):
    vendor, journal = Vendor(), tmp_path / "journal"
    journal.mkdir()
    server = TestServer(vendor.app)
    await server.start_server()
    life = Life(journal)
    drainer = Drainer(database, journal, NODE, Station(), now_ms=lambda: NOW_MS)
    rig = Rig(database, drainer, life, vendor, str(server.make_url("")).rstrip("/"))
    yield rig
    await life.die()
    await rig.asker.close()
    await server.close()


async def test_a_task_is_asked_about_until_its_end_and_billed_once(rig, accounts):
    await rig.submit(accounts[0], "r1")
    rig.vendor.answers["r1"] = {"status": "queued"}
    assert await rig.round(after_s=2) == 1
    assert await rig.round() == 0  # not before its time
    rig.vendor.answers["r1"] = {"status": "done", "usage": USAGE}
    assert await rig.round(after_s=10) == 1
    assert await rig.rows("SELECT cost_nanos, provenance FROM usage") == [(COST, "final")]
    assert await rig.money(accounts[0]) == (100 * YUAN - COST,) * 2
    assert await rig.round(after_s=10_000) == 0
    assert rig.vendor.asked["r1"] == 2
    assert rig.vendor.headers[0]["Authorization"] == "Bearer sk-vendor"
    assert await audit(rig.database) == []


async def test_who_asked_is_told_of_each_change_that_a_poll_shows_and_nobody_else(rig, accounts):
    await rig.submit(accounts[0], "t1", kind="told", hook=HOOK)
    await rig.submit(accounts[0], "t2", kind="told")
    for status, progress in (("run", 1), ("run", 1), ("run", 2), ("done", 3), ("done", 4)):
        told = {"status": status, "progress": progress, "title": "a cat"}
        rig.vendor.answers |= {"t1": told, "t2": told}
        await rig.round(after_s=400)
    rows = await rig.rows("SELECT sequence, url, body FROM outbox ORDER BY sequence")
    assert [(n, url) for n, url, _ in rows] == [(1, HOOK), (2, HOOK), (3, HOOK)]
    assert [json.loads(body)["progress"] for *_, body in rows] == [1, 2, 3]
    assert rows[0][2] == '{"status":"run","progress":1,"title":"a cat"}'
    assert await audit(rig.database) == []


async def test_three_nodes_bill_each_task_once_and_ask_about_each_once(rig, accounts):
    ids = [f"r{n}" for n in range(20)]
    await rig.submit(accounts[0], *ids)
    rig.vendor.answers |= {id_: {"status": "done", "usage": USAGE} for id_ in ids}
    nodes = [rig.make(f"c-{n}") for n in range(3)]
    assert await rig.round(*nodes, after_s=2) == 20
    assert await rig.rows("SELECT count(*), sum(cost_nanos)::bigint FROM usage") == [(20, 20 * COST)]
    assert set(rig.vendor.asked.values()) == {1}
    assert await audit(rig.database) == []


async def test_one_upstream_gets_a_few_requests_at_once(rig, accounts):
    await rig.submit(accounts[0], *(f"r{n}" for n in range(30)))
    rig.vendor.gate.clear()
    rig.now_ms += 2000
    assert await rig.poller.run_once() == 8
    assert await rig.poller.run_once() == 0
    rig.vendor.gate.set()
    await rig.settle()
    assert rig.vendor.most_at_once <= 8


async def test_a_fast_vendor_gets_more_requests_in_a_round_and_one_that_hangs_holds_few_claims(rig, accounts):
    ids = [f"r{n}" for n in range(60)]
    await rig.submit(accounts[0], *ids)
    rig.vendor.answers |= {id_: {"status": "done", "usage": USAGE} for id_ in ids}
    assert [await rig.round(after_s=2) for _ in range(4)] == [8, 16, 32, 4]
    assert rig.vendor.most_at_once <= 8
    assert await rig.rows("SELECT count(*) FROM usage") == [(60,)]
    await rig.submit(accounts[0], *(f"s{n}" for n in range(60)))
    rig.vendor.gate.clear()
    rig.now_ms += 2000
    assert [await rig.poller.run_once() for _ in range(4)] == [8, 0, 0, 0]
    rig.vendor.gate.set()
    await rig.settle()


async def test_a_claim_that_waited_too_long_is_left_to_others(rig, accounts):
    await rig.submit(accounts[0], *(f"r{n}" for n in range(12)))
    rig.vendor.answers |= {f"r{n}": {"status": "queued"} for n in range(12)}
    for _ in range(2):
        await rig.round(after_s=100)  # the line has room for more than is under way at once
    rig.vendor.gate.clear()
    rig.now_ms += 100_000
    assert await rig.poller.run_once() == 12
    rig.now_ms += 30_000
    asked = rig.vendor.asked.total()
    rig.vendor.gate.set()
    await rig.settle()
    assert rig.vendor.asked.total() <= asked + 8  # those that were under way, and no other


async def test_a_vendor_that_is_asked_too_much_is_left_in_peace(rig, accounts):
    ids = [f"r{n}" for n in range(20)]
    await rig.submit(accounts[0], *ids)
    rig.vendor.answers |= dict.fromkeys(ids, 429)
    assert await rig.round(after_s=2) == 8
    assert await rig.round(after_s=29) == 0
    rig.vendor.answers |= {id_: {"status": "done", "usage": USAGE} for id_ in ids}
    assert await rig.round(after_s=2) > 0
    assert await audit(rig.database) == []


async def test_a_control_that_dies_in_the_middle_of_a_poll_loses_nothing(rig, accounts):
    await rig.submit(accounts[0], "r1")
    rig.vendor.answers["r1"] = {"status": "done", "usage": USAGE}
    rig.now_ms += 2000
    await rig.poller.run_once()  # and what it learned is never written
    assert await rig.rows("SELECT count(*) FROM usage") == [(0,)]
    other = rig.make("c-2")
    assert await rig.round(other) == 0  # it is claimed still
    assert await rig.round(other, after_s=121) == 1
    await rig.settle(rig.poller)
    assert await rig.rows("SELECT cost_nanos FROM usage") == [(COST,)]
    assert await rig.money(accounts[0]) == (100 * YUAN - COST,) * 2


async def test_failure_gives_the_hold_back(rig, accounts):
    await rig.submit(accounts[0], "r1")
    rig.vendor.answers["r1"] = {"status": "failed"}
    await rig.round(after_s=2)
    assert await rig.rows("SELECT state, cost_nanos FROM usage") == [("void", 0)]
    assert await rig.money(accounts[0]) == (100 * YUAN,) * 2


async def test_a_vendor_that_fails_is_asked_more_rarely_and_disputed_at_the_deadline(rig, accounts):
    await rig.submit(accounts[0], "r1")
    rig.vendor.answers["r1"] = 500
    await rig.round(after_s=2)
    [(first,)] = await rig.rows("SELECT next_poll_ms FROM binding")
    await rig.round(after_s=60)
    [(second,)] = await rig.rows("SELECT next_poll_ms FROM binding")
    assert first - NOW_MS - 2000 < second - rig.now_ms
    await rig.round(after_s=49 * 3600)
    assert await rig.rows("SELECT state, hold_nanos FROM binding") == [("disputed", HOLD)]
    assert await rig.money(accounts[0]) == (100 * YUAN, 100 * YUAN - HOLD)
    await rig.round(after_s=8 * 86_400)
    await rig.round()
    assert await rig.rows("SELECT b.state, cost_nanos, flags FROM binding b JOIN usage USING (id)") == [
        ("void", 0, ["disputed"])
    ]
    assert await rig.money(accounts[0]) == (100 * YUAN,) * 2
    assert await audit(rig.database) == []


async def test_a_task_is_asked_about_at_its_deadline_and_disputed_then(rig, accounts):
    await rig.submit(accounts[0], "r1")
    rig.vendor.answers["r1"] = {"status": "queued"}
    await rig.round(after_s=48 * 3600 - 60)
    assert await rig.rows("SELECT next_poll_ms FROM binding") == [(NOW_MS + 48 * 3_600_000,)]
    await rig.round(after_s=60)
    assert await rig.rows("SELECT state FROM binding") == [("disputed",)]


async def test_a_deadline_holds_while_the_vendor_hangs(rig, accounts):
    """Nothing is stuck for longer than the deadline and five minutes."""
    await rig.submit(accounts[0], *(f"r{n}" for n in range(20)))
    rig.vendor.gate.clear()
    rig.now_ms += 2000
    assert await rig.poller.run_once() == 8
    rig.now_ms = NOW_MS + 48 * 3_600_000 + 300_000
    await rig.poller.run_once()
    assert await rig.rows("SELECT state, count(*) FROM binding GROUP BY state") == [("disputed", 20)]
    rig.vendor.answers |= {f"r{n}": {"status": "done", "usage": USAGE} for n in range(20)}
    rig.vendor.gate.set()
    await rig.settle()  # late truth
    assert await rig.rows("SELECT state, count(*) FROM binding GROUP BY state ORDER BY state") == [
        ("disputed", 12), ("settled", 8),
    ]  # fmt: skip
    assert await audit(rig.database) == []


async def test_what_the_vendor_does_not_know_is_disputed_after_a_few_polls(rig, accounts):
    await rig.submit(accounts[0], "r1")
    for _ in range(3):
        assert await rig.round(after_s=100) == 1
    assert await rig.rows("SELECT state, note FROM binding") == [("disputed", "the vendor does not know it")]


async def test_a_task_whose_upstream_left_the_file_is_disputed(rig, accounts):
    await rig.submit(accounts[0], "r1")
    rig.snapshot = Snapshot(rig.snapshot.table, rig.snapshot.rates, rig.snapshot.dialects, 2)
    rig.snapshot.table.upstreams = {}
    assert await rig.round(after_s=49 * 3600) == 0
    assert await rig.rows("SELECT state FROM binding") == [("disputed",)]


async def test_a_batch_is_billed_at_its_models_price_and_its_files_are_its_owners(rig, accounts):
    await rig.submit(accounts[0], "b1", kind="batch")
    rig.vendor.answers["b1"] = {
        "status": "done", "model": "o3", "usage": {"input": 1_000_000}, "files": ["file-out"],
    }  # fmt: skip
    await rig.round(after_s=10)
    assert rig.vendor.headers[0]["x-version"] == "1"
    assert await rig.rows("SELECT model, cost_nanos FROM usage") == [("o3", 1_000_000_000)]
    assert await rig.rows("SELECT kind, vendor_id, account FROM binding WHERE state = 'bound'") == [
        ("file", "file-out", accounts[0])
    ]
    assert await audit(rig.database) == []


async def test_a_part_costs_what_its_owners_own_prices_say_that_were_in_force_when_it_was_submitted(
    rig, accounts
):
    """ada has a multiplier for one model and a price for another; what she is given later does not count."""
    own = Overrides(rig.database)
    multiplier = await own.put("ada", "o3", ppm=100_000)
    price = await own.put("ada", "gpt-4o-mini", content={"input": 7 * YUAN})
    before = f"to_timestamp({NOW_MS / 1000 - 60})"
    await rig.database.execute(f"UPDATE price_override SET created_at = {before}")
    await rig.submit(accounts[0], "l1", kind="lines")
    await own.put("ada", "o3", ppm=0)
    line = '{{"model": "{}", "usage": {{"input": 500000}}}}\n'
    rig.vendor.answers["l1"] = {"status": "done", "output": "f1"}
    rig.vendor.answers["f1/content"] = line.format("o3") * 2 + line.format("gpt-4o-mini")
    await rig.round(after_s=10)
    assert await rig.rows("SELECT model, override, tier_ppm, cost_nanos FROM usage ORDER BY model") == [
        ("gpt-4o-mini", str(price.id), 1_000_000, 7 * YUAN // 2),
        ("o3", str(multiplier.id), 1_000_000, 200_000_000),
    ]
    assert await audit(rig.database) == []


async def test_a_batch_without_a_price_is_disputed_and_not_free(rig, accounts):
    await rig.submit(accounts[0], "b1", kind="batch")
    rig.vendor.answers["b1"] = {"status": "done", "model": "new-model", "usage": {"input": 7}}
    await rig.round(after_s=10)
    [(state, note)] = await rig.rows("SELECT state, note FROM binding")
    assert state == "disputed" and "new-model" in note


async def test_results_are_added_up_by_model(rig, accounts):
    line = '{{"model": "{}", "usage": {{"input": 500000}}}}\n'
    await rig.submit(accounts[0], "l1", kind="lines")
    rig.vendor.answers["l1"] = {"status": "done", "output": "f1"}
    rig.vendor.answers["f1/content"] = line.format("o3") * 2 + line.format("gpt-4o-mini") + '{"error": 1}\n'
    await rig.round(after_s=10)
    assert await rig.rows("SELECT model, cost_nanos FROM usage ORDER BY model") == [
        ("gpt-4o-mini", 250_000_000), ("o3", 1_000_000_000),
    ]  # fmt: skip
    assert await audit(rig.database) == []


async def test_a_batch_that_did_nothing_costs_nothing_and_one_that_does_not_tell_is_disputed(rig, accounts):
    await rig.submit(accounts[0], "l1", kind="lines")
    await rig.submit(accounts[0], "b1", "b2", kind="batch")
    rig.vendor.answers["l1"] = {"status": "done", "output": "f1"}
    rig.vendor.answers["f1/content"] = '{"error": 1}\n'
    rig.vendor.answers["b1"] = {"status": "done", "model": "o3"}
    rig.vendor.answers["b2"] = {"status": "done", "model": "o3", "usage": {}}
    await rig.round(after_s=10)
    assert await rig.rows("SELECT vendor_id, state FROM binding ORDER BY vendor_id") == [
        ("b1", "disputed"), ("b2", "settled"), ("l1", "void"),
    ]  # fmt: skip
    assert await rig.rows("SELECT sum(cost_nanos)::bigint FROM usage") == [(0,)]
    assert await audit(rig.database) == []


async def test_many_tasks_are_asked_about_in_one_request(rig, accounts):
    ids = [f"m{n}" for n in range(25)]
    await rig.submit(accounts[0], *ids, kind="mj")
    rig.vendor.answers |= {id_: {"status": "done"} for id_ in ids[:20]}
    rig.vendor.answers |= {id_: {"status": "started"} for id_ in ids[20:]}
    assert await rig.round(after_s=2) == 25
    assert rig.vendor.asked["list"] == 3
    assert await rig.rows("SELECT state, count(*) FROM binding GROUP BY 1 ORDER BY 1") == [
        ("pending", 5), ("settled", 20),
    ]  # fmt: skip


@pytest.mark.parametrize("status", [400, 404, 405])
async def test_a_vendor_that_does_not_know_of_lists_is_asked_about_each(rig, accounts, status):
    rig.vendor.list_status = status
    await rig.submit(accounts[0], "m1", "m2", kind="mj")
    rig.vendor.answers["m1"] = {"status": "done"}
    rig.vendor.answers["m2"] = {"status": "started"}
    await rig.round(after_s=2)
    assert await rig.rows("SELECT vendor_id, state FROM binding ORDER BY 1") == [
        ("m1", "settled"), ("m2", "pending"),
    ]  # fmt: skip


async def test_what_is_finished_costs_a_round_nothing(rig, accounts):
    await rig.submit(accounts[0], *(f"r{n}" for n in range(8)))
    rig.vendor.answers |= {f"r{n}": {"status": "done", "usage": USAGE} for n in range(8)}
    await rig.round(after_s=2)
    assert await rig.round(after_s=100_000) == 0
    assert sum(rig.vendor.asked.values()) == 8


async def test_what_the_vendor_has_forgotten_is_dropped_but_never_what_waits(rig, accounts):
    kept = Bind(new_id(), NOW_MS, accounts[0], 1, "thread", "th1", "openai", "direct", "main")
    await rig.life.write([structs.replace(kept, id=new_id(), kind="file", vendor_id="f1"), kept])
    await rig.submit(accounts[0], "r1")
    rig.vendor.answers["r1"] = {"status": "queued"}
    await rig.round(after_s=29 * 86_400)
    assert await rig.rows("SELECT count(*) FROM binding") == [(3,)]
    await rig.round(after_s=3 * 86_400)
    assert await rig.rows("SELECT kind, state FROM binding ORDER BY kind") == [
        ("response", "disputed"), ("thread", "bound"),
    ]  # fmt: skip


def test_a_pause_grows_with_age_and_failures_within_its_bounds():
    task = TASKS["response"]
    assert [pause(task, age, 0, None) for age in (0, 100, 10_000)] == [5, 10, 300]
    assert [pause(task, 0, failures, None) for failures in (1, 3, 100)] == [10, 40, 300]
    assert pause(task, 0, 0, 60.0) == 60 and pause(task, 0, 0, 9999.0) == 300
    assert not Answer(200).is_good and Answer(200, {}).is_good
