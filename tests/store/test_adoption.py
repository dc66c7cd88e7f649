"""Dead lives are drained, their open calls closed, and nothing of it happens twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys

import pytest

from proxy.ledger import entry
from proxy.ledger.entry import Checkpoint, Progress, Settle
from proxy.store.adoption import Adopter
from proxy.store.drainer import Drainer, DrainReport
from proxy.store.journal_audit import audit_journals
from proxy.store.retention import Retention
from tests.store.journals import NODE, NOW_MS, PRICE, PRICE_ENTRY, Life, Station, begin, end, new_id

COST = 45_000


async def rows(database):
    found = await database.fetch(
        "SELECT id, outcome, provenance, cost_nanos, usage FROM usage ORDER BY began_ms, id"
    )
    return {r["id"].hex: (r["outcome"], r["provenance"], r["cost_nanos"], r["usage"]) for r in found}


async def test_a_living_life_is_left_alone(database, journal_dir, accounts, adopter):
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, begin(accounts[0])])
    assert await adopter.run_once() == []
    assert await adopter.unadopted() == [life.name]
    await life.die()


async def test_open_calls_of_a_dead_life_are_closed_by_their_checkpoint(
    database, journal_dir, accounts, adopter
):
    life = Life(journal_dir)
    done, streaming, silent = begin(accounts[0]), begin(accounts[1]), begin(accounts[2])
    await life.write(
        [
            PRICE_ENTRY,
            done,
            streaming,
            silent,
            Checkpoint(NOW_MS, [Progress(streaming.id, 900, 4, 0, 7), Progress(done.id, 10, 1, 1, 1)]),
            end(accounts[0], id=done.id),
            Checkpoint(NOW_MS, [Progress(streaming.id, 1900, 9, 0, 100)]),
        ]
    )
    await life.die()
    (adopted,) = await adopter.run_once()
    assert (adopted.incarnation, adopted.interrupted, adopted.alarms) == (life.name, 2, [])
    found = await rows(database)
    assert found[done.id][:3] == ("complete", "final", COST)
    assert found[streaming.id] == ("interrupted_relay", "estimated", 220_000, {"input": 40, "output": 100})
    assert found[silent.id] == ("interrupted_relay", "none", 0, {})
    assert await adopter.run_once() == []
    assert await adopter.unadopted() == []
    begins, ends = await database.fetchrow("SELECT sum(begins), sum(ends) FROM segment_cursor")
    assert (begins, ends) == (3, 3)


async def test_an_interrupted_call_never_costs_more_than_its_hold(database, journal_dir, accounts, adopter):
    life = Life(journal_dir)
    call = begin(accounts[0], hold_nanos=1000)
    await life.write([PRICE_ENTRY, call, Checkpoint(NOW_MS, [Progress(call.id, 900, 4, 0, 700)])])
    await life.die()
    await adopter.run_once()
    assert (await rows(database))[call.id][2] == 1000


async def test_a_pending_call_of_a_dead_life_is_settled_by_what_was_known(
    database, journal_dir, accounts, adopter, drainer
):
    life = Life(journal_dir)
    calls = [begin(accounts[0]) for _ in range(2)]
    pending = [end(accounts[0], id=c.id, state=entry.PENDING, cost_nanos=0) for c in calls]
    await life.write([PRICE_ENTRY, *calls, *pending])
    await drainer.run_once()
    await life.write([Settle(calls[0].id, NOW_MS, 9, "counted", {"output": 1})])
    await life.die()
    (adopted,) = await adopter.run_once()
    found = await rows(database)
    assert (found[calls[0].id][2], found[calls[1].id][2]) == (9, COST)
    assert await database.fetchval("SELECT count(*) FROM pending_usage") == 0
    assert adopted.alarms == []


async def test_what_a_dead_life_used_of_a_lease_is_told(database, journal_dir, accounts, adopter, drainer):
    lease = new_id()
    await database.execute("INSERT INTO node (id) VALUES ($1)", NODE)
    await database.execute(
        "INSERT INTO lease (id, node, incarnation, account, granted_nanos) VALUES ($1, $2, 'n', $3, $4)",
        lease, NODE, accounts[0], 10_000_000,
    )  # fmt: skip
    life = Life(journal_dir)
    call = begin(accounts[0], lease=lease)
    await life.write([PRICE_ENTRY, call, end(accounts[0], lease=lease)])
    await life.die()
    (adopted,) = await adopter.run_once()
    assert adopted.used == {lease: COST}


async def test_a_call_without_a_known_price_goes_into_quarantine(database, journal_dir, accounts, adopter):
    life = Life(journal_dir)
    calls = [begin(accounts[0]) for _ in range(2)]
    await life.write(calls)
    await life.die()
    (adopted,) = await adopter.run_once()
    assert await database.fetchval("SELECT count(*) FROM quarantine") == 2
    assert len(adopted.alarms) == 2 and PRICE.id in adopted.alarms[0]


async def test_a_price_that_another_journal_told_is_found(database, journal_dir, accounts, adopter, drainer):
    first, second = Life(journal_dir, "w0-a"), Life(journal_dir, "w1-b")
    await first.write([PRICE_ENTRY])
    await drainer.run_once()
    call = begin(accounts[0])
    await second.write([call])
    for life in (first, second):
        await life.die()
    await adopter.run_once()
    assert list(await rows(database)) == [call.id]


@pytest.fixture
async def killed(journal_dir, tmp_path, accounts):
    """A life that was killed: its last frames are above the watermark, its lock is free."""
    elsewhere = tmp_path / "elsewhere"
    life = Life(elsewhere, "w0-killed", fsync_interval_s=3600)
    calls = [begin(accounts[0]), begin(accounts[1])]
    await life.write_unsynced([PRICE_ENTRY, *calls, end(accounts[0], id=calls[0].id)])
    shutil.copytree(life.directory, journal_dir / life.name)
    await life.die()
    return [call.id for call in calls]


async def test_frames_above_the_watermark_of_a_killed_life_count(
    database, journal_dir, drainer, adopter, killed
):
    assert (await drainer.run_once()).entries == 0
    (adopted,) = await adopter.run_once()
    assert (adopted.interrupted, adopted.alarms) == (1, [])
    assert {i: r[0] for i, r in (await rows(database)).items()} == {
        killed[0]: "complete",
        killed[1]: "interrupted_relay",
    }
    assert [str(v) for v in await audit_journals(database, journal_dir)] == []


async def test_a_control_that_comes_after_finds_nothing_wrong_with_an_adopted_life(
    database, journal_dir, adopter, killed
):
    await adopter.run_once()
    fresh = Drainer(database, journal_dir, NODE, Station())
    report = await fresh.run_once()
    assert (report.entries, report.damage, report.alarms) == (0, [], [])
    assert await Adopter(database, journal_dir, fresh).run_once() == []


async def test_an_adoption_that_was_cut_short_is_finished_by_the_next_control(
    database, journal_dir, drainer, killed
):
    await drainer.drain_life(journal_dir / "w0-killed", DrainReport(), upto="end")
    assert await audit_journals(database, journal_dir) == []
    fresh = Drainer(database, journal_dir, NODE, Station())
    assert (await fresh.run_once()).damage == []
    (adopted,) = await Adopter(database, journal_dir, fresh).run_once()
    assert (adopted.interrupted, adopted.alarms) == (1, [])


async def test_a_damaged_journal_gives_all_that_is_readable_and_is_kept(
    database, journal_dir, accounts, drainer, adopter
):
    life = Life(journal_dir)
    calls = [end(accounts[0]) for _ in range(10)]
    await life.write([PRICE_ENTRY, *(begin(accounts[0], id=c.id) for c in calls), *calls])
    await life.die()
    path = life.directory / "000001.seg"
    data = bytearray(path.read_bytes())
    data[data.rindex(calls[5].id.encode()) + 3] ^= 1
    path.write_bytes(data)
    (adopted,) = await adopter.run_once()
    found = await rows(database)
    assert {c.id for c in calls} == set(found)
    assert found[calls[5].id][:2] == ("interrupted_relay", "none")  # its End is what cannot be read
    assert len(adopted.alarms) == 1 and "000001.seg" in adopted.alarms[0]
    (payload,) = [r["payload"] for r in await database.fetch("SELECT payload FROM quarantine")]
    assert payload in bytes(data) and len(payload) > 100
    assert await audit_journals(database, journal_dir) == []  # it is in quarantine, which is told
    assert await Retention(database, journal_dir, drainer, keep_s=0).run_once() == []
    await database.execute("UPDATE quarantine SET resolved_at = now()")
    assert await Retention(database, journal_dir, drainer, keep_s=0).run_once() == [life.directory]


async def test_journals_go_a_day_after_they_are_done_with(database, journal_dir, accounts, drainer, adopter):
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, end(accounts[0])])
    await life.die()
    await adopter.run_once()
    assert await Retention(database, journal_dir, drainer).run_once() == []
    assert await Retention(database, journal_dir, drainer, keep_s=0).run_once() == [life.directory]
    assert not life.directory.exists()
    assert await adopter.run_once() == []


async def test_segments_of_a_living_life_go_once_their_calls_are_closed(
    database, journal_dir, accounts, drainer
):
    life = Life(journal_dir, segment_bytes=4096)
    call = begin(accounts[0])
    retention = Retention(database, journal_dir, drainer, keep_s=0)
    await life.write([PRICE_ENTRY, call, *(end(accounts[0]) for _ in range(8))])
    await life.write([end(accounts[0])])
    assert (await drainer.run_once()).inserted == 9
    async with asyncio.timeout(5):
        while not (await drainer.run_once()).behind and not drainer._done:
            await asyncio.sleep(0.005)
    assert await retention.run_once() == []  # the call is open
    await life.write([end(accounts[0], id=call.id)])
    await drainer.run_once()
    assert (await retention.run_once())[0] == life.directory / "000001.seg"
    assert (await Drainer(database, journal_dir, NODE, Station()).run_once()).damage == []
    await life.die()


CRASH = """
import asyncio, sys
from pathlib import Path
from proxy.store.adoption import Adopter
from proxy.store.database import Database
from proxy.store.adoption import Adopter
from proxy.store.drainer import Drainer, DrainReport
from proxy.store.journal_audit import audit_journals
from tests.store.journals import NOW_MS, Station

async def main():
    database = await Database.connect(sys.argv[1])
    drainer = Drainer(database, Path(sys.argv[2]), sys.argv[3], Station(), now_ms=lambda: NOW_MS)
    await Adopter(database, Path(sys.argv[2]), drainer, now_ms=lambda: NOW_MS).run_once()

asyncio.run(main())
"""

POINTS = [
    "adopt-claimed", "drain-before-copy", "drain-after-copy", "drain-before-commit", "drain-after-commit",
    "adopt-drained", "drain-before-copy:2", "drain-before-commit:2", "drain-after-commit:2",
    "adopt-before-commit", "adopt-after-commit",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
async def test_control_may_die_at_any_step_of_adoption(
    database, database_dsn, journal_dir, accounts, adopter, point
):
    life = Life(journal_dir)
    done, open_call = begin(accounts[0]), begin(accounts[1])
    await life.write(
        [
            PRICE_ENTRY,
            done,
            open_call,
            Checkpoint(NOW_MS, [Progress(open_call.id, 900, 4, 0, 7)]),
            end(accounts[0], id=done.id),
        ]
    )
    await life.die()
    crashed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CRASH, database_dsn, str(journal_dir), NODE],
        env={**os.environ, "HEADRACE_CRASH_AT": point, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert crashed.returncode == 137, crashed.stderr
    await adopter.run_once()
    found = await rows(database)
    assert {i: r[0] for i, r in found.items()} == {done.id: "complete", open_call.id: "interrupted_relay"}
    charged = await database.fetchval("SELECT -sum(amount_nanos) FROM ledger WHERE kind = 'usage'")
    assert charged == sum(r[2] for r in found.values())
    assert tuple(await database.fetchrow("SELECT sum(begins), sum(ends) FROM segment_cursor")) == (2, 2)
    assert await database.fetchval("SELECT count(*) FROM incarnation WHERE closed_at IS NULL") == 0
