"""API4GPT: its documentation's example, pictures by model, size and quality, models sold by the call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.clients.documents import menu
from tests.clients.emulated import Emulated, emulated
from tests.clients.playing import (
    ANSWER,
    CHAT,
    PICTURE,
    YUAN,
    Facts,
    chat,
    examples_of,
    play,
    turbo,
)
from tests.conftest import Databases
from tests.fakes.upstream_server import whole
from tests.waiting import DEADLINE_S

FACTS = {
    "api4gpt: chat, curl": Facts(CHAT, "OPENAI_API_KEY", "This is a test!", *turbo(13, 7)),
}  # fmt: skip


@pytest.fixture(scope="module")
def api4gpt(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Emulated]:
    with emulated("api4gpt", tmp_path_factory.mktemp("api4gpt"), databases.take()) as running:
        yield running


def test_every_example_of_the_document_is_played() -> None:
    assert examples_of("api4gpt") == set(FACTS)


def test_every_entry_of_the_menu_is_tried() -> None:
    """Each is named by the test that tries it, those of tasks in test_api4gpt_tasks."""
    tests = "".join((Path(__file__).with_name(f"test_api4gpt{of}.py")).read_text() for of in ("", "_tasks"))
    assert len(menu("api4gpt")) == 52
    assert [entry for entry in menu("api4gpt") if f'"{entry}"' not in tests] == []


@pytest.mark.parametrize("name", FACTS)
def test_an_example_works_as_printed(api4gpt: Emulated, name: str) -> None:
    """Entry: "聊天接口(Chat)/聊天接口"."""
    play(api4gpt, name, FACTS[name])


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


def test_it_prices_pictures_by_model_size_and_quality(api4gpt: Emulated) -> None:
    """Entries: "DALL·E 3", "Stable-Diffusion", "Flux/图片生成(普通flux)", "Flux/图片生成(kontext)"."""
    api4gpt.answers("/v1/images/generations", whole(PICTURE))
    for model, asked, _ in DRAWN:
        doc = {"model": model, "prompt": "a cat", **asked}
        assert api4gpt.post("/v1/images/generations", doc).content == PICTURE
    bills = [(bill["model"], bill["cost_nanos"]) for bill in api4gpt.bills(len(DRAWN))]
    assert bills == [(model, fen * YUAN // 100) for model, _, fen in DRAWN]


def test_it_edits_pictures_with_flux_kontext_and_gpt_image_1(api4gpt: Emulated) -> None:
    """Entries: "Flux/图片编辑(kontext)", "gpt-image-1/Image-1 编辑"."""
    usage = {"input_tokens": 10, "output_tokens": 272, "total_tokens": 282}
    answers = {
        "flux-kontext-pro": PICTURE,
        "gpt-image-1": json.dumps({"data": [{}], "usage": usage}).encode(),
    }
    credentials = {"flux-kontext-pro": "FLUX_KEY", "gpt-image-1": "OPENAI_API_KEY"}
    costs = {"flux-kontext-pro": 40 * YUAN // 100, "gpt-image-1": 10 * 36_000 + 272 * 288_000}
    for model, content in answers.items():
        api4gpt.answers("/v1/images/edits", whole(content))
        answer = requests.post(
            api4gpt.station.url + "/v1/images/edits",
            data={"model": model, "prompt": "with a hat"},
            files={"image": ("cat.png", b"\x89PNG" + bytes(5000), "image/png")},
            headers={"authorization": f"Bearer {api4gpt.key}"},
            timeout=DEADLINE_S,
        )
        assert answer.content == content
        assert api4gpt.asked.header(b"authorization") == f"Bearer sk-upstream-{credentials[model]}".encode()
        assert bytes(5000) in api4gpt.asked.body
        assert api4gpt.bill()["cost_nanos"] == costs[model]


@pytest.mark.parametrize(("model", "fen"), [("gpt-4-all", 30), ("gpt-4-gizmo-g-2fkFE8rbu", 40)])
def test_it_sells_what_is_no_vendors_api_by_the_call(api4gpt: Emulated, model: str, fen: int) -> None:
    """Entries: "聊天接口(Chat)/gpts", "聊天接口(Chat)/gpt-4-all(分析图片)", "gpt-4-all(生成图片)"."""
    api4gpt.answers(CHAT, whole(ANSWER))
    assert chat(api4gpt, model=model).content == ANSWER
    assert api4gpt.asked.header(b"authorization") == b"Bearer sk-upstream-WEB_STATION_KEY"
    assert json.loads(api4gpt.asked.body)["model"] == model
    assert api4gpt.bill()["cost_nanos"] == fen * YUAN // 100


def test_it_completes_embeds_speaks_and_translates(api4gpt: Emulated) -> None:
    """Entries: "自动补全接口(Completions)/内容补全接口", "向量生成接口(Embeddings)/创建嵌入",
    "音频接口(Audio)/TTS文本转语音", "音频接口(Audio)/创建翻译"."""
    used = b'{"object":"x","usage":{"prompt_tokens":10,"completion_tokens":2}}'
    calls = {
        "completions": ({"model": "gpt-3.5-turbo-instruct", "prompt": "I am a"}, 10 * 10_800 + 2 * 14_400),
        "embeddings": ({"model": "text-embedding-3-small", "input": "x"}, 10 * 144),
        "audio/speech": ({"model": "tts-1-hd", "input": "你好啊", "voice": "alloy"}, 3 * 216_000),
    }
    for path, (doc, _) in calls.items():
        api4gpt.answers(f"/v1/{path}", whole(used))
        assert api4gpt.post(f"/v1/{path}", doc).content == used
    api4gpt.answers("/v1/audio/translations", whole(b'{"text":"Hello","duration":2.5}'))
    answer = requests.post(
        api4gpt.station.url + "/v1/audio/translations",
        data={"model": "whisper-1", "response_format": "verbose_json"},
        files={"file": ("a.mp3", b"\xff\xfb\x90\x00" + bytes(5000), "audio/mpeg")},
        headers={"authorization": f"Bearer {api4gpt.key}"},
        timeout=DEADLINE_S,
    )
    assert answer.json()["text"] == "Hello"
    costs = [bill["cost_nanos"] for bill in api4gpt.bills(len(calls) + 1)]
    assert costs == [*(cost for _, cost in calls.values()), 5 * 720_000 // 2]


SEEN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.mark.parametrize(
    ("model", "credential", "target"),
    [
        ("gemini-pro", "GEMINI_API_KEY", "/v1beta/openai/chat/completions"),
        ("gpt-4-vision-preview", "OPENAI_API_KEY", CHAT),
    ],
)
def test_it_chats_with_other_vendors_and_about_pictures(
    api4gpt: Emulated, model: str, credential: str, target: str
) -> None:
    """Entries: "聊天接口(Chat)/gemini-pro", "聊天接口(Chat)/gpt-4-vision-preview"."""
    api4gpt.answers(target, whole(ANSWER))
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, SEEN]}]
    assert chat(api4gpt, model=model, messages=messages, max_tokens=100).content == ANSWER
    assert api4gpt.asked.target == target
    assert api4gpt.asked.header(b"authorization") == f"Bearer sk-upstream-{credential}".encode()
    assert json.loads(api4gpt.asked.body)["messages"] == messages
    bill = api4gpt.bill()
    assert bill["model"] == model and bill["cost_nanos"] > 0


def test_it_draws_with_gpt_image_1_and_transcribes(api4gpt: Emulated) -> None:
    """Entries: "gpt-image-1/Image-1 生成", "音频接口(Audio)/创建转录"."""
    usage = {"input_tokens": 10, "output_tokens": 272, "total_tokens": 282}
    drawn = json.dumps({"data": [{"b64_json": "iVBORw0KGgo="}], "usage": usage}).encode()
    api4gpt.answers("/v1/images/generations", whole(drawn))
    assert api4gpt.post("/v1/images/generations", {"model": "gpt-image-1", "prompt": "x"}).content == drawn
    api4gpt.answers("/v1/audio/transcriptions", whole(b'{"text":"Hello","duration":2.5}'))
    answer = requests.post(
        api4gpt.station.url + "/v1/audio/transcriptions",
        data={"model": "whisper-1", "response_format": "verbose_json"},
        files={"file": ("a.mp3", b"\xff\xfb\x90\x00" + bytes(5000), "audio/mpeg")},
        headers={"authorization": f"Bearer {api4gpt.key}"},
        timeout=60,
    )
    assert answer.json()["text"] == "Hello"
    costs = [bill["cost_nanos"] for bill in api4gpt.bills(2)]
    assert costs == [10 * 36_000 + 272 * 288_000, 5 * 720_000 // 2]
