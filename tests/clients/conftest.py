"""One station for all client tests, and a Python with the asked-for SDK in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.station import Station, given, serve


@pytest.fixture(scope="session")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    """The station of HEADRACE_BASE_URL and HEADRACE_KEY, else a demo of our own."""
    if there := given():
        yield there
        return
    with serve(tmp_path_factory.mktemp("station") / "data", "--demo") as started:
        yield started
