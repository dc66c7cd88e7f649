"""The relay under test: a real `headrace serve` with everything on, driven by its command line.

One worker, embedded Postgres, accounts with money and keys, limits that count and never bite. The
worker gets the proxy's core to itself; supervisor, control and Postgres share the other with the
upstream and the load.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

from proxy.bench import machine
from proxy.bench.machine import BenchError, Process, free_port
from proxy.bench.rig import PLAIN_MODEL, SECURE_MODEL, Rig
from proxy.bench.subjects import Subject

READY_S = 90.0
COMMAND_S = 60.0
ACCOUNTS = 4  # the hot path must not live from one warm key
WORKER = re.compile(r"proxy\.child worker\b")
CONTROL = re.compile(r"proxy\.child control\b")
KEY = re.compile(r"sk-[A-Za-z0-9_-]{8,}")

ROUTES = """
station: {{currency: USD, default_tier: Bench}}
endpoints:
  direct: {{url: "http://127.0.0.1:{port}"}}
upstreams:
  plain:
    dialect: openai
    mirrors: {{direct: {{url: "{plain}"}}}}
    credentials: {{main: "${{env:HEADRACE_BENCH_CREDENTIAL}}"}}
  secure:
    dialect: openai
    mirrors: {{direct: {{url: "{secure}"}}}}
    credentials: {{main: "${{env:HEADRACE_BENCH_CREDENTIAL}}"}}
models:
  {plain_model}: {{candidates: [{{upstream: plain}}]}}
  {secure_model}: {{candidates: [{{upstream: secure}}]}}
tiers:
  Bench: {{rank: 0, models: ["*"], multiplier: 1.0, limits: {{requests: 100000000/min, concurrency: 100000}}}}
"""


class Relay(Subject):
    """`headrace serve --workers 1`."""

    name = "relay"

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._port, self._admin_port = free_port(), free_port()
        self._data = rig.folder / "station"
        self._process: Process | None = None
        self._worker_pid = 0

    def start(self) -> None:
        rig = self._rig
        config = rig.folder / "routes.yaml"
        config.write_text(
            ROUTES.format(
                port=self._port,
                plain=rig.upstream_url(False),
                secure=rig.upstream_url(True),
                plain_model=PLAIN_MODEL,
                secure_model=SECURE_MODEL,
            )
        )
        environment = {"HEADRACE_BENCH_CREDENTIAL": "sk-bench-upstream", "DATABASE_URL": ""}
        if rig.certificate:
            environment["SSL_CERT_FILE"] = str(rig.certificate)
        command = ["serve", "--config", str(config), "--workers", "1", "--data", str(self._data)]
        command += ["--listen", f"127.0.0.1:{self._port}", "--admin", f"127.0.0.1:{self._admin_port}"]
        self._process = Process(
            [sys.executable, "-m", "proxy", *command], rig.cores.rest, rig.folder / "relay.log", environment
        )
        self._process.wait_for_port(self._port, READY_S)
        self._wait_until_ready()
        self._worker_pid = self._find_worker()
        machine.pin(self._worker_pid, rig.cores.proxy)
        rig.keys = [self._make_key(f"bench-{number}") for number in range(ACCOUNTS)]

    def stop(self) -> None:
        if self._process:
            self._process.stop()

    def port(self, is_secure: bool) -> int:
        return self._port

    def pid(self, is_secure: bool) -> int | None:
        return self._worker_pid

    def helpers(self) -> dict[str, list[int]]:
        """Control, and Postgres with all that is its own."""
        lines = {pid: machine.command_line(pid) for pid in self._processes()}
        control = [pid for pid, line in lines.items() if CONTROL.search(line)]
        postgres = [pid for pid in lines if pid != self._worker_pid and pid not in control]
        return {"control": control, "postgres": postgres}

    def _processes(self) -> list[int]:
        """Everything below the supervisor: worker, control, Postgres."""
        assert self._process
        return machine.descendants(self._process.pid)

    def _find_worker(self) -> int:
        workers = [pid for pid in self._processes() if WORKER.search(machine.command_line(pid))]
        if len(workers) != 1:
            raise BenchError(f"expected one worker process, found {len(workers)}")
        return workers[0]

    def _wait_until_ready(self) -> None:
        assert self._process
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self._process.popen.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise BenchError(f"the relay does not become ready:\n{self._process.last_words()}")

    def _make_key(self, account: str) -> str:
        """An account with more money than the benchmark can spend, and its key."""
        self._command("account", "create", account)
        self._command("account", "topup", account, "--amount", "1000000", "--ref", f"bench-{account}")
        printed = self._command("key", "create", "--account", account)
        key = KEY.search(printed)
        if key is None:
            raise BenchError(f"`key create` printed no key: {printed!r}")
        return key.group()

    def _command(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "proxy", *arguments, "--data", str(self._data)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            env=os.environ | {"DATABASE_URL": ""},
            check=False,
        )
        if done.returncode:
            raise BenchError(
                f"`headrace {' '.join(arguments)}` failed:\n{(done.stderr or done.stdout)[-2000:]}"
            )
        return done.stdout
