"""One station for all client tests, with the names of the stations' documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.access import Access, demo, given
from tests.station import Station

ROUTES = Path(__file__).with_name("routes.yaml")


@pytest.fixture(scope="session")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """To the station of HEADRACE_BASE_URL and HEADRACE_KEY, else to a demo of our own."""
    if there := given():
        yield there
        return
    with demo(Station(tmp_path_factory.mktemp("clients") / "data", ROUTES.read_text())) as started:
        yield started
