"""`headrace conform` finds what differs, tells what it cannot replay, and leaves nothing out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from proxy.cli import main
from proxy.conform import live, recordings, replay, report, verdict
from proxy.conform.recordings import Recording
from proxy.conform.verdict import Outcome, Result
from proxy.demo.app import make_app
from proxy.dialects import DIALECTS
from proxy.metering.usage import Usage
from proxy.routing.table import HeaderPolicy
from tests.conftest import Databases

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
TOLD = {"input_tokens_all": 11, "output_tokens_all": 7}
ANSWER = {"id": "c1", "object": "chat.completion", "model": "m", "choices": [], "usage": USAGE}
DONE = {
    "type": "response.done",
    "response": {"id": "r1", "usage": {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}},
}
SESSION = [
    {"dir": "server", "kind": "text", "data": '{"type":"session.created"}'},
    {"dir": "client", "kind": "text", "data": '{"type":"response.create"}'},
    {"dir": "server", "kind": "text", "data": json.dumps(DONE)},
]


def recorded(**other: Any) -> dict[str, Any]:
    """A recording as it lies on disk."""
    return {
        "family": "somebody",
        "method": "POST",
        "url_host": "llm.example.com",
        "path": "/v1/chat/completions",
        "request_headers": {"Content-Type": "application/json", "Authorization": "Bearer REDACTED"},
        "request_body": '{"model":"m","messages":[{"role":"user","content":"Hi"}]}',
        "status": 200,
        "response_headers": {"Content-Type": "application/json"},
        "response_body": json.dumps(ANSWER),
        "response_body_encoding": "text",
        "expected": {"protocol": "openai.chat", "stream": False, **TOLD},
        "expected_detail": {"error": None},
        **other,
    }


RECORDINGS = {
    "right": recorded(),
    "wrong figures": recorded(expected={"protocol": "openai.chat", "input_tokens_all": 12}),
    "a prefix of a gateway's": recorded(path="/gateway/v7/chat/completions"),
    "a path of its own": recorded(path="/speak/to/me"),
    "nowhere": recorded(path="/v9/nowhere", expected={"protocol": "nobody.knows"}),
    "a key that is wrong": recorded(status=401, response_body='{"error":{"message":"no"}}', expected=None),
    "a request that is wrong": recorded(status=400, response_body='{"error":{"code":"x"}}', expected=None),
    "no usage": recorded(response_body='{"choices":[{"message":{"content":"Hello"}}]}', expected=None),
    "an upload": recorded(
        path="/v1/audio/transcriptions",
        request_headers={"Content-Type": "multipart/form-data; boundary=x"},
        request_body="",
        response_body='{"text":"Hi","usage":{"type":"duration","seconds":4}}',
        expected={"protocol": "openai.transcriptions", "audio_seconds": 4},
    ),
    "a thing at the vendor": recorded(
        method="GET", path="/v1/files/file-1/content", request_body="", response_body="{}\n", expected=None
    ),
    "a task of a family's": recorded(
        method="GET", path="/v1/videos/v1", request_body="", response_body='{"status":"done"}', expected=None
    ),
    "a list of models": recorded(method="GET", path="/v1/models", request_body="", expected=None),
    "a session": recorded(
        method="GET",
        path="/v1/realtime?model=m",
        request_body="",
        status=101,
        response_body=None,
        websocket_frames=SESSION,
        expected={"protocol": "realtime", "stream": True, **TOLD},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> dict[str, list[Result]]:
    folder = tmp_path_factory.mktemp("recordings")
    for name, recording in RECORDINGS.items():
        (folder / f"{name}.json").write_text(json.dumps(recording))
    found: dict[str, list[Result]] = {}
    for each in asyncio.run(replay.run(recordings.read(folder), 7, lambda _: None, databases.take())):
        found.setdefault(each.name.removesuffix(".json"), []).append(each)
    return found


def test_every_recording_has_an_outcome(results: dict[str, list[Result]]) -> None:
    assert {name: {str(each.outcome) for each in found} for name, found in results.items()} == {
        "right": {"equal"},
        "wrong figures": {"differs"},
        "a prefix of a gateway's": {"equal"},
        "a path of its own": {"equal"},
        "nowhere": {"unknown"},
        "a key that is wrong": {"mapped"},
        "a request that is wrong": {"equal"},
        "no usage": {"equal"},
        "an upload": {"equal"},
        "a thing at the vendor": {"equal"},
        "a task of a family's": {"equal"},
        "a list of models": {"mapped"},
        "a session": {"equal"},
    }


def test_a_wrong_figure_is_named_and_its_bytes_are_still_equal(results: dict[str, list[Result]]) -> None:
    for each in results["wrong figures"]:
        assert each.bytes_equal and each.usage_equal is False
        assert each.differences == ["input_tokens_all 11, not 12", "output_tokens_all 7, not 0"]


def test_the_table_has_a_row_per_family_and_names_what_is_not_equal(
    results: dict[str, list[Result]],
) -> None:
    every = [each for found in results.values() for each in found]
    table = report.table(every)
    assert "somebody" in table and "no route has POST /v9/nowhere" in table
    (row,) = report.families(every)
    assert (row["recordings"], row["unknown"], row["differs"]) == (len(RECORDINGS), 1, 2)
    assert not report.is_clean(every) and report.is_clean(results["right"])
    assert json.loads(json.dumps(report.document(every)))["clean"] is False
    nowhere = results["nowhere"]
    assert not report.is_clean(nowhere) and report.is_clean(nowhere, {each.name for each in nowhere})


@pytest.mark.parametrize(
    ("dialect", "model"), [("openai", "gpt-4o-mini"), ("anthropic", "claude-sonnet-4-5")]
)
async def test_a_live_upstream_is_called_directly_and_through_the_relay(
    dialect: str, model: str, database_dsn: str
) -> None:
    async with TestServer(make_app("", 0)) as server:
        upstream = live.Upstream(str(server.make_url("")).rstrip("/"), "sk-live-0123456789", model, dialect)
        found = await live.run(upstream, 7, lambda _: None, database_dsn)
    assert report.is_clean(found), report.table(found)
    assert {each.name for each in found} == {"whole", "stream", "refused"}
    assert all(each.bytes_equal for each in found)
    assert all(each.usage_equal for each in found if each.name != "refused")


# -- what counts as a difference -------------------------------------------------------------------


def test_the_first_byte_that_differs_is_told() -> None:
    (told,) = verdict.byte_differences("body", b"data: 1\r\n\r\n", b"data: 1\n\n")
    assert told.startswith("body: 9 bytes, not 11; from 7 on")
    assert list(verdict.byte_differences("body", b"same", b"same")) == []
    assert list(verdict.byte_differences("body", b"longer", b"long"))


def test_a_header_must_pass_by_policy_or_not_at_all() -> None:
    openai = DIALECTS["openai"]
    policy = HeaderPolicy(frozenset(), (), frozenset(), frozenset(), (), frozenset())
    sent = [("content-type", "text/plain"), ("set-cookie", "a=b")]

    def unlike(received: list[tuple[str, str]]) -> list[str]:
        return list(verdict.header_differences(sent, received, openai, policy, openai))

    assert unlike([("content-type", "text/plain"), ("x-request-id", "1")]) == []
    assert unlike([("content-type", "text/html")]) == ["header content-type was lost"]
    assert unlike(sent) == ["header set-cookie passed"]


def test_a_path_of_another_vendor_is_a_difference() -> None:
    assert not list(verdict.path_differences("/chat/completions?a=b", "/v1/chat/completions"))
    assert list(verdict.path_differences("/openai/v1/chat/completions", "/v1/chat/completions"))


def test_an_error_or_a_free_call_costs_nothing_and_a_call_without_a_row_is_told() -> None:
    chat, files = (DIALECTS["openai"].operations[name] for name in ("chat", "files.get"))
    made = Recording("x", "f", "openai.chat", "POST", "", "/", 400)
    charged = {"cost_nanos": 5, "provenance": "final", "usage": Usage(input=1).as_dict()}
    assert list(verdict.bill_differences(made, chat, charged)) == ["an error cost 5 nanos"]
    fine = Recording("x", "f", "openai.chat", "POST", "", "/", 200, is_paid=True)
    assert list(verdict.bill_differences(fine, files, charged)) == ["a free call cost 5 nanos"]
    assert list(verdict.bill_differences(fine, chat, None)) == ["the call was never billed"]
    assert list(verdict.bill_differences(fine, chat, {**charged, "cost_nanos": 0})) == ["it cost 0 nanos"]
    assert verdict.is_mapped(503, b"") and not verdict.is_mapped(404, b"") and not verdict.is_mapped(200, b"")


# -- the command -----------------------------------------------------------------------------------


def test_a_folder_without_recordings_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "--recordings", str(tmp_path)]) == 1
    assert "there is no recording" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert main(["conform", "--recordings", str(tmp_path)]) == 1
    assert "other.json is no recording: KeyError" in capsys.readouterr().err


def test_a_live_upstream_needs_a_key_and_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "--upstream", "http://127.0.0.1:1", "--model", "m"]) == 1
    assert "--key" in capsys.readouterr().err


def test_outcomes_are_words_that_json_has() -> None:
    assert [str(outcome) for outcome in Outcome] == ["equal", "differs", "mapped", "unknown"]
