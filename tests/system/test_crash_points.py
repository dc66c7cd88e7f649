"""A process dies at each named step of a call, of its way into Postgres and of an adoption; then it recovers.

Each life reads from a script at which step it dies (proxy/journal/crashpoint.py). Whatever the step, the call
has one row or, if its Begin was not written, none; holds are free again and the audit is clean.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.journal.crashpoint import EXIT_STATUS, POINTS
from tests.conftest import Databases
from tests.fakes.upstream_server import Pause, UpstreamServer
from tests.station import ROOT, Station, routes
from tests.system.load import PATH, SLOW, Call, Load, books, held, marker_of, stream
from tests.waiting import wait_for

# Where the worker dies -> what becomes of the call. None: it has no row. Around a sync a call is anywhere.
CUT, WHOLE, NONE = "interrupted_relay", "complete", None
WORKER: dict[str, set[str | None]] = {
    "begin-appended": {NONE},
    "begin-written": {CUT},
    "request-sent": {CUT},
    "first-content": {CUT},
    "terminal-held": {CUT},
    "end-appended": {CUT},
    "end-written": {WHOLE},
    "last-bytes-sent": {WHOLE},
    "segment-opened": {NONE},
    "frames-written": {CUT},
    "before-fsync": {CUT, WHOLE},
    "after-fsync": {CUT, WHOLE},
    "watermark-written": {CUT, WHOLE},
}
DRAIN = ["drain-before-copy", "drain-after-copy", "drain-before-commit", "drain-after-commit"]
ADOPT = ["adopt-claimed", "adopt-drained", "adopt-before-commit", "adopt-after-commit"]
LEASE = ["lease-before-commit", "lease-after-commit"]
DELETE = ["segment-deleted"]
CALLBACK = ["callback-claimed", "callback-sent"]  # test_callbacks.py


def test_every_crash_point_is_here() -> None:
    assert {*WORKER, *DRAIN, *ADOPT, *LEASE, *DELETE, *CALLBACK} == set(POINTS)


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamServer]:
    with UpstreamServer() as server:
        yield server


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One crash point a line; each life takes the first, and takes it out by dying."""
    path = tmp_path_factory.mktemp("script") / "script"
    path.write_text("")
    return path


@pytest.fixture(scope="module")
def station(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, upstream: UpstreamServer, script: Path
) -> Iterator[Station]:
    data = tmp_path_factory.mktemp("crash") / "data"
    running = make_station(data, databases.take(), upstream, f"@{script}").start()
    yield running
    running.kill()


def make_station(data: Path, dsn: str, upstream: UpstreamServer, crash_at: str) -> Station:
    """Its segments are small: each call begins a new one."""
    environ = {"HEADRACE_JOURNAL_SEGMENT_BYTES": "1024", "HEADRACE_CRASH_AT": crash_at}
    return Station(data, routes(upstream.url), dsn, environ=environ)


def deaths(station: Station) -> int:
    """How often a process of the station died at a crash point."""
    lines = station.log_lines()
    return sum(line["msg"] == "died" and line["status"] == EXIT_STATUS for line in lines)


def adoptions(station: Station) -> int:
    return sum(line["msg"] == "adopted" for line in station.log_lines())


def restart(station: Station, child: str) -> None:
    """The next life reads the script anew."""
    pid = station.child(child)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: station.children().get(child, pid) != pid, f"a new {child}")


def one_call(station: Station, key: str) -> Call:
    with Load(station, key, 1, once=True) as load:
        pass
    return load.calls[0]


async def test_a_worker_may_die_at_any_step_of_a_call(
    station: Station, upstream: UpstreamServer, script: Path
) -> None:
    upstream.script(PATH, stream(2, 0.05))
    key = await station.customer("workers")
    script.write_text("\n".join(WORKER))
    before = adoptions(station)
    restart(station, "w0")
    calls: list[Call] = []
    seen: set[str] = set()
    for number, (point, outcomes) in enumerate(WORKER.items(), start=1):
        wait_for(lambda n=number: adoptions(station) == before + n, "adoption")
        calls.append(one_call(station, key))
        wait_for(lambda n=number: deaths(station) == n, f"a death at {point}")
        wait_for(lambda n=number: adoptions(station) == before + n + 1, "adoption")
        found = await books(station, "workers", calls, upstream)
        new = found.rows.keys() - seen
        seen |= new
        assert len(new) <= 1, point
        assert {found.rows[id_]["outcome"] for id_ in new} or {NONE} <= outcomes, point
        if point in ("begin-appended", "begin-written", "segment-opened", "frames-written"):
            assert calls[-1].marker not in map(marker_of, upstream.requests), "sent before Begin was written"
        if point == "last-bytes-sent":
            assert calls[-1].content.endswith(b"data: [DONE]\n\n")
    assert script.read_text() == ""
    assert one_call(station, key).is_whole


async def test_control_may_die_at_any_step_of_a_call_into_postgres(
    station: Station, upstream: UpstreamServer, script: Path
) -> None:
    """The same call is drained by one control after the other, until one lives."""
    upstream.script(PATH, stream(2, 0.0))
    key = await station.customer("drained")
    calls = [one_call(station, key)]
    await books(station, "drained", calls, upstream)
    await die(station, script, DRAIN, lambda: calls.append(one_call(station, key)))
    found = await books(station, "drained", calls, upstream)
    assert found.outcomes == {"complete": 2}


async def test_control_may_die_at_any_step_of_an_adoption(
    station: Station, upstream: UpstreamServer, script: Path
) -> None:
    until = Pause(600)
    upstream.script(PATH, held(until))
    key = await station.customer("adopted")
    with Load(station, key, 5, once=True) as load:
        wait_for(lambda: len(load.open) == 5, "5 streams")
        await die(station, script, ADOPT, lambda: restart(station, "w0"))
    found = await books(station, "adopted", load.calls, upstream)
    assert found.outcomes == {CUT: 5}


async def test_control_may_die_at_any_step_of_a_lease(
    station: Station, upstream: UpstreamServer, script: Path
) -> None:
    """The first call of an account asks for one; its user asks again until a control lives."""
    upstream.script(PATH, stream(2, 0.0))
    key = await station.customer("leased")
    with Load(station, key, 1) as load:
        await die(station, script, LEASE, lambda: None)
        wait_for(lambda: any(call.is_whole for call in load.ended), "a call")
    found = await books(station, "leased", load.calls, upstream)
    assert set(found.outcomes) == {"complete"}
    assert {call.status for call in load.calls if not call.is_whole} <= {503}


async def test_control_may_die_while_it_deletes_old_segments(
    station: Station, upstream: UpstreamServer, script: Path
) -> None:
    upstream.script(PATH, stream(2, 0.0))
    key = await station.customer("deleted")
    calls = [one_call(station, key) for _ in range(4)]
    await books(station, "deleted", calls, upstream)
    old = make_old(station)
    await die(station, script, DELETE, lambda: None)
    wait_for(lambda: not any(path.exists() for path in old), "old segments are deleted")
    await books(station, "deleted", calls, upstream)


def make_old(station: Station) -> list[Path]:
    """All segments of the living worker but the newest are two days old now."""
    living = max(station.data.glob("journal/w0-*"))
    old = wait_for(lambda: sorted(living.glob("*.seg"))[:-1], "older segments")
    for path in old:
        os.utime(path, (time.time() - 2 * 86_400,) * 2)
    return old


async def die(station: Station, script: Path, points: list[str], provoke: Callable[[], object]) -> None:
    """Control dies at each point in turn; returns when the last one was passed."""
    before = deaths(station)
    script.write_text("\n".join(points))
    restart(station, "control")
    provoke()
    wait_for(lambda: deaths(station) == before + len(points), f"{len(points)} deaths")
    assert script.read_text() == ""


@pytest.mark.parametrize("point", [pytest.param(p, marks=SLOW) for p in POINTS if p not in CALLBACK])
async def test_a_node_may_die_at_any_step(
    tmp_path: Path, database_dsn: str, upstream: UpstreamServer, point: str
) -> None:
    """A station of its own for each: once something died at the point all is killed, and it starts again."""
    station = make_station(tmp_path / "data", database_dsn, upstream, point).start()
    try:
        key = await station.customer("node")
        upstream.script(PATH, held(Pause(600)) if point in ADOPT else stream(2, 0.05))
        with Load(station, key, 4, once=True) as load:
            wait_for(lambda: len(load.ended) + len(load.open) == 4, "calls")
            if point in ADOPT:
                restart(station, "w0")
            elif point in DELETE:
                await books(station, "node", load.calls, upstream)
                make_old(station)
                restart(station, "control")
            wait_for(lambda: deaths(station) > 0, f"a death at {point}")
        station.kill()
        station.environ = {}
        station.start()
        await books(station, "node", load.calls, upstream)
        upstream.script(PATH, stream(2, 0.05))
        assert one_call(station, key).is_whole
        assert station.stop() == 0
        assert await station.violations() == []
        assert await station.rows("SELECT id FROM lease WHERE closed_at IS NULL") == []
    finally:
        station.kill()


async def test_after_all_that_nothing_is_held(station: Station) -> None:
    """Whatever was leased and held by lives that died comes back when the station stops."""
    assert station.stop() == 0
    sql = "SELECT name, balance_nanos, available_nanos FROM account WHERE balance_nanos <> available_nanos"
    assert await station.rows(sql) == []
    assert await station.rows("SELECT id FROM lease WHERE closed_at IS NULL") == []
    assert await station.rows("SELECT id FROM incarnation WHERE closed_at IS NULL") == []
    command = [sys.executable, "-m", "proxy", "ledger", "audit", "--data", str(station.data)]
    environ = {**os.environ, "DATABASE_URL": station.dsn}
    said = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "clean\n"), said
