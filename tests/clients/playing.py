"""Plays an example of a station's document and holds it against what must be true of it.

Looked at: what the vendor was asked (path, credential, body), what the client got (the same bytes), the bill.
The examples of openai 0.28 need a venv of their own: with HEADRACE_CLIENTS=all (`make clients`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any, NamedTuple

import pytest
import requests

from tests.clients.documents import Example, examples
from tests.clients.emulated import Emulated
from tests.clients.venvs import python_with
from tests.fakes.upstream_server import stream, whole

EXAMPLES = examples()
YUAN = 1_000_000_000
CHAT = "/v1/chat/completions"
ASK = [{"role": "user", "content": "Say this is a test!"}]
LONG = [{"role": "user", "content": "a " * 5000}]
QUESTION = "What is the answer?"
SPOKEN = b"ID3\x04" + bytes(range(256)) * 100
RECORDING = b"\xff\xfb\x90\x00" + b"\x55" * 47_996  # three seconds of 128 kbit/s
PICTURE = b'{"created":1,"data":[{"url":"https://pictures.test/1.png"}]}'
HI = {"index": 0, "message": {"role": "assistant", "content": "Hello there"}, "finish_reason": "stop"}
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "as the vendor says",
        "choices": [HI],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
).encode()  # fmt: skip

# Nanos of a token of gpt-3.5-turbo in yuan: its official price in USD x 7.2, before any multiplier.
TURBO_IN, TURBO_OUT = 3_600, 10_800


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


def examples_of(station: str) -> set[str]:
    return {name for name in EXAMPLES if name.startswith(f"{station}: ")}


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
    if "embedding, curl" in example.name:
        return answer_of(EXAMPLES["apigpt: embedding, openai 0.28"])
    content = example.answer.encode() or ANSWER
    return content, [whole(content)]


def play(playing: Emulated, name: str, facts: Facts) -> None:
    """One example as it is printed, but for the listed slips."""
    example = EXAMPLES[name]
    if example.language == "shell" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    python = python_for(example)
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


# -- beside the examples ---------------------------------------------------------------------------


def chat(playing: Emulated, path: str = CHAT, **asked: Any) -> requests.Response:
    """A chat; `...` leaves a member out."""
    doc = {"messages": ASK, **asked}
    return playing.post(path, {name: value for name, value in doc.items() if value is not ...})


def assert_refused(
    playing: Emulated, answer: requests.Response, param: str | None, asked_before: int
) -> None:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(playing.vendor.requests) == asked_before
