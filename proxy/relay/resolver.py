"""Where a host is: getaddrinfo, remembered for a short while.

Owns the cache of addresses of one process. Connects to nothing. One look-up per name is under way at a time,
and a failed one is remembered for a second, so that a dead resolver is not asked once per request.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

FRESH_S = 30.0  # as long as the shortest lifetimes that CDNs give out
FAILED_S = 1.0
NAMES_MAX = 256  # mirrors are configured, so a station never comes near

# (family, type, protocol, canonical name, socket address), as getaddrinfo returns it
AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
Name = tuple[str, int]
GetAddressInfo = Callable[..., Awaitable[Sequence[AddressInfo]]]


class Resolver:
    """`clock` gives seconds and never goes back; `getaddrinfo` is the loop's."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], getaddrinfo: GetAddressInfo
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._getaddrinfo = getaddrinfo
        self._known: dict[Name, tuple[float, list[AddressInfo] | OSError]] = {}
        self._under_way: dict[Name, asyncio.Future[None]] = {}

    async def addresses(self, host: str, port: int) -> list[AddressInfo]:
        """Return the addresses of a host, in the resolver's order, never none. Raises OSError."""
        name = (host, port)
        while True:
            until, answer = self._known.get(name, (0.0, []))
            if self._clock() < until:
                if isinstance(answer, OSError):
                    raise OSError(str(answer)) from answer
                return answer
            if name not in self._under_way:
                await self._look_up(name)
            else:
                await asyncio.shield(self._under_way[name])

    def forget(self, host: str, port: int) -> None:
        """Ask again next time: none of the known addresses took a connection."""
        self._known.pop((host, port), None)

    async def _look_up(self, name: Name) -> None:
        # Whoever waits looks again when this ends, however it ends: a cancelled look-up is taken over.
        ended = self._under_way[name] = self._loop.create_future()
        try:
            found: list[AddressInfo] | OSError
            try:
                found = list(await self._getaddrinfo(*name, type=socket.SOCK_STREAM))
                if not found:
                    raise OSError("no address")
            except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA cannot encode
                found = error if isinstance(error, OSError) else OSError(str(error))
            self._remember(name, found)
        finally:
            del self._under_way[name]
            ended.set_result(None)

    def _remember(self, name: Name, found: list[AddressInfo] | OSError) -> None:
        self._known.pop(name, None)
        if len(self._known) >= NAMES_MAX:
            del self._known[next(iter(self._known))]
        lasts_s = FAILED_S if isinstance(found, OSError) else FRESH_S
        self._known[name] = (self._clock() + lasts_s, found)
