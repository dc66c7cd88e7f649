"""Who is tried next when an upstream does not do, how often, and what is never sent twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.fakes.raw_client import COMPLETE
from tests.fakes.upstream_server import GARBAGE, Action, Close, Reset, chunk, chunked_head, whole
from tests.system.troubled import (
    HELLO,
    IMAGE,
    IMAGES,
    SETTLED,
    VOID,
    Troubled,
    completion,
    cost,
    unhappy,
)

# -- the next one ----------------------------------------------------------------------------------

FAILS: dict[str, Sequence[Action]] = {
    "401": unhappy(401),
    "402": unhappy(402),
    "403": unhappy(403),
    "429": unhappy(429),
    "529": unhappy(529),
    "500": unhappy(500),
    "503": unhappy(503),
    "302": unhappy(302, b"", "location: /"),
    "garbage": GARBAGE["two different lengths"],
    "nothing": [Close()],
    "a reset": [Reset()],
    "an empty stream": [chunked_head(kind="application/json"), Close()],
}


@pytest.mark.parametrize("case", FAILS)
def test_the_next_candidate_answers(troubled: Troubled, case: str) -> None:
    lane = troubled.lane("pair")
    lane.script(FAILS[case])
    lane.script(HELLO, place=1)
    troubled.drop_upstream_connections()
    answer = troubled.call(lane)
    assert (answer.status, answer.body) == (200, completion())
    row = troubled.row(answer.call)
    assert (row["state"], row["outcome"], row["cost_nanos"]) == (SETTLED, "complete", cost(9, 12))
    assert row["upstream"] == f"{lane.model}-1"
    assert [a["upstream"] for a in row["attempts"]] == [f"{lane.model}-0", f"{lane.model}-1"]
    assert row["attempts"][0]["outcome"] != "ok" and row["attempts"][1]["outcome"] == "ok"
    assert [len(lane.asked(place)) for place in (0, 1)] == [1, 1]


def test_a_stream_fails_over_too(troubled: Troubled) -> None:
    lane = troubled.lane("pair")
    lane.script(unhappy(503))
    lane.script([chunked_head(), chunk(b"data: [DONE]\n\n"), chunk(b"")], place=1)
    answer = troubled.ask(lane.body(stream=True))
    assert (answer.status, answer.body, answer.end) == (200, b"data: [DONE]\n\n", COMPLETE)


def test_what_a_client_did_wrong_is_tried_nowhere_else(troubled: Troubled) -> None:
    lane = troubled.lane("pair")
    lane.script(unhappy(400))
    lane.script(HELLO, place=1)
    assert troubled.call(lane).status == 400
    assert lane.asked(1) == []


def test_a_resting_candidate_is_passed_over(troubled: Troubled) -> None:
    lane = troubled.lane("pair")
    lane.script(unhappy(429, b"{}", "retry-after: 30"))
    lane.script(HELLO, place=1)
    assert [troubled.call(lane).status for _ in range(3)] == [200] * 3
    assert [len(lane.asked(place)) for place in (0, 1)] == [1, 3]


def test_the_next_mirror_answers(troubled: Troubled) -> None:
    lane = troubled.lane("mirrors")
    lane.script(unhappy(500))
    lane.script(HELLO, place=1)
    row = troubled.row(troubled.call(lane).call)
    assert [a["mirror"] for a in row["attempts"]] == ["m0", "m1"]
    assert row["mirror"] == "m1"


def test_the_next_credential_answers_and_the_refused_one_is_not_used_again(troubled: Troubled) -> None:
    lane = troubled.lane("credentials")
    lane.script(unhappy(401), HELLO)
    row = troubled.row(troubled.call(lane).call)
    refused, good = (a["credential"].removeprefix("c").encode() for a in row["attempts"])
    assert {refused, good} == {b"0", b"1"}  # a pool has no first one
    assert troubled.call(lane).status == 200
    used = [(r.header(b"authorization") or b"").rpartition(b"-")[2] for r in lane.asked()]
    assert used == [refused, good, good]


def test_no_more_than_three_are_tried(troubled: Troubled) -> None:
    lane = troubled.lane("quad")
    for place in range(3):
        lane.script(unhappy(500), place=place)
    lane.script(HELLO, place=3)
    answer = troubled.call(lane)
    assert (answer.status, len(lane.asked())) == (502, 3)
    row = troubled.row(answer.call)
    assert (row["state"], len(row["attempts"])) == (VOID, 3)


def test_a_stale_connection_counts_as_an_attempt(troubled: Troubled) -> None:
    """Two that fail and a third whose pooled connection is stale: a fourth would be one too many."""
    lane = troubled.lane("quad")
    lane.script(unhappy(500), place=0)
    lane.script(unhappy(500), place=1)
    lane.script([Close()], HELLO, place=2)
    answer = troubled.call(lane)
    assert answer.status == 502
    assert len(troubled.row(answer.call)["attempts"]) == 3


def test_all_of_them_at_their_limit_is_a_429(troubled: Troubled) -> None:
    lane = troubled.lane("pair")
    lane.script(unhappy(429, b"{}", "retry-after: 9"))
    lane.script(unhappy(429, b"{}", "retry-after: 4"), place=1)
    answer = troubled.call(lane)
    assert (answer.status, answer.header("retry-after")) == (429, "4")


def test_a_request_of_more_than_a_megabyte_is_sent_once(troubled: Troubled) -> None:
    lane = troubled.lane("pair")
    lane.script(unhappy(500))
    lane.script(HELLO, place=1)
    answer = troubled.ask(lane.body("x" * (1 << 20)))
    assert (answer.status, lane.asked(1)) == (502, [])


# -- images are never sent twice -------------------------------------------------------------------


@pytest.mark.parametrize("case", ["500", "429", "nothing", "a reset", "garbage"])
def test_an_image_is_not_tried_elsewhere_once_it_was_sent(troubled: Troubled, case: str) -> None:
    lane = troubled.lane("pair")
    lane.script(FAILS[case], path=IMAGES)
    lane.script(HELLO, place=1, path=IMAGES)
    answer = troubled.ask(lane.body(prompt="a cat"), path=IMAGES)
    assert answer.status in (429, 502)
    assert [len(lane.asked(place)) for place in (0, 1)] == [1, 0]
    row = troubled.row(answer.call)
    assert (row["state"], row["cost_nanos"], len(row["attempts"])) == (VOID, 0, 1)


def test_an_image_is_priced_by_the_piece(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script([whole(b'{"created": 1, "data": [{"b64_json": "x"}, {"b64_json": "y"}]}')], path=IMAGES)
    row = troubled.row(troubled.ask(lane.body(prompt="a cat", n=2), path=IMAGES).call)
    assert (row["usage"], row["cost_nanos"]) == ({"calls": 1, "images": 2}, 2 * IMAGE)


# -- pooled connections ----------------------------------------------------------------------------


def test_a_stale_pooled_connection_is_replayed_once_on_a_fresh_one(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script(HELLO, [Close()], HELLO)
    assert troubled.call(lane).status == 200
    answer = troubled.call(lane)
    assert (answer.status, answer.body) == (200, completion())
    first, stale, fresh = lane.asked()
    assert first.connection == stale.connection != fresh.connection
    row = troubled.row(answer.call)
    assert [a["outcome"] for a in row["attempts"]] == ["upstream_stale", "ok"]
    assert row["cost_nanos"] == cost(9, 12)


def test_an_image_is_not_replayed_on_a_stale_connection(troubled: Troubled) -> None:
    lane = troubled.lane()
    good = [whole(b'{"created": 1, "data": [{"b64_json": "x"}]}')]
    lane.script(good, [Close()], good, path=IMAGES)
    assert troubled.ask(lane.body(prompt="x"), path=IMAGES).status == 200
    assert troubled.ask(lane.body(prompt="x"), path=IMAGES).status == 502
    assert len(lane.asked()) == 2


def test_a_fresh_connection_that_closes_is_not_replayed(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script([Close()], HELLO)
    troubled.drop_upstream_connections()
    answer = troubled.call(lane)
    assert (answer.status, len(lane.asked())) == (502, 1)
    row = troubled.row(answer.call)
    assert [a["outcome"] for a in row["attempts"]] == ["upstream_closed"]
