"""One plain station for the tests that do not hurt it, and an upstream server that they script."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Databases
from tests.fakes.upstream_server import UpstreamServer
from tests.station import Station, routes


@pytest.fixture(scope="session")
def upstream() -> Iterator[UpstreamServer]:
    with UpstreamServer() as server:
        yield server


@pytest.fixture(scope="session")
def station(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, upstream: UpstreamServer
) -> Iterator[Station]:
    """A running station in front of `upstream`; shared, so no test may stop or starve it."""
    running = Station(tmp_path_factory.mktemp("station") / "data", routes(upstream.url), databases.take())
    running.start()
    yield running
    running.stop()
