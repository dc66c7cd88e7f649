"""apigpt.cloud: its handbook's examples, the parameters that it does not support, both kinds of path."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import requests

from tests.clients.emulated import Emulated, emulated
from tests.clients.playing import (
    ANSWER,
    ASK,
    CHAT,
    LONG,
    PICTURE,
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
from tests.waiting import DEADLINE_S

AZURE = "/openai/deployments/{}/{}?api-version=2024-10-21"
AZURE_CHAT_TARGET = AZURE.format("gpt-35-turbo", "chat/completions")
AZURE_COMPLETION = AZURE.format("gpt-35-turbo", "completions")
AZURE_EMBEDDING = AZURE.format("text-embedding-ada-002", "embeddings")
AZURE_CHAT = AZURE_CHAT_TARGET.partition("?")[0]
AZURE_KEY = "AZURE_"  # of one of the two regions
HELLO = "Say this message is from apigpt.cloud!"
ASSISTANT = {"role": "system", "content": "You are a helpful assistant."}
AS_GPT_35 = ("gpt-35-turbo", *turbo(10, 2)[1:])
EMBEDDED = ("text-embedding-ada-002", {"input": 8, "calls": 1}, 8 * 720)

FACTS = {
    "apigpt: azure chat, openai 0.28": Facts(
        AZURE_CHAT_TARGET, AZURE_KEY, "Hello there", *AS_GPT_35, {"messages": [user(HELLO)]}
    ),
    "apigpt: azure chat, curl": Facts(AZURE_CHAT_TARGET, AZURE_KEY, "", *AS_GPT_35),
    "apigpt: first request, curl": Facts(AZURE_CHAT_TARGET, AZURE_KEY, '"gpt-35-turbo"', *turbo(18, 18)),
    "apigpt: first request, openai 0.28": Facts(
        AZURE_CHAT_TARGET, AZURE_KEY, "Hello there", *turbo(10, 2),
        {"model": "gpt-3.5-turbo", "messages": [user("Hello world")], "temperature": 1, "max_tokens": 1000},
    ),
    "apigpt: chat, openai 0.28": Facts(
        AZURE_CHAT_TARGET, AZURE_KEY, '"model": "gpt-35-turbo"', *turbo(14, 10),
        {"model": "gpt-3.5-turbo", "messages": [ASSISTANT, user("Hello!")]},
    ),
    "apigpt: chat, curl": Facts(AZURE_CHAT_TARGET, AZURE_KEY, "", *turbo(10, 2)),
    "apigpt: completion, openai 0.28": Facts(
        AZURE_COMPLETION, AZURE_KEY, '"text": " 20 year old female and I"', *turbo(3, 7),
        {"model": "gpt-3.5-turbo", "prompt": "I am a", "max_tokens": 7, "temperature": 0},
    ),
    "apigpt: completion, curl": Facts(AZURE_COMPLETION, AZURE_KEY, "", *turbo(10, 2)),
    "apigpt: embedding, openai 0.28": Facts(
        AZURE_EMBEDDING, AZURE_KEY, "-0.009327292", *EMBEDDED,
        {"model": "text-embedding-ada-002", "input": "The food was delicious and the waiter...",
         "encoding_format": "base64"},
    ),
    "apigpt: embedding, curl": Facts(AZURE_EMBEDDING, AZURE_KEY, "", *EMBEDDED),
}  # fmt: skip


@pytest.fixture(scope="module")
def apigpt(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Emulated]:
    with emulated("apigpt", tmp_path_factory.mktemp("apigpt"), databases.take()) as running:
        yield running


def test_every_example_of_the_document_is_played() -> None:
    assert examples_of("apigpt") == set(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_an_example_works_as_printed(apigpt: Emulated, name: str) -> None:
    play(apigpt, name, FACTS[name])


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
def test_it_refuses_the_parameters_that_it_does_not_support(apigpt: Emulated, path: str) -> None:
    before = len(apigpt.vendor.requests)
    for param, value in UNSUPPORTED_IN_CHAT.items():
        assert_refused(apigpt, chat(apigpt, path, **{param: value}), param, before)
    for messages, param in (([], "messages"), ([{"role": "user"}], "messages[0].content")):
        assert_refused(apigpt, chat(apigpt, path, messages=messages), param, before)
    answer = chat(apigpt, path, messages=LONG, model="gpt-3.5-turbo")
    assert_refused(apigpt, answer, None, before)
    error = answer.json()["error"]
    assert error.get("innererror", error)["code"] == "context_length_exceeded"


def test_it_refuses_them_in_completions_and_embeddings_too(apigpt: Emulated) -> None:
    before = len(apigpt.vendor.requests)
    for param, value in UNSUPPORTED_IN_COMPLETIONS.items():
        answer = apigpt.post("/v1/completions", {"prompt": "I am a", param: value})
        assert_refused(apigpt, answer, param, before)
    assert_refused(apigpt, apigpt.post("/v1/embeddings", {"input": "x", "user": "u"}), "user", before)


def test_it_lets_pass_what_changes_nothing(apigpt: Emulated) -> None:
    apigpt.answers(AZURE_CHAT, whole(ANSWER))
    plain = {
        "top_p": 1,
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "stop": None,
        "temperature": 2,
    }
    assert chat(apigpt, **plain).content == ANSWER
    assert json.loads(apigpt.asked.body) == {"messages": ASK, **plain}
    assert apigpt.bill()["model"] == "gpt-3.5-turbo"


@pytest.mark.parametrize("path", [CHAT, AZURE_CHAT, AZURE_CHAT + "?api-version=version", "//v1" + CHAT + "/"])
@pytest.mark.parametrize("header", ["api-key", "authorization"])
def test_it_takes_either_header_on_either_path(apigpt: Emulated, path: str, header: str) -> None:
    apigpt.answers(AZURE_CHAT, whole(ANSWER))
    key = apigpt.key if header == "api-key" else f"Bearer {apigpt.key}"
    answer = requests.post(
        apigpt.station.url + path, json={"messages": ASK}, headers={header: key}, timeout=DEADLINE_S
    )
    assert (answer.status_code, answer.content) == (200, ANSWER)
    assert apigpt.asked.header(b"authorization") is None
    apigpt.bill()


def test_its_streams_end_with_done_and_show_no_usage_that_nobody_asked_for(apigpt: Emulated) -> None:
    begin = b'data: {"choices":[],"prompt_filter_results":[]}\n\n'
    text = b'data: {"model":"gpt-35-turbo","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12}}\n\n'
    done = b"data: [DONE]\n\n"
    apigpt.vendor.script(AZURE_CHAT, stream(begin + text + end + usage + done, cuts=(9, 70, 200)))
    assert chat(apigpt, stream=True).content == begin + text + end + done
    asked = {"messages": ASK, "stream": True, "stream_options": {"include_usage": True}}
    assert json.loads(apigpt.asked.body) == asked
    assert apigpt.bill()["cost_nanos"] == turbo(10, 2)[2]


def test_it_draws_with_its_own_stable_diffusion_and_serves_no_other_apis(apigpt: Emulated) -> None:
    apigpt.answers("/v1/images/generations", whole(PICTURE))
    for size, fen in (("512x512", 5), ("1024x1024", 10), (None, 10)):
        asked = {"model": "stable-diffusion-xl", "prompt": "a cat"} | ({"size": size} if size else {})
        assert apigpt.post("/v1/images/generations", asked).content == PICTURE
        assert apigpt.asked.header(b"authorization") == b"Bearer sk-upstream-SD_KEY"
        assert apigpt.bill()["cost_nanos"] == fen * YUAN // 100
    asked = {"model": "dall-e-3", "prompt": "a cat", "input": "x"}
    for path in ("images/generations", "audio/speech", "moderations", "files", "edits", "fine_tuning/jobs"):
        assert apigpt.post(f"/v1/{path}", asked).status_code == 404
