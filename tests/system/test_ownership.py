"""Ids that live at the vendor belong to one account, are found by every worker, and are billed once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.conftest import Databases
from tests.fakes.threaded import served
from tests.station import Station

CONFIG = """
station: {{currency: USD, default_tier: Test}}
upstreams:
  one:
    dialect: openai
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:ONE_KEY}}", spare: "${{env:CLAUDE_KEY}}"}}
models:
  gpt-4o-mini: {{context: 128000, max_output: 1000, candidates: [{{upstream: one}}]}}
  "ft:*": {{candidates: [{{upstream: one}}]}}
  "ft:gpt-4o-mini:shop::all": {{candidates: [{{upstream: one}}]}}
prices:
  gpt-4o-mini: {{input: 1 USD, output: 10 USD}}
  "ft:*": {{input: 1 USD, output: 10 USD}}
  fine_tuning.create: {{units: {{training_input: 0.000001 USD}}}}
  batches.create: {{call: 1 USD}}
tiers:
  Test: {{rank: 0, models: ["*"], multiplier: 1.0, limits: {{concurrency: 200}}}}
"""
USAGE = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
COST = 1000 * 1000 + 100 * 10_000  # nanos
BACKGROUND = {"model": "gpt-4o-mini", "input": "hi", "background": True}


class Vendor:
    """Keeps what it is given; a background response is done when it is told so."""

    def __init__(self) -> None:
        self.things: dict[str, dict[str, Any]] = {}
        self.credentials: dict[str, set[str]] = {}
        self.asked: Counter[str] = Counter()
        self.app = web.Application(middlewares=[self.note])
        routes = self.app.router
        routes.add_post("/v1/responses", self.respond)
        routes.add_post("/v1/files", self.upload)
        routes.add_post("/v1/batches", self.batch)
        routes.add_post("/v1/fine_tuning/jobs", self.train)
        routes.add_get("/v1/fine_tuning/jobs/{id}", self.get)
        routes.add_post("/v1/chat/completions", self.chat)
        for path in ("responses", "files", "batches"):
            routes.add_get(f"/v1/{path}/{{id}}", self.get)
            routes.add_delete(f"/v1/{path}/{{id}}", self.delete)
        routes.add_get("/v1/files/{id}/content", self.content)
        routes.add_get("/v1/files", self.leak)

    @web.middleware
    async def note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked[f"{request.method} {request.path}"] += 1
        if id_ := request.match_info.get("id"):
            self.credentials.setdefault(id_, set()).add(request.headers["Authorization"])
        return await handler(request)

    def make(self, prefix: str, request: web.Request, **facts: Any) -> dict[str, Any]:
        id_ = f"{prefix}_{len(self.things)}"
        self.credentials[id_] = {request.headers["Authorization"]}
        self.things[id_] = {"id": id_, **facts}
        return self.things[id_]

    def finish(self, id_: str, status: str = "completed", **facts: Any) -> None:
        self.things[id_] |= {"status": status, **facts}

    async def respond(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        status = "queued" if asked.get("background") else "completed"
        usage = None if asked.get("background") else USAGE
        made = self.make("resp", request, object="response", model="gpt-4o-mini", status=status, usage=usage)
        if not asked.get("stream"):
            return web.json_response(made)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(event("response.created", {**made, "usage": None}))
        await asyncio.sleep(3600)
        return answer

    async def upload(self, request: web.Request) -> web.Response:
        return web.json_response(self.make("file", request, object="file", bytes=len(await request.read())))

    async def batch(self, request: web.Request) -> web.Response:
        return web.json_response(self.make("batch", request, object="batch", status="validating"))

    async def train(self, request: web.Request) -> web.Response:
        return web.json_response(self.make("ftjob", request, status="running", fine_tuned_model=None))

    async def chat(self, request: web.Request) -> web.Response:
        model = (await request.json())["model"]
        self.credentials.setdefault(model, set()).add(request.headers["Authorization"])
        usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
        return web.json_response(
            {"choices": [{"message": {"content": "hi"}}], "model": model, "usage": usage}
        )

    async def get(self, request: web.Request) -> web.Response:
        thing = self.things.get(request.match_info["id"])
        return web.json_response(thing or {"error": {"message": "gone"}}, status=200 if thing else 404)

    async def delete(self, request: web.Request) -> web.Response:
        thing = self.things.pop(request.match_info["id"])
        return web.json_response({"id": thing["id"], "deleted": True})

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(text="result")

    async def leak(self, request: web.Request) -> web.Response:
        return web.json_response({"data": list(self.things.values())})


def event(kind: str, response: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'response': response})}\n\n".encode()


class Holder:
    """An account with a key; each request is on a connection of its own, so that any worker may get it."""

    def __init__(self, station: Station, name: str, key: str) -> None:
        self.station, self.name, self.key = station, name, key
        self.url = station.url

    async def billed(self, count: int) -> list[tuple[int, str]]:
        """Cost and outcome of its calls that cost something, once there are so many."""
        sql = (
            "SELECT cost_nanos, outcome FROM usage u JOIN account a ON a.id = u.account"
            f" WHERE cost_nanos > 0 AND a.name = '{self.name}'"
        )

        async def look() -> Any:
            rows = await self.station.rows(sql)
            return len(rows) >= count and [tuple(row.values()) for row in rows]

        found: list[tuple[int, str]] = await until(look, f"{count} bills")
        return found

    async def ask(self, method: str, path: str, **body: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.key}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, f"{self.url}/v1{path}", json=body or None) as r,
        ):
            text = await r.text()
            return r.status, json.loads(text) if text.startswith(("{", "[")) else text

    async def patiently(self, path: str) -> Any:
        """As SDKs do: what cannot be told now is asked for again."""

        async def look() -> Any:
            status, body = await self.ask("GET", path)
            assert status in (200, 503), body
            return body if status == 200 else None

        return await until(look, path)

    async def upload(self) -> str:
        headers = {"Authorization": f"Bearer {self.key}"}
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", b"{}\n" * 100, filename="a.jsonl")
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{self.url}/v1/files", data=form) as r,
        ):
            assert r.status == 200, await r.text()
            return str((await r.json())["id"])


@pytest.fixture(scope="module")
def vendor() -> Iterator[Vendor]:
    vendor = Vendor()
    with served(vendor.app) as vendor.url:
        yield vendor


@pytest.fixture(scope="module")
def station(
    vendor: Vendor, tmp_path_factory: pytest.TempPathFactory, databases: Databases
) -> Iterator[Station]:
    folder = tmp_path_factory.mktemp("ownership")
    running = Station(folder / "data", CONFIG.format(url=vendor.url), databases.take(), workers=2)
    running.start()
    yield running
    running.stop()


_names = count(1)


async def holder(station: Station) -> Holder:
    name = f"holder-{next(_names)}"
    return Holder(station, name, await station.customer(name))


@pytest.fixture
async def ada(station: Station) -> Holder:
    return await holder(station)


@pytest.fixture
async def ben(station: Station) -> Holder:
    return await holder(station)


async def until(look: Any, what: str) -> Any:
    async with asyncio.timeout(30):
        while True:
            if answer := await look():
                return answer
            await asyncio.sleep(0.05)
    raise AssertionError(what)


async def test_an_id_is_its_accounts_at_once_on_every_worker_and_nobody_elses(station, vendor, ada, ben):
    for _ in range(5):
        id_ = await ada.upload()
        seen = await asyncio.gather(*(ada.ask("GET", f"/files/{id_}") for _ in range(6)))
        assert {status for status, _ in seen} == {200}
    before = vendor.asked.total()
    nobodys = await asyncio.gather(ada.ask("GET", "/files/file_nobodys"), ben.ask("GET", "/files/file_999"))
    assert {status for status, _ in nobodys} == {404}
    for status, body in await asyncio.gather(
        ben.ask("GET", f"/files/{id_}"),
        ben.ask("GET", f"/files/{id_}/content"),
        ben.ask("DELETE", f"/files/{id_}"),
        ben.ask("POST", "/batches", input_file_id=id_, endpoint="/v1/responses"),
        ben.ask("POST", "/responses", model="gpt-4o-mini", input=[{"content": [{"file_id": id_}]}]),
        ada.ask("GET", "/files/file_nobodys"),
    ):
        assert (status, body["error"]["code"]) == (404, "object_not_found")
    assert vendor.asked.total() == before
    assert len(vendor.credentials[id_]) == 1


async def test_lists_show_an_account_its_own_and_what_it_deleted_no_more(station, vendor, ada, ben):
    ids = [await ada.upload() for _ in range(3)]
    await ben.upload()
    status, page = await ada.ask("GET", "/files")
    assert (status, [f["id"] for f in page["data"]], page["has_more"]) == (200, ids[::-1], False)
    assert page["object"] == "list" and page["data"][0] == vendor.things[ids[2]]
    assert (await ada.ask("DELETE", f"/files/{ids[1]}"))[0] == 200

    async def is_gone() -> bool:
        return [f["id"] for f in (await ada.ask("GET", "/files"))[1]["data"]] == [ids[2], ids[0]]

    await until(is_gone, "a deleted file is not listed")
    _, page = await ada.ask("GET", "/files?limit=1")
    assert (page["has_more"], page["last_id"]) == (True, ids[2])
    _, page = await ada.ask("GET", f"/files?after={ids[2]}")
    assert [f["id"] for f in page["data"]] == [ids[0]]
    assert vendor.asked["GET /v1/files"] == 0


async def test_a_background_response_is_billed_once_when_it_is_done(station, vendor, ada):
    status, made = await ada.ask("POST", "/responses", **BACKGROUND)
    assert (status, made["status"]) == (200, "queued")
    assert (await ada.ask("GET", f"/responses/{made['id']}"))[1]["status"] == "queued"
    vendor.finish(made["id"], usage=USAGE)
    polls = await asyncio.gather(*(ada.ask("GET", f"/responses/{made['id']}") for _ in range(8)))
    assert {body["status"] for _, body in polls} == {"completed"}
    assert await ada.billed(1) == [(COST, "complete")]
    sql = f"SELECT state, hold_nanos FROM binding WHERE vendor_id = '{made['id']}'"
    assert await station.rows(sql) == [{"state": "settled", "hold_nanos": 0}]
    assert await station.violations() == []


async def test_nobody_has_to_ask_for_a_background_response_to_be_billed(station, vendor, ada):
    _, made = await ada.ask("POST", "/responses", **BACKGROUND)
    vendor.finish(made["id"], usage=USAGE)
    assert await ada.billed(1) == [(COST, "complete")]


async def test_a_response_that_is_not_in_the_background_is_bound_and_billed_as_ever(
    station, vendor, ada, ben
):
    _, made = await ada.ask("POST", "/responses", model="gpt-4o-mini", input="hi")
    follow = {"model": "gpt-4o-mini", "input": "more", "previous_response_id": made["id"]}
    assert (await ada.ask("POST", "/responses", **follow))[0] == 200
    status, body = await ben.ask("POST", "/responses", **follow)
    assert (status, body["error"]["param"]) == (404, "previous_response_id")
    assert (await ada.ask("GET", f"/responses/{made['id']}"))[0] == 200
    assert await ada.billed(2) == [(COST, "complete")] * 2


async def test_a_stream_that_was_left_goes_on_in_the_background_and_its_id_is_known_at_once(
    station, vendor, ada, ben
):
    headers = {"Authorization": f"Bearer {ada.key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        r = await session.post(f"{ada.url}/v1/responses", json={**BACKGROUND, "stream": True})
        first = await r.content.readuntil(b"\n\n")
        id_ = json.loads(first.partition(b"data: ")[2])["response"]["id"]
        assert (await ada.ask("GET", f"/responses/{id_}"))[0] == 200
        assert (await ben.ask("GET", f"/responses/{id_}"))[0] == 404
        r.close()

    async def pending() -> Any:
        sql = f"SELECT 1 FROM binding WHERE vendor_id = '{id_}' AND entry IS NOT NULL"
        return await station.rows(sql)

    await until(pending, "its hold waits")
    vendor.finish(id_, usage=USAGE)
    assert await ada.billed(1) == [(COST, "complete")]


async def test_a_batch_is_billed_at_its_models_price_and_its_result_is_its_owners(station, vendor, ada, ben):
    status, batch = await ada.ask(
        "POST", "/batches", input_file_id=await ada.upload(), endpoint="/v1/responses"
    )
    assert status == 200, batch
    made = vendor.things["file_out"] = {"id": "file_out", "object": "file"}
    vendor.finish(batch["id"], model="gpt-4o-mini", usage=USAGE, output_file_id=made["id"])
    assert (await ada.ask("GET", f"/batches/{batch['id']}"))[1]["output_file_id"] == "file_out"
    assert await ada.ask("GET", "/files/file_out/content") == (200, "result")
    assert (await ben.ask("GET", "/files/file_out/content"))[0] == 404
    assert await ada.billed(1) == [(COST, "complete")]
    assert await station.violations() == []


async def test_a_trained_model_is_its_makers_and_stays_with_its_credential(station, vendor, ada, ben):
    status, job = await ada.ask(
        "POST", "/fine_tuning/jobs", model="gpt-4o-mini", training_file=await ada.upload()
    )
    assert status == 200, job
    model = f"ft:gpt-4o-mini:ada::{job['id']}"
    chat = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    assert (await ada.ask("POST", "/chat/completions", **chat))[0] == 404  # it is not there yet
    vendor.finish(job["id"], "succeeded", fine_tuned_model=model, trained_tokens=1000)
    assert (await ada.ask("GET", f"/fine_tuning/jobs/{job['id']}"))[1]["fine_tuned_model"] == model
    answers = await asyncio.gather(*(ada.ask("POST", "/chat/completions", **chat) for _ in range(6)))
    assert {status for status, _ in answers} == {200}
    assert vendor.credentials[model] == vendor.credentials[job["id"]] and len(vendor.credentials[model]) == 1
    for path, asked in (
        ("/chat/completions", chat),
        ("/responses", {"model": model, "input": "hi"}),
        ("/fine_tuning/jobs", {"model": model, "training_file": await ben.upload()}),
    ):
        status, body = await ben.ask("POST", path, **asked)
        assert (status, body["error"]["code"], body["error"]["param"]) == (404, "object_not_found", "model")
    sold = chat | {"model": "ft:gpt-4o-mini:shop::all"}
    assert (await ben.ask("POST", "/chat/completions", **sold))[0] == 200


async def test_another_node_finds_what_was_made_just_now(station, vendor, ada, ben, tmp_path):
    other = Station(tmp_path / "other", CONFIG.format(url=vendor.url), station.dsn)
    await asyncio.to_thread(other.start)
    try:
        there = Holder(other, ada.name, ada.key)
        for _ in range(5):
            id_ = await ada.upload()
            assert (await there.ask("GET", f"/files/{id_}"))[0] == 200
            id_ = await there.upload()
            assert (await ada.ask("GET", f"/files/{id_}"))[0] == 200
            assert (await ben.ask("GET", f"/files/{id_}"))[0] == 404
    finally:
        other.kill()


async def test_a_control_that_dies_and_a_station_that_is_killed_lose_no_id_and_no_bill(station, vendor, ada):
    made = [(await ada.ask("POST", "/responses", **BACKGROUND))[1]["id"] for _ in range(4)]
    os.kill(station.children("control")["control"], signal.SIGKILL)
    for id_ in made:
        assert (await ada.patiently(f"/responses/{id_}"))["id"] == id_
    station.kill()
    for id_ in made:
        vendor.finish(id_, usage=USAGE)
    await asyncio.to_thread(station.start)
    assert (await ada.patiently(f"/responses/{made[0]}"))["id"] == made[0]
    assert await ada.billed(4) == [(COST, "complete")] * 4
    assert await station.violations() == []


async def test_a_background_response_that_is_submitted_again_by_its_key_is_the_same_one(station, vendor, ada):
    headers = {"Authorization": f"Bearer {ada.key}", "Idempotency-Key": "r1"}
    before = vendor.asked["POST /v1/responses"]

    async def submit(**more: Any) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{ada.url}/v1/responses", json={**BACKGROUND, **more}) as r,
        ):
            return r.status, await r.json()

    answers = await asyncio.gather(*(submit() for _ in range(4)))
    assert {status for status, _ in answers} == {200}
    assert [body for _, body in answers] == [answers[0][1]] * 4
    assert vendor.asked["POST /v1/responses"] == before + 1
    status, body = await submit(input="something else")
    assert (status, body["error"]["code"]) == (422, "idempotency_key_reused")
    vendor.finish(answers[0][1]["id"], usage=USAGE)
    assert await ada.billed(1) == [(COST, "complete")]
