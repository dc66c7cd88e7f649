"""Midjourney and Suno through a station: what each request costs, where it goes, and what an account sees."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from tests.conftest import Databases
from tests.fakes.task_vendor import TaskVendor
from tests.station import Station
from tests.waiting import wait_for

MILLI = 1_000_000  # nanos
CONFIG = """
station: {currency: USD, default_tier: Test}
upstreams:
  mj:
    dialect: midjourney
    mirrors: {direct: {url: "URL"}}
    credentials: {main: "${env:ONE_KEY}", spare: "${env:CLAUDE_KEY}"}
  old: {dialect: old, mirrors: {direct: {url: "OLD"}}, credentials: {main: "${env:ONE_KEY}"}}
  hub: {dialect: openai, mirrors: {direct: {url: "URL"}}, credentials: {main: "${env:ONE_KEY}"}}
tasks:
  midjourney:
    upstream: mj
    modes: {mj-turbo: {bill: "{name}-turbo"}}
    operations: {change: {once: }}  # the vendor tells
    task: {poll: {every: 200ms, at_most: 1s}}
  old: {family: midjourney, under: /old, upstream: old}
  suno: {upstream: hub, task: {poll: {every: 200ms, at_most: 1s}, charged: [succeeded, failed]}}
models: {gpt-4o-mini: {candidates: [{upstream: hub}]}}
prices:
  "mj_*-turbo": {call: 0.009 USD}
  mj_imagine: {call: 0.010 USD}
  mj_upscale: {call: 0.002 USD}
  mj_modal: {call: 0.007 USD}
  mj_upload: {call: 0.001 USD}
  "mj_*": {call: 0.003 USD}
  swap_face: {call: 0.004 USD}
  "suno_*": {call: 0.005 USD}
tiers:
  Test: {rank: 0, models: ["*"], limits: {concurrency: 100}}
"""


@pytest.fixture(scope="module")
def vendor() -> Iterator[TaskVendor]:
    with TaskVendor() as vendor:
        yield vendor


class Repeating(ThreadingHTTPServer):
    """A vendor that has one task, whoever asks for one."""

    code = 1

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Repeated)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Repeated(BaseHTTPRequestHandler):
    server: Repeating

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answer({"code": self.server.code, "description": "", "result": "77", "properties": {}})

    def do_GET(self) -> None:
        self.answer({"id": "77", "status": "IN_PROGRESS", "progress": "5%"})

    def answer(self, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture(scope="module")
def old() -> Iterator[Repeating]:
    with Repeating() as old:
        yield old
        old.shutdown()


@pytest.fixture(scope="module")
def station(
    vendor: TaskVendor, old: Repeating, tmp_path_factory: pytest.TempPathFactory, databases: Databases
) -> Iterator[Station]:
    data = tmp_path_factory.mktemp("midjourney") / "data"
    config = CONFIG.replace("URL", vendor.url).replace("OLD", f"http://127.0.0.1:{old.server_port}")
    station = Station(data, config, databases.take(), workers=2)
    station.start()
    yield station
    station.stop()


class Holder:
    """A key holder; every request has a connection of its own, so that any worker may get it."""

    def __init__(self, station: Station, name: str) -> None:
        self.station = station
        self.key = asyncio.run(station.customer(name))
        self.name = name

    def ask(self, method: str, path: str, **doc: Any) -> requests.Response:
        headers = {"authorization": f"Bearer {self.key}"}
        return requests.request(
            method, self.station.url + path, headers=headers, json=doc or None, timeout=60
        )

    def submit(self, path: str, **doc: Any) -> str:
        answer = self.ask("POST", path, **doc)
        assert answer.status_code == 200, answer.text
        assert answer.json()["code"] in (1, 21, 22, "success"), answer.text
        return str(answer.json().get("result") or answer.json()["data"])

    def bills(self, count: int) -> list[tuple[str, int, str]]:
        """Model, price in thousandths of a dollar and outcome of its submits, once there are so many."""

        def settled() -> Any:
            rows = asyncio.run(
                self.station.rows(
                    "SELECT model, cost_nanos, outcome FROM usage u JOIN account a ON a.id = u.account"
                    f" WHERE a.name = '{self.name}' AND model <> '' ORDER BY u.id"
                )
            )
            found = [(row["model"], row["cost_nanos"] // MILLI, row["outcome"]) for row in rows]
            return found if len(found) >= count else None

        found: list[tuple[str, int, str]] = wait_for(settled, f"{count} bills of {self.name}")
        return found


@pytest.fixture
def ada(station: Station, request: pytest.FixtureRequest) -> Holder:
    return Holder(station, f"ada {request.node.name}")


@pytest.fixture
def ben(station: Station, request: pytest.FixtureRequest) -> Holder:
    return Holder(station, f"ben {request.node.name}")


def done(vendor: TaskVendor, holder: Holder, path: str = "/mj/submit/imagine", **doc: Any) -> str:
    id_ = holder.submit(path, **(doc or {"prompt": "a fox"}))
    vendor.move(id_, "succeeded")
    return id_


def button(holder: Holder, id_: str, label: str) -> str:
    buttons = holder.ask("GET", f"/mj/task/{id_}/fetch").json()["buttons"]
    return str(next(b["customId"] for b in buttons if b["label"] == label))


def test_an_imagine_is_charged_once_and_shown_to_nobody_else(station, vendor, ada, ben):
    id_ = ada.submit("/mj/submit/imagine", prompt="a fox", notifyHook="", accountFilter={"modes": ["FAST"]})
    job = vendor.job(id_)
    assert job.headers["mj-api-secret"] and "authorization" not in job.headers
    assert "accountFilter" not in job.body and ada.key not in str(job.headers)
    assert ada.ask("GET", f"/mj/task/{id_}/fetch").json()["status"] == "NOT_START"
    foreign = ben.ask("GET", f"/mj/task/{id_}/fetch")
    assert (foreign.status_code, foreign.json()["code"], foreign.json()["result"]) == (404, 4, "")
    vendor.move(id_, "succeeded")
    for _ in range(3):
        assert ada.ask("GET", f"/mj/task/{id_}/fetch").json()["status"] == "SUCCESS"
    assert ada.bills(1) == [("mj_imagine", 10, "complete")]


def test_nobody_has_to_ask_for_a_task_to_be_charged_or_to_be_free(vendor, ada):
    done(vendor, ada)
    failed = ada.submit("/mj/submit/imagine", prompt="a fox")
    vendor.move(failed, "failed")
    queued = ada.submit("/mj/submit/imagine", prompt="queued")
    vendor.move(queued, "cancelled")
    assert sorted(ada.bills(3)) == [
        ("mj_imagine", 0, "failed"), ("mj_imagine", 0, "upstream_error"), ("mj_imagine", 10, "complete"),
    ]  # fmt: skip


@pytest.mark.parametrize(("word", "code"), [("banned", 24), ("full", 23)])
def test_what_the_vendor_refuses_is_passed_on_and_costs_nothing(vendor, ada, word, code):
    answer = ada.ask("POST", "/mj/submit/imagine", prompt=word)
    assert (answer.status_code, answer.json()["code"]) == (200, code)
    assert ada.bills(1) == [("mj_imagine", 0, "upstream_error")]


def test_buttons_cost_what_they_do_and_go_where_their_task_lives(vendor, ada, ben):
    for _ in range(3):
        grid = done(vendor, ada)
        custom = button(ada, grid, "U2")
        assert ben.ask("POST", "/mj/submit/action", taskId=grid, customId=custom).status_code == 404
        one = done(vendor, ada, "/mj/submit/action", taskId=grid, customId=custom)
        zoom = button(ada, one, "Zoom Out 2x")
        two = done(vendor, ada, "/mj/submit/action", taskId=int(one), customId=zoom)
        vary = done(vendor, ada, "/mj/submit/simple-change", content=f"{grid} V3")
        secrets = {vendor.job(id_).headers["mj-api-secret"] for id_ in (grid, one, two, vary)}
        assert len(secrets) == 1
    assert ben.ask("POST", "/mj/submit/simple-change", content=f"{grid} U1").status_code == 404
    names = [model for model, _, _ in ada.bills(12)]
    assert sorted(set(names)) == ["mj_imagine", "mj_upscale", "mj_variation", "mj_zoom"]


@pytest.mark.parametrize("doc", [{"customId": "MJ::JOB::unheard::1"}, {"customId": 5}, {}])
def test_a_button_without_a_price_is_refused_in_midjourneys_words(vendor, ada, doc):
    grid = done(vendor, ada)
    answer = ada.ask("POST", "/mj/submit/action", taskId=grid, **doc)
    assert (answer.status_code, answer.json()["code"]) == (400, 4)


@pytest.mark.parametrize("id_", [["1"], {"a": 1}, 1.5, True])
def test_an_id_of_another_type_is_refused(ada, id_):
    answer = ada.ask("POST", "/mj/submit/modal", taskId=id_, prompt="x")
    assert (answer.status_code, answer.json()["code"]) == (400, 4)


def test_what_was_asked_for_before_is_charged_once(station, vendor, ada):
    """By double clicks that we know of, and by those that only the vendor does: it answers 21."""
    grid = done(vendor, ada)
    change = {"taskId": grid, "action": "UPSCALE", "index": 2}
    first = ada.submit("/mj/submit/change", **change)
    again = ada.ask("POST", "/mj/submit/change", **change).json()
    assert (again["code"], again["result"]) == (21, first)
    custom = {"taskId": grid, "customId": button(ada, grid, "V1")}
    one, two = (ada.submit("/mj/submit/action", **custom) for _ in range(2))
    assert one == two and len([job for job in vendor.jobs() if job.parent == grid]) == 2
    vendor.move(first, "succeeded")
    vendor.move(one, "succeeded")
    assert ada.submit("/mj/submit/change", **change) == first
    bills = [(model, cost) for model, cost, _ in ada.bills(5) if model != "mj_imagine"]
    assert sorted(bills) == [("mj_upscale", 0), ("mj_upscale", 0), ("mj_upscale", 2), ("mj_variation", 3)]
    sql = "SELECT hold_nanos FROM binding b JOIN account a ON a.id = b.account WHERE hold_nanos > 0"
    assert asyncio.run(station.rows(f"{sql} AND a.name = '{ada.name}'")) == []


def test_a_task_that_is_anothers_is_neither_charged_nor_given(old, ada, ben):
    assert ben.submit("/old/mj/submit/imagine", prompt="a fox") == "77"
    old.code = 21
    for _ in range(3):
        assert ada.submit("/old/mj/submit/imagine", prompt="a fox") == "77"
        assert ada.ask("GET", "/old/mj/task/77/fetch").status_code == 404
    assert ada.bills(3) == [("mj_imagine", 0, "complete")] * 3
    for _ in range(3):
        assert ben.submit("/old/mj/submit/imagine", prompt="a fox") == "77"
        assert ben.ask("GET", "/old/mj/task/77/fetch").status_code == 200
    assert ben.bills(3) == [("mj_imagine", 0, "complete")] * 3


def test_a_modal_is_charged_and_what_led_to_it_is_not(vendor, ada):
    grid = done(vendor, ada)
    one = done(vendor, ada, "/mj/submit/action", taskId=grid, customId=button(ada, grid, "U1"))
    waiting = ada.ask("POST", "/mj/submit/action", taskId=one, customId=button(ada, one, "Vary (Region)"))
    assert waiting.json()["code"] == 21
    id_ = waiting.json()["result"]
    assert ada.ask("GET", f"/mj/task/{id_}/fetch").json()["status"] == "MODAL"
    assert ada.submit("/mj/submit/modal", taskId=id_, prompt="a hat", maskBase64="eA==") == id_
    vendor.move(id_, "succeeded")
    bills = ada.bills(4)
    assert ("mj_modal", 7, "complete") in bills
    assert [cost for model, cost, _ in bills if model == "mj_inpaint"] == [0]


def test_a_mode_has_its_own_price_and_the_same_tasks(vendor, ada):
    id_ = ada.submit("/mj-turbo/mj/submit/imagine", prompt="a fox")
    assert vendor.job(id_).target == "/mj-turbo/mj/submit/imagine"
    other = ada.submit("/turbo/mj/submit/imagine", prompt="a fox")
    assert vendor.job(other).target == "/mj-turbo/mj/submit/imagine"
    vendor.move(id_, "succeeded")
    assert ada.ask("GET", f"/mj/task/{id_}/fetch").json()["status"] == "SUCCESS"
    assert ada.bills(1) == [("mj_imagine-turbo", 9, "complete")]


def test_lists_show_an_account_its_own(vendor, ada, ben):
    foreign = ben.submit("/mj/submit/imagine", prompt="a bear")
    ids = [ada.submit("/mj/submit/imagine", prompt=f"fox {n}") for n in range(3)]
    assert [task["id"] for task in ada.ask("GET", "/mj/task/list").json()] == ids[::-1]
    page = ada.ask("GET", "/mj/task/page?pageNum=2&pageSize=2").json()
    assert ([task["id"] for task in page["list"]], page["total"], page["pageNum"]) == ([ids[0]], 3, 2)
    before = vendor.job(foreign).polls
    for path in ("/mj/task/list-by-condition", "/mj/task/list-by-ids"):
        shown = ada.ask("POST", path, ids=[foreign, *ids, "nobodys"])
        assert {task["id"] for task in shown.json()} == set(ids), shown.text
        assert ben.ask("POST", path, ids=ids).json() == []
    assert vendor.job(foreign).polls == before or vendor.job(foreign).state == "queued"
    vendor.move(ids[0], "succeeded")

    def queue() -> Any:
        queued = {task["id"] for task in ada.ask("GET", "/mj/task/queue").json()}
        return queued == set(ids[1:])

    wait_for(queue, "a queue without what is over")
    ada.ask("POST", "/mj/task/list-by-condition", ids=ids)
    assert ada.bills(1) == [("mj_imagine", 10, "complete")]


def test_a_cancelled_task_is_free_and_a_seed_is_its_owners(vendor, ada, ben):
    id_ = ada.submit("/mj/submit/imagine", prompt="a fox")
    assert ben.ask("POST", f"/mj/task/{id_}/cancel").status_code == 404
    assert ada.ask("POST", f"/mj/task/{id_}/cancel").json()["code"] == 1
    assert ada.bills(1) == [("mj_imagine", 0, "failed")]
    grid = done(vendor, ada)
    assert ada.ask("GET", f"/mj/task/{grid}/image-seed").json()["result"]
    assert ben.ask("GET", f"/mj/task/{grid}/image-seed").status_code == 404
    assert ada.ask("GET", f"/mj/image/{grid}").content.startswith(b"\x89PNG")
    assert requests.get(f"{ada.station.url}/mj/image/{grid}?key={ada.key}", timeout=60).status_code == 200
    assert ben.ask("GET", f"/mj/image/{grid}").status_code == 404
    assert requests.get(f"{ada.station.url}/mj/image/{grid}", timeout=60).status_code == 401


def test_what_is_no_task_is_charged_when_it_is_answered(vendor, ada):
    pictures = {"base64Array": ["data:image/png;base64,eA=="]}
    answer = ada.ask("POST", "/mj/submit/upload-discord-images", **pictures)
    assert answer.json()["code"] == 1 and isinstance(answer.json()["result"], list)
    assert ada.bills(1) == [("mj_upload", 1, "complete")]


def test_every_other_submit_is_a_task(vendor, ada):
    picture = "data:image/png;base64,eA=="
    submits: list[tuple[str, dict[str, Any]]] = [
        ("/mj/submit/blend", {"base64Array": [picture, picture], "dimensions": "SQUARE"}),
        ("/mj/submit/describe", {"base64": picture}),
        ("/mj/submit/shorten", {"prompt": "a very long fox"}),
        ("/mj/submit/edits", {"prompt": "a hat", "image": picture}),
        ("/mj/submit/video", {"prompt": "it runs", "image": picture, "motion": "low"}),
        ("/mj/insight-face/swap", {"sourceBase64": picture, "targetBase64": picture}),
    ]
    for path, doc in submits:
        done(vendor, ada, path, **doc)
    bills = {model: cost for model, cost, _ in ada.bills(len(submits))}
    assert bills == {
        "mj_blend": 3, "mj_describe": 3, "mj_shorten": 3, "mj_edits": 3, "mj_video": 3, "swap_face": 4,
    }  # fmt: skip


# -- Suno ------------------------------------------------------------------------------------------


def test_songs_belong_to_who_ordered_them_and_so_do_their_clips(vendor, ada, ben):
    id_ = done(vendor, ada, "/suno/submit/music", gpt_description_prompt="rain", mv="chirp-v4")
    assert vendor.job(id_).headers["authorization"].startswith("Bearer ")
    shown = ada.ask("GET", f"/suno/fetch/{id_}").json()
    assert shown["data"]["status"] == "SUCCESS"
    clip = shown["data"]["data"][0]["id"]
    more = {"prompt": "more", "task_id": id_, "continue_clip_id": clip, "continue_at": 30, "mv": "chirp-v4"}
    refused = ben.ask("POST", "/suno/submit/music", **more)
    assert (refused.status_code, refused.json()["code"]) == (404, "task_not_exist")
    longer = done(vendor, ada, "/suno/submit/music", **more)
    clip = ada.ask("GET", f"/suno/fetch/{longer}").json()["data"]["data"][0]["id"]
    assert ben.ask("POST", "/suno/submit/concat", clip_id=clip, is_infill=False).status_code == 404
    whole = done(vendor, ada, "/suno/submit/concat", clip_id=clip, is_infill=False)
    words = done(vendor, ada, "/suno/submit/lyrics", prompt="rain")
    both = ada.ask("POST", "/suno/fetch", ids=[whole, words, "nobodys"]).json()
    assert (both["code"], {t["task_id"] for t in both["data"]}) == ("success", {whole, words})
    assert ben.ask("POST", "/suno/fetch", ids=[whole]).json()["data"] == []
    bills = ada.bills(4)
    assert [cost for _, cost, _ in bills] == [5] * 4
    assert [model for model, _, _ in bills] == ["suno_music", "suno_music", "suno_concat", "suno_lyrics"]


def test_a_family_may_charge_for_the_try(vendor, ada):
    id_ = ada.submit("/suno/submit/lyrics", prompt="rain")
    vendor.move(id_, "failed")
    assert ada.bills(1) == [("suno_lyrics", 5, "upstream_error")]
    vendor.move(id_, "succeeded")
    assert ada.ask("GET", f"/suno/fetch/{id_}").json()["data"]["status"] == "SUCCESS"
    sql = f"SELECT state, hold_nanos FROM binding WHERE vendor_id = '{id_}'"
    assert asyncio.run(ada.station.rows(sql)) == [{"state": "settled", "hold_nanos": 0}]


def test_no_money_is_lost_or_made_up(station):
    assert asyncio.run(station.violations()) == []
