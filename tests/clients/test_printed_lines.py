"""What `make run` prints works when pasted, and its key is the same at the next start."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import resources
from tests.clients.access import demo
from tests.station import Station
from tests.waiting import DEADLINE_S, wait_for


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Data folder and output of `headrace serve --demo` with the routes.yaml of this repository."""
    station = Station(tmp_path_factory.mktemp("printed") / "data", resources.routes().read_text())
    with demo(station):
        wait_for(lambda: "from openai" in station.log(), "the printed lines")
        yield station.data, station.log()


def pasted(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_curl_line_works(started):
    _, output = started
    line = re.search(r"^ *curl .*?(?<!\\)$", output, re.M | re.S)
    assert line is not None, output
    assert pasted("/bin/sh", "-c", line[0].strip()).rstrip().endswith("data: [DONE]")


def test_the_python_lines_work(started):
    _, output = started
    lines = re.search(r"^ *from openai .*\n.*\n.*$", output, re.M)
    assert lines is not None, output
    program = "\n".join(line.strip() for line in lines[0].splitlines())
    assert len(pasted(sys.executable, "-c", program).split()) > 3


def test_the_key_is_kept_for_its_owner_only(started):
    data, output = started
    key_file = data / "demo.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert key_file.read_text().strip() in output
