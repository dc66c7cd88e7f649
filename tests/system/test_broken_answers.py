"""Answers that break off, and bytes that belong to nobody.

The client gets exactly what the upstream had sent and never a clean end; it pays for what was delivered.
"""

from __future__ import annotations

import pytest

from tests.fakes.raw_client import COMPLETE, CUT, RESET, request
from tests.fakes.upstream_server import (
    EXCESS,
    GARBAGE_LATER,
    Action,
    Close,
    Pause,
    Reset,
    chunk,
    chunked_head,
    head,
    whole,
)
from tests.system.troubled import CHAT, HELLO, SETTLED, VOID, Troubled, completion, cost
from tests.waiting import wait_for

EVENT = b'data: {"id":"c1","model":"m","choices":[{"index":0,"delta":{"content":"one two three"}}]}\n\n'
TOLD = (
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"x"}}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}\n\n'
)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("case", GARBAGE_LATER)
def test_an_answer_that_breaks_off_has_no_clean_end(troubled: Troubled, case: str, version: str) -> None:
    lane = troubled.lane()
    lane.script(GARBAGE_LATER[case], HELLO)
    answer = troubled.call(lane, version=version)
    assert (answer.status, answer.body) == (200, b"hello")
    if version == "1.1" or answer.header("content-length"):
        assert answer.end in (CUT, RESET)
    else:
        assert answer.end == RESET  # a FIN would be a clean end
    assert troubled.call(lane).body == completion()
    broken, fine = lane.asked()
    assert broken.connection != fine.connection
    row = troubled.row(answer.call)
    assert (row["outcome"], row["state"]) == ("interrupted_upstream", SETTLED)
    assert row["attempts"][0]["outcome"] in ("upstream_closed", "upstream_protocol_error")


# What follows the event -> how much of it is content.
BREAKS: dict[str, tuple[list[Action], bytes]] = {
    "FIN between events": ([Close()], b""),
    "RST between events": ([Pause(0.02), Reset()], b""),
    "FIN within an event": ([chunk(b'data: {"choi'), Close()], b'data: {"choi'),
    "FIN within the usage": ([chunk(b'data: {"choices":[],"us'), Close()], b'data: {"choices":[],"us'),
    "RST within a chunk": ([b"ff\r\ndata: ", Pause(0.02), Reset()], b"data: "),
    "FIN within a chunk size": ([b"f", Close()], b""),
    "FIN behind an empty line": ([chunk(b"\n"), Close()], b"\n"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_stream_is_billed_as_far_as_it_was_delivered(troubled: Troubled, case: str) -> None:
    lane = troubled.lane()
    script, rest = BREAKS[case]
    lane.script([chunked_head(), chunk(EVENT), *script])
    answer = troubled.ask(lane.body("Hi", stream=True))
    assert answer.body == EVENT + rest
    assert answer.end in (CUT, RESET)
    row = troubled.row(answer.call)
    assert (row["state"], row["outcome"], row["provenance"]) == (SETTLED, "interrupted_upstream", "counted")
    assert row["usage"]["output"] == 3
    assert row["cost_nanos"] == cost(row["usage"]["input"], 3) > 0
    assert row["response_bytes"] == len(answer.body)


def test_figures_that_the_vendor_has_told_before_the_break_count(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script([chunked_head(), chunk(TOLD), chunk(EVENT), Close()])
    row = troubled.row(troubled.ask(lane.body(stream=True)).call)
    assert (row["provenance"], row["usage"]) == ("early", {"calls": 1, "input": 9, "output": 1})


def test_a_route_may_make_broken_streams_free(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script([chunked_head(), chunk(EVENT), Close()])
    row = troubled.row(troubled.ask(lane.body(stream=True), path="/v1/generous").call)
    assert (row["state"], row["cost_nanos"], row["flags"]) == (SETTLED, 0, ["waived"])
    assert row["usage"]["output"] == 3  # the receipt tells what was delivered


def test_a_whole_answer_that_is_cut_short_is_cut_for_the_client_too(troubled: Troubled) -> None:
    lane = troubled.lane()
    body = completion()
    lane.script(
        [head(200, "content-type: application/json", f"content-length: {len(body)}") + body[:90], Close()]
    )
    answer = troubled.call(lane)
    assert (answer.body, answer.end) == (body[:90], CUT)
    assert answer.header("content-length") == str(len(body))


def test_an_error_event_without_output_costs_nothing(troubled: Troubled) -> None:
    lane = troubled.lane()
    content = b'data: {"error":{"message":"overloaded","type":"server_error","code":null}}\n\n'
    lane.script([chunked_head(), chunk(content), chunk(b"")])
    answer = troubled.ask(lane.body(stream=True))
    assert (answer.body, answer.end) == (content, COMPLETE)
    row = troubled.row(answer.call)
    assert (row["state"], row["outcome"], row["cost_nanos"]) == (VOID, "upstream_error", 0)


def test_an_error_beside_usage_after_output_is_billed_as_reported(troubled: Troubled) -> None:
    lane = troubled.lane()
    told = TOLD.replace(b'"choices"', b'"error":{"message":"m"},"choices"')
    lane.script([chunked_head(), chunk(EVENT), chunk(told), chunk(b"")])
    row = troubled.row(troubled.ask(lane.body(stream=True)).call)
    assert (row["state"], row["outcome"], row["cost_nanos"]) == (SETTLED, "upstream_error", cost(9, 1))


def test_an_answer_of_200_that_is_an_error_costs_nothing(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script([whole(b'{"error": {"message": "no", "code": "x"}}')])
    row = troubled.row(troubled.call(lane).call)
    assert (row["state"], row["outcome"], row["cost_nanos"]) == (VOID, "upstream_error", 0)


# -- bytes that belong to nobody -------------------------------------------------------------------


@pytest.mark.parametrize("case", EXCESS)
def test_bytes_behind_an_answer_reach_nobody(troubled: Troubled, case: str) -> None:
    lane = troubled.lane()
    lane.script(EXCESS[case])
    for _ in range(3):
        answer = troubled.call(lane)
        assert (answer.status, answer.body) == (200, b"hello")
        wait_for(lambda: not troubled.server.open_connections, "the connection is not kept")


def test_an_answer_on_an_idle_connection_reaches_nobody(troubled: Troubled) -> None:
    """T17: the poisoned pool."""
    lane = troubled.lane()
    lane.script([lambda asked: whole(asked.body)])
    auth = f"authorization: Bearer {troubled.key}"
    with troubled.connect() as client:
        for n in range(50):
            body = lane.body(f"number {n}")
            assert client.ask(request("POST", CHAT, auth, body=body)).body == body
            troubled.server.push(whole(b"EVIL"))


def test_an_upstream_of_low_trust_gets_a_connection_for_each_call(troubled: Troubled) -> None:
    lane = troubled.lane("distrusted")
    lane.script(HELLO)
    for _ in range(3):
        assert troubled.call(lane).status == 200
    assert len({asked.connection for asked in lane.asked()}) == 3


# -- answers without a body ------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_204_with_a_body_has_none(troubled: Troubled, version: str) -> None:
    lane = troubled.lane()
    lane.script([head(204, "content-length: 5") + b"hello"], HELLO)
    answer = troubled.call(lane, version=version)
    assert (answer.status, answer.body, answer.end) == (204, b"", COMPLETE)
    assert troubled.call(lane).body == completion()


def test_a_304_has_no_body(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script([head(304, 'etag: "x"', "content-length: 5")], HELLO)
    auth = f"authorization: Bearer {troubled.key}"
    with troubled.connect() as client:
        answer = client.ask(request("POST", CHAT, auth, body=lane.body()))
        assert (answer.status, answer.body, answer.header("etag")) == (304, b"", '"x"')
        assert client.ask(request("POST", CHAT, auth, body=lane.body())).body == completion()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_body_that_ends_with_the_upstreams_connection_is_whole(troubled: Troubled, version: str) -> None:
    lane = troubled.lane()
    lane.script([head(200, "content-type: application/json") + completion(), Close()])
    answer = troubled.call(lane, version=version)
    assert (answer.body, answer.end) == (completion(), COMPLETE)
    assert troubled.row(answer.call)["cost_nanos"] == cost(9, 12)
