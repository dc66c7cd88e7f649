"""Postgres or the journal's disk goes away while key holders call, and comes back.

Calls go on, within what the tier's `on_outage` promises; what was used lands in Postgres exactly once
afterwards (`load.books`).
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from proxy.embedded import EmbeddedPostgres, dsn_for
from proxy.store.catalog import Catalog, KeySettings
from tests.fakes.upstream_server import Pause, UpstreamServer
from tests.station import ROOT, Station, routes
from tests.system.load import PATH, SLOW, Call, Load, books, held, stream
from tests.waiting import DEADLINE_S, promised, wait_for

USERS = 50
ALLOWANCE_NANOS = 50_000_000
TIERS = """
  Refuse: {rank: 1, models: ["*"], limits: {concurrency: 200}, hold: max, on_outage: refuse}
  Allowance: {rank: 2, models: ["*"], limits: {concurrency: 200}, hold: max, on_outage: {allowance: 0.05 USD}}
"""
RELAXED = {"fsync": "off", "full_page_writes": "off"}  # nothing here has to survive a power loss


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamServer]:
    with UpstreamServer() as server:
        yield server


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that these tests may stop."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("away"), settings=RELAXED)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def station(
    tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres, upstream: UpstreamServer
) -> Iterator[Station]:
    config = routes(upstream.url) + TIERS
    data = tmp_path_factory.mktemp("outages") / "data"
    running = Station(data, config, dsn_for(postgres.data_dir), workers=2).start()
    yield running
    running.kill()


@contextmanager
def away(postgres: EmbeddedPostgres, how: str) -> Iterator[None]:
    """`stopped`: connections are refused. `frozen`: nothing is answered any more."""
    if how == "stopped":
        dsn = dsn_for(postgres.data_dir)
        postgres.stop()
        try:
            yield
        finally:
            assert postgres.start() == dsn
        return
    assert postgres.process is not None
    server = postgres.process.pid
    os.kill(server, signal.SIGSTOP)
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    for pid in children:
        os.kill(int(pid), signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in [*children, server]:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGCONT)


async def customer(station: Station, name: str, tier: str, credit_nanos: int = 10**12) -> str:
    database = await station.open_database()
    try:
        catalog = Catalog(database)
        await catalog.create_account(name, tier=tier)
        if credit_nanos:
            await catalog.top_up(name, credit_nanos, f"test-{name}")
        return (await catalog.create_key(name, KeySettings()))[1]
    finally:
        await database.close()


def said(station: Station, line: str) -> Callable[[], bool]:
    """A line of the log that comes once more than it is there now."""
    count = station.log().count(line)
    return lambda: station.log().count(line) > count


def first_byte_ms(calls: list[Call]) -> str:
    took = sorted((call.pieces[0][0] - call.began_s) * 1000 for call in calls if call.pieces)
    return f"first byte {statistics.median(took):.0f} ms, p95 {took[len(took) * 95 // 100]:.0f} ms"


def topup(station: Station, account: str) -> subprocess.CompletedProcess[str]:
    """As an operator types it."""
    command = [sys.executable, "-m", "proxy", "account", "topup", account, "--amount", "1"]
    command += ["--ref", "bank-7"]
    environ = {**os.environ, "DATABASE_URL": station.dsn}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=DEADLINE_S)


def accounts_page(station: Station) -> int:
    """The status of what an operator sees; within a second, whatever Postgres does."""
    page = f"http://127.0.0.1:{station.admin_port}/admin/accounts"
    try:
        with urllib.request.urlopen(page, timeout=promised(1.0)) as answer:
            return answer.status
    except urllib.error.HTTPError as e:
        return e.code


def served_since(load: Load, moment_s: float) -> list[Call] | None:
    """The calls that began after a moment, once half of the users have had one."""
    calls = [call for call in load.ended if call.began_s > moment_s]
    return calls if len(calls) >= USERS / 2 else None


@pytest.mark.parametrize("how", ["stopped", "frozen"])
@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=SLOW)])
async def test_no_call_fails_while_postgres_is_away(
    station: Station, upstream: UpstreamServer, postgres: EmbeddedPostgres, how: str, seconds: int
) -> None:
    upstream.script(PATH, stream(4, 0.25))
    account = f"{how}-{seconds}"
    key = await station.customer(account)
    with Load(station, key, USERS, spread_s=1.0) as load:
        wait_for(lambda: len(load.ended) >= 2 * USERS, "calls")
        before = list(load.ended)
        is_away, is_back = said(station, "Postgres is away"), said(station, "Postgres is back")
        with away(postgres, how):
            began_s = time.time()
            wait_for(is_away, "the outage is declared")
            assert accounts_page(station) == 503
            wait_for(lambda: time.time() - began_s > seconds, "the outage lasts", 2 * DEADLINE_S)
            during = wait_for(lambda: served_since(load, began_s), "calls during the outage")
        back_s = time.time()
        wait_for(is_back, "the outage is over")
        over_s = time.time() - back_s
        assert accounts_page(station) == 200
    calls = load.stop()
    found = await books(station, account, calls, upstream)
    print(f"{how} {seconds} s: before {first_byte_ms(before)}; during {first_byte_ms(during)}")
    print(f"back after {over_s:.2f} s, all {len(calls)} landed after {time.time() - back_s:.2f} s")
    assert [str(call) for call in calls if not call.is_whole] == []
    assert found.outcomes == {"complete": len(calls)}


async def test_what_needs_postgres_waits_or_says_so(
    station: Station, upstream: UpstreamServer, postgres: EmbeddedPostgres
) -> None:
    """Keys that no process of the node knows get 503, not 401; a top-up is done once it can be."""
    upstream.script(PATH, stream(1, 0.0))
    warm = await station.customer("warm")
    with Load(station, warm, 4, once=True) as first:
        wait_for(lambda: len(first.ended) == 4, "calls")
    cold = await station.customer("cold")
    is_away, is_back = said(station, "Postgres is away"), said(station, "Postgres is back")
    with away(postgres, "stopped"):
        wait_for(is_away, "the outage is declared")
        with (
            Load(station, cold, 4, once=True) as unknown,
            Load(station, "sk-nobody", 4, once=True) as nobody,
            Load(station, warm, 4, once=True) as known,
        ):
            failed = topup(station, "warm")
    assert {(call.status, call.code) for call in [*unknown.calls, *nobody.calls]} == {
        (503, "key_lookup_unavailable")
    }
    assert max(call.ended_s - call.began_s for call in unknown.calls) < promised(3.0)
    assert all(call.is_whole for call in [*first.calls, *known.calls])
    assert failed.returncode != 0 and "Traceback" not in failed.stderr, failed.stderr
    wait_for(is_back, "the outage is over")
    assert topup(station, "warm").returncode == 0
    assert topup(station, "warm").returncode == 0  # the same reference
    rows = await station.rows("SELECT amount_nanos FROM ledger WHERE reference = 'bank-7'")
    assert [row["amount_nanos"] for row in rows] == [10**9]
    with Load(station, cold, 4, once=True) as unknown:
        pass
    assert all(call.is_whole for call in unknown.calls)
    await books(station, "warm", [*first.calls, *known.calls], upstream)


def hold(station: Station, key: str, calls: int, until: Pause, upstream: UpstreamServer) -> Load:
    """So many calls at once that stay open; returns when each is open or refused."""
    upstream.script(PATH, held(until))
    load = Load(station, key, calls, once=True).__enter__()
    wait_for(lambda: len(load.open) + len(load.ended) == calls, "open or refused")
    return load


async def test_each_tier_spends_in_an_outage_what_it_was_promised(
    station: Station, upstream: UpstreamServer, postgres: EmbeddedPostgres
) -> None:
    """Calls that stay open add their holds up. `refuse`: what was leased before. `allowance`: that and the
    allowance, also after control was killed. `unlimited`: whatever is asked for."""
    names = {"Refuse": "refuse", "Allowance": "allowance", "Test": "unlimited"}
    keys = {name: await customer(station, name, tier) for tier, name in names.items()}
    keys["broke"] = await customer(station, "broke", "Allowance", credit_nanos=0)
    upstream.script(PATH, stream(1, 0.0))
    warm_ups = {}
    for name, key in keys.items():
        with Load(station, key, 8, once=True) as load:
            warm_ups[name] = load.calls
        assert {call.status for call in load.calls} == {429 if name == "broke" else 200}
    leased = {
        row["name"]: row["left"]
        for row in await station.rows(
            "SELECT name, sum(granted_nanos - used_nanos)::bigint AS left FROM lease"
            " JOIN account ON account.id = lease.account WHERE closed_at IS NULL GROUP BY name"
        )
    }
    until = Pause(600)
    is_away, is_served = said(station, "Postgres is away"), said(station, "serving workers without Postgres")
    loads: dict[str, list[Load]] = {}
    with away(postgres, "stopped"):
        wait_for(is_away, "the outage is declared")
        for name, key in keys.items():
            loads[name] = [hold(station, key, 60, until, upstream)]
        control = station.child("control")
        os.kill(control, signal.SIGKILL)
        wait_for(lambda: station.children().get("control", control) != control, "a new control")
        wait_for(is_served, "workers are served")
        for name, key in keys.items():
            loads[name].append(hold(station, key, 10, until, upstream))
        until.end()
        for pair in loads.values():
            for load in pair:
                load.stop()
    for name, pair in loads.items():
        calls = [call for load in pair for call in load.calls]
        refused = Counter((call.status, call.code) for call in calls if not call.is_whole)
        served = {call.id for call in calls if call.is_whole}
        assert set(refused) <= {(503, "station_unavailable")}, [str(c) for c in calls if not c.is_whole]
        found = await books(station, name, [*warm_ups[name], *calls], upstream)
        held_nanos = {True: 0, False: 0}  # counted against a lease?
        for id_ in served:
            row = found.rows[id_]
            held_nanos[row["lease"] is not None] += row["hold_nanos"]
        print(
            f"{name}: {len(served)} served, {dict(refused)}, held {held_nanos}, leased {leased.get(name, 0)}"
        )
        assert held_nanos[True] <= leased.get(name, 0)
        if name == "refuse":
            assert len(served) > 0 and held_nanos[False] == 0
        elif name == "allowance":
            assert ALLOWANCE_NANOS * 0.7 < held_nanos[False] <= ALLOWANCE_NANOS
        else:
            assert len(served) == (70 if name == "unlimited" else 0)


async def test_an_embedded_postgres_that_is_killed_comes_back(
    upstream: UpstreamServer, tmp_path: Path
) -> None:
    """First alone: the supervisor starts it again. Then with the whole node, as in a power failure."""
    upstream.script(PATH, stream(4, 0.25))
    station = Station(tmp_path / "data", routes(upstream.url), workers=1).start()
    try:
        key = await station.customer("embedded")
        with Load(station, key, USERS, spread_s=1.0) as load:
            wait_for(lambda: len(load.ended) >= USERS, "calls")
            killed, killed_s = postmaster(station), time.time()
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda: postmaster(station) not in (0, killed), "a new Postgres")
            print(f"embedded: back after {time.time() - killed_s:.2f} s")
            count = len(load.ended)
            wait_for(lambda: len(load.ended) >= count + USERS, "calls")
            assert [str(call) for call in load.ended if not call.is_whole] == []
            for pid in [postmaster(station), *station.children().values()]:
                os.kill(pid, signal.SIGKILL)
            station.kill()
            station.start()
            again = len(load.ended)
            wait_for(lambda: len(load.ended) >= again + USERS, "calls")
        found = await books(station, "embedded", load.stop(), upstream)
        assert set(found.outcomes) == {"complete", "interrupted_relay"}
        assert station.stop() == 0
    finally:
        station.kill()


def postmaster(station: Station) -> int:
    """Its pid once it takes connections, else 0."""
    try:
        lines = (station.data / "pg" / "cluster" / "postmaster.pid").read_text().splitlines()
        return int(lines[0]) if lines[-1].strip() == "ready" else 0
    except (FileNotFoundError, IndexError):  # not there, or being written
        return 0


# -- the journal's disk ------------------------------------------------------------------------------


@pytest.fixture
def full_disk_station(database_dsn: str, upstream: UpstreamServer, tmp_path: Path) -> Iterator[Station]:
    """A station whose journal lies on a small disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    station = Station(
        tmp_path / "data",
        routes(upstream.url),
        database_dsn,
        environ={"HEADRACE_JOURNAL_RESERVE_BYTES": str(1 << 20), "HEADRACE_JOURNAL_SEGMENT_BYTES": "262144"},
    )
    journal = station.data / "journal"
    journal.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", journal], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode()}")
    try:
        yield station.start()
    finally:
        station.kill()
        wait_for(lambda: not station.children(), "the children are gone")
        subprocess.run(["umount", "-l", journal], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


async def test_a_full_disk_stops_new_calls_and_loses_none_that_runs(
    full_disk_station: Station, upstream: UpstreamServer
) -> None:
    station = full_disk_station
    key = await station.customer("full")
    until = Pause(600)
    running = hold(station, key, 20, until, upstream)
    assert len(running.open) == 20
    upstream.script(PATH, stream(1, 0.0))
    filler = station.data / "journal" / ".filler"
    with Load(station, key, 10) as load:
        wait_for(lambda: any(call.is_whole for call in load.ended), "calls")
        fill(filler)
        wait_for(lambda: is_refused(load.ended), "calls are refused")
        assert station.get("/readyz") == 503
        until.end()
        running.stop()
        assert [str(call) for call in running.calls if not call.is_whole] == []
        assert station.get("/healthz") == 200
        filler.unlink()
        freed_s = time.time()
        wait_for(lambda: load.ended[-1].is_whole, "calls are served")
        print(f"full disk: served again after {time.time() - freed_s:.2f} s")
        wait_for(lambda: station.get("/readyz") == 200, "ready")
    refused = Counter((call.status, call.code) for call in load.calls if not call.is_whole)
    assert set(refused) == {(503, "journal_unavailable")}
    calls = [*running.calls, *load.calls]
    found = await books(station, "full", calls, upstream)
    assert found.outcomes["complete"] == sum(call.is_whole for call in calls)
    assert station.stop() == 0


def is_refused(calls: list[Call]) -> bool:
    return len(calls) > 20 and all(call.code == "journal_unavailable" for call in calls[-20:])
