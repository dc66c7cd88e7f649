"""What a client gets of a stream: the same bytes whichever way they go, less the usage that we asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.relay.delivery import NO_HINT, Delivery, Writer, _Filtered
from proxy.relay.metering_task import Tap
from tests.fakes.upstream_server import chunk, unchunked
from tests.metering.test_events import AZURE_FIRST, CHUNK, DONE, INJECTED

HINT = b"[DONE]"
PLAIN = CHUNK.replace(b',"usage":null', b"")
TOLD_NULL = PLAIN.replace(b'"choices"', b'"usage":null,"choices"')
STREAM = AZURE_FIRST + CHUNK + PLAIN + TOLD_NULL + INJECTED + CHUNK + DONE
SHOWN = STREAM.replace(INJECTED, b"")


@dataclass
class Call:
    """What a delivery and a tap do with what goes through."""

    status: int = 0
    answered: float = 0.0
    sent: list[bytes] = field(default_factory=list)
    metered: list[bytes] = field(default_factory=list)

    @property
    def client(self) -> Any:
        return SimpleNamespace(write=self.sent.append, writelines=self.sent.extend)

    def take_in(self, out: Writer, pieces: list[bytes], hint: bytes = HINT) -> int:
        """As a pump does: the first in any case, then what the lane does not take. How many that took."""
        beside: list[bytes] = []
        connection = cast(Any, SimpleNamespace(has_lane=True, receive=beside.append))
        tap = Tap(cast(Any, SimpleNamespace(feed=self.metered.append, take_text=list)), None, "m")
        lane = None
        for piece in pieces:
            before = len(beside)
            if lane is None:
                beside.append(chunk(piece))
            else:
                lane(chunk(piece))
            if len(beside) > before:
                tap.append(piece)
                out.write([piece], False, 1.0)
                lane = out.lane(tap, hint, connection)
        out.write((), True, 1.0)
        tap.read()
        assert tap.total == sum(map(len, pieces))
        return len(pieces) - len(beside)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("hides", [True, False])
def test_every_cut_gives_the_same_bytes(chunked: bool, hides: bool):
    for first in range(1, len(STREAM), 3):
        for second in range(first + 1, len(STREAM), 37):
            pieces = [CHUNK, STREAM[:first], STREAM[first:second], STREAM[second:]]
            call = Call()
            plain = Delivery(cast(Any, call), 200, b"", chunked)
            call.take_in(_Filtered(plain) if hides else plain, pieces)
            sent = b"".join(call.sent)
            wanted = CHUNK + (SHOWN if hides else STREAM)
            assert (unchunked(sent) if chunked else sent) == wanted
            assert b"".join(call.metered) == CHUNK + STREAM, "the meter sees all of it"


@pytest.mark.parametrize("hides", [True, False])
def test_whole_events_take_the_lane_but_for_the_one_that_is_hidden_and_the_end(hides: bool):
    events = [AZURE_FIRST, CHUNK, TOLD_NULL, PLAIN, INJECTED, CHUNK, DONE]
    call = Call()
    plain = Delivery(cast(Any, call), 200, b"", True)
    taken = call.take_in(_Filtered(plain) if hides else plain, events)
    assert taken == (4 if hides else 5)
    call = Call()
    assert call.take_in(Delivery(cast(Any, call), 200, b"", True), events, NO_HINT) == 6


def test_what_is_hidden_is_found_in_front_of_an_event_that_ends_in_null():
    events = [PLAIN, INJECTED + CHUNK, PLAIN + CHUNK, CHUNK + CHUNK]
    call = Call()
    assert call.take_in(_Filtered(Delivery(cast(Any, call), 200, b"", True)), events) == 2
    assert unchunked(b"".join(call.sent)) == b"".join(events).replace(INJECTED, b"")


def test_half_an_event_leaves_the_lane_until_its_end():
    events = [CHUNK, CHUNK, CHUNK[:20], CHUNK[20:], CHUNK]
    call = Call()
    assert call.take_in(_Filtered(Delivery(cast(Any, call), 200, b"", True)), events) == 2
    assert unchunked(b"".join(call.sent)) == CHUNK * 4


@pytest.mark.parametrize("every", [1, 3, 10_000])
def test_what_is_unread_is_bounded_whichever_way_it_came(every: int):
    call = Call()
    tap = Tap(cast(Any, SimpleNamespace(feed=call.metered.append, take_text=list)), None, "m")
    connection = cast(Any, SimpleNamespace(has_lane=True, receive=pytest.fail))
    lane = Delivery(cast(Any, call), 200, b"", True).lane(tap, NO_HINT, connection)
    event = CHUNK + b" " * (1000 - len(CHUNK) - 2) + b"\n\n"
    for number in range(500):
        if number % every:
            lane(chunk(event))
        else:
            tap.append(event)
    tap.read()
    assert max(map(len, call.metered)) <= 68_000, "read soon after 64 KiB"
    assert min(map(len, call.metered[:-1])) >= 64_000, "not before"
    assert tap.total == 500_000
