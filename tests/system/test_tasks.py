"""Three nodes of one station and a vendor's tasks: whoever learns of an end first, whatever dies meanwhile
and however often a task is submitted, there is one end of it and one charge or none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.conftest import Databases
from tests.fakes.threaded import served
from tests.station import Station
from tests.system.operated import headrace
from tests.waiting import until

NODES = 3
CONFIG = """
station: {{currency: USD, default_tier: Test}}
endpoints: {{direct: {{url: "http://127.0.0.1:8080"}}}}
callbacks: {{through: direct, allow: [127.0.0.0/8]}}
upstreams:
  easel:
    dialect: drawing
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:ONE_KEY}}"}}
  mj:
    dialect: midjourney
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:ONE_KEY}}"}}
tasks:
  midjourney: {{upstream: mj}}
  drawing:
    upstream: easel
    auth: {{header: x-key}}
    errors: {{body: '{{"why": "{{message}}", "code": "{{code}}"}}'}}
    task:
      id: id
      poll: {{operation: look, every: 2s, at_most: 60s}}
      state: status
      states: {{DONE: succeeded, BROKEN: failed, STOPPED: cancelled}}
      deadline: 6h
      callback: {{fields: [hook]}}
    operations:
      draw: {{path: /easel/draw, submits: true, bill: drawing}}
      press:
        path: /easel/press
        submits: true
        bill: drawing
        names: [body.of]
        once: {{within: 30s, members: [of, button]}}
      look: {{path: "/easel/{{id}}", method: GET, names: [path.id], shows: true}}
      stop: {{path: "/easel/{{id}}/stop", names: [path.id], hurries: true}}
prices: {{drawing: {{call: 1 USD}}, "mj_*": {{call: 1 USD}}}}
tiers:
  Test: {{rank: 0, models: ["*"], multiplier: 1.0, limits: {{concurrency: 200}}}}
"""
COST = 10**9
PATIENCE = aiohttp.ClientTimeout(120.0)
SIX_HOURS_MS = 6 * 3_600_000


class Vendor:
    """Draws when it is told to; what is held does not answer before it is let go."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: Counter[str] = Counter()
        self.hooks: dict[str, str] = {}  # where each job's end may be told
        self.refusing = False
        self.headers: set[str] = set()  # that came with submits
        self.loop = asyncio.new_event_loop()
        self.gates: dict[str, asyncio.Event] = {}
        self.app = web.Application()
        self.app.router.add_post("/easel/draw", self.draw)
        self.app.router.add_post("/easel/press", self.draw)
        self.app.router.add_get("/easel/{id}", self.look)
        self.app.router.add_post("/easel/{id}/stop", self.stop)
        self.app.router.add_post("/mj/submit/imagine", self.imagine)
        self.app.router.add_post("/mj/submit/action", self.imagine)
        self.app.router.add_post("/mj/task/list-by-condition", self.list)

    def hold(self, what: str) -> None:
        self.gates[what] = asyncio.Event()

    def let_go(self, what: str) -> None:
        self.loop.call_soon_threadsafe(self.gates.pop(what).set)

    async def _pass(self, what: str) -> None:
        self.asked[what] += 1
        if gate := self.gates.get(what):
            await gate.wait()

    async def draw(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.headers |= {name.lower() for name in request.headers}
        await self._pass(asked["prompt"])
        if self.refusing:
            return web.json_response({"why": "no paint"}, status=400)
        id_ = f"d{len(self.jobs)}"
        self.jobs[id_] = {"id": id_, "status": "QUEUED"}
        self.hooks[id_] = asked.get("hook", "")
        return web.json_response(self.jobs[id_])

    async def look(self, request: web.Request) -> web.Response:
        id_ = request.match_info["id"]
        await self._pass(id_)
        job = self.jobs.get(id_)
        return web.json_response(job or {"why": "unknown"}, status=200 if job else 404)

    async def stop(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        job["status"] = "STOPPED"
        return web.json_response({"stopped": True})

    async def imagine(self, request: web.Request) -> web.Response:
        """Each click that comes here is a job."""
        asked = await request.json()
        await self._pass(asked.get("customId", "imagine"))
        id_ = f"m{len(self.jobs)}"
        self.jobs[id_] = {"id": id_, "status": "IN_PROGRESS"}
        return web.json_response({"code": 1, "description": "ok", "result": id_, "properties": {}})

    async def list(self, request: web.Request) -> web.Response:
        ids = (await request.json())["ids"]
        return web.json_response([self.jobs[id_] for id_ in ids if id_ in self.jobs])


class Nodes:
    def __init__(self, stations: list[Station], vendor: Vendor) -> None:
        self.stations = stations
        self.vendor = vendor

    async def sql(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in await self.stations[0].rows(sql)]

    async def later(self, id_: str, ms: int = 0) -> None:
        """Time passes for a task, and it is due."""
        sql = f"UPDATE binding SET at_ms = at_ms - {ms}, next_poll_ms = 0 WHERE vendor_id = '{id_}'"
        await self.sql(f"{sql} AND next_poll_ms IS NOT NULL RETURNING 1")

    async def becomes(self, id_: str, *states: str) -> None:
        async def look() -> bool:
            rows = await self.sql(f"SELECT state, hold_nanos FROM binding WHERE vendor_id = '{id_}'")
            return bool(rows) and rows[0][0] in states

        await until(look, f"{id_} is {states}")

    async def is_clean(self) -> bool:
        return await self.stations[0].violations() == []


class Holder:
    """An account; each request is on a connection of its own."""

    def __init__(self, nodes: Nodes, name: str, key: str) -> None:
        self.nodes, self.name, self.key = nodes, name, key

    async def ask(self, node: int, method: str, path: str, **how: Any) -> tuple[int, Any, dict[str, str]]:
        headers = {"authorization": f"Bearer {self.key}", **how.pop("headers", {})}
        path = path if path.startswith("/mj/") else f"/easel{path}"
        url = f"{self.nodes.stations[node].url}{path}"
        async with (
            aiohttp.ClientSession(headers=headers, timeout=PATIENCE) as session,
            session.request(method, url, **how) as r,
        ):
            text = await r.text()
            body = json.loads(text) if text.startswith("{") else text
            return r.status, body, {name.lower(): value for name, value in r.headers.items()}

    async def draw(self, prompt: str, node: int = 0, key: str = "") -> tuple[int, Any, Any]:
        headers = {"idempotency-key": key} if key else {}
        return await self.ask(node, "POST", "/draw", json={"prompt": prompt}, headers=headers)

    async def drawn(self, prompt: str) -> str:
        status, body, _ = await self.draw(prompt)
        assert status == 200, body
        return str(body["id"])

    async def bill(self) -> tuple[int, int]:
        """Of all its calls: charged in all, held."""
        [(balance, available)] = await self.nodes.sql(
            f"SELECT balance_nanos, (SELECT coalesce(sum(hold_nanos), 0)::bigint FROM binding WHERE account"
            f" = a.id) FROM account a WHERE name = '{self.name}'"
        )
        return 10**12 - balance, available


@pytest.fixture(scope="module")
def vendor() -> Iterator[Vendor]:
    vendor = Vendor()
    with served(vendor.app, vendor.loop) as vendor.url:
        yield vendor


@pytest.fixture(scope="module")
def nodes(vendor: Vendor, tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Nodes]:
    dsn, config = databases.take(), CONFIG.format(url=vendor.url)
    folders = [tmp_path_factory.mktemp(f"node{n}") / "data" for n in range(NODES)]
    stations = [Station(folder, config, dsn) for folder in folders]
    with ThreadPoolExecutor(NODES) as threads:
        list(threads.map(Station.start, stations))
    yield Nodes(stations, vendor)
    with ThreadPoolExecutor(NODES) as threads:
        list(threads.map(Station.stop, stations))


_names = count(1)


@pytest.fixture
async def ada(nodes: Nodes) -> Holder:
    name = f"ada-{next(_names)}"
    return Holder(nodes, name, await nodes.stations[0].customer(name))


# -- ends --------------------------------------------------------------------------------------------


async def test_polls_of_three_nodes_and_of_the_client_on_each_bill_once(nodes, vendor, ada):
    id_ = await ada.drawn("a cat")
    for node in range(NODES):
        assert (await ada.ask(node, "GET", f"/{id_}"))[1]["status"] == "QUEUED"
    vendor.jobs[id_]["status"] = "DONE"
    await asyncio.gather(nodes.later(id_), *(ada.ask(n % NODES, "GET", f"/{id_}") for n in range(9)))
    await nodes.becomes(id_, "settled")
    await until(lambda: _is(ada.bill(), (COST, 0)), "one charge")
    rows = await nodes.sql(
        f"SELECT u.state, cost_nanos FROM usage u JOIN account a ON a.id = account WHERE name = '{ada.name}'"
        " AND cost_nanos > 0"
    )
    assert rows == [("settled", COST)]
    assert await nodes.is_clean()


async def test_callbacks_and_polls_on_all_nodes_at_once_bill_once(nodes, vendor, ada):
    hook = "http://127.0.0.1:47009/told"  # nobody is there
    status, job, _ = await ada.ask(0, "POST", "/draw", json={"prompt": "a cat", "hook": hook})
    assert status == 200, job
    path = "/callbacks/" + vendor.hooks[job["id"]].partition("/callbacks/")[2]
    assert hook not in vendor.hooks[job["id"]] and len(path) > 40

    async def call(node: int) -> int:
        async with aiohttp.ClientSession(timeout=PATIENCE) as session:
            url = nodes.stations[node].url + path
            async with session.post(url, json={"id": job["id"], "status": "BROKEN"}) as answer:
                return answer.status

    vendor.jobs[job["id"]]["status"] = "DONE"
    polls = (ada.ask(n % NODES, "GET", f"/{job['id']}") for n in range(9))
    told, *_ = await asyncio.gather(
        asyncio.gather(*(call(n % NODES) for n in range(9))), nodes.later(job["id"]), *polls
    )
    assert set(told) == {200}
    await nodes.becomes(job["id"], "settled")
    await until(lambda: _is(ada.bill(), (COST, 0)), "one charge")
    assert await nodes.is_clean()


async def test_failure_and_cancel_give_the_hold_back(nodes, vendor, ada):
    broken, stopped = await ada.drawn("a broken cat"), await ada.drawn("a cat that is stopped")
    await until(lambda: _is(ada.bill(), (0, 2 * COST)), "both are held")
    vendor.jobs[broken]["status"] = "BROKEN"
    await nodes.later(broken)
    assert (await ada.ask(1, "POST", f"/{stopped}/stop"))[0] == 200
    await nodes.becomes(broken, "void")
    await nodes.becomes(stopped, "void")
    assert await ada.bill() == (0, 0)
    assert await nodes.is_clean()


async def test_success_after_failure_is_a_correction_and_failure_after_success_is_nothing(nodes, vendor, ada):
    id_ = await ada.drawn("a late cat")
    vendor.jobs[id_]["status"] = "BROKEN"
    await nodes.later(id_)
    await nodes.becomes(id_, "void")
    vendor.jobs[id_]["status"] = "DONE"
    for node in range(NODES):
        assert (await ada.ask(node, "GET", f"/{id_}"))[1]["status"] == "DONE"
    await until(lambda: _is(ada.bill(), (COST, 0)), "the correction")
    vendor.jobs[id_]["status"] = "BROKEN"
    for node in range(NODES):
        assert (await ada.ask(node, "GET", f"/{id_}"))[1]["status"] == "BROKEN"

    async def is_noted() -> bool:
        sql = f"SELECT count(*) FROM observation WHERE vendor_id = '{id_}' AND state = 'failed'"
        return (await nodes.sql(sql))[0][0] > NODES

    await until(is_noted, "everybody's word")
    assert await ada.bill() == (COST, 0)
    assert await nodes.sql("SELECT count(*) FROM correction") == [(1,)]
    assert await nodes.is_clean()


async def test_controls_that_die_in_the_middle_of_a_poll_lose_no_end(nodes, vendor, ada):
    id_ = await ada.drawn("a cat that is watched")
    vendor.hold(id_)
    await until(lambda: vendor.asked[id_] > 0, "a poll is under way")
    controls = [station.children("control")["control"] for station in nodes.stations]
    for pid in controls:
        os.kill(pid, signal.SIGKILL)
    vendor.jobs[id_]["status"] = "DONE"
    vendor.let_go(id_)
    for station, pid in zip(nodes.stations, controls, strict=True):
        await until(lambda s=station, p=pid: s.children().get("control", p) != p, "a new one")
    await nodes.later(id_)  # the claim of the dead runs out
    await nodes.becomes(id_, "settled")
    assert await ada.bill() == (COST, 0)
    assert await nodes.is_clean()


async def test_a_task_that_never_ends_is_disputed_at_its_deadline_and_decided_by_command_or_time(
    nodes, vendor, ada
):
    names = ["charged", "released", "left to time", "told late"]
    ids = {name: await ada.drawn(f"an endless cat, {name}") for name in names}
    await until(lambda: _is(ada.bill(), (0, 4 * COST)), "all are held")
    for id_ in ids.values():
        await nodes.later(id_, SIX_HOURS_MS)
    for id_ in ids.values():
        await nodes.becomes(id_, "disputed")
    assert await ada.bill() == (0, 4 * COST)
    dsn = nodes.stations[0].dsn
    said = await asyncio.to_thread(headrace, "dispute", "list", "--json", dsn=dsn)
    listed = {dispute["vendor_id"]: dispute for dispute in json.loads(said)}
    assert set(ids.values()) <= set(listed)
    await asyncio.to_thread(headrace, "dispute", "charge", listed[ids["charged"]]["id"], dsn=dsn)
    await asyncio.to_thread(headrace, "dispute", "release", listed[ids["released"]]["id"], dsn=dsn)
    await nodes.sql(
        f"UPDATE binding SET deadline_ms = 1 WHERE vendor_id = '{ids['left to time']}' RETURNING 1"
    )
    await nodes.becomes(ids["left to time"], "void")
    vendor.jobs[ids["told late"]]["status"] = "DONE"
    assert (await ada.ask(2, "GET", f"/{ids['told late']}"))[1]["status"] == "DONE"
    await nodes.becomes(ids["told late"], "settled")
    assert await ada.bill() == (2 * COST, 0)
    assert await nodes.is_clean()


# -- submits that are one ----------------------------------------------------------------------------


async def test_submits_with_one_key_on_all_nodes_at_once_are_one_job_with_one_answer(nodes, vendor, ada):
    vendor.hold("one cat")
    asks = [asyncio.ensure_future(ada.draw("one cat", n % NODES, key="k1")) for n in range(9)]
    await until(lambda: vendor.asked["one cat"] == 1, "the first is there")
    vendor.let_go("one cat")
    answers = await asyncio.gather(*asks)
    assert {status for status, _, _ in answers} == {200}
    assert len({body["id"] for _, body, _ in answers}) == 1
    assert sorted(fields.get("idempotent-replayed", "") for _, _, fields in answers) == ["", *["true"] * 8]
    assert (await ada.draw("one cat", 2, key="k1"))[1] == answers[0][1]
    assert vendor.asked["one cat"] == 1 and "idempotency-key" not in vendor.headers
    status, body, _ = await ada.draw("another cat", 1, key="k1")
    assert (status, body["code"], vendor.asked["another cat"]) == (422, "idempotency_key_reused", 0)
    vendor.jobs[answers[0][1]["id"]]["status"] = "DONE"
    await nodes.later(answers[0][1]["id"])
    await nodes.becomes(answers[0][1]["id"], "settled")
    assert await ada.bill() == (COST, 0)
    assert await nodes.is_clean()


async def test_a_key_is_its_accounts(nodes, vendor, ada):
    name = f"ben-{next(_names)}"
    ben = Holder(nodes, name, await nodes.stations[0].customer(name))
    mine, his = await ada.draw("a shared cat", key="same"), await ben.draw("a shared cat", key="same")
    assert (mine[0], his[0]) == (200, 200) and mine[1]["id"] != his[1]["id"]
    assert (await ben.ask(0, "GET", f"/{mine[1]['id']}"))[0] == 404


async def test_a_key_whose_submit_came_to_nothing_is_free_again(nodes, vendor, ada):
    vendor.refusing = True
    assert (await ada.draw("a refused cat", key="k2"))[0] == 400
    vendor.refusing = False
    status, body, fields = await ada.draw("a refused cat", 1, key="k2")
    assert status == 200 and "idempotent-replayed" not in fields
    assert (await ada.draw("a refused cat", 2, key="k2"))[1] == body
    assert vendor.asked["a refused cat"] == 2


async def test_a_client_that_gives_up_and_asks_again_gets_the_answer_of_its_first_submit(nodes, vendor, ada):
    vendor.hold("a slow cat")
    first = asyncio.ensure_future(ada.draw("a slow cat", key="k3"))
    await until(lambda: vendor.asked["a slow cat"] == 1, "the vendor has it")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    again = asyncio.ensure_future(ada.draw("a slow cat", 1, key="k3"))
    vendor.let_go("a slow cat")
    status, body, fields = await again
    assert (status, fields["idempotent-replayed"], vendor.asked["a slow cat"]) == (200, "true", 1)
    assert (await ada.ask(2, "GET", f"/{body['id']}"))[0] == 200


async def test_a_submit_whose_worker_died_is_not_sent_again(nodes, vendor, ada):
    vendor.hold("a lost cat")
    lost = asyncio.ensure_future(ada.draw("a lost cat", key="k4"))
    await until(lambda: vendor.asked["a lost cat"] == 1, "the vendor has it")
    os.kill(nodes.stations[0].children("w")["w0"], signal.SIGKILL)
    with pytest.raises((aiohttp.ClientError, OSError)):
        await lost
    vendor.let_go("a lost cat")
    status, body, fields = await ada.draw("a lost cat", 1, key="k4")
    assert (status, body["code"], fields["x-should-retry"]) == (409, "submit_outcome_unknown", "false")
    assert vendor.asked["a lost cat"] == 1
    assert await ada.bill() == (0, 0)
    assert await nodes.is_clean()
    await until(lambda: asyncio.to_thread(nodes.stations[0].is_ready), "another worker")


async def test_a_double_click_is_one_job_and_another_button_is_another(nodes, vendor, ada):
    id_ = await ada.drawn("a cat with buttons")

    async def press(button: str, node: int, **more: str) -> tuple[int, Any, Any]:
        body = {"prompt": button, "of": id_, "button": button, **more}
        return await ada.ask(node, "POST", "/press", json=body)

    vendor.hold("U1")
    clicks = [asyncio.ensure_future(press("U1", n, at=str(n))) for n in range(NODES)]
    await until(lambda: vendor.asked["U1"] == 1, "the first click")
    vendor.let_go("U1")
    answers = await asyncio.gather(*clicks)
    assert [status for status, _, _ in answers] == [200] * NODES
    assert len({body["id"] for _, body, _ in answers}) == 1 and vendor.asked["U1"] == 1
    other = await press("V2", 0)
    assert other[1]["id"] != answers[0][1]["id"]
    await nodes.sql("UPDATE submission SET until_ms = 1 RETURNING 1")  # half a minute later
    again = await press("U1", 1)
    assert again[0] == 200 and vendor.asked["U1"] == 2
    for _, body, _ in (answers[0], other, again):
        vendor.jobs[body["id"]]["status"] = "DONE"
        await nodes.later(body["id"])
        await nodes.becomes(body["id"], "settled")
    assert (await ada.bill())[0] == 3 * COST
    assert await nodes.is_clean()


async def test_a_button_of_midjourney_that_is_clicked_twice_is_one_job_and_one_charge(nodes, vendor, ada):
    _, drawn, _ = await ada.ask(0, "POST", "/mj/submit/imagine", json={"prompt": "a cat"})
    button = "MJ::JOB::upsample::2::3dbbd469-36af-4a0f-8f02-df6c579e7011"

    async def click(node: int) -> tuple[int, Any, Any]:
        body = {"taskId": drawn["result"], "customId": button, "state": str(node)}
        return await ada.ask(node, "POST", "/mj/submit/action", json=body)

    answers = [await click(0), *await asyncio.gather(click(1), click(2), click(0))]
    assert {(status, body["code"], body["result"]) for status, body, _ in answers} == {
        (200, 1, answers[0][1]["result"])
    }
    assert vendor.asked[button] == 1
    for id_ in (drawn["result"], answers[0][1]["result"]):
        vendor.jobs[id_]["status"] = "SUCCESS"
        await nodes.later(id_)
        await nodes.becomes(id_, "settled")
    models = await nodes.sql(
        "SELECT model, cost_nanos FROM usage u JOIN account a ON a.id = u.account"
        f" WHERE a.name = '{ada.name}' ORDER BY u.id"
    )
    assert models == [("mj_imagine", COST), ("mj_upscale", COST)]
    assert await nodes.is_clean()


async def _is(look: Any, wanted: Any) -> bool:
    return bool(await look == wanted)
