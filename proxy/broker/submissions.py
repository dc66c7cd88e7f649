"""What workers ask before a submit that may be another one's: go, wait for the first, or take its answer.

Owns how long one waits, and that a submit whose caller gave up takes no turn any more. Whose turn it is
store.submissions decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from proxy.ledger.submissions import Submission, Turn
from proxy.store.submissions import Submissions

Args = dict[str, Any]

WAIT_S = 30.0  # for the first one's answer
PAUSE_FIRST_S, PAUSE_LAST_S = 0.05, 0.5


class SubmissionDesk:
    """Answers op `submit`, and op `submitted` once its call is over."""

    def __init__(self, source: Callable[[], Submissions], now_ms: Callable[[], int]) -> None:
        self._source = source
        self._now_ms = now_ms
        self._asking: set[str] = set()  # calls

    async def submit(self, incarnation: str, args: Args) -> Args:
        """{"turn": Turn, "answer": {...}}. Raises what its source raises."""
        it = Submission(
            args["account"],
            bytes.fromhex(args["name"]),
            bytes.fromhex(args["request"]),
            args["call"],
            args["until_ms"],
        )
        self._asking.add(it.call)
        try:
            turn, answer = await self._wait(it, incarnation)
            if turn is Turn.OWN and it.call not in self._asking:
                await self._source().release(it.call)  # it was given up while it was given its turn
        finally:
            self._asking.discard(it.call)
        return {"turn": turn, "answer": answer}

    async def _wait(self, it: Submission, incarnation: str) -> tuple[Turn, dict[str, Any]]:
        pause_s = PAUSE_FIRST_S
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_S
        while True:
            turn, answer = await self._source().claim(it, incarnation, self._now_ms())
            if turn is not Turn.WAITING or loop.time() > deadline or it.call not in self._asking:
                return turn, answer
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_LAST_S)

    async def submitted(self, args: Args) -> Args:
        """The call is over: with `answer` it has started its task, without it came to nothing."""
        self._asking.discard(args["call"])
        if args.get("answer") is None:
            await self._source().release(args["call"])
        else:
            await self._source().answered(args["call"], args["answer"], args.get("until_ms"))
        return {}
