"""One plain station for the tests that do not hurt it, and an upstream server that they script."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Databases
from tests.fakes.upstream_server import UpstreamServer
from tests.station import Station, routes
from tests.system.operated import Operated
from tests.system.troubled import Troubled


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


@pytest.fixture(scope="session")
def troubled(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, upstream: UpstreamServer
) -> Iterator[Troubled]:
    """A running station with many small upstreams, each for one test to make trouble with."""
    with Troubled(tmp_path_factory.mktemp("troubled"), upstream, databases.take()).running() as running:
        yield running


@pytest.fixture(scope="session")
def operated(
    tmp_path_factory: pytest.TempPathFactory, databases: Databases, upstream: UpstreamServer
) -> Iterator[Operated]:
    """A running station of two workers with mirrors, credentials and tiers; no test may stop it."""
    running = Operated.at(tmp_path_factory.mktemp("operated"), upstream, databases.take())
    running.station.start()
    yield running
    assert running.station.stop() == 0
