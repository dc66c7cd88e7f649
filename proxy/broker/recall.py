"""Ask for what others hold and do not need: the other workers of this node, the other nodes of the station.

Owns how long that may take. Nobody has to hurry: what does not come in time is there for the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from typing import Any, Protocol

from proxy.store.windows import Windows

Send = Callable[[str, str, dict[str, Any]], bool]  # (worker, op, args); False: it is not connected

WORKERS_S = 0.1  # an answer takes a millisecond, unless a worker is busy
NODES_S = 0.1  # between two looks at what other nodes gave back; they look for recalls as often
BUSY_MS = 1_000  # what a worker asked for so lately is needed here
ASKED_S = 0.5  # a recall is heard for this long: whoever asked has his answer by then


class Drawn(Protocol):
    """What a node remembers of an account or a limit: when a worker asked last, and was refused."""

    drawn_ms: int
    refused_ms: int


def is_spare(drawn: Drawn, now_ms: int) -> bool:
    """May other nodes have what is free here? Also what is too little for the calls of this one."""
    return drawn.drawn_ms < now_ms - BUSY_MS or drawn.refused_ms >= now_ms - BUSY_MS


class Recall:
    """Workers answer with what they give (op `recalled`), which is theirs no more once it was heard."""

    def __init__(self, send: Send = lambda worker, op, args: False) -> None:
        self._send = send
        self.nodes = 1  # of the station, that live
        self._bank: Windows | None = None  # until Postgres was reached for the first time
        self._numbers = count(1)
        self._waiting: dict[int, tuple[set[str], asyncio.Future[None]]] = {}

    async def from_workers(self, owner: int | str, holders: Iterable[str]) -> None:
        """Until all of them gave back what they can of an account or a limit, or the time is over."""
        number = next(self._numbers)
        asked = {worker for worker in holders if self._send(worker, "recall", {"id": number, "owner": owner})}
        if not asked:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = asked, future
        with suppress(TimeoutError):
            async with asyncio.timeout(WORKERS_S):
                await future
        del self._waiting[number]

    def answered(self, worker: str, number: int) -> None:
        """What came with the answer was booked already."""
        if number in self._waiting:
            asked, future = self._waiting[number]
            asked.discard(worker)
            if not asked and not future.done():
                future.set_result(None)

    def open(self, bank: Windows) -> None:
        self._bank = bank

    async def from_nodes(self, owner: int | str, deadline: float) -> bool:
        """Whether to look in Postgres once more: other nodes had a moment to give back. `deadline` is of the
        loop's clock. Raises DatabaseUnavailable."""
        loop = asyncio.get_running_loop()
        if self._bank is None or self.nodes < 2 or loop.time() + NODES_S > deadline:
            return False
        await self._bank.recall(str(owner))
        await asyncio.sleep(NODES_S)
        return True

    async def asked(self) -> list[int | str]:
        """What other nodes lack, and this one looks after. Raises DatabaseUnavailable."""
        if self._bank is None or self.nodes < 2:
            return []
        owners = await self._bank.recalled(ASKED_S)
        return [int(owner) if owner.isdigit() else owner for owner in owners]
