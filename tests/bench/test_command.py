"""`headrace bench` as it is typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest


def bench(*arguments: str, path: str | None = None, timeout_s: float) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({} if path is None else {"PATH": path})
    command = [sys.executable, "-m", "proxy", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)


def test_without_a_compiler_it_says_so(tmp_path: Path) -> None:
    done = bench("--quick", path=str(tmp_path), timeout_s=30)
    assert done.returncode == 1
    assert "no C compiler (cc)" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_figure_is_a_usage_error() -> None:
    done = bench("--only", "speed", timeout_s=30)
    assert done.returncode == 2
    assert "first-byte-https" in done.stderr


def test_tasks_are_measured_alone() -> None:
    done = bench("--only", "requests,tasks", timeout_s=30)
    assert done.returncode == 2
    assert "alone" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif("HEADRACE_BENCH" not in os.environ, reason="a minute of load; HEADRACE_BENCH=1 runs it")
def test_what_is_finished_costs_a_poller_nothing() -> None:
    done = bench("--quick", "--json", "--only", "tasks", timeout_s=600)
    assert done.returncode == 0, done.stderr
    figures = {
        entry["figure"]: entry["subjects"]["relay"]["median"]
        for entry in orjson.loads(done.stdout)["figures"]
    }
    assert figures["tasks_none_tasks_per_s"] == 0
    for name in ("one", "many"):
        assert figures[f"tasks_{name}_tasks_per_s"] > 50
        assert figures[f"tasks_{name}_finished_control_us"] < 3 * figures[f"tasks_{name}_control_us"]
    assert figures["tasks_many_requests_per_s"] < figures["tasks_one_requests_per_s"] / 5


@pytest.mark.slow
@pytest.mark.skipif("HEADRACE_BENCH" not in os.environ, reason="minutes of load; HEADRACE_BENCH=1 runs it")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")
def test_a_quick_run_measures_the_relay_and_leaves_nothing_behind() -> None:
    done = bench("--quick", "--json", timeout_s=600)
    assert done.returncode == 0, done.stderr
    result = orjson.loads(done.stdout)
    assert {"relay", "textbook", "direct"} <= set(result["subjects"])
    figures = {entry["figure"]: entry["subjects"] for entry in result["figures"]}
    for name in ("request_cpu_us", "chunk_cpu_us", "injected_cpu_us", "memory_500_rss_kb"):
        assert figures[name]["relay"]["median"] > 0, result["notes"]
    left = subprocess.run(["pgrep", "-f", "headrace-bench-"], capture_output=True, text=True)
    assert left.stdout == ""
