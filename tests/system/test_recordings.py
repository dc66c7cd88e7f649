"""Recorded answers of real vendors, and our own, through a real station: `headrace conform` finds nothing.

The recordings of vendors are not part of the project: HEADRACE_RECORDINGS says where they are.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from proxy import resources
from proxy.conform import recordings, replay, report
from proxy.conform.verdict import Outcome, Result
from tests.conftest import Databases

SEED = 20260101
FOLDER = os.environ.get("HEADRACE_RECORDINGS", "")


def replayed(folder: Path, databases: Databases) -> list[Result]:
    return asyncio.run(replay.run(recordings.read(folder), SEED, lambda progress: None, databases.take()))


def test_our_own_answers_arrive_unchanged_and_cost_what_they_tell(databases: Databases) -> None:
    results = replayed(resources.golden(), databases)
    assert report.is_clean(results), report.table(results)
    assert all(result.outcome is Outcome.EQUAL and result.bytes_equal for result in results)
    assert sum(1 for result in results if result.usage_equal) > len(results) / 2


@pytest.mark.skipif(not FOLDER, reason="HEADRACE_RECORDINGS names no folder of recordings")
def test_recorded_answers_arrive_unchanged_and_cost_what_their_vendors_told(databases: Databases) -> None:
    results = replayed(Path(FOLDER), databases)
    assert report.is_clean(results), report.table(results)
    replays = [result for result in results if result.outcome is Outcome.EQUAL]
    assert all(result.bytes_equal for result in replays)
    assert sum(1 for result in replays if result.usage_equal) > len(replays) / 2
