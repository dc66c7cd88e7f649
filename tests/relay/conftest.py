"""The relay runs on uvloop; what touches sockets itself is tested on asyncio's own loop as well."""

from __future__ import annotations

import asyncio

import uvloop

ON_BOTH_LOOPS = ("test_upstream.py", "test_pool.py")


def pytest_asyncio_loop_factories(config, item):
    both = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return both if item.path.name in ON_BOTH_LOOPS else {"uvloop": uvloop.new_event_loop}
