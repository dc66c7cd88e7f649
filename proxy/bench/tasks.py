"""What open tasks cost: the poller of a station with 10,000 of them, and 100,000 that are finished.

Owns a station of its own, whose tasks are put straight into its Postgres, and a vendor that says of each
that it goes on. Two families: one is asked about tasks one by one, the other about a hundred at a time.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import orjson

from proxy.bench import machine
from proxy.bench.figures import Figures
from proxy.bench.machine import BenchError, Cores, Process, free_port
from proxy.embedded import dsn_for
from proxy.store.catalog import Catalog
from proxy.store.database import Database

OPEN, FINISHED = 10_000, 100_000
FAMILIES = ("one", "many")
SETTLE_WINDOWS = 2  # windows before the measurement: each task is polled at its own pace by then
READY_S = 90.0
CONTROL = re.compile(r"proxy\.child control\b")
WORKER = re.compile(r"proxy\.child worker\b")

ROUTES = """
station: {{currency: USD, default_tier: Bench}}
endpoints: {{direct: {{url: "http://127.0.0.1:1"}}}}
upstreams:
  one: {{dialect: one, mirrors: {{direct: {{url: "{vendor}"}}}}, credentials: {{main: "${{env:BENCH}}"}}}}
  many: {{dialect: many, mirrors: {{direct: {{url: "{vendor}"}}}}, credentials: {{main: "${{env:BENCH}}"}}}}
tasks:
  one:
    upstream: one
    task: {{id: id, state: status, states: {{DONE: succeeded}}, poll: {{operation: look, {pace}}}}}
    operations:
      make: {{path: /one/make, submits: true, bill: one}}
      look: {{path: "/one/{{id}}", method: GET, names: [path.id], shows: true}}
  many:
    upstream: many
    task:
      id: id
      state: status
      states: {{DONE: succeeded}}
      poll: {{operation: look, {pace}}}
      batch: {{operation: list, ids: ids, items: "", id: id, at_once: 100}}
    operations:
      make: {{path: /many/make, submits: true, bill: many}}
      look: {{path: "/many/{{id}}", method: GET, names: [path.id], shows: true}}
      list: {{path: /many/list, shows: true, lists: {{ids: body.ids}}}}
prices: {{one: {{call: 1 USD}}, many: {{call: 1 USD}}}}
tiers: {{Bench: {{rank: 0, models: ["*"], multiplier: 1.0}}}}
"""
PACE = "every: 3s, at_most: 30s"  # the built-in Midjourney's

# Of the last hour, the first of them the oldest: their pauses are those of tasks of all ages.
_OPEN = """
INSERT INTO binding (id, account, key, kind, vendor_id, upstream, mirror, credential, at_ms, hold_nanos,
                     state, next_poll_ms, incarnation)
SELECT (lpad(to_hex(at_ms), 12, '0') || '7' || substr(md5($2 || n), 1, 19))::uuid, $1, 1, $2, md5($2 || n),
       $2, 'direct', 'main', at_ms, 0, 'pending', $3::bigint + (random() * 30000)::int, 'bench'
FROM generate_series(1, $4::int) n, LATERAL (SELECT $3::bigint - n * 360 AS at_ms) moment
"""
_FINISHED = """
INSERT INTO binding (id, account, key, kind, vendor_id, upstream, mirror, credential, at_ms, hold_nanos,
                     state, content, incarnation)
SELECT (lpad(to_hex(at_ms), 12, '0') || '7' || substr(md5('f' || n), 1, 19))::uuid, $1, 1, $2, 'f' || n,
       $2, 'direct', 'main', at_ms, 0, 'settled', jsonb_build_object('prompt', repeat('a cat ', 20)), 'bench'
FROM generate_series($4::int + 1, $4::int + $5::int) n, LATERAL (SELECT $3::bigint - n * 1000 AS at_ms) moment
"""


def measure(folder: Path, cores: Cores, window_s: float, say: Callable[[str], None]) -> Figures:
    """All figures, of a station that is started for them. Raises BenchError."""
    station = TaskStation(folder, cores)
    try:
        station.start()
        say("tasks: none")
        figures = {f"tasks_none_{name}": value for name, value in station.watch(window_s).items()}
        for family in FAMILIES:
            for name, finished in ((family, 0), (f"{family}_finished", FINISHED)):
                say(f"tasks: {OPEN:,} open, {finished:,} finished, asked about by {family}")
                asyncio.run(station.fill(family, finished))
                time.sleep(SETTLE_WINDOWS * window_s)
                watched = station.watch(window_s)
                figures |= {f"tasks_{name}_{what}": value for what, value in watched.items()}
        return figures
    finally:
        station.stop()


class TaskStation:
    """`headrace serve` with one worker that has nothing to do, and its vendor."""

    def __init__(self, folder: Path, cores: Cores) -> None:
        self._folder, self._cores = folder, cores
        self._port, self._vendor_port = free_port(), free_port()
        self._processes: list[Process] = []

    def start(self) -> None:
        vendor = [sys.executable, "-m", "proxy.bench.polled", str(self._vendor_port)]
        self._run(vendor, self._cores.rest, "vendor.log").wait_for_port(self._vendor_port, READY_S)
        config = self._folder / "tasks.yaml"
        config.write_text(ROUTES.format(vendor=f"http://127.0.0.1:{self._vendor_port}", pace=PACE))
        command = [sys.executable, "-m", "proxy", "serve", "--config", str(config), "--workers", "1"]
        command += [
            "--data",
            str(self._data),
            "--listen",
            f"127.0.0.1:{self._port}",
            "--admin",
            "127.0.0.1:0",
        ]
        station = self._run(command, self._cores.proxy, "tasks.log")
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and station.popen.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise BenchError(f"the station of tasks does not become ready:\n{station.last_words()}")

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.stop()

    async def fill(self, family: str, finished: int) -> None:
        """Nothing but so many tasks of one family."""
        database = await Database.connect(dsn_for(self._data))
        try:
            await database.execute("TRUNCATE binding CASCADE")
            name = f"bench-{family}-{finished}"
            account = (await Catalog(database).create_account(name)).id
            now_ms = time.time_ns() // 1_000_000
            for first in range(0, finished, OPEN):
                await database.execute(_FINISHED, account, family, now_ms, first, OPEN)
            await database.execute(_OPEN, account, family, now_ms, OPEN)
            await database.execute("VACUUM ANALYZE binding")  # not while it is measured
            await database.execute("CHECKPOINT")
        finally:
            await database.close()

    def watch(self, window_s: float) -> Figures:
        """CPU in % of a core and per task that was asked about, and what the vendor was asked a second."""
        groups = self._groups()
        spent, counts, began = self._spent(groups), self._counts(), time.monotonic()
        time.sleep(window_s)
        after, counts_after, took_s = self._spent(groups), self._counts(), time.monotonic() - began
        spent_ns = {name: after[name] - spent[name] for name in groups}
        asked = {name: counts_after[name] - counts[name] for name in counts}
        figures = {f"{name}_pct": ns / took_s / 1e7 for name, ns in spent_ns.items()}
        if asked["tasks"]:
            figures |= {f"{name}_us": ns / 1000 / asked["tasks"] for name, ns in spent_ns.items()}
        return figures | {f"{name}_per_s": count / took_s for name, count in asked.items()}

    @property
    def _data(self) -> Path:
        return self._folder / "task-station"

    def _run(self, command: list[str], core: int, log: str) -> Process:
        environment = {"BENCH": "sk-bench", "DATABASE_URL": ""}
        process = Process(command, core, self._folder / log, environment)
        self._processes.append(process)
        return process

    def _groups(self) -> dict[str, list[int]]:
        lines = {
            pid: machine.command_line(pid) for pid in machine.descendants(self._processes[-1].pid)
        }  # fmt: skip
        control = [pid for pid, line in lines.items() if CONTROL.search(line)]
        postgres = [pid for pid, line in lines.items() if pid not in control and not WORKER.search(line)]
        return {"control": control, "postgres": postgres}

    @staticmethod
    def _spent(groups: dict[str, list[int]]) -> dict[str, int]:
        return {name: sum(map(machine.cpu_ns, pids)) for name, pids in groups.items()}

    def _counts(self) -> dict[str, int]:
        url = f"http://127.0.0.1:{self._vendor_port}/counts"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return dict(orjson.loads(answer.read()))
