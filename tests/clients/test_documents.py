"""Every example of the four stations' documents, against the station of that name and emulated vendors.

Looked at: what the vendor was asked (path, credential, body), what the client got (the same bytes), the bill.
The examples of openai 0.28 need a venv of their own: with HEADRACE_CLIENTS=all (`make clients`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.clients.documents import Example, examples
from tests.clients.emulated import Start, stations
from tests.clients.venvs import python_with
from tests.conftest import Databases
from tests.fakes.upstream_server import stream, whole

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

EXAMPLES = examples()
QUESTION = "What is the answer?"
SPOKEN = b"ID3\x04" + bytes(range(256)) * 100
RECORDING = b"\xff\xfb\x90\x00" + b"\x55" * 47_996  # three seconds of 128 kbit/s
HI = {"index": 0, "message": {"role": "assistant", "content": "Hello there"}, "finish_reason": "stop"}
CHAT = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "as the vendor says",
        "choices": [HI],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
)  # fmt: skip

# Nanos of a token in the stations' currency: official prices in USD x 7.2, before the multiplier.
TURBO_IN, TURBO_OUT = 3_600, 10_800
ADA = 720
CLAUDE_IN, CLAUDE_OUT = 57_600, 172_800
AZURE = "/openai/deployments/{}/{}?api-version=2024-10-21"
AZURE_CHAT = AZURE.format("gpt-35-turbo", "chat/completions")
AZURE_COMPLETION = AZURE.format("gpt-35-turbo", "completions")
AZURE_EMBEDDING = AZURE.format("text-embedding-ada-002", "embeddings")


class Facts(NamedTuple):
    """What must be true of an example. `sent` is the body of a Python program; curl's is in the command."""

    target: str
    credential: str  # what the vendor's key begins with
    prints: str
    model: str
    usage: dict[str, int]
    cost_nanos: int
    sent: dict[str, Any] | None = None


def turbo(into: int, out: int) -> tuple[str, dict[str, int], int]:
    return "gpt-3.5-turbo", {"input": into, "output": out, "calls": 1}, into * TURBO_IN + out * TURBO_OUT


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


AZURE_KEY, OPENAI_KEY, CHAT_PATH = "AZURE_", "OPENAI_API_KEY", "/v1/chat/completions"
HELLO = "Say this message is from apigpt.cloud!"
HELPFUL = {"role": "system", "content": "你是个有帮助的助手"}
ASSISTANT = {"role": "system", "content": "You are a helpful assistant."}
AS_GPT_35 = ("gpt-35-turbo", *turbo(10, 2)[1:])
EMBEDDED = ("text-embedding-ada-002", {"input": 8, "calls": 1}, 8 * ADA)
TEST = "This is a test!"

FACTS = {
    "apigpt: azure chat, openai 0.28": Facts(
        AZURE_CHAT, AZURE_KEY, "Hello there", *AS_GPT_35, {"messages": [user(HELLO)]}
    ),
    "apigpt: azure chat, curl": Facts(AZURE_CHAT, AZURE_KEY, "", *AS_GPT_35),
    "apigpt: first request, curl": Facts(AZURE_CHAT, AZURE_KEY, '"gpt-35-turbo"', *turbo(18, 18)),
    "apigpt: first request, openai 0.28": Facts(
        AZURE_CHAT, AZURE_KEY, "Hello there", *turbo(10, 2),
        {"model": "gpt-3.5-turbo", "messages": [user("Hello world")], "temperature": 1, "max_tokens": 1000},
    ),
    "apigpt: chat, openai 0.28": Facts(
        AZURE_CHAT, AZURE_KEY, '"model": "gpt-35-turbo"', *turbo(14, 10),
        {"model": "gpt-3.5-turbo", "messages": [ASSISTANT, user("Hello!")]},
    ),
    "apigpt: chat, curl": Facts(AZURE_CHAT, AZURE_KEY, "", *turbo(10, 2)),
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
    "rcouyi: chat, curl": Facts(CHAT_PATH, OPENAI_KEY, TEST, *turbo(13, 5)),
    "rcouyi: chat, openai 0.28": Facts(
        CHAT_PATH, OPENAI_KEY, TEST, *turbo(13, 5),
        {"model": "gpt-3.5-turbo", "messages": [HELPFUL, user("你好么")]},
    ),
    "rcouyi: chat, requests": Facts(
        CHAT_PATH, OPENAI_KEY, TEST, *turbo(13, 5),
        {"model": "gpt-3.5-turbo", "messages": [user("Say this is a test!")], "temperature": 0.7},
    ),
    "rcouyi: stream, openai 1.x": Facts(
        CHAT_PATH, OPENAI_KEY, "Full conversation received: 你好。", *turbo(19, 13)
    ),
    "rcouyi: chat with Claude, curl": Facts(
        CHAT_PATH, "ANTHROPIC_API_KEY", "", "claude-2.1", {"input": 10, "output": 2, "calls": 1},
        10 * CLAUDE_IN + 2 * CLAUDE_OUT,
    ),
    "rcouyi: speech, curl": Facts(
        "/v1/audio/speech", OPENAI_KEY, "", "tts-1", {"characters": 3, "calls": 1}, 3 * 108_000
    ),
    "rcouyi: transcription, curl": Facts(
        "/v1/audio/transcriptions", OPENAI_KEY, "Imagine the wildest idea", "whisper-1",
        {"seconds_ms": 3000, "calls": 1}, 3 * 720_000,
    ),
    # What officially costs 1 is billed 0.5 there.
    "ohmygpt: chat, requests": Facts(
        CHAT_PATH, OPENAI_KEY, "Hello there", "gpt-3.5-turbo", turbo(10, 2)[1], turbo(10, 2)[2] // 2,
        {"messages": [user(QUESTION)], "model": "gpt-3.5-turbo"},
    ),
    "api4gpt: chat, curl": Facts(CHAT_PATH, OPENAI_KEY, TEST, *turbo(13, 7)),
}  # fmt: skip


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Iterator[Start]:
    with stations(tmp_path_factory, databases) as start:
        yield start


def python_for(example: Example) -> str:
    if "0.28" not in example.name:
        return sys.executable
    if os.environ.get("HEADRACE_CLIENTS") != "all":
        pytest.skip("only with `make clients`")
    return python_with("openai-0.28")


def answer_of(example: Example) -> tuple[bytes, list[Any]]:
    """What the document prints, or what such a call is answered, as content and as a vendor sends it."""
    if "speech" in example.name:
        return SPOKEN, [whole(SPOKEN, kind="audio/mpeg")]
    if "stream" in example.name:
        content = (example.answer + "\n\n").encode()
        return content, stream(content, cuts=(10, 200, 201, 640))
    printed = example.answer
    if "embedding, curl" in example.name:
        printed = EXAMPLES["apigpt: embedding, openai 0.28"].answer
    content = (printed or CHAT).encode()
    return content, [whole(content)]


def test_every_example_of_the_documents_is_played():
    assert set(EXAMPLES) == {*FACTS, "rcouyi: models, curl"}


@pytest.mark.parametrize("name", FACTS)
def test_an_example_works_as_printed(station: Start, name: str) -> None:
    facts, example = FACTS[name], EXAMPLES[name]
    python = python_for(example)
    playing = station(name.partition(":")[0])
    content, answer = answer_of(example)
    playing.answers(facts.target.partition("?")[0], *answer)
    recording = playing.scratch / "audio.mp3"
    recording.write_bytes(RECORDING)
    text = example.at(playing.station.url, playing.key, recording)
    said = playing.run(example.language, text, python, QUESTION)

    if "--output" in example.text:
        assert (playing.scratch / "speech.mp3").read_bytes() == content
    elif example.language == "shell":
        assert said == content
    assert facts.prints in said.decode()

    asked = playing.asked
    assert (asked.method, asked.target) == ("POST", facts.target)
    told = asked.header(b"api-key") or (asked.header(b"authorization") or b"").removeprefix(b"Bearer ")
    assert told.startswith(b"sk-upstream-" + facts.credential.encode())
    assert not any(playing.key.encode() in value for _, value in asked.headers)
    assert playing.key.encode() not in asked.body
    assert (asked.header(b"content-type") or b"").partition(b";")[0] in (
        b"application/json",
        b"multipart/form-data",
    )
    if example.sent:
        assert asked.body == example.sent.encode()
    if facts.sent is not None:
        assert json.loads(asked.body) == facts.sent

    bill = playing.bill()
    assert (bill["model"], bill["usage"], bill["cost_nanos"]) == (facts.model, facts.usage, facts.cost_nanos)
    assert bill["provenance"] == "final"


def test_the_models_are_those_that_the_document_lists(station: Start) -> None:
    playing = station("rcouyi")
    example = EXAMPLES["rcouyi: models, curl"]
    listed = json.loads(playing.run("shell", example.at(playing.station.url, playing.key, playing.scratch)))
    documented = (
        "gpt-3.5-turbo gpt-4 gpt-4-1106-preview gpt-4-all gpt-4-vision-preview bing claude-2.1 gemini-pro"
    )
    documented += " chatglm_pro SparkDesk qwen-plus ERNIE-Bot-4"
    assert set(documented.split()) <= {model["id"] for model in listed["data"]}
