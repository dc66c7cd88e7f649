"""What a session over a WebSocket is billed by: one call per turn, one after the other.

Owns the turn that is open: its hold, its Begin, its meter, its End. A session has one at every moment, so
that nothing is generated without a hold; one in which nothing was generated costs nothing. What the vendor
charges for transcribing the caller's speech is a call of its own. Sends no frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from logging import getLogger
from time import monotonic, time_ns
from typing import Protocol

from proxy.dialects.base import Dialect, OperationSpec
from proxy.dialects.realtime import TurnMeter
from proxy.errors import JournalUnavailable, ProxyError
from proxy.journal.segments import Journal
from proxy.ledger import entry
from proxy.ledger.entry import Attempt
from proxy.relay.admission import Admission
from proxy.relay.exchange import NO_DOC, Exchange
from proxy.relay.metering_task import Tap
from proxy.relay.settling import Settler

log = getLogger("headrace.sessions")

CHARS_PER_TOKEN = 3  # of frames, for the hold of the turn that they belong to


@dataclass(frozen=True, slots=True)
class Books:
    """What turns are admitted and settled with."""

    admission: Admission
    settler: Settler
    journal: Journal
    next_id: Callable[[int], str]


class Session(Protocol):
    """What a turn may ask of its session."""

    def cut(self, why: str, error: ProxyError) -> None:
        """End it by our own decision; `error` is told to the client."""


class Turn:
    """One turn, as the rest of the relay sees the carrying out of a call."""

    def __init__(self, x: Exchange, meter: TurnMeter, session: Session) -> None:
        self.x = x
        self.meter = meter
        self.tap: Tap | None = Tap(meter, None, x.model)
        self.begun: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self._session = session

    def send(self, refused: BaseException | None) -> None:
        """Begin is written, or could not be."""
        if not self.begun.done():
            self.begun.set_result(refused)

    def cut(self, why: str, error: ProxyError) -> None:
        self._session.cut(why, error)

    def client_paused(self) -> None:
        """A session waits for a slow reader frame by frame."""

    def client_resumed(self) -> None:
        """See client_paused."""

    def client_left(self) -> None:
        """The session notices by itself."""


class Turns:
    """The turns of one session, which `x` has asked for."""

    def __init__(self, x: Exchange, books: Books, session: Session) -> None:
        assert x.operation is not None and x.operation.session is not None
        self._x = x
        self._books = books
        self._session = session
        self._rules = x.operation.session
        self._turn: Turn | None = None
        self._attempt: Attempt | None = None
        self._dialect: Dialect | None = None
        self._context = 0  # tokens of the last turn's input: the next one's begins with them
        self._chars = 0  # sent by the client since
        self._transcriber = ""
        self.is_open = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Nothing was generated in the turn that is open."""
        return self._turn is None or (self._turn.meter.usage() is None and not self._counted())

    def answered_by(self, attempt: Attempt, dialect: Dialect) -> None:
        """The upstream that all turns are with, and the dialect it is read in."""
        self._attempt = attempt
        self._dialect = dialect
        if self._turn is not None:
            self._turn.x.attempts.append(attempt)

    async def open(self) -> None:
        """Begin the next turn. Raises what admission raises, and JournalUnavailable."""
        x = self._call(self._x.operation, self._x.model)
        x.content_bound = self._context * CHARS_PER_TOKEN + self._chars
        assert x.operation is not None
        meter = TurnMeter(x.operation, False)
        meter.transcriber = self._transcriber
        turn = Turn(x, meter, self._session)
        if (waiting := self._books.admission.admit(x)) is not None:
            await waiting
        self._turn = turn
        x.pump = turn
        self._begin(x)
        refused = await turn.begun
        if refused is not None:
            self._turn = None
            raise JournalUnavailable
        self.is_open.set()

    def uploaded(self, size: int) -> None:
        """The client has sent a frame."""
        self._chars += size

    async def take(self, frame: bytes) -> bool:
        """Read a frame of the upstream. Returns whether its turn has ended with it."""
        turn = self._turn
        if turn is None or turn.tap is None:
            return False
        if not turn.x.answered:
            turn.x.answered = monotonic()
        turn.x.response_bytes += len(frame)
        turn.tap.append(frame)
        turn.tap.append(b"\n")
        turn.tap.read()
        self._transcriber = turn.meter.transcriber
        if turn.meter.is_transcript:
            await self._bill_transcript(frame)
        return turn.meter.complete

    async def settle(self) -> None:
        """Close the turn that has ended. Returns when its End is written."""
        turn, self._turn = self._turn, None
        if turn is None:
            return
        self.is_open.clear()
        usage = turn.meter.usage()
        self._context, self._chars = usage.input_tokens_all() if usage else self._context, 0
        written = asyncio.get_running_loop().create_future()
        if turn.tap is not None:
            turn.tap.finish(())
        self._books.settler.complete(
            turn.x, turn.tap, lambda _: None if written.done() else written.set_result(None)
        )
        turn.x.pump = None
        await written

    def interrupt(self, outcome: str, why: str) -> None:
        """The session ends; the turn that is open is billed for what was generated."""
        if self._turn is None:
            return
        is_idle = self.is_idle
        turn, self._turn = self._turn, None
        if is_idle:
            self._books.settler.interrupt(turn.x, None, entry.FAILED, why)
        else:
            self._books.settler.interrupt(turn.x, turn.tap, outcome, why, is_sent=True)
        turn.x.pump = None

    # -- calls --

    def _call(self, operation: OperationSpec | None, model: str) -> Exchange:
        """A call within the session."""
        x = copy(self._x)
        x.at_ms = time_ns() // 1_000_000
        x.id, x.parent = self._books.next_id(x.at_ms), self._x.id
        x.arrived = x.uploaded = monotonic()
        x.operation, x.model = operation, model
        x.attempts = [self._attempt] if self._attempt is not None else []
        x.status, x.doc = 101, NO_DOC
        return x

    def _begin(self, x: Exchange) -> None:
        if not self._books.journal.available:
            raise JournalUnavailable(retry_after_s=5.0)
        begin = self._books.settler.begin(x)
        self._books.journal.append(entry.encode(begin), x.begin_written)

    def _counted(self) -> int:
        assert self._turn is not None and self._turn.tap is not None
        return self._turn.tap.estimated_output()

    async def _bill_transcript(self, frame: bytes) -> None:
        """What was heard is known before its call is: its hold is what it costs.

        Where it cannot be a call of its own (no price, no credit left), it is a part of the turn.
        """
        assert self._dialect is not None and self._turn is not None
        operation = self._dialect.operations[self._rules.transcript]
        x = self._call(operation, self._transcriber)
        tap = Tap(self._dialect.make_meter(operation, False), None, x.model)
        tap.finish((frame,))
        usage = tap.meter.usage()
        if usage is None:
            return
        try:
            self._books.admission.authorize(x)
            if (waiting := self._books.admission.admit_for(x, usage)) is not None:
                await waiting
            self._begin(x)
        except ProxyError as e:
            self._books.settler.refuse(x, e)
            log.warning("a transcript is billed with its turn", extra={"call": x.id, "code": e.code})
            self._turn.meter.add(usage)
        else:
            self._books.settler.complete(x, tap, lambda _: None)
