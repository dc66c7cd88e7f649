"""What one attempt is given: the request for one upstream, its time limits, and the worker's tools.

Owns no behaviour; handler.py makes plans, pump.py carries them out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from proxy.dialects.base import Dialect
from proxy.relay.exchange import Exchange
from proxy.relay.metering_task import MeterQueue, Tap
from proxy.relay.sweep import Sweeper
from proxy.relay.uploads import Sending
from proxy.routing.selection import Choice

ATTEMPTS_MAX = 3  # of one call, at all upstreams together


class Settling(Protocol):
    """How a pump ends its call; see settling.py."""

    def complete(
        self, x: Exchange, tap: Tap | None, is_framed: bool, then: Callable[[BaseException | None], None]
    ) -> None: ...
    def interrupt(
        self, x: Exchange, tap: Tap | None, outcome: str, why: str, *, is_sent: bool = False
    ) -> None: ...
    def drop_request(self, x: Exchange) -> None: ...


@dataclass(slots=True)
class Tools:
    """What all pumps of a worker share."""

    loop: asyncio.AbstractEventLoop
    wall_ms: Callable[[], int]
    meters: MeterQueue
    sweeper: Sweeper
    settling: Settling
    cool: Callable[[Choice, int, float | None], None]
    """(choice, status, retry-after in seconds): this credential did not do."""


@dataclass(slots=True)
class Plan:
    """What one attempt sends and how its answer is treated."""

    choice: Choice
    dialect: Dialect  # the upstream's
    head: bytes
    body: bytes
    hides_usage: bool  # include_usage was injected: its event is left out again
    first_byte_s: float
    idle_s: float
    deadline: float  # of the whole call, on the monotonic clock; inf: none
    drain_s: float  # how long to read on when the client has left; 0: cancel
    answered: Callable[[int | None], None] | None
    """(when a stream's attempt began, in ms): the upstream took the call. None: nobody needs to know."""
    sending: Sending | None = None  # instead of `body`: an upload that may still be coming in
