"""Clients that leave, and clients that do not read: the vendor stops, the call is billed, nothing leaks.

What is billed is money.md's table "What is billed when a call does not end well".
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.raw_client import CUT, RawClient, request
from tests.fakes.upstream_server import Action, Pause, chunk, chunked_head, head
from tests.system.troubled import CHAT, HELLO, SETTLED, VOID, Lane, Troubled, cost
from tests.waiting import wait_for

SAID = b'data: {"id":"c1","model":"m","choices":[{"index":0,"delta":{"content":"one two three"}}]}\n\n'
STOPPED = b'data: {"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
TOLD = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12}}\n\n'
DONE = b"data: [DONE]\n\n"
BEGUN = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m1","model":"m",'
    b'"usage":{"input_tokens":9,"output_tokens":1}}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta",'
    b'"text":"one two three"}}\n\n'
)

LEAVING: dict[str, Callable[[RawClient], None]] = {
    "FIN": RawClient.leave,
    "RST": RawClient.reset,
    "half-close": RawClient.half_close,
}


def begin(troubled: Troubled, lane: Lane, key: str) -> RawClient:
    """A stream whose first event has arrived."""
    client = troubled.connect()
    client.send(request("POST", lane.path, f"authorization: Bearer {key}", body=lane.body(stream=True)))
    client.head()
    client.chunk()
    return client


def wait_until_upstream_is_left(troubled: Troubled) -> float:
    """Seconds."""
    start = time.monotonic()
    wait_for(lambda: not troubled.server.open_connections, "the upstream's connection is closed")
    return time.monotonic() - start


@pytest.fixture(autouse=True)
def no_idle_connection(troubled: Troubled) -> None:
    troubled.drop_upstream_connections()


@pytest.fixture(scope="module")
def keys() -> list[str]:
    return []


@pytest.fixture
def key(troubled: Troubled, keys: list[str]) -> str:
    """Of an account of its own, with room for one call at a time: a call that leaks shows."""
    keys.append(troubled.customer(concurrency=1))
    return keys[-1]


# -- the client leaves -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", LEAVING)
def test_leaving_before_the_first_byte_stops_the_vendor_and_costs_the_input(
    troubled: Troubled, key: str, how: str
) -> None:
    lane = troubled.lane()
    pause = Pause()
    lane.script([pause])
    with troubled.connect() as client:
        client.send(request("POST", CHAT, f"authorization: Bearer {key}", body=lane.body()))
        wait_for(pause.reached.is_set, "asked")
        LEAVING[how](client)
        assert wait_until_upstream_is_left(troubled) < 0.5
    row = troubled.row_of(key)
    assert (row["state"], row["outcome"], row["status"]) == (SETTLED, "interrupted_client", 0)
    assert (row["provenance"], row["usage"].get("output", 0), row["ttft_ms"]) == ("counted", 0, -1)
    assert row["cost_nanos"] == cost(row["usage"]["input"], 0) > 0
    lane.script(HELLO)
    assert troubled.call(lane, key=key).status == 200  # its concurrency is free again


@pytest.mark.parametrize("how", LEAVING)
def test_leaving_a_stream_stops_the_vendor_and_costs_what_came(
    troubled: Troubled, key: str, how: str
) -> None:
    lane = troubled.lane()
    lane.script([chunked_head(), chunk(SAID), Pause()])
    with begin(troubled, lane, key) as client:
        LEAVING[how](client)
        assert wait_until_upstream_is_left(troubled) < 0.5
    row = troubled.row_of(key)
    assert (row["state"], row["outcome"], row["cut"]) == (SETTLED, "interrupted_client", "client_left")
    assert (row["provenance"], row["usage"]["output"]) == ("counted", 3)
    assert row["cost_nanos"] == cost(row["usage"]["input"], 3)


def test_what_the_vendor_told_early_is_believed(troubled: Troubled, key: str) -> None:
    lane = troubled.lane("claude")
    lane.script([chunked_head(), chunk(BEGUN), Pause()])
    with begin(troubled, lane, key) as client:
        client.leave()
    row = troubled.row_of(key)
    assert (row["outcome"], row["provenance"]) == ("interrupted_client", "early")
    assert row["usage"] == {"calls": 1, "input": 9, "output": 3}
    assert row["cost_nanos"] == cost(9, 3)


def test_a_drained_stream_is_read_to_its_end_without_the_client(troubled: Troubled, key: str) -> None:
    lane = troubled.lane("drained")
    pause = Pause()
    lane.script([chunked_head(), chunk(SAID), pause, chunk(STOPPED), chunk(TOLD), chunk(DONE), chunk(b"")])
    with begin(troubled, lane, key) as client:
        client.leave()
    pause.end()
    row = troubled.row_of(key)
    assert (row["state"], row["outcome"], row["provenance"]) == (SETTLED, "complete", "final")
    assert row["cost_nanos"] == cost(9, 12)
    assert troubled.server.open_connections == 1  # its end was seen: it can be used again


def test_an_answer_that_is_drained_need_not_have_begun(troubled: Troubled, key: str) -> None:
    lane = troubled.lane("drained")
    pause = Pause()
    lane.script([pause, *HELLO])
    with troubled.connect() as client:
        client.send(request("POST", CHAT, f"authorization: Bearer {key}", body=lane.body()))
        wait_for(pause.reached.is_set, "asked")
    pause.end()
    row = troubled.row_of(key)
    assert (row["outcome"], row["provenance"], row["cost_nanos"]) == ("complete", "final", cost(9, 12))


def test_draining_ends_in_time(troubled: Troubled, key: str) -> None:
    lane = troubled.lane("drained")
    lane.script([chunked_head(), chunk(SAID), Pause()])
    with begin(troubled, lane, key) as client:
        client.leave()
        assert 0.5 < wait_until_upstream_is_left(troubled) < 3.0
    row = troubled.row_of(key)
    assert (row["outcome"], row["provenance"]) == ("interrupted_client", "counted")
    assert row["usage"]["output"] == 3


def test_behind_a_finish_reason_the_usage_is_still_waited_for(troubled: Troubled, key: str) -> None:
    lane = troubled.lane()
    pause = Pause()
    lane.script([chunked_head(), chunk(SAID + STOPPED), pause, chunk(TOLD), chunk(DONE), chunk(b"")])
    with begin(troubled, lane, key) as client:
        client.leave()
    pause.end()
    row = troubled.row_of(key)
    assert (row["outcome"], row["provenance"], row["cost_nanos"]) == ("complete", "final", cost(9, 12))


def test_a_call_is_complete_at_its_last_event(troubled: Troubled, key: str) -> None:
    lane = troubled.lane()
    pause = Pause()
    lane.script([chunked_head(), chunk(SAID + TOLD + DONE), pause, chunk(b"")])
    with begin(troubled, lane, key) as client:
        client.reset()
    row = troubled.row_of(key)
    assert (row["outcome"], row["provenance"], row["cost_nanos"]) == ("complete", "final", cost(9, 12))
    pause.end()


def test_leaving_an_upstream_that_refuses_costs_nothing(troubled: Troubled, key: str) -> None:
    lane = troubled.lane()
    pause = Pause()
    lane.script([head(500, "content-length: 99") + b"{", Pause(0.05), pause])  # the relay reads the head
    with troubled.connect() as client:
        client.send(request("POST", CHAT, f"authorization: Bearer {key}", body=lane.body()))
        wait_for(pause.reached.is_set, "refused")
        client.leave()
        wait_until_upstream_is_left(troubled)
    row = troubled.row_of(key)
    assert (row["state"], row["outcome"], row["cost_nanos"]) == (VOID, "failed", 0)


def test_leaving_while_the_next_one_is_tried_is_one_call(troubled: Troubled, key: str) -> None:
    lane = troubled.lane("pair")
    pause = Pause()
    lane.script([head(503, "content-length: 0")])
    lane.script([pause], place=1)
    with troubled.connect() as client:
        client.send(request("POST", CHAT, f"authorization: Bearer {key}", body=lane.body()))
        wait_for(pause.reached.is_set, "asked")
    row = troubled.row_of(key)
    assert (row["outcome"], len(row["attempts"])) == ("interrupted_client", 2)


def test_leaving_during_the_upload_is_no_call(troubled: Troubled, key: str) -> None:
    lane = troubled.lane()
    lane.script(HELLO)
    with troubled.connect() as client:
        client.send(request("POST", CHAT, f"authorization: Bearer {key}", "content-length: 500"), b'{"model"')
    assert troubled.call(lane, key=key).status == 200
    assert troubled.row_of(key)["outcome"] == "complete"  # the only row
    assert len(lane.asked()) == 1


def test_leaving_while_control_is_asked_takes_nothing(troubled: Troubled, key: str) -> None:
    """Its one call at a time is asked for at control, which is slow: what it grants belongs to nobody."""
    lane = troubled.lane()
    lane.script(HELLO)
    assert troubled.call(lane, key=key).status == 200
    control = troubled.station.child("control")
    os.kill(control, signal.SIGSTOP)
    try:
        with troubled.connect() as client:
            client.send(request("POST", CHAT, f"authorization: Bearer {key}", body=lane.body()))
            client.half_close()
            assert client.end() == CUT
    finally:
        os.kill(control, signal.SIGCONT)
    wait_for(lambda: troubled.call(lane, key=key).status == 200, "its place is free again")
    troubled.drop_upstream_connections()
    assert len(lane.asked()) == 2


# -- a client that does not read -------------------------------------------------------------------

PIECE = chunk(b": " + b"x" * (65536 - 4) + b"\n\n")
PIECES = 1600  # 100 MB


def test_a_slow_client_stops_its_upstream_and_costs_no_memory(troubled: Troubled, key: str) -> None:
    lane = troubled.lane()
    sent: list[int] = []

    def piece(_: object) -> bytes:
        sent.append(len(PIECE))
        return PIECE

    steps: list[Action] = [piece] * PIECES
    lane.script([chunked_head(), *steps, chunk(DONE), chunk(b"")])
    before = troubled.worker_bytes()
    with troubled.connect(receive_buffer=65536) as client:
        client.send(request("POST", CHAT, f"authorization: Bearer {key}", body=lane.body(stream=True)))
        client.head()
        wait_until_still(sent)
        assert len(sent) < PIECES / 2
        assert troubled.worker_bytes() - before < 16 << 20
        received = 0
        while content := client.chunk():
            received += len(content)
        assert received == PIECES * 65536 + len(DONE)
    assert troubled.worker_bytes() - before < 16 << 20
    assert troubled.row_of(key)["response_bytes"] == received


def test_a_client_that_leaves_without_reading_is_settled(troubled: Troubled, key: str) -> None:
    lane = troubled.lane()
    lane.script([chunked_head(), chunk(SAID), *[PIECE] * PIECES])
    with troubled.connect(receive_buffer=65536) as client:
        client.send(request("POST", CHAT, f"authorization: Bearer {key}", body=lane.body(stream=True)))
        client.head()
        client.chunk()
        client.reset()
        assert wait_until_upstream_is_left(troubled) < 1.0
    row = troubled.row_of(key)
    assert (row["outcome"], row["usage"]["output"]) == ("interrupted_client", 3)


def wait_until_still(sent: list[int]) -> None:
    """Until the upstream sends no more."""
    deadline = time.monotonic() + 10
    known = -1
    while known != len(sent):
        known = len(sent)
        assert time.monotonic() < deadline
        time.sleep(0.2)


# -- nothing is left behind ------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_behind(troubled: Troubled, keys: list[str]) -> Iterator[None]:
    """No hold, no call, no connection; and the books are right."""
    yield
    troubled.drop_upstream_connections()
    for name in ("calls_open", 'upstream_connections{process="w0",state="busy"}'):
        wait_for(lambda name=name: troubled.metric(name) == 0, f"{name} is 0")
    for key in keys:
        wait_for(lambda key=key: troubled.held_nanos(key) == 0, "nothing is held")
    assert troubled.violations() == []
