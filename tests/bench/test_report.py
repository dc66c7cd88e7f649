"""Medians, ratios and what stands for a figure that was not measured."""

from __future__ import annotations

import pytest

from proxy.bench import report
from proxy.bench.runner import HTTPS, Results


@pytest.fixture
def results() -> Results:
    results = Results(notes=["textbook is left out: tired"], subjects=["relay", "nginx", "direct"])
    for nginx, relay in ((20.0, 50.0), (30.0, 60.0), (22.0, 70.0)):
        results.add("nginx", {"request_cpu_us": nginx})
        results.add("relay", {"request_cpu_us": relay, "request_control_cpu_us": 3.0})
    for subject, p50 in (("direct", 20.0), ("nginx", 100.0), ("relay", 180.0)):
        results.add(subject, {"first_byte_serial_p50_us": p50})
    results.add("relay", {"chunk_cpu_us": 40.0}, HTTPS)
    results.add("relay", {"memory_2000_rss_kb": 9.0})
    return results


def test_medians_are_compared(results: Results) -> None:
    entry = report.document(results)["figures"][0]
    assert entry["subjects"]["relay"] == {"median": 60.0, "min": 50.0, "max": 70.0, "rounds": 3}
    assert entry["ratio_to_nginx"] == {"relay": pytest.approx(60 / 22)}


def test_the_time_to_first_byte_counts_over_the_bare_upstream(results: Results) -> None:
    entry = report.document(results)["figures"][1]
    assert {name: found["median"] for name, found in entry["subjects"].items()} == {
        "nginx": 80.0,
        "relay": 160.0,
    }
    assert entry["ratio_to_nginx"] == {"relay": 2.0}


def test_a_figure_without_nginx_has_no_ratio(results: Results) -> None:
    by_name = {entry["figure"]: entry for entry in report.document(results)["figures"]}
    assert by_name["chunk_cpu_us-https"]["ratio_to_nginx"] == {}
    assert by_name["memory_2000_rss_kb"]["label"] == "memory per open stream, 2,000 open (RSS)"


def test_the_table_shows_spans_gaps_and_notes(results: Results) -> None:
    text = report.table(results)
    assert "| us | 22.0 (20.0 to 30.0) | 60.0 (50.0 to 70.0) | 2.73 | - | - |" in text
    assert "- request_control_cpu_us: relay 3.0" in text
    assert "- first_byte_serial_p50_us: direct 20.0" in text
    assert "NOTE textbook is left out: tired" in text


def test_a_busy_machine_is_told(results: Results) -> None:
    assert report.notes(results) == results.notes
    results.add("nginx", {"request_waited_pct": 40.0})
    assert "up to 40 %" in report.notes(results)[-1]
