"""A whole station for system tests: `headrace serve` as a user starts it, with upstreams of the test's.

The station runs as processes of its own and is reached by its public address, its command line and its
database only.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from proxy.store.audit import audit
from proxy.store.catalog import Catalog, KeySettings
from proxy.store.database import Database
from tests.midday import MIDDAY
from tests.waiting import until, wait_for

ROOT = Path(__file__).resolve().parents[1]
START_S = 180.0
STOP_S = 120.0

ROUTES = """
station: {{currency: USD, timezone: {zone}, default_tier: Test, on_outage: unlimited}}
endpoints: {{direct: {{url: "http://127.0.0.1:1", cors: true}}}}
upstreams:
  one:
    dialect: openai
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:ONE_KEY}}"}}
  claude:
    dialect: anthropic
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:CLAUDE_KEY}}"}}
models:
  gpt-4o-mini: {{context: 128000, max_output: 16384, candidates: [{{upstream: one}}]}}
  text-embedding-3-small: {{candidates: [{{upstream: one}}]}}
  claude-sonnet-4-5: {{context: 200000, max_output: 64000, candidates: [{{upstream: claude}}]}}
tiers:
  Test: {{rank: 0, models: ["*"], multiplier: 1.0, limits: {{concurrency: 2000}}}}
"""

# Upstream credentials that must never be seen by a client or in a log.
CANARIES = {"ONE_KEY": "sk-upstream-canary-one-0123456789", "CLAUDE_KEY": "sk-ant-canary-two-0123456789"}


def routes(url: str) -> str:
    """The plain routes.yaml: all of it at one upstream server."""
    return ROUTES.format(url=url, zone=MIDDAY)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Station:
    """One station. `dsn` "" runs the embedded Postgres under `data`."""

    data: Path
    config: str
    dsn: str = ""
    workers: int = 1
    environ: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    port: int = 0
    admin_port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def config_path(self) -> Path:
        return self.data.with_suffix(".yaml")

    @property
    def log_path(self) -> Path:
        return self.data.with_suffix(".log")

    def start(self) -> Station:
        """Serve, and return when it is ready. May be called again after `stop` or `kill`."""
        self.port = self.port or free_port()
        self.admin_port = self.admin_port or free_port()
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(self.config)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")} | CANARIES
        environ |= self.environ
        environ.pop("DATABASE_URL", None)
        if self.dsn:
            environ["DATABASE_URL"] = self.dsn
        command = [sys.executable, "-m", "proxy", "serve", "--data", str(self.data)]
        command += ["--config", str(self.config_path), "--workers", str(self.workers)]
        command += ["--listen", f"127.0.0.1:{self.port}", "--admin", f"127.0.0.1:{self.admin_port}"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments], cwd=ROOT, env=environ, stdout=log, stderr=log
            )
        try:
            wait_for(self.is_ready, "ready", START_S)
        except AssertionError as e:
            self.kill()
            raise AssertionError(f"{e}; log:\n{self.log()[-4000:]}") from None
        return self

    def is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"serve ended with {self.process.returncode}:\n{self.log()[-4000:]}")
        try:
            return self.get("/readyz") == 200
        except OSError:
            return False

    def get(self, path: str) -> int:
        """The status of a plain GET on a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), 2) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
            answer = sock.recv(65536)
        return int(answer.split(b" ", 2)[1]) if answer else 0

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL to the supervisor; its children follow by their lifeline."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def children(self, name: str = "") -> dict[str, int]:
        """pid of each living child by the name in the log's `started` lines (w0, control, demo)."""
        found: dict[str, int] = {}
        for line in self.log_lines():
            if line.get("msg") == "started" and "child" in line:
                found[line["child"]] = line["pid"]
        return {child: pid for child, pid in found.items() if child.startswith(name) and _lives(pid)}

    def child(self, name: str) -> int:
        """pid of one, once it lives."""
        return int(wait_for(lambda: self.children().get(name), f"{name} lives"))

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def log_lines(self) -> list[dict[str, Any]]:
        whole = self.log().rpartition("\n")[0]  # the last line may be on its way
        return [orjson.loads(line) for line in whole.splitlines() if line.startswith("{")]

    # -- what an operator does; each on a connection of its own --

    async def open_database(self) -> Database:
        dsn = self.dsn
        if not dsn:
            from proxy.embedded import dsn_for

            dsn = dsn_for(self.data)
        return await Database.connect(dsn)

    async def customer(self, name: str, credit_nanos: int = 10**12, **settings: Any) -> str:
        """An account with credit and a key; the key. `settings` are those of KeySettings."""
        database = await self.open_database()
        try:
            catalog = Catalog(database)
            await catalog.create_account(name)
            if credit_nanos:
                await catalog.top_up(name, credit_nanos, f"test-{name}")
            return (await catalog.create_key(name, KeySettings(**settings)))[1]
        finally:
            await database.close()

    async def rows(self, sql: str = "SELECT * FROM usage ORDER BY id") -> list[dict[str, Any]]:
        database = await self.open_database()
        try:
            return [dict(row) for row in await database.fetch(sql)]
        finally:
            await database.close()

    async def settled_rows(self, count: int) -> list[dict[str, Any]]:
        """The usage rows once there are `count`; fails when there are more."""

        async def enough() -> list[dict[str, Any]] | None:
            rows = await self.rows()
            return rows if len(rows) >= count else None

        rows = await until(enough, f"{count} rows")
        assert len(rows) == count, f"{len(rows)} rows, not {count}"
        return rows

    async def violations(self) -> list[Any]:
        """What `headrace ledger audit` would complain of."""
        database = await self.open_database()
        try:
            return await audit(database)
        finally:
            await database.close()


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
