"""Connect to where a stranger's URL leads: to public addresses only, and with nothing of ours.

Owns the aiohttp session for such requests. The address is judged when its socket is made, after the name
was resolved and for each try, so that a name that leads elsewhere a moment later gains nothing. No redirect
is followed, no proxy and no credentials of the environment are used, no cookie is kept.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client import URL

from proxy.routing.foreign import Network, checked, is_open

READ_BYTES = 16 << 10
DNS_CACHE_S = 10
THREADS = 32  # blocked ones cost some memory each

# What a request through such a session may end with: refused, not reached, broken, too slow, no URL at all.
UNREACHED = (aiohttp.ClientError, TimeoutError, OSError, ValueError)


class AddressRefused(PermissionError):
    """A stranger's URL led to an address that is not public."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "not a public address")  # which one is nobody's business


@dataclass(frozen=True, slots=True)
class Reply:
    """What a stranger's server said, as far as it was read."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool


class OwnThreads(AbstractResolver):
    """Looks names up in threads of its own: those whose name servers are slow keep nothing else waiting."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "foreign names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError: there is no such name, or nobody could tell."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM
        )
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=int(address[1]), family=family, proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for family, _, protocol, _, address in found
        ]  # fmt: skip

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class GuardedSession:
    """Requests to URLs that others have named; make it within a running loop.

    `allowed()` are the networks that the operator adds to the public ones.
    """

    def __init__(
        self,
        allowed: Callable[[], Iterable[Network]],
        *,
        total_s: float,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._allowed = allowed
        self._resolver = resolver or OwnThreads()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                socket_factory=self._socket,
                limit=0,  # who asks bounds how many: to wait for a place would count as the receiver's time
                resolver=self._resolver,
                ttl_dns_cache=DNS_CACHE_S,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=total_s),
            headers={"User-Agent": "headrace"},
        )

    async def close(self) -> None:
        await self._session.close()
        await self._resolver.close()

    def _socket(self, info: tuple[int, int, int, str, Any]) -> socket.socket:
        """For one address that is about to be connected to. Raises AddressRefused."""
        family, kind, protocol, _, sockaddr = info
        address = ip_address(str(sockaddr[0]).partition("%")[0])
        if not is_open(address, self._allowed()):
            raise AddressRefused
        return socket.socket(family, kind, protocol)

    def request(self, method: str, url: str, **options: Any) -> Any:
        """aiohttp's context manager of a response whose body is still to be read, not decoded.

        Raises one of UNREACHED; ValueError at once: the URL itself is refused.
        """
        checked(url, self._allowed())
        return self._session.request(method, URL(url, encoded=True), allow_redirects=False, **options)

    async def fetch(self, method: str, url: str, *, most_bytes: int, **options: Any) -> Reply:
        """The answer with at most this much of its body. Raises one of UNREACHED."""
        async with self.request(method, url, **options) as response:
            body = bytearray()
            async for data in response.content.iter_chunked(READ_BYTES):
                body += data
                if len(body) > most_bytes:
                    response.close()  # the rest is not waited for
                    break
            is_whole = len(body) <= most_bytes
            return Reply(response.status, response.headers, bytes(body[:most_bytes]), is_whole)
