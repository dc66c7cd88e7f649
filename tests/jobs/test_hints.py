"""A hint makes a task due, waits for one that is not drained yet, and is forgotten if there is none."""

from __future__ import annotations

import pytest

from proxy.jobs.hints import HINTS_MAX, WAIT_MS, Hints
from proxy.store.due import DueTasks
from proxy.telemetry import Stats
from tests.store.conftest import accounts, drainer, journal_dir  # noqa: F401 - fixtures
from tests.store.journals import NOW_MS, PRICE_ENTRY, Life, new_id
from tests.store.tasks import submitted

ONE = ("openai", "response")


class Clock:
    now_ms = NOW_MS


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hints(database, clock) -> Hints:
    return Hints(lambda: DueTasks(database, "c-1"), lambda: clock.now_ms, Stats())


@pytest.fixture
async def life(journal_dir):  # noqa: F811
    life = Life(journal_dir)
    yield life
    await life.die()


async def test_a_task_is_due_at_once_also_while_a_poll_is_under_way(
    database, accounts, drainer, life, hints, clock  # noqa: F811
):  # fmt: skip
    entries = submitted(accounts[0], "t1")
    tasks = DueTasks(database, "c-1")
    await life.write([PRICE_ENTRY, *entries])
    await drainer.run_once()
    [under_way] = await tasks.claim({ONE: 1}, NOW_MS + 5000, NOW_MS + 125_000)
    hints.hear(entries[0].id)
    clock.now_ms = NOW_MS + 6000
    assert await hints.run_once() == 1
    [due] = await tasks.claim({ONE: 1}, NOW_MS + 6000, NOW_MS + 126_000)
    assert due.polls > under_way.polls
    assert await hints.run_once() == 0


async def test_a_hint_waits_for_its_submit_for_a_minute(
    database, accounts, drainer, life, hints, clock  # noqa: F811
):  # fmt: skip
    entries = submitted(accounts[0], "t1")
    hints.hear(entries[0].id)
    hints.hear(new_id())
    assert await hints.run_once() == 0
    clock.now_ms += WAIT_MS - 1
    await life.write([PRICE_ENTRY, *entries])
    await drainer.run_once()
    assert await hints.run_once() == 1
    assert len(hints._waiting) == 1
    clock.now_ms += 1
    await hints.run_once()
    assert not hints._waiting


def test_hints_do_not_pile_up(hints):
    for n in range(HINTS_MAX + 10):
        hints.hear(f"{n:032x}")
    assert len(hints._waiting) == HINTS_MAX
