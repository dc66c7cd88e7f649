"""Logs without secrets, numbers that add up, tasks that are owned."""

from __future__ import annotations

import asyncio
import logging

import orjson
import pytest

from proxy import telemetry
from proxy.logs import JsonFormatter, Redactor, redactor
from proxy.telemetry import METRICS, Stats


def line(msg: str, *args: object, **extra: object) -> dict:
    record = logging.getLogger("t").makeRecord("t", logging.INFO, "f", 1, msg, args, None, extra=extra)
    return orjson.loads(JsonFormatter("w0").format(record))


@pytest.mark.parametrize(
    "text",
    [
        "key sk-abcdefghijklmnopqrstuvwx was refused",
        "Authorization: Bearer eyJhbGciOi.SECRETSECRET.x",
        "authorization: Bearer sk-abcdefSECRETSECRETwxyz",
        "{'api-key': 'SECRETSECRET'}",
        '{"x-api-key": "SECRETSECRET0"}',
        "b'api-key': b'SECRETSECRET'",
        "GET /v1beta/models?key=SECRETSECRET HTTP/1.1",
        "mj-api-secret: SECRETSECRET",
        "AIzaSyDSECRETSECRETSECRETSECRETSECRET12",
        "postgresql://user:SECRETSECRET@db/station",
        "x-goog-api-key=SECRETSECRET",
    ],
)
def test_no_spelling_of_a_credential_reaches_the_log(text: str) -> None:
    shown = line("%s", text)["msg"]
    assert "SECRETSECRET" not in shown
    assert "ghijklmnopq" not in shown
    assert "…" in shown


@pytest.mark.parametrize(
    "text",
    [
        "worker w0-0199aabb died with status -9",
        "POST /v1/chat/completions 200 in 12 ms, 120 tokens: 55 in, 65 out",
        "prompt_tokens: 120, completion_tokens=1200000",
    ],
)
def test_ordinary_lines_are_left_alone(text: str) -> None:
    assert line(text)["msg"] == text


def test_known_secrets_are_hidden_by_value_wherever_they_stand() -> None:
    own = Redactor()
    own.conceal(["0123456789abcdef0123456789abcdef", "short"])
    assert own.redact("upstream said 0123456789abcdef0123456789abcdef!") == "upstream said …!"
    assert own.redact("too short to hide") == "too short to hide"


def test_fields_and_tracebacks_are_redacted_too() -> None:
    try:
        raise RuntimeError("sk-abcdefSECRETSECRETwxyz")
    except RuntimeError as e:
        record = logging.getLogger("t").makeRecord(
            "t",
            logging.ERROR,
            "f",
            1,
            "failed",
            (),
            (type(e), e, e.__traceback__),
            extra={"of": "sk-abcSECRETSECRET12"},
        )
    shown = JsonFormatter("control").format(record)
    assert "SECRETSECRET" not in shown
    fields = orjson.loads(shown)
    assert fields["process"] == "control"
    assert "RuntimeError" in fields["error"]
    assert fields["of"].startswith("sk-abc")


def test_an_object_that_is_no_json_is_shown_by_its_type_only() -> None:
    assert line("x", thing=redactor)["thing"] == "<Redactor>"


def test_stats_are_totals_by_name_and_labels() -> None:
    stats = Stats()
    stats.inc("calls_total", "chat", "complete")
    stats.inc("calls_total", "chat", "complete", by=2)
    stats.inc("calls_total", "chat", "failed")
    stats.set("connections", 7)
    stats.set("connections", 5)
    stats.observe("call_seconds", 0.02, "chat")
    stats.observe("call_seconds", 1e9, "chat")
    snapshot = orjson.loads(orjson.dumps(stats.snapshot()))
    assert [["calls_total", "chat", "complete"], 3] in snapshot["values"]
    assert [["calls_total", "chat", "failed"], 1] in snapshot["values"]
    assert [["connections"], 5] in snapshot["values"]
    [[key, series]] = snapshot["histograms"]
    assert key == ["call_seconds", "chat"]
    assert len(series) == len(METRICS["call_seconds"].buckets) + 2
    assert sum(series[:-1]) == 2
    assert series[-2] == 1  # above the last bound
    assert series[-1] == pytest.approx(1e9 + 0.02)


def test_what_waits_is_counted_before_the_numbers_are_told() -> None:
    stats, waiting = Stats(), [("chat", "complete"), ("chat", "failed"), ("chat", "complete")]

    def count() -> None:
        stats.inc_all("calls_total", waiting)
        stats.observe_all("call_seconds", [0.25 for _ in waiting], "chat")
        stats.observe_all("call_seconds", [], "embeddings")
        waiting.clear()

    stats.before_snapshot(count)
    snapshot = stats.snapshot()
    assert dict(map(tuple, snapshot["values"])) == {
        ("calls_total", "chat", "complete"): 2, ("calls_total", "chat", "failed"): 1
    }  # fmt: skip
    [[key, series], *_] = snapshot["histograms"]
    assert (key, sum(series[:-1]), series[-1]) == (("call_seconds", "chat"), 3, 0.75)
    assert stats.snapshot() == snapshot


def test_a_name_or_label_that_is_not_declared_is_an_error() -> None:
    with pytest.raises(KeyError):
        Stats().inc("typo_total")
    with pytest.raises(KeyError):
        Stats().inc("calls_total", "chat")
    with pytest.raises(KeyError):
        Stats().observe("requests", 1)


async def test_a_task_is_owned_until_it_ends_and_its_failure_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = asyncio.Event()

    async def fails() -> None:
        started.set()
        raise ValueError("why")

    task = telemetry.spawn("doomed", fails())
    assert "doomed" in telemetry.running()
    await started.wait()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0)
    assert "doomed" not in telemetry.running()
    assert any(r.__dict__.get("task") == "doomed" and r.exc_info for r in caplog.records)


async def test_cancelling_all_spares_the_caller() -> None:
    forever = telemetry.spawn("forever", asyncio.Event().wait())
    await telemetry.spawn("caller", telemetry.cancel_all())
    assert forever.cancelled()
