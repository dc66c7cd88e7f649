"""OhMyGPT: its FAQ's example, base URLs, multiplier, free amount, VIP by top-up, 401."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from proxy.store.catalog import Catalog
from tests.clients.emulated import Emulated, emulated
from tests.clients.playing import (
    ANSWER,
    ASK,
    CHAT,
    QUESTION,
    YUAN,
    Facts,
    examples_of,
    play,
    turbo,
    user,
)
from tests.conftest import Databases
from tests.fakes.upstream_server import whole
from tests.waiting import DEADLINE_S, wait_for

FACTS = {
    "ohmygpt: chat, requests": Facts(
        CHAT, "OPENAI_API_KEY", "Hello there", "gpt-3.5-turbo", turbo(10, 2)[1], turbo(10, 2)[2] // 2,
        {"messages": [user(QUESTION)], "model": "gpt-3.5-turbo"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def ohmygpt(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Emulated]:
    with emulated("ohmygpt", tmp_path_factory.mktemp("ohmygpt"), databases.take()) as running:
        yield running


def test_every_example_of_the_document_is_played() -> None:
    assert examples_of("ohmygpt") == set(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_an_example_works_as_printed(ohmygpt: Emulated, name: str) -> None:
    play(ohmygpt, name, FACTS[name])


def test_it_lists_its_base_urls_and_knows_them_by_host(ohmygpt: Emulated) -> None:
    ohmygpt.answers(CHAT, whole(ANSWER))
    holder = {"authorization": f"Bearer {ohmygpt.key}"}
    listed = requests.get(ohmygpt.station.url + "/endpoints", headers=holder, timeout=DEADLINE_S).json()
    assert [one["url"] for one in listed["data"]] == [
        "https://api.ohmygpt.com",
        "https://cfcus02.opapi.win",
        "https://cfwus02.opapi.win",
        "https://c-z0-api-01.hash070.com",
        "https://www.aigptx.top",
        "https://cn2us02.opapi.win",
    ]
    for host, endpoint in (("cfcus02.opapi.win", "cdn"), ("aigptx.top", "line-1"), ("x.test", "us")):
        doc = {"model": "gpt-3.5-turbo", "messages": ASK}
        assert ohmygpt.post(CHAT, doc, host=host).status_code == 200
        assert ohmygpt.bill()["endpoint"] == endpoint


def test_it_answers_401_without_credit_or_permission_and_gives_vip_for_20_yuan(ohmygpt: Emulated) -> None:
    ohmygpt.answers(CHAT, whole(ANSWER))
    key = asyncio.run(ohmygpt.station.customer("newcomer", 0))
    turbo, gpt_4 = ({"model": model, "messages": ASK} for model in ("gpt-3.5-turbo", "gpt-4"))

    until(200, ohmygpt, turbo, key)  # the free amount of an account that was just made comes in a moment
    bill = ohmygpt.bill()
    assert bill["tier"] == "Free"
    assert bill["free_nanos"] == bill["cost_nanos"] == (10 * 3_600 + 2 * 10_800) // 2

    refused = ohmygpt.post(CHAT, gpt_4, key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "model_not_permitted")
    refused = ohmygpt.post(CHAT, turbo | {"n": 100}, key)  # a hundred answers are more than the free amount
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "insufficient_quota")

    asyncio.run(_top_up(ohmygpt, "newcomer", 20 * YUAN))
    until(200, ohmygpt, gpt_4, key)
    bill = ohmygpt.bill()
    # 10 and 2 tokens at 30 and 60 USD a million, times 7.2, times 0.5.
    assert (bill["tier"], bill["cost_nanos"]) == ("VIP", (10 * 216_000 + 2 * 432_000) // 2)


def until(status: int, ohmygpt: Emulated, doc: dict[str, Any], key: str) -> None:
    deadline = time.monotonic() + 30
    while (answer := ohmygpt.post(CHAT, doc, key)).status_code != status and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answer.status_code == status, answer.text


async def _top_up(ohmygpt: Emulated, account: str, nanos: int) -> None:
    database = await ohmygpt.station.open_database()
    try:
        await Catalog(database).top_up(account, nanos, f"payment-of-{account}")
    finally:
        await database.close()


def test_midjourney_costs_the_same_in_every_tier_for_no_multiplier_counts(ohmygpt: Emulated) -> None:
    """ "除了midjourney": the official price of chat is halved, Midjourney's is what the file says."""
    asyncio.run(_top_up(ohmygpt, "holder", 20 * YUAN))
    imagine = {"prompt": "a cat", "botType": "MID_JOURNEY"}
    made = wait_for(lambda: (answer := ohmygpt.post("/mj/submit/imagine", imagine)).ok and answer.json())
    job = ohmygpt.tasks.job(made["result"])
    assert (job.target, job.body) == ("/mj/submit/imagine", imagine)
    assert job.headers["mj-api-secret"] == "sk-upstream-MIDJOURNEY_SECRET"
    ohmygpt.tasks.move(job.id, "succeeded")
    grid = ohmygpt.get(f"/mj/task/{job.id}/fetch").json()
    (bill,) = ohmygpt.bills(1, only_charged=True)
    assert (bill["model"], bill["cost_nanos"]) == ("mj_imagine", 30 * YUAN // 100)
    press = {"taskId": job.id, "customId": grid["buttons"][0]["customId"]}
    upscaled = ohmygpt.post("/mj/submit/action", press).json()["result"]
    ohmygpt.tasks.move(upscaled, "succeeded")
    ohmygpt.get(f"/mj/task/{upscaled}/fetch")
    (bill,) = ohmygpt.bills(1, only_charged=True)
    assert (bill["model"], bill["cost_nanos"], bill["tier"]) == ("mj_upscale", 10 * YUAN // 100, "VIP")
