"""Submits that are one: the second gets the first one's answer, and starts nothing.

Owns a worker's side: which submits may be another's, the question to control before they are admitted,
and what is told when their calls are over. What makes submits one is ledger.submissions'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import orjson

from proxy import telemetry
from proxy.channel import Channel, ChannelError
from proxy.dialects.owned import starts
from proxy.errors import (
    KeyReused,
    MalformedRequest,
    SubmissionLookupUnavailable,
    SubmitInProgress,
    SubmitLost,
)
from proxy.ledger import entry, submissions
from proxy.ledger.submissions import KEY_CHARS_MAX, Request, Submission, Turn
from proxy.relay.exchange import Exchange
from proxy.relay.linking import changes_links, linked
from proxy.relay.pages import respond

ASK_S = 35.0  # control lets the second wait for the first
TELL_S = 5.0
TELL_PAUSE_S = 1.0
TELLS_MAX = 600  # then its time runs out by itself
NOTHING_STARTED = frozenset({entry.FAILED, entry.UPSTREAM_ERROR})
HEADER = "idempotency-key"
REPLAYED = [(b"content-type", b"application/json"), (b"idempotent-replayed", b"true")]
REFUSALS = {Turn.WAITING: SubmitInProgress, Turn.DIFFERENT: KeyReused, Turn.LOST: SubmitLost}


class Submissions:
    """Of one worker."""

    def __init__(self, channel: Channel, wall_ms: Callable[[], int]) -> None:
        self._channel = channel
        self.wall_ms = wall_ms

    async def claim(self, x: Exchange) -> bool:
        """True: the call is another one's, and is answered as that was.

        Raises KeyReused, SubmitInProgress, SubmitLost, and what means that it cannot be known.
        """
        assert x.operation is not None
        found = self._submission(x)
        if found is None:
            return False
        has_key, once = found.name != found.request, x.operation.once
        within_ms = int(once.within_s * 1000) if once is not None and not has_key else None
        x.submission = Claim(self, found.call, within_ms)
        args = {**asdict(found), "name": found.name.hex(), "request": found.request.hex()}
        try:
            reply = await self._channel.call_again("submit", args, ASK_S)
        except ChannelError as e:
            if has_key:
                raise SubmissionLookupUnavailable(retry_after_s=2.0, detail=str(e)) from e
            return False  # a click is not kept from its work
        turn = Turn(reply["turn"])
        if turn is Turn.OWN:
            return False
        x.submission = None
        if turn in REFUSALS:
            param = "Idempotency-Key" if turn is Turn.DIFFERENT else None
            raise REFUSALS[turn](param=param, retry_after_s=2.0 if turn is Turn.WAITING else None)
        respond(x, 200, orjson.dumps(reply["answer"]), REPLAYED)
        return True

    def _submission(self, x: Exchange) -> Submission | None:
        """None: nothing makes it one with another."""
        operation, key = x.operation, x.headers.get(HEADER, "")
        assert operation is not None and x.key is not None
        if not operation.billed or not starts(operation.task, x.doc) or not (key or operation.once):
            return None
        if len(key) > KEY_CHARS_MAX:
            raise MalformedRequest(f"An Idempotency-Key has at most {KEY_CHARS_MAX} characters.")
        body = x.content
        if x.upload is not None:
            fields = {name: value for name, value in x.doc.items() if name != "file"}
            body = orjson.dumps([fields, x.upload.size], default=str, option=orjson.OPT_SORT_KEYS)
        request, now_ms = Request(x.path, body, x.doc), self.wall_ms()
        if key:
            return submissions.by_key(x.key.account_id, key, request, x.id, now_ms)
        assert operation.once is not None
        return submissions.by_click(x.key.account_id, operation.once, request, x.id, now_ms)

    async def tell(self, args: dict[str, Any]) -> None:
        """Until control has heard it."""
        for _ in range(TELLS_MAX):
            try:
                await self._channel.call_again("submitted", args, TELL_S)
                return
            except ChannelError:
                await asyncio.sleep(TELL_PAUSE_S)


class Claim:
    """What one call has to tell about its submit."""

    __slots__ = ("_call", "_desk", "_within_ms")

    def __init__(self, desk: Submissions, call: str, within_ms: int | None) -> None:
        self._desk = desk
        self._call = call
        self._within_ms = within_ms

    def over(self, x: Exchange, cost_nanos: int) -> None:
        """The call is closed. What cost something and started no task is not free for the next."""
        answer = _answer(x)
        if answer is None and cost_nanos:
            return
        until_ms = self._desk.wall_ms() + self._within_ms if self._within_ms is not None else None
        args = {"call": self._call, "answer": answer, "until_ms": until_ms}
        telemetry.spawn("submitted", self._desk.tell(args))


def _answer(x: Exchange) -> dict[str, Any] | None:
    """Of a call that has started its task; {}: it is too long to be kept."""
    sighting = x.sighting
    if sighting is None or sighting.task is None or x.outcome in NOTHING_STARTED:
        return None
    if sighting.task.kind not in sighting.ids.values():
        return None
    whole = sighting.whole if type(sighting.whole) is dict else {}
    return orjson.loads(linked(x, orjson.dumps(whole))) if whole and changes_links(x) else whole
