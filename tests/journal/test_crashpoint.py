"""Dying at a named place: as kill -9 does, and only where it was asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.journal import crashpoint
from proxy.journal.crashpoint import EXIT_STATUS, POINTS
from tests.journal.disk import payloads

ROOT = Path(__file__).resolve().parents[2]
LIFE = """
import asyncio, sys
from pathlib import Path
from proxy.journal.segments import Journal

async def main():
    loop = asyncio.get_running_loop()
    journal = Journal(Path(sys.argv[1]), loop=loop, fsync_interval_s=0.005, reserve_bytes=4096)
    for n in range(3):
        written = loop.create_future()
        journal.append(b"%d" % n, written.set_result)
        await written
        print(n, flush=True)
    while not journal.counters.syncs:
        await asyncio.sleep(0.001)
    print("synced", flush=True)
    await journal.close()

asyncio.run(main())
"""


def run(directory: Path, crash_at: str) -> subprocess.CompletedProcess[str]:
    environment = {"HEADRACE_CRASH_AT": crash_at, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LIFE, directory]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "point",
    [
        "segment-opened",
        "frames-written",
        "frames-written:3",
        "before-fsync",
        "after-fsync",
        "watermark-written",
    ],
)
def test_whatever_was_said_to_be_written_is_there_after_a_crash(tmp_path, point):
    ran = run(tmp_path / "w0-1", point)
    assert ran.returncode == EXIT_STATUS, ran.stderr
    said = [line.encode() for line in ran.stdout.split()]
    found = payloads(tmp_path / "w0-1")
    assert found[: len(said)] == said
    assert found == [b"0", b"1", b"2"][: len(found)]


def test_lives_die_at_the_places_of_a_script_one_after_the_other(tmp_path):
    script = tmp_path / "script"
    script.write_text("segment-opened\nframes-written:2\n")
    said = []
    for life in range(3):
        ran = run(tmp_path / f"w0-{life}", f"@{script}")
        said.append((ran.returncode, ran.stdout.split()))
    assert said == [(EXIT_STATUS, []), (EXIT_STATUS, ["0"]), (0, ["0", "1", "2", "synced"])]
    assert script.read_text() == ""


def test_a_life_without_a_crash_point_ends_well(tmp_path):
    ran = run(tmp_path / "w0-1", "")
    assert (ran.returncode, ran.stdout.split()) == (0, ["0", "1", "2", "synced"])


def test_a_name_that_is_no_crash_point_is_refused(tmp_path):
    ran = run(tmp_path / "w0-1", "begin_writen")
    assert ran.returncode == 1
    assert "begin_writen" in ran.stderr


def test_a_crash_point_costs_next_to_nothing():
    assert not crashpoint._left
    assert not crashpoint.ARMED
    assert not crashpoint.crash_point("frames-written")


def test_every_crash_point_is_somewhere_in_the_code_and_every_one_in_the_code_is_named():
    calls = re.compile(r"crash_point\(\s*\"([\w-]+)\"")
    used = {name for path in (ROOT / "proxy").rglob("*.py") for name in calls.findall(path.read_text())}
    assert used - set(POINTS) == set()
    assert set(POINTS) - used == set()
