"""Is each public base URL reachable, and how long is the way through it? Measured from this node.

Owns the probes: a plain GET of /healthz as a client sends it, through whatever stands in front. Workers are
told what came of them and show it at /endpoints.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from proxy.routing.table import Endpoint

TELL_S = 5.0  # a new worker knows nothing
TELLS_PER_PROBE = 6
TIMEOUT_S = 10.0
STATUS_LINE_BYTES_MAX = 8192
PORTS = {"http": 80, "https": 443}

Tell = Callable[[str, dict[str, Any]], None]  # (op, args) to every worker


class EndpointProbes:
    """`measured`: endpoint -> {status: reachable | unreachable, first_byte_ms, measured_ms}."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._tls: ssl.SSLContext | None = None
        self.measured: dict[str, dict[str, Any]] = {}

    async def keep_going(self, endpoints: Callable[[], Mapping[str, Endpoint]]) -> None:
        while True:
            await self.probe(endpoints())
            for _ in range(TELLS_PER_PROBE):
                self._tell("endpoints", self.measured)
                await asyncio.sleep(TELL_S)

    async def probe(self, endpoints: Mapping[str, Endpoint]) -> None:
        """All of them at the same time: none keeps the others waiting."""
        found = await asyncio.gather(*map(self._measure, endpoints.values()))
        self.measured = dict(zip(endpoints, found, strict=True))

    async def _measure(self, endpoint: Endpoint) -> dict[str, Any]:
        took_ms = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                took_ms = round(1000 * await self._first_byte_s(endpoint.url))
        except (OSError, ValueError, TimeoutError):
            pass
        status = "unreachable" if took_ms is None else "reachable"
        return {"status": status, "first_byte_ms": took_ms, "measured_ms": time.time_ns() // 1_000_000}

    async def _first_byte_s(self, base_url: str) -> float:
        """From the request to the answer's first line, without the time to connect. Raises what it meets."""
        url = urlsplit(base_url)
        assert url.hostname is not None
        if url.scheme == "https" and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)  # 36 ms
        tls = self._tls if url.scheme == "https" else None
        port = url.port or PORTS[url.scheme]
        reader, writer = await asyncio.open_connection(
            url.hostname, port, ssl=tls, limit=STATUS_LINE_BYTES_MAX
        )
        try:
            request = f"GET {url.path}/healthz HTTP/1.1\r\nhost: {url.netloc}\r\nconnection: close\r\n\r\n"
            began = time.monotonic()
            writer.write(request.encode())
            line = await reader.readline()
            if line.split(b" ")[1:2] != [b"200"]:
                raise ValueError("something else answers there")
            return time.monotonic() - began
        finally:
            writer.transport.abort()
