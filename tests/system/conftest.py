"""One plain station for the tests that do not hurt it, and an upstream server that they script."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.conftest import TEMPLATE, database_dsn_of, run_sql
from tests.fakes.upstream_server import UpstreamServer
from tests.station import Station, routes


@pytest.fixture(scope="session")
def upstream() -> Iterator[UpstreamServer]:
    with UpstreamServer() as server:
        yield server


@pytest.fixture(scope="session")
def station(
    tmp_path_factory: pytest.TempPathFactory, postgres_dsn: str, template: str, upstream: UpstreamServer
) -> Iterator[Station]:
    """A running station in front of `upstream`; shared, so no test may stop or starve it."""
    asyncio.run(run_sql(postgres_dsn, f"CREATE DATABASE station_plain TEMPLATE {TEMPLATE}"))
    dsn = database_dsn_of(postgres_dsn, "station_plain")
    running = Station(tmp_path_factory.mktemp("station") / "data", routes(upstream.url), dsn)
    running.start()
    yield running
    running.stop()
