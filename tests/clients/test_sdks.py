"""Real clients against a real station, in every way that the four stations' documents show.

In every run: what is locked in requirements/test.txt. With HEADRACE_CLIENTS=all (`make clients`):
the SDKs of other years too, each in a venv of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.access import Access
from tests.clients.venvs import node_script, python_with

RUNNERS = Path(__file__).parent / "runners"
RUN_S = 300  # a machine that does other things, too
RUNS = itertools.count(1)

LOCKED = ["openai_client", "anthropic_client", "google_genai_client", "requests_posts"]
OTHER_YEARS = [
    ("openai-0.28", "openai_module_0_28"),
    ("openai-1", "openai_client"),
    ("openai-2", "openai_client"),
    ("newest", "openai_client"),
    ("newest", "anthropic_client"),
    ("newest", "requests_posts"),
    ("langchain", "langchain_chat"),
    ("litellm", "litellm_client"),
]
NODE = ["openai_node", "ai_sdk", "anthropic_node", "google_genai_node"]


@pytest.mark.parametrize("runner", LOCKED)
def test_every_way_of_a_client_works(access: Access, runner: str):
    assert failures(access, [sys.executable, script(runner)]) == []


@pytest.mark.skipif(os.environ.get("HEADRACE_CLIENTS") != "all", reason="only with `make clients`")
@pytest.mark.parametrize(("venv", "runner"), OTHER_YEARS)
def test_every_way_of_other_years_works(access: Access, venv: str, runner: str):
    assert failures(access, [python_with(venv), script(runner)]) == []


@pytest.mark.skipif(os.environ.get("HEADRACE_CLIENTS") != "all", reason="only with `make clients`")
@pytest.mark.parametrize("runner", NODE)
def test_every_way_of_a_client_for_node_works(access: Access, runner: str):
    assert failures(access, node_script(RUNNERS / f"{runner}.mjs")) == []


def script(runner: str) -> str:
    return str(RUNNERS / f"{runner}.py")


def failures(access: Access, command: list[str]) -> list[str]:
    """Run one runner; what went wrong, a text for each way that failed."""
    environment = {
        "HEADRACE_BASE_URL": access.base_url,
        "HEADRACE_KEY": access.key,
        "PATH": os.environ["PATH"],
    }
    if access.has_busy_models:
        environment["HEADRACE_BUSY_MODEL"] = f"busy-{next(RUNS)}"
    ran = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"way"')]
    failed = [f"{line['way']}:\n{line['error']}" for line in lines if line["error"]]
    return failed if lines else [ran.stdout + ran.stderr]
