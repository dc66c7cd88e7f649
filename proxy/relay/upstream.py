"""One connection to an upstream: a request goes out, its answer comes in.

Owns the states of the connection and what may happen in each; http1 reads the bytes, a Sink is told of them.
Knows no client and no meter, and keeps no deadline: `last_activity` tells its user for how long the upstream
has been silent. There is no task and no await: everything happens where the bytes arrive.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Protocol, cast

from proxy.errors import ProxyError, UpstreamClosed, UpstreamGarbage, UpstreamStale
from proxy.http1.body import NO_BODY, EofWalker, Walker, walker_for
from proxy.http1.head import Head, parse
from proxy.routing.table import Origin

INTERIM_ANSWERS_MAX = 16  # 1xx heads before the real one; more is a flood
# Chunks of a few bytes make a read of 256 KiB 40 ms of work. What comes in so many pieces is walked in small
# bites from then on, and everybody else has a turn between two of them.
PIECES_MAX = 256
BITE_BYTES = 16 * 1024

_CUT_SHORT = "The model provider's answer broke off."


class State(Enum):
    """What the next bytes on a connection are."""

    IDLE = "idle"  # nothing may come: any byte poisons the connection
    HEAD = "head"
    BODY = "body"
    COMPLETE = "complete"  # the answer has ended, the caller has not released the connection yet
    CLOSED = "closed"


IDLE, HEAD, BODY, COMPLETE, CLOSED = State  # a global costs 8 ns, a member of an Enum 75, per read


Receiver = Callable[[bytes], None]


class Sink(Protocol):
    """Who is told of an answer. Exactly one of `on_head` with the whole of it, `on_content(..., done=True)`
    and `on_lost` ends it.

    After `abort()` nothing is called any more. Callbacks must not raise.
    """

    def on_head(self, head: Head, whole: Sequence[bytes] | None) -> None:
        """The final head. `whole`: all of the content, where it came along: nothing more is told then; None:
        see `on_content`."""

    def on_content(self, pieces: Sequence[bytes], done: bool) -> None:
        """Content as it came in one read. `done`: the framing is complete; `pieces` may be empty then."""

    def on_lost(self, error: ProxyError) -> None:
        """The answer will never be complete."""

    def upload_pause(self) -> None:
        """The upstream reads more slowly than we write."""

    def upload_resume(self) -> None:
        """More of the request may be written."""


class Owner(Protocol):
    """The pool, as a connection sees it."""

    def park(self, connection: UpstreamConnection) -> None:
        """Take back a connection that can be used again."""

    def closed(self, connection: UpstreamConnection, *, poisoned: bool) -> None:
        """The connection is gone. `poisoned`: bytes came that nobody had asked for."""


class UpstreamConnection(asyncio.BaseProtocol):
    """One connection and the exchange on it. `has_served`: it has completed an answer."""

    __slots__ = (
        "_asked", "_clock", "_head_bytes", "_interim", "_is_resting", "_is_slowed", "_lane", "_later",
        "_may_hold_more", "_method", "_owner", "_paused", "_readable", "_reusable", "_sink", "_transport",
        "_walker", "data_received", "has_lane", "has_served", "has_unread_bytes", "idle_until", "is_sending",
        "kept_s", "last_activity", "origin", "state", "writable",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, origin: Origin, clock: Callable[[], float], *, reusable: bool = True
    ) -> None:
        self._owner = owner
        self._clock = clock
        self._reusable = reusable  # as far as is known yet
        self._transport: asyncio.Transport | None = None
        self._readable = select.poll()  # uvloop's socket object cannot peek
        # Is anything, also an end of file, waiting on the descriptor? Empty: no.
        self.has_unread_bytes = partial(self._readable.poll, 0)
        self._sink: Sink | None = None
        self._walker: Walker = NO_BODY
        self._method = ""
        self._head_bytes = b""
        self._interim = 0  # heads of the current answer that were none yet
        self._asked = False  # a byte of the current request was written
        self._paused = False  # by the user
        self._is_resting = False  # paused by ourselves, until the next turn of the loop
        self._is_slowed = False  # its body comes in crumbs: it is walked in bites
        self._later = b""  # received, and walked in the next turns
        self._may_hold_more = False  # there may be bytes that no poll on the descriptor shows
        self.origin = origin
        self.state = IDLE
        self.data_received: Receiver = self.receive  # what the loop calls: a lane may stand in for it
        self._lane: Receiver | None = None  # that does
        self.has_lane = False  # it may take the next read: see open_lane
        self.idle_until = 0.0  # its owner's: until when it may be used again
        self.kept_s: int | None = None  # while it is idle, by the server, as the latest answer says
        self.has_served = False
        self.writable = True
        self.is_sending = False  # set by who writes a request that is still coming in
        self.last_activity = clock()  # seconds of the pool's clock: last byte beside a lane, or made

    # -- the exchange, as its owner drives it --------------------------------------------------------

    def start(self, sink: Sink, method: str) -> None:
        """Begin an exchange; the request is then written. Everything else is told to `sink`.

        Bytes that come before the first `write` are no answer: the connection is lost.
        """
        self._sink = sink
        self._asked = False
        self._interim = 0
        if self.state is not IDLE:
            assert self.state is CLOSED, self.state
            # Lost between check-out and now. Told as if it had been lost a moment later: one way, not two.
            asyncio.get_running_loop().call_soon(self._lose, self._lost_in_head("lost while idle"))
            return
        self._method = method
        self.state = HEAD

    def write(self, pieces: Sequence[bytes]) -> None:
        """Send request bytes; nothing happens on a connection that was lost."""
        if self.state is CLOSED:
            return
        assert self._transport is not None
        self._asked = True
        self._transport.writelines(pieces)

    def pause_reading(self) -> None:
        """Stop reading the answer: the client is slower than the upstream."""
        self._paused = True
        self._steer()

    def resume_reading(self) -> None:
        """Go on reading the answer."""
        self._paused = False
        self._steer()
        if self._later and not self._is_resting:
            self._rest()  # from the next turn on: the caller may be in the midst of something

    def open_lane(self, lane: Receiver | None) -> None:
        """From here on reads go to `lane` at once, the shortest way of a stream. What is not one whole plain
        chunk, and all while `has_lane` is False, it hands to `receive`, which tells the sink."""
        self.has_lane = lane is not None and self._walker.is_between and not self._later
        if lane is not None and lane is not self._lane:
            self._lane = lane
            self._let_receive(lane)

    def _let_receive(self, receiver: Receiver) -> None:
        self.data_received = receiver
        if self._transport is not None:
            self._transport.set_protocol(self)  # uvloop's looks once for what it is to call

    def abort(self) -> None:
        """Close at once and say nothing more to the sink: a vendor stops generating when nobody listens."""
        self._sink = None
        self._close()

    def release(self) -> None:
        """Give the connection back after a complete answer; it is closed unless it can be used again.

        The whole request must have been written: an answer may come before its request has ended.
        """
        transport = self._transport
        if (
            transport is None
            or self.state is not COMPLETE
            or not self._reusable
            or self.is_sending
            or transport.is_closing()
            or transport.get_write_buffer_size()
        ):
            self.abort()
            return
        if self._lane is not None:
            self._lane, self.has_lane = None, False
            self._let_receive(self.receive)
        self._walker = NO_BODY
        self.state = IDLE
        if self._paused or self._is_resting or self._may_hold_more:
            # Over TLS, bytes may be decrypted already where no poll on the descriptor shows them. They are
            # delivered within this turn of the loop, and close the connection while it is still out of reach.
            self._paused = self._is_resting = False
            self._steer()
            asyncio.get_running_loop().call_soon(self._park)
        else:
            self._owner.park(self)

    # -- what the loop calls -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by duck typing only
        self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def receive(self, data: bytes) -> None:
        """Whatever comes next."""
        clock = self._clock
        self.last_activity = clock()
        if self.state is BODY:
            self._walk(self._later + data)
        elif self.state is HEAD and self._asked:
            self._take_head(data)
        elif self.state is HEAD:
            self._lose(self._lost_in_head("bytes before the request"), poisoned=True)
        elif self.state is IDLE:
            self._close(poisoned=True)
        else:
            self._reusable = False  # bytes behind the end: never content, and nobody's answer

    def eof_received(self) -> bool:
        # Over TLS this comes only after close_notify; without one, connection_lost comes alone: a cut.
        if self.state is BODY and isinstance(self._walker, EofWalker):
            self._walker.finish()
            self._complete(())
        else:
            self._end("end of file")  # now: the transport would first wait for its own buffer to be read
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(str(exc or "connection lost"))
        self._transport = None
        self._lane, self.data_received = None, lambda _: None  # no cycle

    def pause_writing(self) -> None:
        self.writable = False
        if self._sink is not None:
            self._sink.upload_pause()

    def resume_writing(self) -> None:
        self.writable = True
        if self._sink is not None:
            self._sink.upload_resume()

    # -- the answer ----------------------------------------------------------------------------------

    def _take_head(self, data: bytes) -> None:
        scanned = 0
        if self._head_bytes:
            scanned = len(self._head_bytes)
            data, self._head_bytes = self._head_bytes + data, b""
        try:
            head = parse(data, self._method, scanned)
            while head is not None and head.status < 200:
                self._count_interim(head)
                data = head.rest
                head = parse(data, self._method)
            if head is None:
                self._head_bytes = data
                return
        except UpstreamGarbage as error:
            self._lose(error)
            return
        if not head.keep_alive:
            self._reusable = False
            if head.status == 408 and self.has_served:
                # It gave up waiting on an idle connection while our request was on its way (RFC 9110 15.5.9).
                self._lose(UpstreamStale(detail="408 on an idle connection"))
                return
        self.kept_s, rest = head.idle_s, head.rest
        if head.length != len(rest) or head.kind != "length":
            self._begin_body(head)
            return
        sink, self._sink = self._sink, None  # it is told of all at once, as of nearly all that are no streams
        assert sink is not None
        self.state = COMPLETE
        self.has_served = True
        sink.on_head(head, (rest,) if rest else ())

    def _count_interim(self, head: Head) -> None:
        self._interim += 1
        if head.status == 101 or self._interim > INTERIM_ANSWERS_MAX:
            raise UpstreamGarbage(detail=f"interim answer {head.status}, number {self._interim}")

    def _begin_body(self, head: Head) -> None:
        walker = self._walker = walker_for(head.kind, head.length)
        pieces = walker.feed(head.rest) if head.rest else ()
        if walker.broken is not None and not pieces:
            self._lose(walker.broken)  # known before anybody was told of a head: still an ordinary failure
            return
        assert self._sink is not None
        self.state = BODY
        self._sink.on_head(head, None)
        if self.state is BODY:
            self._hand_over(pieces)

    def _hand_over(self, pieces: Sequence[bytes]) -> None:
        walker, sink = self._walker, self._sink
        assert sink is not None
        if len(pieces) > PIECES_MAX:
            pieces = (b"".join(pieces),)
            self._rest()
        if walker.done:
            if walker.excess or self._later:
                self._reusable = False
            self._complete(pieces)
            return
        if pieces:
            sink.on_content(pieces, False)
        if walker.broken is not None and self._sink is sink:
            self._lose(walker.broken)

    def _complete(self, pieces: Sequence[bytes]) -> None:
        sink, self._sink = self._sink, None
        self.state = COMPLETE
        self.has_served = True
        assert sink is not None
        sink.on_content(pieces, True)

    def _walk(self, data: bytes) -> None:
        """Hand over the content of a read, or of its first bite."""
        self.has_lane = False
        if self._is_resting:
            self._later = data  # over TLS more may come, decrypted already
            return
        self._later = b""
        if self._is_slowed and len(data) > BITE_BYTES:
            data, self._later = data[:BITE_BYTES], data[BITE_BYTES:]
            self._rest()
        self._hand_over(self._walker.feed(data))

    def _rest(self) -> None:
        """Nothing more in this turn of the loop."""
        self._is_slowed = True
        if not self._is_resting:
            self._is_resting = True
            self._steer()
            asyncio.get_running_loop().call_soon(self._end_rest)

    def _end_rest(self) -> None:
        self._is_resting = False
        self._steer()
        if self._later and not self._paused and self.state is BODY:
            self._walk(self._later)

    def _steer(self) -> None:
        if self._transport is None or self.state is CLOSED:
            return
        if self._paused or self._is_resting:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # -- the end -------------------------------------------------------------------------------------

    def _park(self) -> None:
        if self.state is IDLE:
            self._owner.park(self)

    def _end(self, why: str) -> None:
        """Nothing more will come."""
        if self.state is BODY:
            self._lose(UpstreamClosed(_CUT_SHORT, detail=why))
        elif self.state is HEAD:
            self._lose(self._lost_in_head(why))
        else:
            self._close()

    def _lost_in_head(self, why: str) -> ProxyError:
        if self.has_served and not self._head_bytes and not self._interim:  # of the answer nothing came
            return UpstreamStale(detail=why)
        return UpstreamClosed(detail=why)

    def _lose(self, error: ProxyError, *, poisoned: bool = False) -> None:
        sink, self._sink = self._sink, None
        self._close(poisoned=poisoned)
        if sink is not None:
            sink.on_lost(error)

    def _close(self, *, poisoned: bool = False) -> None:
        if self.state is CLOSED:
            return
        self.state = CLOSED
        self.has_lane = False
        self._walker = NO_BODY
        self._head_bytes = self._later = b""
        if self._transport is not None:
            self._transport.abort()
        self._owner.closed(self, poisoned=poisoned)
