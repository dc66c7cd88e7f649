"""One of deploy/stations as it is, in front of emulated vendors: only their addresses are exchanged."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import yaml

from tests.fakes.task_vendor import TaskVendor
from tests.fakes.upstream_server import Action, Request, UpstreamServer
from tests.station import ROOT, Station
from tests.waiting import DEADLINE_S, wait_for

STATIONS = ROOT / "deploy" / "stations"
NAMES = sorted(file.stem for file in STATIONS.glob("*.yaml"))


def environ_of(text: str, url: str) -> dict[str, str]:
    """What a file refers to: URLs are the emulator's, and secrets tell whose they are."""
    names = re.findall(r"\$\{env:(\w+)\??\}", text)
    return {name: url if name.endswith("_URL") else f"sk-upstream-{name}" for name in names}


def moved(text: str, url: str, tasks_url: str) -> str:
    """The file with every upstream at `url`, those of tasks at `tasks_url`; the paths of mirrors stay."""
    file = yaml.safe_load(text)
    of_tasks = {family["upstream"] for family in file.get("tasks", {}).values()}
    for name, upstream in file["upstreams"].items():
        mirrors = upstream.setdefault("mirrors", {"direct": {"url": ""}})
        for mirror in mirrors.values():
            if name in of_tasks:
                mirror["url"] = tasks_url + urlsplit(mirror["url"].partition("${")[0]).path
            elif "${" not in mirror["url"]:
                mirror["url"] = url + urlsplit(mirror["url"]).path
    return yaml.safe_dump(file, allow_unicode=True, sort_keys=False)


@dataclass
class Emulated:
    """A running station and what stands for its vendors."""

    station: Station
    vendor: UpstreamServer
    tasks: TaskVendor
    key: str = ""
    scratch: Path = field(default_factory=Path)
    billed: set[str] = field(default_factory=set)  # ids of rows that were looked at

    def answers(self, path: str, *answer: Action) -> None:
        self.vendor.script(path, answer)

    def run(self, language: str, text: str, python: str = sys.executable, said: str = "") -> bytes:
        """What an example prints. `said` is typed in."""
        if language == "shell":
            command = ["/bin/sh", "-c", text.replace("curl ", "curl -sS --fail-with-body ", 1)]
        else:
            command = [python, "-c", text]
        environ = {"API_KEY": self.key, "PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8"}
        ran = subprocess.run(
            command,
            env=environ,
            cwd=self.scratch,
            input=said.encode(),
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert ran.returncode == 0, (ran.stdout + ran.stderr).decode()
        return ran.stdout

    def post(self, path: str, doc: Any, key: str = "", **headers: str) -> requests.Response:
        """A JSON body, as any client sends it."""
        headers = {"authorization": f"Bearer {key or self.key}"} | headers
        return requests.post(self.station.url + path, json=doc, headers=headers, timeout=DEADLINE_S)

    def get(self, path: str, key: str = "") -> requests.Response:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return requests.get(self.station.url + path, headers=headers, timeout=DEADLINE_S)

    @property
    def asked(self) -> Request:
        """The last request that a vendor got."""
        return self.vendor.requests[-1]

    def bills(self, count: int, *, only_charged: bool = False) -> list[dict[str, Any]]:
        """The usage rows of the calls since the last bill, in their order: so many and no more. Where calls
        look at tasks, which costs nothing, `only_charged` leaves them out."""

        def new() -> tuple[list[dict[str, Any]]] | None:
            rows = [row for row in asyncio.run(self.station.rows()) if str(row["id"]) not in self.billed]
            rows = [row for row in rows if row["cost_nanos"]] if only_charged else rows
            return (rows,) if len(rows) >= count else None

        (rows,) = wait_for(new, f"{count} bills")
        assert len(rows) == count, f"{len(rows)} calls were billed"
        self.billed.update(str(row["id"]) for row in rows)
        return [row | {"usage": _document(row["usage"])} for row in rows]

    def bill(self) -> dict[str, Any]:
        """The usage row of the one call since the last bill."""
        return self.bills(1)[0]


def _document(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


@contextmanager
def emulated(name: str, folder: Path, dsn: str) -> Iterator[Emulated]:
    """The station of deploy/stations/NAME.yaml, with a holder who has credit."""
    text = (STATIONS / f"{name}.yaml").read_text()
    with UpstreamServer() as vendor, TaskVendor() as tasks:
        environ = environ_of(text, vendor.url)
        routes = moved(text, vendor.url, tasks.url)
        station = Station(folder / "data", routes, dsn, environ=environ)
        station.start()
        try:
            key = asyncio.run(station.customer("holder"))
            yield Emulated(station, vendor, tasks, key, folder)
        finally:
            station.stop()
