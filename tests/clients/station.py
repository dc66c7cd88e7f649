"""A station of its own for the client tests: `headrace serve`, started and stopped as a user would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0  # what a first start may take: initdb, migrations, price data
STOP_S = 30.0


@dataclass(frozen=True, slots=True)
class Station:
    """A running station and a key of it. `base_url` has no path."""

    base_url: str
    key: str


@contextmanager
def serve(data: Path, *arguments: str) -> Iterator[Station]:
    """Run `headrace serve` with `arguments` until the block ends; its log is kept beside `data`."""
    public, admin = free_port(), free_port()
    command = [sys.executable, "-m", "proxy", "serve", "--data", str(data), "--workers", "1", *arguments]
    command += ["--listen", f"127.0.0.1:{public}", "--admin", f"127.0.0.1:{admin}"]
    log = data.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    base_url = f"http://127.0.0.1:{public}"
    try:
        wait_until_ready(base_url, process, log)
        yield Station(base_url, demo_key(data) or new_key(f"http://127.0.0.1:{admin}"))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(base_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(base_url + "/readyz", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the station did not become ready:\n{log.read_text()[-4000:]}")


def demo_key(data: Path) -> str:
    """The key that `--demo` left in the data folder; "" without it."""
    path = data / "demo.key"
    return path.read_text().strip() if path.exists() else ""


def new_key(admin_url: str) -> str:
    """A key of a new account with money, made as an operator would."""
    post(admin_url + "/admin/accounts", {"name": "tester"})
    post(admin_url + "/admin/accounts/tester/topups", {"amount": "100"}, {"Idempotency-Key": "first"})
    return str(post(admin_url + "/admin/accounts/tester/keys", {})["key"])


def post(url: str, document: dict[str, object], headers: dict[str, str] | None = None) -> dict[str, object]:
    request = urllib.request.Request(url, json.dumps(document).encode(), (headers or {}))
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.load(answer))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def given() -> Station | None:
    """The station that the environment names, to try the clients against a deployment."""
    base_url, key = os.environ.get("HEADRACE_BASE_URL"), os.environ.get("HEADRACE_KEY")
    return Station(base_url.rstrip("/"), key) if base_url and key else None
