"""One attempt: the request to one upstream, and its answer to the client as it comes.

Owns the order of bytes, journal and meter. The pump has no await: content goes from the upstream's
protocol to the client's transport in the same tick, the same references go to the meter. The read
that completes a call is held back until its End is written (design.md, "Settle").

    WAITING --head--> JUDGING (status >= 300: read, then judged)  --> verdict
       |  `---------> RELAYING --terminal event or end--> ENDED --end of framing--> finished
       `--lost------> verdict      `--lost, cut, client gone--> settled
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum, auto
from time import monotonic

from proxy.errors import JournalUnavailable, ProxyError, TimeLimit, UpstreamTimeout
from proxy.http1.head import ABSENT, Head
from proxy.journal.crashpoint import ARMED, crash_point
from proxy.ledger import entry
from proxy.relay import answers
from proxy.relay.delivery import NO_HINT, TAIL, Delivery, Writer, delivery_for
from proxy.relay.exchange import Exchange
from proxy.relay.heading import heading_for
from proxy.relay.metering_task import Tap, tap_for
from proxy.relay.plan import Plan, Tools, drain_s
from proxy.relay.upstream import UpstreamConnection

JUDGE_S = 2.0  # an error that takes longer is judged by what came of it: it may never end
READ_ON_S = 5.0  # after finish_reason the usage is still to come, also when the client has left
ENDED_LINGER_S = 1.0  # after the terminal event: for the end of framing, so that the connection can be reused


class State(Enum):
    WAITING = auto()
    JUDGING = auto()
    RELAYING = auto()
    ENDED = auto()  # End is written or being written
    CLOSED = auto()


# As globals: a look-up in the class costs 85 ns, and a call makes ten of them.
WAITING, JUDGING, RELAYING, ENDED, CLOSED = State


class Pump:
    """A Sink for one upstream connection (proxy/relay/upstream.py)."""

    __slots__ = (
        "_attempt", "_conn", "_delivery", "_done", "_drained_until", "_head", "_held", "_is_broken",
        "_is_flushed", "_is_framed", "_last", "_plan", "_state", "_tap", "_tools", "_way", "_x", "is_sent",
    )  # fmt: skip

    _head: Head  # of an answer that is judged
    _is_framed: bool  # of one that has ended: the upstream's framing is complete

    def __init__(self, x: Exchange, plan: Plan, tools: Tools) -> None:
        self._x = x
        self._plan, self._way = plan, plan.way
        self._tools = tools
        self._state = WAITING
        self._conn: UpstreamConnection | None = None
        self._done: asyncio.Future[ProxyError | None] = tools.loop.create_future()
        upstream, mirror, credential, _ = plan.way.choice
        self._attempt = attempt = entry.Attempt(
            upstream.name, mirror.name, credential.name, "sent", 0, "", tools.wall_ms()
        )
        x.attempts.append(attempt)
        self._delivery: Writer | None = None
        self._held: list[bytes] = []  # an unhappy answer while it is judged; what waits for End to be written
        self._tap: Tap | None = None
        self._drained_until = 0.0  # > 0: the client has left, this is how long we read on
        self.is_sent = False  # a byte of the request may have been acted upon
        self._is_flushed = False  # End is written: nothing is held back any more
        self._is_broken = False  # lost after the terminal event
        self._last = 0.0  # when something came, or the request was sent

    def run(self, conn: UpstreamConnection) -> asyncio.Future[ProxyError | None]:
        """Send the request once the call's Begin is written, relay the answer.

        To None when the call is answered and settled, else to why not: nothing has reached the client.
        """
        x, self._conn = self._x, conn
        x.pump = self
        conn.start(self, x.head.method)
        if x.client.is_paused:
            conn.pause_reading()
        self._tools.sweeper.add(self)
        if x.has_begun:
            self.send(None)
        elif x.begin is None:  # it was refused while we connected
            self.send(JournalUnavailable())
        return self._done

    def fail_to_connect(self, error: ProxyError) -> None:
        """There was no connection to run on."""
        self._attempt.outcome = error.code
        self._state = CLOSED

    @property
    def tap(self) -> Tap | None:
        """The meter's end of the answer, once it has begun."""
        return self._tap

    @property
    def _is_working(self) -> bool:
        """The upstream has the request and has not refused it: the input is consumed."""
        return self.is_sent and self._state is not JUDGING

    def send(self, refused: BaseException | None) -> None:
        """Called when Begin is written (or could not be): nothing leaves before."""
        conn, x, plan = self._conn, self._x, self._plan
        if conn is None or self._state is not WAITING:
            return  # the client left while Begin was being written, or the connection was lost
        if refused is not None:
            self._fail(JournalUnavailable())
            return
        ARMED and crash_point("begin-written")
        self.is_sent = True
        self._last = now = monotonic()
        x.sent = x.sent or now
        conn.write((plan.head, plan.body) if plan.body else (plan.head,))
        ARMED and crash_point("request-sent")

    # -- what the upstream sends --

    def on_head(self, head: Head, whole: Sequence[bytes] | None) -> None:
        assert self._conn is not None
        self._last = self._conn.last_activity
        attempt, status = self._attempt, head.status
        attempt.status = status
        vendor_id = head.values[head.shape.at.get(self._way.dialect.id_header, ABSENT)]
        if vendor_id is not None:
            attempt.upstream_id = vendor_id.decode("latin-1")[:128]
        if status < 300 or status == 304:
            self._begin_answer(head)
            if whole is not None:
                self._complete(whole, True)
            return
        self._state = JUDGING
        self._head = head
        if whole is not None:
            self.on_content(whole, True)

    def on_content(self, pieces: Sequence[bytes], done: bool) -> None:
        if self._state is RELAYING:
            assert self._conn is not None
            self._last = self._conn.last_activity
            self._relay(pieces, done)
        elif self._state is JUDGING:
            self._held += pieces
            if done or sum(map(len, self._held)) > answers.UNHAPPY_BYTES_MAX:
                self._judge(done)
        elif self._state is ENDED:
            if self._conn is not None:
                self._last = self._conn.last_activity
            self._is_framed = done
            self._held += pieces
            if self._is_flushed:
                self._flush()

    def on_lost(self, error: ProxyError) -> None:
        if self._state in (WAITING, JUDGING):
            self._fail(error)
        elif self._state is RELAYING:
            if self._x.has_begun_answer or self._drained_until:
                self._cut(entry.INTERRUPTED_UPSTREAM, error.code)
            else:
                self._fail(error)
        elif self._state is ENDED:
            self._is_broken = True
            if self._is_flushed:
                self._finish_broken()

    def upload_pause(self) -> None:
        """The request is whole in memory: the transport's buffer holds it until the upstream reads."""

    def upload_resume(self) -> None:
        """See upload_pause."""

    def _begin_answer(self, head: Head) -> None:
        """From here on the answer is the client's, unless it is lost before its first byte goes out."""
        self._state = RELAYING
        x, way = self._x, self._way
        heading = heading_for(x, way.moulds, head)
        if self._plan.is_watched:
            self._tools.cooldowns.answered(
                way.choice, self._attempt.started_ms if heading.is_event_stream else None
            )
        if way.is_plain:
            self._delivery = Delivery(x, head.status, heading.head, heading.chunked)
        else:
            self._delivery = delivery_for(x, way, head, heading)
        self._tap = tap_for(x, way.make_meter, head, heading.is_event_stream, self._tools.meters)
        if heading.is_event_stream:
            self._write((), False)  # the client learns at once that its stream has begun
            # Large prompts would stay in memory for the whole stream.
            self._tools.settling.drop_request(x)

    def _relay(self, pieces: Sequence[bytes], done: bool) -> None:
        if done:
            self._complete(pieces, True)
            return
        tap, operation = self._tap, self._x.operation
        assert tap is not None and operation is not None
        for piece in pieces:
            tap.append(piece)
        hint = operation.terminal_hint or NO_HINT
        if pieces and pieces[-1].find(hint, TAIL) >= 0:
            tap.read()
            if tap.meter.complete:
                self._complete(pieces, False)
                return
        self._write(pieces, False)
        ARMED and crash_point("first-content")
        if self._delivery is not None and self._conn is not None and not self._drained_until:
            self._conn.open_lane(self._delivery.lane(tap, hint, self._conn))

    def _judge(self, done: bool) -> None:
        """An answer with a bad status has been read: the client's, or a reason to try elsewhere."""
        status, body = self._head.status, b"".join(self._held)
        self._attempt.outcome = f"status:{status}"
        verdict = answers.judge(self._head, body)
        if verdict is answers.Verdict.VERBATIM:
            self._held = []
            self._begin_answer(self._head)
            self._relay((body,) if body else (), done)
            return
        retry_after = answers.retry_after((self._head.value(b"retry-after") or b"").decode("latin-1"))
        if verdict is not answers.Verdict.NEXT or status >= 500:
            self._tools.cooldowns.report(self._way.choice, answers.counts_as(verdict, status), retry_after)
        if done and self._conn is not None:
            self._conn.release()
            self._conn = None
        self._fail(answers.error_for(verdict, status, retry_after))

    # -- what goes to the client --

    def _write(self, pieces: Sequence[bytes], last: bool) -> None:
        if not self._drained_until:
            assert self._delivery is not None
            self._delivery.write(pieces, last, self._last)

    def client_paused(self) -> None:
        if self._conn is not None:
            self._conn.pause_reading()

    def client_resumed(self) -> None:
        self._last = monotonic()  # the silence was the client's
        if self._conn is not None:
            self._conn.resume_reading()

    def client_left(self) -> None:
        """The client's connection is gone. Read on where the policy says so, else stop the vendor."""
        now = monotonic()
        if self._state is CLOSED or self._drained_until:
            return
        self.client_resumed()
        if self._state is ENDED:
            self._drained_until = now + ENDED_LINGER_S
            return
        if self._tap is not None:
            self._tap.read()
        is_over = self._tap is not None and self._tap.meter.finished
        lasts_s = READ_ON_S if is_over else drain_s(self._x, self._way)
        if lasts_s:
            self._drained_until = now + lasts_s
            self._x.is_drained = True
            if self._conn is not None:
                self._conn.open_lane(None)
        else:
            self._cut(entry.INTERRUPTED_CLIENT, "client_left")

    # -- ends --

    def _complete(self, pieces: Sequence[bytes], is_framed: bool) -> None:
        """The terminal event or the end of framing was seen: hold it back until End is written."""
        assert self._tap is not None
        if is_framed:
            self._tap.finish(pieces)
        self._state, self._is_framed = ENDED, is_framed
        self._held += pieces
        if self._attempt.outcome == "sent":
            self._attempt.outcome = "ok"
        ARMED and crash_point("terminal-held")
        self._tools.settling.complete(self._x, self._tap, self._flush)
        ARMED and crash_point("end-appended")

    def _flush(self, refused: BaseException | None = None) -> None:
        """What was held back goes out. Continuation of the journal's flush, then for what comes behind that.
        Could End not be written: the client gets what it paid for."""
        ARMED and not self._is_flushed and crash_point("end-written")
        self._is_flushed = True
        held, self._held = self._held, []
        if not self._drained_until:
            assert self._delivery is not None
            self._delivery.write(held, self._is_framed, self._last)
        if self._is_framed:
            ARMED and crash_point("last-bytes-sent")
            if self._conn is not None:
                self._conn.release()
            self._close(None)
        elif self._is_broken:
            self._finish_broken()

    def _finish_broken(self) -> None:
        """All events came, the framing did not end: the client must not see a clean end either."""
        if self._conn is not None:
            self._conn.abort()
        self._x.client.cut()
        self._close(None)

    def _fail(self, error: ProxyError) -> None:
        """This attempt is over and nothing of it reached the client."""
        if self._attempt.outcome == "sent":
            self._attempt.outcome = error.code
        if self._conn is not None:
            self._conn.abort()
        if self._done.done():  # the client has left: nobody is there to try elsewhere
            self._tools.settling.interrupt(self._x, None, entry.FAILED, error.code)
        # For the End that another attempt leads to; the one of an answered attempt is written by now.
        self._attempt.took_ms = self._tools.wall_ms() - self._attempt.started_ms
        self._close(error)

    def cut(self, why: str, error: ProxyError) -> None:
        """End a running call by our own decision (revocation, shutdown); `error` is told to a client that
        has seen nothing of an answer yet."""
        if self._state in (CLOSED, ENDED):
            return
        if self._x.has_begun_answer or self._drained_until:
            self._cut(entry.CUT, why)
            return
        if self._conn is not None:
            self._conn.abort()
        self._attempt.outcome = why
        self._tools.settling.interrupt(self._x, None, entry.CUT, why, is_sent=self._is_working)
        self._close(error)

    def _cut(self, outcome: str, why: str) -> None:
        if self._attempt.outcome == "sent":
            self._attempt.outcome = why
        if self._conn is not None:
            self._conn.abort()
        self._tools.settling.interrupt(self._x, self._tap, outcome, why, is_sent=self._is_working)
        if self._delivery is not None and not self._drained_until:
            self._delivery.let_go(self._last)
        self._x.client.cut()
        self._close(None)

    def _close(self, result: ProxyError | None) -> None:
        self._state = CLOSED
        self._conn = None
        self._x.pump = None  # no cycle: what a call held is freed with it, not by the garbage collector
        tools, tap = self._tools, self._tap
        tools.sweeper.discard(self)
        if tap is not None and tap.is_waiting:
            tools.meters.forget(tap)
        if not self._done.done():
            self._done.set_result(result)

    def check(self, now: float) -> None:
        """The sweep: time limits, and those of a client that has left."""
        if self._state is CLOSED:
            return
        if self._tap is not None and self._tap.has_grown():
            self._last = now  # a lane tells nobody else
        silent = now - self._last
        if self._drained_until and now > self._drained_until:
            if self._state is ENDED:
                self._finish_broken()
            else:
                self._cut(entry.INTERRUPTED_CLIENT, "client_left")
        elif now > self._x.arrived + self._way.total_s and self._state is not ENDED:
            self._out_of_time(TimeLimit())
        elif self._x.client.is_paused:
            return  # ingress has a limit for clients that do not read
        elif self._state is WAITING:
            if self.is_sent and silent > self._way.first_byte_s:
                self._out_of_time(UpstreamTimeout())
        elif self._state is JUDGING:
            if silent > JUDGE_S:  # since its head
                self._judge(False)
        elif silent > self._way.idle_s:
            self._out_of_time(UpstreamTimeout())

    def _out_of_time(self, error: ProxyError) -> None:
        if self._x.has_begun_answer or self._drained_until:
            if self._state is ENDED:
                self._finish_broken()
            else:
                self._cut(entry.CUT, error.code)
        else:
            self._fail(error)
