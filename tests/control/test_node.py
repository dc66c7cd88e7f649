"""Control as a process: reload, changes of keys, its own death, Postgres that comes late."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from proxy.store.catalog import Catalog, KeySettings
from tests.conftest import Databases
from tests.fakes.upstream_server import UpstreamServer, whole
from tests.station import Station, routes
from tests.waiting import DEADLINE_S, promised, until, wait_for

ANSWER = (
    b'{"id":"c1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":12}}'
)
WORKERS = 2


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamServer]:
    with UpstreamServer() as server:
        yield server


@pytest.fixture(scope="module")
def station(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, upstream: UpstreamServer
) -> Iterator[Station]:
    dsn = databases.take()
    station = Station(tmp_path_factory.mktemp("node") / "data", routes(upstream.url), dsn, workers=WORKERS)
    station.start()
    yield station
    assert station.stop() == 0
    databases.give_back(dsn)


def admin(station: Station, path: str, method: str = "GET") -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{station.admin_port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            body = answer.read()
            return answer.status, body.decode() if path == "/metrics" else orjson.loads(body)
    except urllib.error.HTTPError as e:
        return e.code, orjson.loads(e.read())


def generations(station: Station) -> list[int]:
    return [w["generation"] for w in admin(station, "/admin/status")[1]["workers"]]


async def call(station: Station, key: str) -> int:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            station.url + "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
        ) as answer,
    ):
        await answer.read()
        return answer.status


async def until_answer(station: Station, key: str, status: int, within_s: float = DEADLINE_S) -> None:
    """Every worker answers with that status: new connections go to any of them."""

    async def is_so() -> bool:
        return {await call(station, key) for _ in range(6)} == {status}

    await until(is_so, f"{status} of all workers", within_s)


def test_a_saved_file_is_in_force_on_all_workers_at_once(station: Station) -> None:
    before = admin(station, "/admin/status")[1]["routes"]["generation"]
    draft = station.config_path.with_suffix(".draft")
    draft.write_text(station.config.replace("concurrency: 2000", "concurrency: 1999"))
    draft.rename(station.config_path)
    wait_for(lambda: generations(station) == [before + 1] * WORKERS, "reloaded")
    station.config_path.write_text(station.config)
    wait_for(lambda: generations(station) == [before + 2] * WORKERS, "reloaded again")


def test_a_broken_file_keeps_the_old_table_and_says_where_it_is_broken(station: Station) -> None:
    before = generations(station)
    station.config_path.write_text(station.config.replace("dialect: openai", "dialect: opnai"))

    def mistakes() -> list[str]:
        return admin(station, "/admin/status")[1]["routes"]["mistakes"]

    [mistake] = wait_for(mistakes, "the mistake")
    name = station.config_path.name
    assert f"{name}:6:" in mistake
    assert any(mistake in line["msg"] for line in station.log_lines() if line["level"] == "error")
    failed = 'headrace_config_reload_failed{process="control"} 1'
    wait_for(lambda: failed in admin(station, "/metrics")[1], "the metric")
    status, body = admin(station, "/admin/reload", "POST")
    assert status == 422
    assert f"{name}:6:" in orjson.dumps(body).decode()
    assert generations(station) == before
    station.config_path.write_text(station.config)
    wait_for(lambda: not mistakes(), "repaired")


def test_sighup_reads_the_file_again(station: Station) -> None:
    assert station.process is not None
    before = admin(station, "/metrics")[1]
    station.process.send_signal(signal.SIGHUP)
    wait_for(lambda: _count(admin(station, "/metrics")[1]) > _count(before), "a reload")


def _count(metrics: str) -> float:
    return sum(
        float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("headrace_reloads_total")
    )


async def test_keys_work_when_made_and_are_refused_when_revoked_within_two_seconds(
    station: Station, upstream: UpstreamServer
) -> None:
    upstream.script("/v1/chat/completions", [whole(ANSWER)])
    await station.customer("changes")
    database = await station.open_database()
    catalog = Catalog(database)
    key_id, key = await catalog.create_key("changes", KeySettings())
    await until_answer(station, key, 200, promised(2.0))
    await catalog.revoke_key(key_id)
    await until_answer(station, key, 401, promised(2.0))
    await database.close()


async def test_calls_go_on_while_control_dies_and_comes_back(
    station: Station, upstream: UpstreamServer
) -> None:
    upstream.script("/v1/chat/completions", [whole(ANSWER)])
    key = await station.customer("control-dies")
    await until_answer(station, key, 200)
    for _ in range(3):
        before = station.child("control")
        os.kill(before, signal.SIGKILL)
        assert await call(station, key) == 200  # with what the worker holds
        began_s = time.monotonic()
        wait_for(
            lambda before=before: station.children("control").get("control") not in (None, before), "another"
        )
        assert time.monotonic() - began_s < promised(1.0)
        await until_answer(station, key, 200)
    cold = await station.customer("after-control-died")
    await until_answer(station, cold, 200)
    wait_for(lambda: len(generations(station)) == WORKERS, "all workers are back")
    violations = await station.violations()
    assert violations == []


async def test_metrics_sum_over_workers_that_come_and_go(station: Station, upstream: UpstreamServer) -> None:
    upstream.script("/v1/chat/completions", [whole(ANSWER)])
    assert await call(station, await station.customer("counted")) == 200

    def calls() -> float:
        return sum(
            float(line.split()[-1])
            for line in admin(station, "/metrics")[1].splitlines()
            if line.startswith("headrace_calls_total")
        )

    wait_for(lambda: calls() > 0, "numbers")
    before = calls()
    os.kill(station.child("w0"), signal.SIGKILL)
    wait_for(lambda: len(generations(station)) == WORKERS, "a new worker")
    assert calls() >= before


def test_a_node_with_a_broken_file_is_refused_with_the_mistakes(
    tmp_path: Path, database_dsn: str, upstream: UpstreamServer
) -> None:
    broken = routes(upstream.url).replace("dialect: openai", "dialect: opnai")
    station = Station(tmp_path / "data", broken, database_dsn)
    with pytest.raises(AssertionError, match="serve ended with 1") as refused:
        station.start()
    assert "data.yaml:6:" in str(refused.value)
    assert "did you mean" in str(refused.value)


async def test_a_node_waits_for_postgres_and_then_serves(
    tmp_path: Path, database_dsn: str, upstream: UpstreamServer
) -> None:
    from tests.fakes.cable import Cable

    async with Cable(database_dsn, tmp_path / "cable") as cable:
        cable.cut()
        station = Station(tmp_path / "data", routes(upstream.url), cable.dsn)
        starting = asyncio.create_task(asyncio.to_thread(station.start))
        try:
            await until(lambda: "waiting for Postgres" in station.log())
            cable.mend()
            await starting
            upstream.script("/v1/chat/completions", [whole(ANSWER)])
            key = await station.customer("late")
            await until_answer(station, key, 200)
            assert await asyncio.to_thread(station.stop) == 0
        finally:
            station.kill()
        rows = await station.rows("SELECT balance_nanos = available_nanos AS is_free FROM account")
        assert rows == [{"is_free": True}]
