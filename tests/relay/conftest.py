"""The relay runs on uvloop; what touches sockets itself is tested on asyncio's own loop as well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop

from tests.fakes.front import Front, Handle, Open

ON_BOTH_LOOPS = ("test_upstream.py", "test_pool.py")


def pytest_asyncio_loop_factories(config, item):
    both = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return both if item.path.name in ON_BOTH_LOOPS else {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def open_front() -> AsyncIterator[Open]:
    """Fronts that listen until the test ends: `front = await open_front(handle)`."""
    fronts: list[Front] = []

    async def make(handle: Handle, **options: Any) -> Front:
        fronts.append(await Front(handle, **options).open())
        return fronts[-1]

    yield make
    for front in fronts:
        await front.close()
