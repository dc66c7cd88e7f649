"""What the four stations promise beside their examples: parameters, prices, tiers, base URLs, all vendors."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from proxy.store.catalog import Catalog
from tests.clients.documents import examples
from tests.clients.emulated import Emulated, Start, stations
from tests.conftest import Databases
from tests.fakes.upstream_server import stream, whole

YUAN = 1_000_000_000
CHAT = "/v1/chat/completions"
AZURE_CHAT = "/openai/deployments/gpt-35-turbo/chat/completions"
ASK = [{"role": "user", "content": "Say this is a test!"}]
ANSWER = json.dumps(
    {"id": "c1", "object": "chat.completion", "model": "m", "choices": [{"message": {"content": "Hi"}}],
     "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}}
).encode()  # fmt: skip
PICTURE = b'{"created":1,"data":[{"url":"https://pictures.test/1.png"}]}'
LONG = [{"role": "user", "content": "a " * 5000}]


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Start]:
    with stations(tmp_path_factory, databases) as start:
        yield start


def chat(playing: Emulated, path: str = CHAT, **asked: Any) -> requests.Response:
    doc = {"messages": ASK, **asked}
    return playing.post(path, {name: value for name, value in doc.items() if value is not ...})


def assert_refused(
    playing: Emulated, answer: requests.Response, param: str | None, asked_before: int
) -> None:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(playing.vendor.requests) == asked_before


# -- apigpt ----------------------------------------------------------------------------------------

UNSUPPORTED = {"top_p": 0.5, "n": 2, "stop": ["x"], "presence_penalty": 1, "frequency_penalty": -1,
               "logit_bias": {"50256": -100}, "user": "u"}  # fmt: skip
UNSUPPORTED_IN_CHAT = UNSUPPORTED | {
    "functions": [],
    "function_call": "auto",
    "tools": [],
    "temperature": 2.1,
}
UNSUPPORTED_IN_COMPLETIONS = UNSUPPORTED | {"suffix": "s", "logprobs": 1, "echo": True, "best_of": 2}


@pytest.mark.parametrize("path", [CHAT, AZURE_CHAT])
def test_apigpt_refuses_the_parameters_that_it_does_not_support(station: Start, path: str) -> None:
    playing = station("apigpt")
    before = len(playing.vendor.requests)
    for param, value in UNSUPPORTED_IN_CHAT.items():
        assert_refused(playing, chat(playing, path, **{param: value}), param, before)
    for messages, param in (([], "messages"), ([{"role": "user"}], "messages[0].content")):
        assert_refused(playing, chat(playing, path, messages=messages), param, before)
    answer = chat(playing, path, messages=LONG, model="gpt-3.5-turbo")
    assert_refused(playing, answer, None, before)
    error = answer.json()["error"]
    assert error.get("innererror", error)["code"] == "context_length_exceeded"


def test_apigpt_refuses_them_in_completions_and_embeddings_too(station: Start) -> None:
    playing = station("apigpt")
    before = len(playing.vendor.requests)
    for param, value in UNSUPPORTED_IN_COMPLETIONS.items():
        answer = playing.post("/v1/completions", {"prompt": "I am a", param: value})
        assert_refused(playing, answer, param, before)
    assert_refused(playing, playing.post("/v1/embeddings", {"input": "x", "user": "u"}), "user", before)


def test_apigpt_lets_pass_what_changes_nothing(station: Start) -> None:
    playing = station("apigpt")
    playing.answers(AZURE_CHAT, whole(ANSWER))
    plain = {
        "top_p": 1,
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "stop": None,
        "temperature": 2,
    }
    assert chat(playing, **plain).content == ANSWER
    assert json.loads(playing.asked.body) == {"messages": ASK, **plain}
    assert playing.bill()["model"] == "gpt-3.5-turbo"


@pytest.mark.parametrize("path", [CHAT, AZURE_CHAT, AZURE_CHAT + "?api-version=version", "//v1" + CHAT + "/"])
@pytest.mark.parametrize("header", ["api-key", "authorization"])
def test_apigpt_takes_either_header_on_either_path(station: Start, path: str, header: str) -> None:
    playing = station("apigpt")
    playing.answers(AZURE_CHAT, whole(ANSWER))
    key = playing.key if header == "api-key" else f"Bearer {playing.key}"
    answer = requests.post(
        playing.station.url + path, json={"messages": ASK}, headers={header: key}, timeout=60
    )
    assert (answer.status_code, answer.content) == (200, ANSWER)
    assert playing.asked.header(b"authorization") is None
    playing.bill()


def test_apigpt_draws_with_its_own_stable_diffusion_and_serves_no_other_apis(station: Start) -> None:
    playing = station("apigpt")
    playing.answers("/v1/images/generations", whole(PICTURE))
    for size, fen in (("512x512", 5), ("1024x1024", 10), (None, 10)):
        asked = {"model": "stable-diffusion-xl", "prompt": "a cat"} | ({"size": size} if size else {})
        assert playing.post("/v1/images/generations", asked).content == PICTURE
        assert playing.asked.header(b"authorization") == b"Bearer sk-upstream-SD_KEY"
        assert playing.bill()["cost_nanos"] == fen * YUAN // 100
    asked = {"model": "dall-e-3", "prompt": "a cat", "input": "x"}
    for path in ("images/generations", "audio/speech", "moderations", "files", "edits", "fine_tuning/jobs"):
        assert playing.post(f"/v1/{path}", asked).status_code == 404


# -- rcouyi ----------------------------------------------------------------------------------------

REFUSED = [
    ({"temperature": 1.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"n": 6}, "n"),
    ({"n": 0}, "n"),
    ({"n": 2, "temperature": 0}, "n"),
    ({"n": 5, "temperature": 0.01}, "n"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
    ({"messages": [*ASK, {"role": "assistant", "content": None}]}, "messages[1].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"model": "gpt-4", "messages": LONG, "max_tokens": 4096}, "max_tokens"),
]
TAKEN = [
    {"temperature": 0, "n": 1},
    {"temperature": 1, "n": 5},
    {"temperature": 0.3, "n": 2},
    {"n": 5, "temperature": ...},
    {"model": "gpt-4", "messages": LONG, "max_tokens": 3000},
    {"top_p": 0.5, "stop": "x", "user": "u"},
]


def test_rcouyi_holds_requests_to_its_description_of_parameters(station: Start) -> None:
    playing = station("rcouyi")
    before = len(playing.vendor.requests)
    for asked, param in REFUSED:
        assert_refused(playing, chat(playing, **{"model": "gpt-3.5-turbo", **asked}), param, before)
    for asked in ({"speed": 5}, {"voice": "nobody"}, {"response_format": "wav"}, {"input": ""}):
        doc = {"model": "tts-1", "input": "你好啊", "voice": "alloy"} | asked
        assert_refused(playing, playing.post("/v1/audio/speech", doc), *asked, before)
    playing.answers(CHAT, whole(ANSWER))
    for asked in TAKEN:
        assert chat(playing, **{"model": "gpt-3.5-turbo", **asked}).status_code == 200, asked
        playing.bill()


# model -> (path there, variable of the credential, its name there)
VENDORS = {
    "gpt-3.5-turbo": (CHAT, "OPENAI_API_KEY", "gpt-3.5-turbo"),
    "gpt-4": (CHAT, "OPENAI_API_KEY", "gpt-4"),
    "gpt-4-1106-preview": (CHAT, "OPENAI_API_KEY", "gpt-4-1106-preview"),
    "gpt-4-all": (CHAT, "WEB_STATION_KEY", "gpt-4-all"),
    "gpt-4-vision-preview": (CHAT, "OPENAI_API_KEY", "gpt-4-vision-preview"),
    "bing": (CHAT, "WEB_STATION_KEY", "bing"),
    "claude-2.1": (CHAT, "ANTHROPIC_API_KEY", "claude-2.1"),
    "gemini-pro": ("/v1beta/openai/chat/completions", "GEMINI_API_KEY", "gemini-pro"),
    "chatglm_pro": ("/api/paas/v4/chat/completions", "ZHIPU_API_KEY", "glm-4-plus"),
    "SparkDesk": (CHAT, "SPARK_API_PASSWORD", "generalv3.5"),
    "qwen-plus": ("/compatible-mode/v1/chat/completions", "DASHSCOPE_API_KEY", "qwen-plus"),
    "ERNIE-Bot-4": ("/v2/chat/completions", "QIANFAN_API_KEY", "ernie-4.0-8k"),
}
BY_CALL = {"gpt-4-all": 30, "bing": 5}  # fen


@pytest.mark.parametrize("model", VENDORS)
def test_rcouyi_reaches_every_vendor_by_the_name_of_the_model_alone(station: Start, model: str) -> None:
    playing = station("rcouyi")
    path, credential, there = VENDORS[model]
    playing.answers(path, whole(ANSWER))
    answer = chat(playing, model=model, temperature=0.7)
    assert (answer.status_code, answer.content) == (200, ANSWER)
    assert playing.asked.target == path
    assert (playing.asked.header(b"authorization") or b"").startswith(
        f"Bearer sk-upstream-{credential}".encode()
    )
    assert json.loads(playing.asked.body) == {"messages": ASK, "model": there, "temperature": 0.7}
    bill = playing.bill()
    assert bill["model"] == model
    if model in BY_CALL:
        assert bill["cost_nanos"] == BY_CALL[model] * YUAN // 100
    else:
        assert bill["usage"] == {"input": 10, "output": 2, "calls": 1} and bill["cost_nanos"] > 0


@pytest.mark.parametrize("path", [CHAT, "/chat/completions", "//chat/completions", "/v1/v1/chat/completions"])
def test_rcouyi_streams_the_documents_bytes_whatever_the_base_url(station: Start, path: str) -> None:
    """Its usage is inside of the last choice."""
    playing = station("rcouyi")
    content = (examples()["rcouyi: stream, openai 1.x"].answer + "\n\n").encode()
    playing.vendor.script(CHAT, stream(content, cuts=(1, 190, 191, 700)))
    answer = chat(playing, path, model="gpt-4-all", stream=True)
    assert answer.content == content
    assert answer.headers["content-type"] == "text/event-stream"
    assert json.loads(playing.asked.body) == {"messages": ASK, "model": "gpt-4-all", "stream": True}
    bill = playing.bill()
    assert bill["usage"] == {"input": 19, "output": 13, "calls": 1}
    assert (bill["stream"], bill["cost_nanos"], bill["events"]) == (True, 30 * YUAN // 100, 5)


# -- ohmygpt ---------------------------------------------------------------------------------------


def test_ohmygpt_lists_its_base_urls_and_knows_them_by_host(station: Start) -> None:
    playing = station("ohmygpt")
    playing.answers(CHAT, whole(ANSWER))
    holder = {"authorization": f"Bearer {playing.key}"}
    listed = requests.get(playing.station.url + "/endpoints", headers=holder, timeout=60).json()
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
        assert playing.post(CHAT, doc, host=host).status_code == 200
        assert playing.bill()["endpoint"] == endpoint


def test_ohmygpt_answers_401_without_credit_or_permission_and_gives_vip_for_20_yuan(station: Start) -> None:
    playing = station("ohmygpt")
    playing.answers(CHAT, whole(ANSWER))
    key = asyncio.run(playing.station.customer("newcomer", 0))
    turbo, gpt_4 = ({"model": model, "messages": ASK} for model in ("gpt-3.5-turbo", "gpt-4"))

    until(200, playing, turbo, key)  # the free amount of an account that was just made comes in a moment
    bill = playing.bill()
    assert bill["tier"] == "Free"
    assert bill["free_nanos"] == bill["cost_nanos"] == (10 * 3_600 + 2 * 10_800) // 2

    refused = playing.post(CHAT, gpt_4, key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "model_not_permitted")
    refused = playing.post(CHAT, turbo | {"n": 100}, key)  # a hundred answers are more than the free amount
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "insufficient_quota")

    asyncio.run(_top_up(playing, "newcomer", 20 * YUAN))
    until(200, playing, gpt_4, key)
    bill = playing.bill()
    # 10 and 2 tokens at 30 and 60 USD a million, times 7.2, times 0.5.
    assert (bill["tier"], bill["cost_nanos"]) == ("VIP", (10 * 216_000 + 2 * 432_000) // 2)


def until(status: int, playing: Emulated, doc: dict[str, Any], key: str) -> None:
    deadline = time.monotonic() + 30
    while (answer := playing.post(CHAT, doc, key)).status_code != status and time.monotonic() < deadline:
        time.sleep(0.1)
    assert answer.status_code == status, answer.text


async def _top_up(playing: Emulated, account: str, nanos: int) -> None:
    database = await playing.station.open_database()
    try:
        await Catalog(database).top_up(account, nanos, "R1")
    finally:
        await database.close()


# -- api4gpt ---------------------------------------------------------------------------------------

DRAWN = [
    ("dall-e-3", {}, 30),
    ("dall-e-3", {"size": "1024x1024"}, 30),
    ("dall-e-3", {"size": "1792x1024", "quality": "standard"}, 60),
    ("dall-e-3", {"quality": "hd"}, 60),
    ("dall-e-3", {"size": "1024x1792", "quality": "hd"}, 90),
    ("flux-dev", {"n": 1}, 20),
    ("flux-kontext-pro", {"aspect_ratio": "16:9"}, 40),
    ("stable-diffusion-3", {}, 15),
]


def test_api4gpt_prices_pictures_by_model_size_and_quality(station: Start) -> None:
    playing = station("api4gpt")
    playing.answers("/v1/images/generations", whole(PICTURE))
    for model, asked, fen in DRAWN:
        doc = {"model": model, "prompt": "a cat", **asked}
        assert playing.post("/v1/images/generations", doc).content == PICTURE
        bill = playing.bill()
        assert (bill["model"], bill["cost_nanos"]) == (model, fen * YUAN // 100)


def test_api4gpt_edits_pictures_with_flux_kontext_and_gpt_image_1(station: Start) -> None:
    playing = station("api4gpt")
    usage = {"input_tokens": 10, "output_tokens": 272, "total_tokens": 282}
    answers = {
        "flux-kontext-pro": PICTURE,
        "gpt-image-1": json.dumps({"data": [{}], "usage": usage}).encode(),
    }
    credentials = {"flux-kontext-pro": "FLUX_KEY", "gpt-image-1": "OPENAI_API_KEY"}
    costs = {"flux-kontext-pro": 40 * YUAN // 100, "gpt-image-1": 10 * 36_000 + 272 * 288_000}
    for model, content in answers.items():
        playing.answers("/v1/images/edits", whole(content))
        answer = requests.post(
            playing.station.url + "/v1/images/edits",
            data={"model": model, "prompt": "with a hat"},
            files={"image": ("cat.png", b"\x89PNG" + bytes(5000), "image/png")},
            headers={"authorization": f"Bearer {playing.key}"},
            timeout=60,
        )
        assert answer.content == content
        assert playing.asked.header(b"authorization") == f"Bearer sk-upstream-{credentials[model]}".encode()
        assert bytes(5000) in playing.asked.body
        assert playing.bill()["cost_nanos"] == costs[model]


@pytest.mark.parametrize(("model", "fen"), [("gpt-4-all", 30), ("gpt-4-gizmo-g-2fkFE8rbu", 40)])
def test_api4gpt_sells_what_is_no_vendors_api_by_the_call(station: Start, model: str, fen: int) -> None:
    playing = station("api4gpt")
    playing.answers(CHAT, whole(ANSWER))
    assert chat(playing, model=model).content == ANSWER
    assert playing.asked.header(b"authorization") == b"Bearer sk-upstream-WEB_STATION_KEY"
    assert json.loads(playing.asked.body)["model"] == model
    assert playing.bill()["cost_nanos"] == fen * YUAN // 100
