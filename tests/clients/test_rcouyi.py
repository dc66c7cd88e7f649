"""rcouyi: its page's examples, its rules for parameters, every vendor by the model's name alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.clients.emulated import Emulated, emulated
from tests.clients.playing import (
    ANSWER,
    ASK,
    CHAT,
    EXAMPLES,
    LONG,
    YUAN,
    Facts,
    assert_refused,
    chat,
    examples_of,
    play,
    turbo,
    user,
)
from tests.conftest import Databases
from tests.fakes.upstream_server import stream, whole

OPENAI_KEY = "OPENAI_API_KEY"
HELPFUL = {"role": "system", "content": "你是个有帮助的助手"}
TEST = "This is a test!"
CLAUDE_IN, CLAUDE_OUT = 57_600, 172_800

FACTS = {
    "rcouyi: chat, curl": Facts(CHAT, OPENAI_KEY, TEST, *turbo(13, 5)),
    "rcouyi: chat, openai 0.28": Facts(
        CHAT, OPENAI_KEY, TEST, *turbo(13, 5),
        {"model": "gpt-3.5-turbo", "messages": [HELPFUL, user("你好么")]},
    ),
    "rcouyi: chat, requests": Facts(
        CHAT, OPENAI_KEY, TEST, *turbo(13, 5),
        {"model": "gpt-3.5-turbo", "messages": [user("Say this is a test!")], "temperature": 0.7},
    ),
    "rcouyi: stream, openai 1.x": Facts(
        CHAT, OPENAI_KEY, "Full conversation received: 你好。", *turbo(19, 13)
    ),
    "rcouyi: chat with Claude, curl": Facts(
        CHAT, "ANTHROPIC_API_KEY", "", "claude-2.1", {"input": 10, "output": 2, "calls": 1},
        10 * CLAUDE_IN + 2 * CLAUDE_OUT,
    ),
    "rcouyi: speech, curl": Facts(
        "/v1/audio/speech", OPENAI_KEY, "", "tts-1", {"characters": 3, "calls": 1}, 3 * 108_000
    ),
    "rcouyi: transcription, curl": Facts(
        "/v1/audio/transcriptions", OPENAI_KEY, "Imagine the wildest idea", "whisper-1",
        {"seconds_ms": 3000, "calls": 1}, 3 * 720_000,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def rcouyi(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Emulated]:
    with emulated("rcouyi", tmp_path_factory.mktemp("rcouyi"), databases.take()) as running:
        yield running


def test_every_example_of_the_document_is_played() -> None:
    assert examples_of("rcouyi") == {*FACTS, "rcouyi: models, curl"}


@pytest.mark.parametrize("name", FACTS)
def test_an_example_works_as_printed(rcouyi: Emulated, name: str) -> None:
    play(rcouyi, name, FACTS[name])


def test_the_models_are_those_that_the_document_lists(rcouyi: Emulated) -> None:
    example = EXAMPLES["rcouyi: models, curl"]
    listed = json.loads(rcouyi.run("shell", example.at(rcouyi.station.url, rcouyi.key, rcouyi.scratch)))
    assert VENDORS.keys() <= {model["id"] for model in listed["data"]}


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


def test_it_holds_requests_to_its_description_of_parameters(rcouyi: Emulated) -> None:
    before = len(rcouyi.vendor.requests)
    for asked, param in REFUSED:
        assert_refused(rcouyi, chat(rcouyi, **{"model": "gpt-3.5-turbo", **asked}), param, before)
    for asked in ({"speed": 5}, {"voice": "nobody"}, {"response_format": "wav"}, {"input": ""}):
        doc = {"model": "tts-1", "input": "你好啊", "voice": "alloy"} | asked
        assert_refused(rcouyi, rcouyi.post("/v1/audio/speech", doc), *asked, before)
    rcouyi.answers(CHAT, whole(ANSWER))
    for asked in TAKEN:
        assert chat(rcouyi, **{"model": "gpt-3.5-turbo", **asked}).status_code == 200, asked
    rcouyi.bills(len(TAKEN))


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
def test_it_reaches_every_vendor_by_the_name_of_the_model_alone(rcouyi: Emulated, model: str) -> None:
    path, credential, there = VENDORS[model]
    rcouyi.answers(path, whole(ANSWER))
    answer = chat(rcouyi, model=model, temperature=0.7)
    assert (answer.status_code, answer.content) == (200, ANSWER)
    assert rcouyi.asked.target == path
    assert (rcouyi.asked.header(b"authorization") or b"").startswith(
        f"Bearer sk-upstream-{credential}".encode()
    )
    assert json.loads(rcouyi.asked.body) == {"messages": ASK, "model": there, "temperature": 0.7}
    bill = rcouyi.bill()
    assert bill["model"] == model
    if model in BY_CALL:
        assert bill["cost_nanos"] == BY_CALL[model] * YUAN // 100
    else:
        assert bill["usage"] == {"input": 10, "output": 2, "calls": 1} and bill["cost_nanos"] > 0


@pytest.mark.parametrize("path", [CHAT, "/chat/completions", "//chat/completions", "/v1/v1/chat/completions"])
def test_it_streams_the_documents_bytes_whatever_the_base_url(rcouyi: Emulated, path: str) -> None:
    """Its usage is inside of the last choice."""
    content = (EXAMPLES["rcouyi: stream, openai 1.x"].answer + "\n\n").encode()
    rcouyi.vendor.script(CHAT, stream(content, cuts=(1, 190, 191, 700)))
    answer = chat(rcouyi, path, model="gpt-4-all", stream=True)
    assert answer.content == content
    assert answer.headers["content-type"] == "text/event-stream"
    assert json.loads(rcouyi.asked.body) == {"messages": ASK, "model": "gpt-4-all", "stream": True}
    bill = rcouyi.bill()
    assert bill["usage"] == {"input": 19, "output": 13, "calls": 1}
    assert (bill["stream"], bill["cost_nanos"], bill["events"]) == (True, 30 * YUAN // 100, 5)
