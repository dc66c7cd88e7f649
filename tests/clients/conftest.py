"""One station for all client tests, and a Python with the asked-for SDK in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.station import Station, given, serve

ROUTES = Path(__file__).with_name("routes.yaml")


@pytest.fixture(scope="session")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    """The station of HEADRACE_BASE_URL and HEADRACE_KEY, else one of our own with the demo upstream."""
    if there := given():
        yield there
        return
    data = tmp_path_factory.mktemp("station") / "data"
    with serve(data, "--demo", "--config", str(ROUTES)) as started:
        yield started
