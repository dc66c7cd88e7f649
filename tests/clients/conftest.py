"""One station for all client tests, with the names of the stations' documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clients.access import Access, demo, given
from tests.clients.busy import busy
from tests.station import Station

ROUTES = Path(__file__).with_name("routes.yaml")


@pytest.fixture(scope="session")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """To the station of HEADRACE_BASE_URL and HEADRACE_KEY, else to a demo of our own."""
    if there := given():
        yield there
        return
    data = tmp_path_factory.mktemp("clients") / "data"
    with busy() as url, demo(Station(data, ROUTES.read_text(), environ={"BUSY_URL": url})) as started:
        yield replace(started, has_busy_models=True)
