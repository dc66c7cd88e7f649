"""What one attempt is given: the request for one upstream, its time limits, and the worker's tools.

handler.py makes plans, pump.py carries them out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from proxy.dialects.base import Dialect, MakeMeter
from proxy.relay.cooldown import Cooldowns
from proxy.relay.exchange import Exchange
from proxy.relay.heading import Moulds
from proxy.relay.metering_task import MeterQueue, Tap
from proxy.relay.sweep import Sweeper
from proxy.relay.uploads import Sending
from proxy.routing.selection import Choice

ATTEMPTS_MAX = 3  # of one call, at all upstreams together
SUBMIT_S = 60.0  # that a submit is read on without its client


class Settling(Protocol):
    """How a pump ends its call; see settling.py."""

    def complete(
        self, x: Exchange, tap: Tap | None, then: Callable[[BaseException | None], None]
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
    cooldowns: Cooldowns


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """What all calls with one head to one choice have in common; heads.py remembers it. Times in seconds."""

    choice: Choice
    calls: tuple[Choice, str, bool]  # those that it is of: their choice, their model, whether they stream
    dialect: Dialect  # the upstream's
    head: bytes  # request line and fields, without what tells the body and the empty line
    is_plain: bool  # only the call's own model may have to be changed in a request, and nothing in an answer
    model: str | None  # as the request's body is to name it; None: that does not tell
    hides_usage: bool  # include_usage is put in: its event is left out again
    may_change: bool  # the answer on its way, so it must come uncompressed
    moulds: Moulds  # of the heads of answers
    make_meter: MakeMeter  # for their contents
    goes_once: bool  # a request, whatever becomes of it
    reuses: bool  # connections, for one call after the other
    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float  # of the whole call; inf: no limit
    drain_s: float  # how long to read on when the client has left; 0: cancel


class Plan(msgspec.Struct, frozen=True, eq=False):
    """What one attempt sends."""

    way: Way
    head: bytes
    body: bytes
    is_watched: bool  # whether the upstream took the call is to be told
    sending: Sending | None = None  # instead of `body`: an upload that may still be coming in


def drain_s(x: Exchange, way: Way) -> float:
    """For how long an answer is read on that its client does not wait for; 0: it is cancelled."""
    assert x.operation is not None
    if x.sighting is not None and x.sighting.task is not None and x.operation.billed and not x.is_stream:
        return max(way.drain_s, SUBMIT_S)  # the vendor may have the task: whose it is must be known
    return way.drain_s
