"""What closed calls add to the numbers, however many are counted together."""

from __future__ import annotations

from typing import Any

from proxy.ledger import entry
from proxy.ledger.entry import Attempt, End
from proxy.relay.tally import CALLS_MAX, DEGRADED, Tally
from proxy.telemetry import Stats


def end(outcome: str = entry.COMPLETE, **changes: Any) -> End:
    values: dict[str, Any] = {
        "id": "0" * 32, "at_ms": 2_000, "began_ms": 1_000, "state": entry.SETTLED, "outcome": outcome,
        "account": 1, "key": 2, "lease": "L", "hold_nanos": 9, "cost_nanos": 5, "model": "m",
        "operation": "chat", "dialect": "openai", "price": "p", "model_ppm": 1, "tier_ppm": 1, "tier": "VIP",
        "endpoint": "direct", "generation": 1, "stream": False, "status": 200, "provenance": "final",
        "attempts": [Attempt("u", "m", "c", "ok")], "request_bytes": 10, "response_bytes": 100,
        "took_ms": 300,
    }  # fmt: skip
    return End(**{**values, **changes})


def told(stats: Stats) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], tuple[float, float]]]:
    """Values, and of each histogram how many there were and their sum."""
    snapshot = stats.snapshot()
    histograms = {key: (sum(series[:-1]), series[-1]) for key, series in snapshot["histograms"]}
    return dict(map(tuple, snapshot["values"])), histograms


def test_a_plain_call_is_counted_once():
    stats = Stats()
    Tally(stats).add(end(), 0.25)
    expected = (
        {
            ("calls_total", "chat", "complete"): 1,
            ("upstream_attempts_total", "u", "m", "ok"): 1,
            ("request_bytes_total",): 10,
            ("response_bytes_total",): 100,
        },
        {("overhead_seconds",): (1, 0.25), ("call_seconds", "chat"): (1, 0.3)},
    )
    assert told(stats) == expected
    assert told(stats) == expected


def test_what_is_remarkable_about_calls_is_counted_too():
    stats = Stats()
    tally = Tally(stats)
    tally.add(end(), 0.25)
    tally.add(end(entry.INTERRUPTED_CLIENT, provenance="early", flags=["reconcile", DEGRADED]), -1.0)
    tally.add(end(operation="speech", provenance="counted", attempts=[]), 0.5)
    tries = [Attempt("u", "m", "c", "status:500"), Attempt("v", "m", "c", "ok")]
    tally.add(end(stream=True, ttft_ms=1_500, events=7, attempts=tries), 0.25)
    values, histograms = told(stats)
    assert values == {
        ("calls_total", "chat", "complete"): 2,
        ("calls_total", "chat", "interrupted_client"): 1,
        ("calls_total", "speech", "complete"): 1,
        ("upstream_attempts_total", "u", "m", "ok"): 2,
        ("upstream_attempts_total", "u", "m", "status:500"): 1,
        ("upstream_attempts_total", "v", "m", "ok"): 1,
        ("usage_provenance_total", "early"): 1,
        ("usage_provenance_total", "counted"): 1,
        ("request_bytes_total",): 40,
        ("response_bytes_total",): 400,
        ("metering_degraded_total",): 1,
        ("client_disconnects_total",): 1,
        ("stream_events_total",): 7,
    }
    assert histograms[("overhead_seconds",)] == (3, 1.0)
    assert histograms[("first_byte_seconds", "chat")] == (1, 1.5)
    assert histograms[("call_seconds", "chat")][0] == 3
    assert histograms[("call_seconds", "speech")] == (1, 0.3)
    assert ("first_byte_seconds", "speech") not in histograms


def test_no_more_calls_are_kept_than_said():
    stats = Stats()
    tally = Tally(stats)
    for _ in range(CALLS_MAX * 2 + 1):
        tally.add(end(), 0.1)
    assert len(tally._ends) == 1
    assert told(stats)[0][("calls_total", "chat", "complete")] == CALLS_MAX * 2 + 1
