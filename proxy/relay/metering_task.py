"""Meter the answers beside the stream: references to content go in, usage comes out at the end.

Owns what is still unread of each answer, and the counting of generated text where the vendor has
not reported a usage yet. The pump hands over references and goes on; parsing happens in a side
task every MeterQueue.INTERVAL_S or at 64 KiB, and never touches the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter

from msgspec import Struct

from proxy.dialects.base import MakeMeter, Meter
from proxy.http1.head import Head
from proxy.metering.count import count_tokens, is_exact
from proxy.metering.decode import Decoder
from proxy.relay.exchange import Exchange
from proxy.relay.sighting import Sighting

UNREAD_BYTES_MAX = 64 << 10  # of one answer; more is parsed at once
COUNT_CHARS = 4096  # generated text is counted in slices of this size and dropped
BYTES_PER_TOKEN = 4  # of text that nobody kept
TURN_S = 0.004  # the longest the side task holds the loop


class Tap(Struct, eq=False):
    """What the meter has and has not seen of one answer."""

    meter: Meter
    _decoder: Decoder | None
    _model: str
    _queue: MeterQueue | None = None
    sighting: Sighting | None = None
    unread_max: int = UNREAD_BYTES_MAX
    total: int = 0  # content bytes read
    is_waiting: bool = False  # in the queue
    unread: list[bytes] = []  # content that was handed over since then
    _unread_pieces: int = 0  # how many of them have been counted
    _unread_bytes: int = 0
    _texts: list[str] = []
    _chars: int = 0
    _counted: int = 0
    _unreadable: int = 0  # bytes that could not be decoded
    _total_before: int = 0

    def append(self, content: bytes) -> int:
        """Hand over the next content of the answer: no parsing, no copy. So many bytes more may be put into
        `unread` without this, as long as it is not empty."""
        unread = self.unread
        size = self._unread_bytes if len(unread) == self._unread_pieces else sum(map(len, unread))
        unread.append(content)
        self._unread_pieces, self._unread_bytes = len(unread), size + len(content)
        room = self.unread_max - self._unread_bytes
        if room < 0:
            self.read()
        elif not self.is_waiting and self._queue is not None:
            self.is_waiting = True
            self._queue.add(self)
        return room

    def has_grown(self) -> bool:
        """Was anything handed over since this was asked last? As long as it is asked less often than the
        queue comes to it."""
        before, self._total_before = self._total_before, self.total
        return bool(self.unread) or self.total != before

    def read_in_turn(self) -> None:
        """The queue has come to it."""
        self.is_waiting = False
        self.read()

    def read(self) -> None:
        """Parse what is unread."""
        unread = self.unread
        if not unread:
            return
        content = unread[0] if len(unread) == 1 else b"".join(unread)
        unread.clear()  # not replaced: who puts content there directly has it
        self._unread_pieces = self._unread_bytes = 0
        self.total += len(content)
        if self._decoder is None:
            self._look(content)
        else:
            self._decode(self._decoder, content)
        if self.sighting is not None:
            self.unread_max = 0 if self.sighting.is_urgent else UNREAD_BYTES_MAX
        texts = self.meter.take_text()
        if texts:
            self._texts += texts
            self._chars += sum(map(len, texts))
            if self._chars > COUNT_CHARS:
                self._count()

    def _look(self, content: bytes) -> None:
        self.meter.feed(content)
        if self.sighting is not None:
            self.sighting.feed(content)

    def _decode(self, decoder: Decoder, content: bytes) -> None:
        for piece in decoder.pieces(content):
            self._look(piece)
        if decoder.degraded:
            self.meter.degraded = True
            self._unreadable += len(content)

    def finish(self, pieces: Sequence[bytes]) -> None:
        """The framing ended behind these last pieces: read all that is unread."""
        unread = self.unread
        unread += pieces
        if self.total or self._decoder is not None or self.sighting is not None:
            self.read()
            self.meter.finish()
            if self.sighting is not None:
                self.sighting.finish()
        else:  # all of it at once, as nearly all that are no streams
            content = b"".join(unread)  # copies nothing where there is but one piece
            unread.clear()
            self.total = len(content)
            self.meter.read_all(content)

    def counted_output(self) -> int:
        """Tokens of the generated text so far, by our own tokenizer; of what was too long to keep, by
        its bytes."""
        self._texts += self.meter.take_text()
        self._count()
        return self._counted + (self.meter.unread_bytes + self._unreadable) // BYTES_PER_TOKEN

    @property
    def is_estimate(self) -> bool:
        return self.meter.unread_bytes + self._unreadable > 0 or not is_exact(self._model)

    def estimated_output(self) -> int:
        """The same without the work of counting the rest: for checkpoints."""
        return self._counted + self._chars // 4

    def _count(self) -> None:
        if self._texts:
            self._counted += count_tokens(self._texts, self._model)
            self._texts = []
            self._chars = 0


def tap_for(x: Exchange, make_meter: MakeMeter, head: Head, is_event_stream: bool, queue: MeterQueue) -> Tap:
    """The tap of one answer: its head says how it is coded."""
    operation = x.operation
    assert operation is not None
    coding = head.shape.coding
    decoder = None if coding is None else Decoder(coding)
    meter = make_meter(operation, is_event_stream)
    if operation.foretold is not None and head.status < 300:
        assert x.standing is not None
        meter.foretell(operation.foretold(x.doc, x.standing.price.content, head.value))
    if x.sighting is not None and head.status < 300:
        return Tap(meter, decoder, x.model, queue, x.sighting, 0)
    return Tap(meter, decoder, x.model, queue)


class MeterQueue:
    """The side task of one worker."""

    INTERVAL_S = 0.4

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[Tap, None] = {}
        self._timer: asyncio.Handle | None = None

    def add(self, tap: Tap) -> None:
        """It has something to read: within INTERVAL_S."""
        self._waiting[tap] = None
        if self._timer is None:
            self._timer = self._loop.call_later(self.INTERVAL_S, self._run)

    def forget(self, tap: Tap) -> None:
        """The call is settled: nothing of it needs to be read any more."""
        self._waiting.pop(tap, None)

    def _run(self) -> None:
        self._timer = None
        end = perf_counter() + TURN_S
        while self._waiting:
            tap = next(iter(self._waiting))
            del self._waiting[tap]
            tap.read_in_turn()
            if self._waiting and perf_counter() > end:
                self._timer = self._loop.call_soon(self._run)  # let the streams move in between
                return
