"""How tests wait for what other processes, threads and the network bring about: they ask until it is so.

A deadline here ends a test that hangs; it says nothing of speed. A bound in time that the design gives goes
through `promised`.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

DEADLINE_S = 120.0
LENIENCE = 1 if "HEADRACE_SOAK" in os.environ else 20


def promised(seconds: float) -> float:
    """A bound of the design's, in seconds: to the letter where `make soak` has the machine for itself,
    twenty times as long where anything may run beside it."""
    return seconds * LENIENCE


def wait_for(condition: Callable[[], Any], what: str = "", within_s: float = DEADLINE_S) -> Any:
    """The first true answer of `condition`."""
    pauses = _pauses(what or inspect.getsource(condition), within_s)
    while not (answer := condition()):
        time.sleep(next(pauses))
    return answer


async def until(condition: Callable[[], Any], what: str = "", within_s: float = DEADLINE_S) -> Any:
    """The first true answer of `condition`, which may be a coroutine function."""
    pauses = _pauses(what or inspect.getsource(condition), within_s)
    while not (answer := await found if inspect.isawaitable(found := condition()) else found):
        await asyncio.sleep(next(pauses))
    return answer


def _pauses(what: str, within_s: float) -> Iterator[float]:
    """How long to wait before each further question. Raises AssertionError after `within_s`."""
    deadline, pause_s = time.monotonic() + within_s, 0.001
    while time.monotonic() < deadline:
        yield pause_s
        pause_s = min(pause_s * 1.5, 0.05)
    raise AssertionError(f"not within {within_s} s: {what.strip()}")
