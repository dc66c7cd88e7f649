"""The relay in front of real servers: llama.cpp's (xllamacpp) and aimock.

What they send must arrive as it is, and what they report must be what is billed. Skips where one of
them cannot be installed.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.clients.access import Access
from tests.clients.venvs import node_program, python_with
from tests.station import Station, free_port
from tests.waiting import DEADLINE_S, wait_for

UPSTREAMS = Path(__file__).parent / "upstreams"
SAY = "Say this is a test!"

# What differs between two answers to one question, because the server makes it anew each time.
MADE_ANEW = re.compile(rb'"(?:id|created)":\s*(?:"[^"]*"|\d+)|,?"timings":\{[^}]*\}|"cached_tokens":\d+')


@dataclass(frozen=True, slots=True)
class Relayed:
    """The same question can be put to a server directly and through the relay."""

    access: Access
    direct: dict[str, str]  # environment name -> base URL


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A server that ends with the block; its standard input is closed to end it."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def llama(folder: Path) -> Iterator[str]:
    command = [python_with("llama"), str(UPSTREAMS / "llama_server.py"), str(folder)]
    with running(command) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "llama.cpp did not start"
        wait_until_it_answers(url + "/health")
        yield url


@contextmanager
def aimock(*flags: str) -> Iterator[str]:
    port = free_port()
    fixtures = str(UPSTREAMS / "aimock.json")
    program = node_program("@copilotkit/aimock", "llmock")
    with running([program, "--port", str(port), "--fixtures", fixtures, "--log-level", "silent", *flags]):
        url = f"http://127.0.0.1:{port}"
        wait_until_it_answers(url + "/v1/models")
        yield url


def wait_until_it_answers(url: str) -> None:
    def answers() -> bool:
        try:
            requests.get(url, timeout=DEADLINE_S)
        except requests.ConnectionError:
            return False
        return True

    wait_for(answers, f"{url} answers")


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relayed]:
    folder = tmp_path_factory.mktemp("real")
    with ExitStack() as stack:
        direct = {
            "LLAMA": stack.enter_context(llama(folder)),
            "MOCK": stack.enter_context(aimock()),
            "BUSY": stack.enter_context(aimock("--chaos-ratelimit", "1")),
            "BROKEN": stack.enter_context(aimock("--chaos-disconnect", "1")),
        }
        station = Station(folder / "data", (UPSTREAMS / "routes.yaml").read_text(), environ=direct)
        stack.callback(station.start().stop)
        yield Relayed(Access(station.url, asyncio.run(station.customer("tester"))), direct)


def ask(base_url: str, path: str, body: dict[str, Any], key: str = "") -> requests.Response:
    headers = {"Authorization": f"Bearer {key}", "anthropic-version": "2023-06-01"}
    return requests.post(base_url + path, json=body, headers=headers, timeout=DEADLINE_S)


def chat(model: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": SAY}]
    return {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0, **more}


def receipt(access: Access, answer: requests.Response) -> dict[str, Any]:
    """The receipt of a call, once it is settled."""
    url = f"{access.base_url}/v1/receipts/{answer.headers['x-request-id']}"
    headers = {"Authorization": f"Bearer {access.key}"}

    def found() -> dict[str, Any] | None:
        there = requests.get(url, headers=headers, timeout=DEADLINE_S)
        return dict(there.json()) if there.status_code == 200 else None

    return wait_for(found, "the receipt")


def tokens_in(usage: dict[str, int]) -> int:
    return sum(usage.get(bucket, 0) for bucket in ("input", "cache_read", "cache_write_5m", "cache_write_1h"))


# (the server, path, model as the client names it, model as the server knows it)
SERVERS = [
    ("LLAMA", "/v1/chat/completions", "tiny", "tiny"),
    ("LLAMA", "/v1/messages", "tiny-messages", "tiny"),
    ("MOCK", "/v1/chat/completions", "mock", "mock"),
    ("MOCK", "/v1/messages", "mock-messages", "mock-messages"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("server", "path", "model", "model_there"), SERVERS)
def test_what_the_server_sends_is_what_arrives(relayed, server, path, model, model_there, stream):
    there = ask(relayed.direct[server], path, chat(model_there, stream=stream))
    here = ask(relayed.access.base_url, path, chat(model, stream=stream), relayed.access.key)
    assert here.status_code == there.status_code == 200, here.text
    assert here.headers["content-type"] == there.headers["content-type"]
    assert MADE_ANEW.sub(b"", here.content) == MADE_ANEW.sub(b"", there.content)


@pytest.mark.parametrize(("server", "path", "model", "_there"), SERVERS)
def test_what_the_server_reports_is_what_is_billed(relayed, server, path, model, _there):
    answer = ask(relayed.access.base_url, path, chat(model), relayed.access.key)
    reported = answer.json()["usage"]
    billed = receipt(relayed.access, answer)
    assert billed["provenance"] == "final"
    if "prompt_tokens" in reported:
        assert tokens_in(billed["usage"]) == reported["prompt_tokens"]
        assert billed["usage"]["output"] == reported["completion_tokens"]
    else:
        assert billed["usage"]["input"] == reported["input_tokens"]
        assert billed["usage"].get("cache_read", 0) == reported.get("cache_read_input_tokens", 0)
        assert billed["usage"]["output"] == reported["output_tokens"]


@pytest.mark.parametrize(("server", "path", "model", "_there"), SERVERS)
def test_a_stream_costs_what_the_whole_answer_costs(relayed, server, path, model, _there):
    """Although the client did not ask for usage and is shown none."""
    whole = ask(relayed.access.base_url, path, chat(model), relayed.access.key)
    stream = ask(relayed.access.base_url, path, chat(model, stream=True), relayed.access.key)
    billed = [receipt(relayed.access, answer) for answer in (whole, stream)]
    assert [b["provenance"] for b in billed] == ["final", "final"]
    assert tokens_in(billed[0]["usage"]) == tokens_in(billed[1]["usage"])
    assert billed[0]["usage"]["output"] == billed[1]["usage"]["output"]


def test_azure_style_goes_out_in_azure_style(relayed):
    path = "/openai/deployments/mock-azure/chat/completions?api-version=2024-10-21"
    here = ask(relayed.access.base_url, path, chat("ignored"), relayed.access.key)
    there = ask(relayed.direct["MOCK"], path.replace("mock-azure", "a-deployment"), chat("ignored"))
    assert here.status_code == 200, here.text
    assert here.json()["choices"] == there.json()["choices"]


def test_a_busy_server_is_told_without_its_name(relayed):
    answer = ask(relayed.access.base_url, "/v1/chat/completions", chat("busy"), relayed.access.key)
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "upstream_rate_limited"
    assert int(answer.headers["retry-after"]) >= 1
    assert "aimock" not in answer.text.lower()
    assert "chaos" not in answer.text.lower()


def test_a_server_that_hangs_up_is_a_bad_gateway(relayed):
    answer = ask(relayed.access.base_url, "/v1/chat/completions", chat("broken"), relayed.access.key)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"].startswith("upstream_")
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_failover_passes_the_busy_and_the_broken(relayed, stream):
    body = chat("failover", stream=stream)
    answer = ask(relayed.access.base_url, "/v1/chat/completions", body, relayed.access.key)
    assert answer.status_code == 200, answer.text
    assert receipt(relayed.access, answer)["provenance"] == "final"


def test_many_at_once_are_all_billed(relayed):
    """llama.cpp closes its connection after a stream: each of these needs a fresh one."""
    answers = [
        ask(relayed.access.base_url, "/v1/chat/completions", chat("tiny", stream=True), relayed.access.key)
        for _ in range(10)
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content.rstrip().rsplit(b"\n", 1)[-1] for answer in answers} == {b"data: [DONE]"}
    assert {receipt(relayed.access, answer)["usage"]["output"] for answer in answers} == {12}
