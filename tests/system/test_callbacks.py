"""A hook never reaches the vendor; what becomes of the task reaches the customer, also over kills."""

from __future__ import annotations

import base64
import hmac
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from proxy.journal.crashpoint import EXIT_STATUS
from tests.conftest import Databases
from tests.fakes.receiver import Receiver
from tests.fakes.task_vendor import Job, TaskVendor
from tests.station import Station, free_port
from tests.waiting import until, wait_for

CONFIG = """
station: {{currency: USD, default_tier: Test}}
endpoints: {{direct: {{url: "http://127.0.0.1:{port}"}}}}
callbacks: {{through: direct, allow: [127.0.0.0/8]}}
tasks: {{midjourney: {{upstream: mj}}}}
upstreams:
  mj:
    dialect: midjourney
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:ONE_KEY}}"}}
prices: {{"*": {{call: 0.01 USD}}}}
tiers: {{Test: {{rank: 0, models: ["*"], limits: {{concurrency: 100}}}}}}
"""


@pytest.fixture(scope="module")
def vendor() -> Iterator[TaskVendor]:
    with TaskVendor() as vendor:
        yield vendor


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where control dies, one crash point a line; each life takes the first out by dying."""
    path = tmp_path_factory.mktemp("script") / "script"
    path.write_text("")
    return path


@pytest.fixture(scope="module")
def station(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, vendor: TaskVendor, script: Path
) -> Iterator[Station]:
    port = free_port()
    data = tmp_path_factory.mktemp("callbacks") / "data"
    station = Station(
        data, CONFIG.format(port=port, url=vendor.url), databases.take(), workers=2, port=port,
        environ={"HEADRACE_CRASH_AT": f"@{script}"},
    )  # fmt: skip
    yield station.start()
    station.kill()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


class Customer:
    """Someone with a key, who submits and looks."""

    def __init__(self, station: Station, key: str) -> None:
        self.station = station
        self.headers = {"Authorization": f"Bearer {key}"}

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        return requests.request(method, self.station.url + path, headers=self.headers, timeout=30, **more)

    def submit(self, **members: Any) -> requests.Response:
        return self.ask("POST", "/mj/submit/imagine", json={"prompt": "a cat", **members})

    def act(self, task: str, button: str, **members: Any) -> requests.Response:
        return self.ask("POST", "/mj/submit/action", json={"taskId": task, "customId": button, **members})


def is_signed(headers: dict[str, str], body: bytes, secret: str) -> bool:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    return headers["webhook-signature"] == "v1," + base64.b64encode(hmac.digest(key, text, "sha256")).decode()


async def test_the_customer_is_told_and_the_vendor_does_not_learn_whom_it_tells(
    station: Station, vendor: TaskVendor, receiver: Receiver
) -> None:
    ada = Customer(station, await station.customer("ada"))
    id_ = ada.submit(notifyHook=f"{receiver.url}/mj?x=1", state="mine").json()["result"]
    job: Job = vendor.job(id_)
    assert job.body["prompt"] == "a cat" and job.body["state"] == "mine"
    assert job.body["notifyHook"].startswith(f"{station.url}/callbacks/")
    assert receiver.url not in str(job)

    wait_for(lambda: receiver.told, "what it began as")
    for percent in (30, 60):
        vendor.move(id_, "running", progress=percent)
        wait_for(lambda p=percent: receiver.told[-1]["progress"] == f"{p}%", "its progress")
    vendor.move(id_, "succeeded")
    wait_for(lambda: receiver.told[-1]["status"] == "SUCCESS", "its end")

    told = [(body["status"], body["progress"]) for body in receiver.told]
    assert told == list(dict.fromkeys(told))
    assert told[-3:] == [("IN_PROGRESS", "30%"), ("IN_PROGRESS", "60%"), ("SUCCESS", "100%")]
    assert receiver.told[-1] == ada.ask("GET", f"/mj/task/{id_}/fetch").json()
    assert set(receiver.tries.values()) == {1}
    secret = ada.ask("GET", "/v1/me/callback-secret").json()["secret"]
    for headers, (_, body) in zip(receiver.headers, receiver.taken, strict=True):
        assert is_signed(headers, body, secret)
        assert not {"authorization", "cookie"} & {name.lower() for name in headers}
    [row] = await station.settled_rows(1)
    assert (row["state"], row["cost_nanos"]) == ("settled", 10_000_000)

    async def all_closed() -> Any:
        events = ada.ask("GET", "/v1/me/callbacks").json()["data"]
        return {event["state"] for event in events} == {"delivered"} and events

    assert len(await until(all_closed, "notes of it")) == len(told)
    assert await station.violations() == []


async def test_a_hook_that_nobody_should_call_is_refused_in_the_callers_dialect(
    station: Station, vendor: TaskVendor
) -> None:
    before = len(vendor.jobs())
    ben = Customer(station, await station.customer("ben"))
    for url in (
        "http://10.0.0.1/",
        "http://169.254.169.254/x",
        "ftp://example.com/",
        "http://u:p@a.example/",
    ):
        answer = ben.submit(notifyHook=url)
        assert (answer.status_code, answer.json()["code"]) == (400, 4), answer.text
    assert len(vendor.jobs()) == before


async def test_a_forged_callback_changes_nothing_and_a_true_one_only_makes_it_due(
    station: Station, vendor: TaskVendor, receiver: Receiver
) -> None:
    cy = Customer(station, await station.customer("cy"))
    id_ = cy.submit(notifyHook=receiver.url).json()["result"]
    url = vendor.job(id_).body["notifyHook"]
    lie = {"id": id_, "status": "SUCCESS", "progress": "100%"}
    assert requests.post(url[:-3] + "AAA", json=lie, timeout=30).status_code == 404
    assert requests.get(url, timeout=30).status_code == 405
    assert requests.post(url, data=b"x" * (5 << 20), timeout=30).status_code == 413
    polls = vendor.job(id_).polls
    answer = requests.post(url, json=lie, timeout=30)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    wait_for(lambda: vendor.job(id_).polls > polls, "a poll")
    assert requests.post(url, json={"challenge": "c1"}, timeout=30).json() == {"challenge": "c1"}
    assert all(body["status"] != "SUCCESS" for body in receiver.told)
    vendor.move(id_, "failed")
    wait_for(lambda: receiver.told and receiver.told[-1]["status"] == "FAILURE", "its end")


async def test_a_free_action_with_a_hook_tells_its_change_and_its_modal_is_charged(
    station: Station, vendor: TaskVendor, receiver: Receiver
) -> None:
    eve = Customer(station, await station.customer("eve"))
    grid = eve.submit().json()["result"]
    vendor.move(grid, "succeeded")

    def picture() -> Any:
        shown = eve.ask("GET", f"/mj/task/{grid}/fetch").json()
        return shown["status"] == "SUCCESS" and shown

    button = next(b for b in wait_for(picture)["buttons"] if b["label"] == "U1")
    single = eve.act(grid, button["customId"]).json()["result"]
    vendor.move(single, "succeeded")
    grid = single
    button = next(b for b in wait_for(picture)["buttons"] if "Inpaint" in b["customId"])
    opened = eve.act(single, button["customId"], notifyHook=receiver.url).json()
    assert opened["code"] == 21
    wait_for(lambda: receiver.told and receiver.told[-1]["status"] == "MODAL", "its window")
    body = {"taskId": opened["result"], "prompt": "a hat", "maskBase64": "data:image/png;base64,AAAA"}
    id_ = eve.ask("POST", "/mj/submit/modal", json=body).json()["result"]
    vendor.move(id_, "succeeded")
    wait_for(lambda: receiver.told[-1]["status"] == "SUCCESS", "its end")
    sql = (
        "SELECT model, cost_nanos FROM usage JOIN account a ON a.id = account"
        " WHERE name = 'eve' AND model <> ''"
    )

    async def billed() -> Any:
        rows = await station.rows(sql)
        return len(rows) == 4 and {row["model"]: row["cost_nanos"] for row in rows}

    costs = await until(billed, "four calls")
    assert costs == {"mj_imagine": 10**7, "mj_upscale": 10**7, "mj_inpaint": 0, "mj_modal": 10**7}
    assert await station.violations() == []


async def test_kills_between_commit_and_sending_and_noting_repeat_an_event_at_most(
    station: Station, vendor: TaskVendor, receiver: Receiver, script: Path
) -> None:
    dan = Customer(station, await station.customer("dan"))

    def deaths() -> int:
        return sum(line["msg"] == "died" and line["status"] == EXIT_STATUS for line in station.log_lines())

    async def run_out() -> None:
        """What the time of a claim does that died with its control."""
        database = await station.open_database()
        await database.execute("UPDATE outbox SET next_try_ms = 0 WHERE state = 'waiting'")
        await database.execute("UPDATE binding SET next_poll_ms = 0 WHERE state = 'pending'")
        await database.close()

    points = ["callback-claimed", "callback-sent"]
    script.write_text("\n".join(points))
    control = station.children()["control"]
    os.kill(control, signal.SIGKILL)
    wait_for(lambda: station.children().get("control", control) != control, "a new control")
    id_ = dan.submit(notifyHook=receiver.url).json()["result"]
    for number in range(1, len(points) + 1):
        wait_for(lambda n=number: deaths() == n, f"death {number}")
        await run_out()
    for state, word in (("running", "IN_PROGRESS"), ("succeeded", "SUCCESS")):
        vendor.move(id_, state)
        await run_out()
        wait_for(lambda w=word: receiver.told and receiver.told[-1]["status"] == w, word)
    events = dict(receiver.taken)
    assert [event for event, _ in receiver.taken] == sorted(event for event, _ in receiver.taken)
    assert max(receiver.tries.values()) >= 2  # it was sent, and nobody could note it
    assert all(body == events[event] for event, body in receiver.taken)
    told = [(body["status"], body["progress"]) for body in receiver.told]
    assert told == list(dict.fromkeys(told))
    assert await station.violations() == []
