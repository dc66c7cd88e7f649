"""A call at an endpoint that cuts silence: heartbeats while nothing comes, or a refusal before the cut.

Owns what such a call's client is sent beside the upstream's answer. Heartbeats stand between events only,
never in a coded body. Before the upstream's first byte they need a head: that commits a 200, and whatever
goes wrong later is told in the answer itself, in the dialect's shape. An answer in one piece is, as the
endpoint declares, kept alive by JSON's white space (`trickle`) or given up in time (`hint`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import orjson

from proxy.errors import ProxyError, TimeLimit, UpstreamRefused
from proxy.http1.head import Head
from proxy.http1.headers import REASONS, serialize
from proxy.relay.answers import UNHAPPY_BYTES_MAX, own_fields
from proxy.relay.delivery import Delivery, Writer
from proxy.relay.exchange import Exchange
from proxy.relay.heading import Heading
from proxy.relay.ids import dashed
from proxy.routing.table import Endpoint

BEAT_AFTER = 0.4  # of the endpoint's read timeout: one beat may be lost
# A refusal must arrive before the cut does.
MARGIN = 0.05
MARGIN_MAX_S = 5.0
LOOK_AGAIN_S = 0.05  # for an attempt that is still connecting
EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
SPACE = b" "
# What these consume, their answers in one piece are JSON: white space may stand in front (RFC 8259 2).
JSON_KINDS = frozenset({"text", "embeddings", "images", "rerank", "pages", "predictions"})
EVENT_KINDS = frozenset({"text", "images"})

Timer = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


class Rhythm(NamedTuple):
    """How silence is treated."""

    beat: bytes  # b"": not broken, the call is refused when its time is up
    content_type: bytes
    due_s: float  # of silence, or of the whole call


def rhythm_of(x: Exchange) -> Rhythm | None:
    """None: nothing would be cut, or nothing can be done about it."""
    assert x.endpoint is not None and x.operation is not None and x.dialect is not None
    timeout_ms = x.endpoint.proxy_read_timeout_ms
    if timeout_ms is None:
        return None
    timeout_s = timeout_ms / 1000
    if x.is_stream:
        if x.operation.kind not in EVENT_KINDS or not x.dialect.heartbeat or not _is_sse(x):
            return None
        return Rhythm(x.dialect.heartbeat, b"text/event-stream", timeout_s * BEAT_AFTER)
    is_json = x.operation.request == "json" and x.operation.kind in JSON_KINDS
    if x.endpoint.slow_calls == "trickle" and is_json:
        return Rhythm(SPACE, b"application/json", timeout_s * BEAT_AFTER)
    return Rhythm(b"", b"", timeout_s - min(timeout_s * MARGIN, MARGIN_MAX_S))


def _is_sse(x: Exchange) -> bool:
    """Will the stream be server-sent events? There is nothing to say within JSON, or between its lines."""
    assert x.operation is not None
    names = x.operation.sse_query
    return x.operation.is_sse and (
        not names or any(name in names and word == "sse" for name, word in parse_qsl(x.query))
    )


def heartbeat_for(x: Exchange, loop: asyncio.AbstractEventLoop) -> AbstractContextManager[None]:
    """Around the attempts of a call."""
    rhythm = rhythm_of(x)
    return nullcontext() if rhythm is None else Heartbeat(x, rhythm, loop.call_later)


class Heartbeat(AbstractContextManager[None]):
    """Of one call, from before its first attempt until its answer is complete: `with heartbeat:`."""

    def __init__(
        self, x: Exchange, rhythm: Rhythm, timer: Timer, clock: Callable[[], float] = monotonic
    ) -> None:
        self._x = x
        self._rhythm = rhythm
        self._start_timer = timer
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._last = x.uploaded  # when the client last heard something
        self._out: Writer | None = None  # where a beat goes; None: no head was sent, or its attempt is over
        self._answering: object = None  # the attempt that `_out` belongs to
        self._may_beat = True
        self._tail = EVENT_ENDS[0]
        self.is_committed = False  # to a 200, before any upstream has answered

    def __enter__(self) -> None:
        self._x.heartbeat = self
        self._wait()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        if kind is None or not self.is_committed:
            self._x.heartbeat = None  # no cycle: what a call held is freed with it

    @property
    def needs_identity(self) -> bool:
        """Nothing can be written into a coded answer."""
        return bool(self._rhythm.beat)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- time --

    def _wait(self) -> None:
        self._timer = self._start_timer(max(self._last + self._rhythm.due_s - self._clock(), 0), self._due)

    def _due(self) -> None:
        self._timer = None
        x, now = self._x, self._clock()
        if x.settled or x.client.is_gone:
            return
        if not self._rhythm.beat:
            self._give_up()
            return
        if now >= self._last + self._rhythm.due_s:
            self._last = now
            if not x.client.is_paused:
                self._beat(now)
        self._wait()

    def _beat(self, now: float) -> None:
        x = self._x
        if not self.is_committed and (self._out is None or self._answering is not x.pump):
            if x.has_begun_answer:
                return
            self._commit()
        if self._may_beat and self._tail.endswith(EVENT_ENDS):
            assert self._out is not None
            self._out.write((self._rhythm.beat,), False, now)

    def _give_up(self) -> None:
        """The whole answer is not here in time: refuse, while there is still somebody to tell."""
        x = self._x
        if x.has_begun_answer:
            return
        if x.pump is None:
            self._timer = self._start_timer(LOOK_AGAIN_S, self._due)
            return
        assert x.endpoint is not None and x.snapshot is not None and x.key is not None
        assert x.operation is not None
        others = [
            e
            for e in x.snapshot.table.endpoints.values()
            if x.key.endpoints is None or x.snapshot.permitted(x.key.endpoints, e.name)
        ]
        x.pump.cut("endpoint_time_limit", TimeLimit(hint(x.endpoint, others, may_stream=x.operation.streams)))

    # -- what the client is sent --

    def _commit(self) -> None:
        x = self._x
        self.is_committed = True
        is_chunked = not x.head.is_http10
        framing = b"transfer-encoding: chunked\r\n" if is_chunked else b""
        if not x.keep_alive:
            framing += b"connection: close\r\n"
        fields = [
            (b"content-type", self._rhythm.content_type),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        head = serialize(200, REASONS[200], fields)
        x.client.write(b"%b%b%b\r\n" % (head[:-2], own_fields(x), framing))
        self._may_beat = True
        self._out = Delivery(x, 200, b"", is_chunked)

    def delivery(self, head: Head, heading: Heading) -> Writer:
        """Where the content of an upstream's answer goes, whose head is `head`; `heading` is the client's.

        Called by each attempt that is answered, from within it.
        """
        is_coded = head.shape.coding is not None
        is_space = self._rhythm.beat == SPACE
        self._answering = self._x.pump
        if not self.is_committed:
            self._out = Delivery(self._x, head.status, heading.head, heading.chunked)
            is_open = heading.is_event_stream or (is_space and head.status < 300)
            self._may_beat = is_open and heading.chunked and not is_coded
            return _Kept(self, self._out, head.status)
        assert self._out is not None
        is_promised = not is_coded and (is_space or heading.is_event_stream)
        return _Kept(self, self._out if is_promised else _InBand(self), head.status)

    def wrote(self, pieces: Sequence[bytes], last: bool, now: float) -> None:
        """Content went to the client."""
        self._last = now
        if self._rhythm.beat == SPACE:
            self._may_beat = self._may_beat and not pieces
        elif pieces:
            tail = bytes(pieces[-1][-4:])
            self._tail = tail if len(tail) == 4 else (self._tail + tail)[-4:]
        if last:
            self.stop()

    def refuse(self, error: ProxyError) -> None:
        """The call fails behind a head that said 200."""
        self._x.heartbeat = None
        self.tell(error.kind, error.code, error.message, error.param, error.status)

    def tell(self, kind: str, code: str, message: str, param: str | None, status: int) -> None:
        """An error as the rest of the answer."""
        dialect = self._x.dialect
        assert dialect is not None and self._out is not None
        as_rest = dialect.error_body if self._rhythm.beat == SPACE else dialect.stream_error
        told = as_rest(kind, code, message, param, status, dashed(self._x.id).decode())
        self.stop()
        self._out.write((told,), True, self._clock())


class _Kept:
    """A delivery of which the heartbeat knows what was written last, and when."""

    __slots__ = ("_heartbeat", "_out", "_status", "_x")

    def __init__(self, heartbeat: Heartbeat, out: Writer, status: int) -> None:
        self._heartbeat = heartbeat
        self._out = out
        self._status = status
        self._x = heartbeat._x

    def lane(self, *_: object) -> None:
        """The heartbeat is to know of each write."""

    def let_go(self, now: float) -> None:
        """Nothing is held back."""

    def write(self, pieces: Sequence[bytes], last: bool, now: float) -> None:
        if self._heartbeat.is_committed and not self._x.status:
            self._x.status, self._x.answered = self._status, now
        self._out.write(pieces, last, now)
        self._heartbeat.wrote(pieces, last, now)


class _InBand:
    """An answer that is not what the head has promised: told as an error, once it is whole."""

    __slots__ = ("_body", "_heartbeat")

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self._body = b""

    def lane(self, *_: object) -> None:
        """Nothing of it goes out before its end."""

    def let_go(self, now: float) -> None:
        """It was never promised."""

    def write(self, pieces: Sequence[bytes], last: bool, now: float) -> None:
        if len(self._body) <= UNHAPPY_BYTES_MAX:
            self._body += b"".join(pieces)
        if last:
            said, fault = _error_in(self._body), UpstreamRefused()
            self._heartbeat.tell(
                str(said.get("type") or fault.kind),
                str(said.get("code") or fault.code),
                str(said.get("message") or fault.message),
                said.get("param"),
                fault.status,
            )


def _error_in(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except ValueError:
        return {}
    error = document.get("error") if type(document) is dict else None
    return error if type(error) is dict else {}


def hint(endpoint: Endpoint, others: Iterable[Endpoint], *, may_stream: bool) -> str:
    """What a caller can do about an endpoint that cuts long silence."""
    assert endpoint.proxy_read_timeout_ms is not None
    ways = ["set 'stream': true"] if may_stream else []
    urls = [e.url for e in others if e.proxy_read_timeout_ms is None]
    ways += [f"use an endpoint without this limit: {', '.join(urls)}"] if urls else []
    advice = " or ".join(ways)
    said = f"This endpoint cuts answers that take longer than {endpoint.proxy_read_timeout_ms / 1000:g} s."
    return f"{said} {advice[:1].upper()}{advice[1:]}." if advice else said
