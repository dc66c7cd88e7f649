"""The demo upstream as a process whose tasks move only when a test says so: a vendor for stations."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, NamedTuple

import requests

from tests.station import ROOT, free_port
from tests.waiting import wait_for


class Job(NamedTuple):
    """A job as the demo tells of it (`GET /_demo/tasks`), and the request that made it."""

    id: str
    family: str
    kind: str
    state: str
    progress: int
    polls: int
    parent: str | None
    method: str
    target: str
    headers: dict[str, str]
    body: Any

    @classmethod
    def told(cls, document: dict[str, Any]) -> Job:
        request = document.pop("request")
        return cls(**document, **request)


class TaskVendor:
    """Takes any credential; a task is known to the one that made it."""

    def __init__(self, step_s: float = 0.0) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "proxy.demo", "--listen", f"127.0.0.1:{port}", "--pace", "0"]
        self._process = subprocess.Popen([*command, "--step", str(step_s)], cwd=ROOT)
        wait_for(self._is_up)

    def __enter__(self) -> TaskVendor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _is_up(self) -> bool:
        try:
            return requests.get(self.url + "/_demo/tasks", timeout=30).ok
        except requests.ConnectionError:
            assert self._process.poll() is None, "the demo has ended"
            return False

    def jobs(self) -> list[Job]:
        """All, newest first."""
        return [Job.told(told) for told in requests.get(self.url + "/_demo/tasks", timeout=30).json()]

    def job(self, id_: str) -> Job:
        return Job.told(self._answer(requests.get(f"{self.url}/_demo/tasks/{id_}", timeout=30)))

    def move(self, id_: str, state: str = "", **wish: Any) -> Job:
        """To a state (queued, submitted, running, waiting, succeeded, failed, cancelled) or by `step`."""
        wish |= {"state": state} if state else {}
        return Job.told(self._answer(requests.post(f"{self.url}/_demo/tasks/{id_}", json=wish, timeout=30)))

    @staticmethod
    def _answer(answer: requests.Response) -> dict[str, Any]:
        assert answer.ok, answer.text
        told: dict[str, Any] = answer.json()
        return told
