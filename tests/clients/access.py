"""What a client has: a base URL and a key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.station import Station


@dataclass(frozen=True, slots=True)
class Access:
    """`base_url` has no path. `has_busy_models`: those of busy.py are there."""

    base_url: str
    key: str
    has_busy_models: bool = False


def given() -> Access | None:
    """To the station that the environment names: the client tests then try a deployment."""
    base_url, key = os.environ.get("HEADRACE_BASE_URL"), os.environ.get("HEADRACE_KEY")
    return Access(base_url.rstrip("/"), key) if base_url and key else None


@contextmanager
def demo(station: Station) -> Iterator[Access]:
    """To a station with the demo upstream, which runs until the block ends."""
    station.arguments = ("--demo",)
    station.start()
    try:
        yield Access(station.url, (station.data / "demo.key").read_text().strip())
    finally:
        station.stop()
