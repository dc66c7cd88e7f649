"""A running demo upstream on its own port, without its pace."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer

from proxy.demo.app import make_app

KEY = "sk-demo-upstream"


@pytest.fixture
async def demo() -> AsyncIterator[str]:
    """Base URL of a demo upstream that wants KEY."""
    server = TestServer(make_app(KEY, pace=0), host="127.0.0.1")
    await server.start_server()
    yield str(server.make_url("")).rstrip("/")
    await server.close()
