"""Processes of a station end in the middle of 200 streams, by SIGKILL and by SIGTERM.

What must hold is always the same (see `load.books`): nothing that was settled is lost or doubled, what was
cut is there once, and whoever was served by another process notices nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime

import pytest

from tests.conftest import Databases
from tests.fakes.upstream_server import Pause, UpstreamServer
from tests.station import Station, routes
from tests.system.load import PATH, SLOW, Load, books, held, stream
from tests.waiting import DEADLINE_S, promised, wait_for

USERS = 200
GRACE_S = 10
CHECKPOINT_AGE_S = 1.0 + 1.0  # money.md 10, and a loop that is late


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamServer]:
    with UpstreamServer() as server:
        yield server


@pytest.fixture(scope="module")
def station(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, upstream: UpstreamServer
) -> Iterator[Station]:
    running = Station(
        tmp_path_factory.mktemp("kills") / "data",
        routes(upstream.url),
        databases.take(),
        workers=2,
        environ={"HEADRACE_DRAIN_GRACE_S": str(GRACE_S)},
    ).start()
    yield running
    running.kill()


@pytest.fixture(autouse=True)
def is_running(station: Station) -> None:
    if station.process is None or station.process.poll() is not None:
        station.start()


def crowd(station: Station, key: str) -> Load:
    """Streams of two seconds that begin all the time."""
    return Load(station, key, USERS, spread_s=2.0)


def is_crowded(load: Load) -> Callable[[], bool]:
    return lambda: len(load.open) >= USERS * 0.8


def wait_for_calls(load: Load, more: int) -> None:
    """Until so many more have ended."""
    count = len(load.ended) + more
    wait_for(lambda: len(load.ended) >= count, f"{more} calls")


def end(station: Station, child: str, how: signal.Signals) -> float:
    """Signal a child and wait for its successor; when it was."""
    pid, moment_s = station.child(child), time.time()
    os.kill(pid, how)
    wait_for(lambda: station.children().get(child, pid) != pid, f"a new {child}")
    return moment_s


LOG_S = 0.001  # moments of the log are whole milliseconds, cut off


def logged(station: Station, since_s: float, msg: str, **fields: str) -> list[tuple[float, dict[str, str]]]:
    """Lines of the log, each with how many seconds after `since_s` it was written."""
    found = []
    for line in station.log_lines():
        after_s = datetime.fromisoformat(line["ts"]).timestamp() - since_s
        if after_s > -LOG_S and line["msg"] == msg and fields.items() <= line.items():
            found.append((after_s, line))
    return found


def first(station: Station, since_s: float, msg: str, **fields: str) -> float:
    """Seconds from a moment to a line of the log that may still be to come."""
    return wait_for(lambda: logged(station, since_s, msg, **fields), msg)[0][0]


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=SLOW)])
async def test_a_killed_worker_loses_no_call_and_disturbs_no_other_worker(
    station: Station, upstream: UpstreamServer, times: int
) -> None:
    upstream.script(PATH, stream(8, 0.25))
    account = f"workers-{times}"
    key = await station.customer(account)
    kills: dict[str, float] = {}  # incarnation -> when
    with crowd(station, key) as load:
        for number in range(times):
            wait_for(is_crowded(load), "a crowd")
            child = f"w{number % 2}"
            moment_s = end(station, child, signal.SIGKILL)
            first(station, moment_s, "serving", process=child)
            adopted = wait_for(lambda s=moment_s: logged(station, s, "adopted"), "adoption")
            kills[adopted[0][1]["incarnation"]] = moment_s
            replaced_s = first(station, moment_s, "started", child=child)
            serving_s = first(station, moment_s, "serving", process=child)
            print(
                f"{child}: replaced after {replaced_s:.2f} s, serving after {serving_s:.2f} s,"
                f" adopted after {adopted[0][0]:.2f} s, interrupted {adopted[0][1]['interrupted']}"
            )
            assert replaced_s <= promised(1.0)
            assert adopted[0][0] <= promised(5.0)
        wait_for(is_crowded(load), "a crowd")
    found = await books(station, account, load.stop(), upstream)
    assert len(kills) == times
    assert found.outcomes["interrupted_relay"] > 10 * times
    for call in load.calls:
        row = found.rows.get(call.id)
        if not call.is_whole and row is not None:
            assert row["incarnation"] in kills, f"another worker's call: {call}"
        elif not call.is_whole:
            assert min(abs(call.ended_s - moment_s) for moment_s in kills.values()) < promised(1.0), str(call)
        elif row is not None:
            assert row["outcome"] == "complete"
        if row is not None and row["outcome"] == "interrupted_relay":
            at_least = call.had(kills[row["incarnation"]] - promised(CHECKPOINT_AGE_S))
            assert at_least <= row["response_bytes"] <= len(call.content), str(call)


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=SLOW)])
async def test_killing_control_breaks_no_stream(
    station: Station, upstream: UpstreamServer, times: int
) -> None:
    """Workers go on with the keys and slices that they hold; only what needs control may be told to wait."""
    upstream.script(PATH, stream(8, 0.25))
    account = f"control-{times}"
    key = await station.customer(account)
    with crowd(station, key) as load:
        for _ in range(times):
            wait_for(is_crowded(load), "a crowd")
            moment_s = end(station, "control", signal.SIGKILL)
            replaced_s = first(station, moment_s, "started", child="control")
            back_s = first(station, moment_s, "leases of earlier lives closed")
            print(f"control: replaced after {replaced_s:.2f} s, at work after {back_s:.2f} s")
            assert replaced_s <= promised(1.0)
            wait_for_calls(load, USERS)
    found = await books(station, account, load.stop(), upstream)
    waited = [call for call in load.calls if not call.is_whole]
    print(f"control: {len(waited)} of {len(load.calls)} calls were told to wait")
    assert {(c.status, c.code, c.error) for c in waited} <= {(503, "station_unavailable", "")}
    assert len(waited) < USERS * times * promised(0.2)  # they ask until control is back
    assert set(found.outcomes) == {"complete"}


@pytest.mark.parametrize("what", ["the supervisor", pytest.param("everything", marks=SLOW)])
async def test_a_node_that_is_killed_begins_where_it_ended(
    station: Station, upstream: UpstreamServer, what: str
) -> None:
    upstream.script(PATH, stream(8, 0.25))
    account = f"node-{what}"
    key = await station.customer(account)
    with crowd(station, key) as load:
        wait_for(is_crowded(load), "a crowd")
        moment_s = time.time()
        if what == "everything":
            for pid in station.children().values():
                os.kill(pid, signal.SIGKILL)
        station.kill()
        station.start()
        back_s = time.time() - moment_s
        wait_for(is_crowded(load), "a crowd")
        closed_s = first(station, moment_s, "leases of earlier lives closed")
        adopted_s = [after_s for after_s, _ in logged(station, moment_s, "adopted")]
    found = await books(station, account, load.stop(), upstream)
    print(f"{what}: ready after {back_s:.2f} s, adopted {max(adopted_s):.2f} s, closed {closed_s:.2f} s")
    assert len(adopted_s) >= 2
    assert found.outcomes["interrupted_relay"] > USERS * 0.5
    broken = [call for call in load.calls if not call.is_whole]
    assert all(call.ended_s <= moment_s + back_s + promised(5.0) for call in broken), [
        str(call) for call in broken
    ]
    assert await open_leases(station, before_s=moment_s) == 0


async def open_leases(station: Station, before_s: float = 1e12) -> int:
    """Those that were granted before a moment."""
    sql = f"SELECT count(*) FROM lease WHERE closed_at IS NULL AND opened_at < to_timestamp({before_s})"
    return (await station.rows(sql))[0]["count"]


# -- SIGTERM -----------------------------------------------------------------------------------------


async def test_a_station_that_is_stopped_finishes_what_it_can_and_bills_the_rest(
    station: Station, upstream: UpstreamServer
) -> None:
    key = await station.customer("stopped")
    brief, long = Pause(600), Pause(600)
    upstream.script(PATH, *[held(brief)] * 20, held(long))
    with Load(station, key, 20, once=True) as short, Load(station, key, 5, once=True) as endless:
        wait_for(lambda: len(short.open) + len(endless.open) == 25, "25 streams")
        began_s, moment_s = time.monotonic(), time.time()
        station.process.send_signal(signal.SIGTERM)
        wait_for(lambda: logged(station, moment_s, "stopping"), "it stops")
        brief.end()
        wait_for(lambda: refuses(station), "no new connections")
        status = station.process.wait(DEADLINE_S)
        took_s = time.monotonic() - began_s
        calls = [*short.stop(), *endless.stop()]
    print(f"stopped after {took_s:.2f} s of a grace of {GRACE_S} s")
    found = await books(station, "stopped", calls, upstream)
    assert status == 0
    assert took_s < GRACE_S + promised(5.0)
    assert found.outcomes == {"complete": 20, "cut": 5}
    cut = [row for row in found.rows.values() if row["outcome"] == "cut"]
    assert {(row["state"], row["cut"]) for row in cut} == {("settled", "shutdown")}
    assert {(row["provenance"], row["cost_nanos"] > 0) for row in cut} == {("counted", True)}
    assert await open_leases(station) == 0
    assert await station.rows("SELECT * FROM account WHERE available_nanos <> balance_nanos") == []


def refuses(station: Station) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", station.port), 2):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


@pytest.mark.parametrize("same", ["data folder", "public port", "operators' port"])
def test_a_second_station_in_the_same_place_is_refused(
    station: Station, tmp_path_factory: pytest.TempPathFactory, same: str
) -> None:
    second = Station(tmp_path_factory.mktemp("second") / "data", station.config, station.dsn)
    if same == "data folder":
        second.data = station.data
    elif same == "public port":
        second.port = station.port
    else:
        second.admin_port = station.admin_port
    with suppress(AssertionError):  # it ends at once, or a moment after the first one answered in its place
        second.start()
    try:
        assert second.process is not None
        assert second.process.wait(DEADLINE_S) not in (0, None)
    finally:
        second.kill()
    said = second.log()[-2000:]
    assert "in use" in said and "Traceback" not in said
    assert station.get("/readyz") == 200


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=SLOW)])
async def test_workers_restarted_one_after_the_other_lose_no_connection(
    station: Station, upstream: UpstreamServer, rounds: int
) -> None:
    upstream.script(PATH, stream(2, 0.1))
    account = f"rolling-{rounds}"
    key = await station.customer(account)
    with Load(station, key, 40, spread_s=0.5) as load:
        for number in range(2 * rounds):
            child = f"w{number % 2}"
            wait_for_calls(load, 100)
            moment_s = end(station, child, signal.SIGTERM)
            first(station, moment_s, "serving", process=child)
        wait_for_calls(load, 100)
    found = await books(station, account, load.stop(), upstream)
    print(f"{len(load.calls)} connections over {2 * rounds} restarts")
    assert [str(call) for call in load.calls if not call.is_whole] == []
    assert found.outcomes == {"complete": len(load.calls)}
