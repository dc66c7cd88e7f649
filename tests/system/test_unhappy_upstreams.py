"""Upstreams that are not happy: what the client is told, who is tried next, and what it costs.

Whatever happens, nothing of an upstream's name, address or credential reaches a client.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pytest

from tests.fakes.raw_client import COMPLETE, CUT, Answer, request
from tests.fakes.upstream_server import (
    GARBAGE,
    Action,
    Close,
    Pause,
    Repeat,
    Reset,
    chunk,
    chunked_head,
    drip,
    head,
)
from tests.system.troubled import (
    CHAT,
    HELLO,
    SETTLED,
    VOID,
    Lane,
    Troubled,
    completion,
    unhappy,
)
from tests.waiting import promised, wait_for


def error(message: str, code: str | None = None, kind: str = "invalid_request_error") -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def assert_names_nobody(answer: Answer, lane: Lane) -> None:
    """Neither upstream nor credential, in head or body."""
    shown = answer.raw + answer.body
    for secret in (f"{lane.model}-0", f"127.0.0.1:{lane.server.port}", "canary", "upstream-"):
        assert secret.encode() not in shown


# -- one upstream ----------------------------------------------------------------------------------

# What the upstream answers -> what the client gets; with the same body, or an error of ours.
VERBATIM: dict[str, tuple[int, bytes]] = {
    "400": (400, error("too long", "context_length_exceeded")),
    "404": (404, error("no such model", "model_not_found")),
    "409": (409, error("conflict")),
    "413": (413, error("too large")),
    "422": (422, error("unprocessable")),
    "451": (451, error("for legal reasons")),
    "400 with HTML": (400, b"<html>Bad Request</html>"),
    "400 with nothing": (400, b""),
    "400 that quotes our words": (400, error("Unknown parameter: 'invalid_api_key'", "unknown_parameter")),
    "403 about content": (403, error("flagged", "content_policy_violation")),
}


@pytest.mark.parametrize("kind", ["solo", "claude"])
@pytest.mark.parametrize("case", VERBATIM)
def test_what_is_the_clients_business_passes_as_it_is(troubled: Troubled, case: str, kind: str) -> None:
    status, body = VERBATIM[case]
    lane = troubled.lane(kind)
    lane.script(unhappy(status, body, "retry-after-ms: 5", "x-should-retry: false"), HELLO)
    answer = troubled.call(lane)
    assert (answer.status, answer.body) == (status, body)
    assert answer.header("x-should-retry") == "false"
    row = troubled.row(answer.call)
    assert (row["state"], row["outcome"], row["status"]) == (VOID, "upstream_error", status)
    assert (row["cost_nanos"], row["provenance"]) == (0, "none")
    assert [a["outcome"] for a in row["attempts"]] == [f"status:{status}"]
    assert troubled.call(lane).status == 200  # the credential is good


OURS: dict[str, tuple[Sequence[Action], int, str]] = {
    "401": (
        unhappy(401, error("Incorrect API key: sk-upst...", "invalid_api_key")),
        502,
        "upstream_unavailable",
    ),
    "402": (unhappy(402, error("Insufficient Balance of acme-corp")), 502, "upstream_unavailable"),
    "403": (unhappy(403, error("org-acme may not use it", "model_not_found")), 502, "upstream_unavailable"),
    "400 about the key": (unhappy(400, error("no", "invalid_api_key")), 502, "upstream_unavailable"),
    "429": (unhappy(429, error("org-acme on limit"), "retry-after: 7"), 429, "upstream_rate_limited"),
    "529": (unhappy(529), 429, "upstream_rate_limited"),
    "500": (unhappy(500), 502, "upstream_unavailable"),
    "502 with HTML": (unhappy(502, b"<html>upstream.vendor.test</html>"), 502, "upstream_unavailable"),
    "503": (unhappy(503), 502, "upstream_unavailable"),
    "504": (unhappy(504), 502, "upstream_unavailable"),
    "302": (unhappy(302, b"", "location: http://vendor.test/login"), 502, "upstream_unavailable"),
    "200 that ends at once": ([head(200, "content-length: 5"), Close()], 502, "upstream_closed"),
    "nothing": ([Close()], 502, "upstream_closed"),
    "a reset": ([Reset()], 502, "upstream_closed"),
    "half a head": ([b"HTTP/1.1 200 OK\r\ncontent-", Close()], 502, "upstream_closed"),
}


@pytest.mark.parametrize("case", OURS)
def test_what_is_not_is_told_in_our_own_words(troubled: Troubled, case: str) -> None:
    script, status, code = OURS[case]
    lane = troubled.lane()
    troubled.drop_upstream_connections()
    lane.script(script)
    answer = troubled.call(lane)
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)
    assert answer.header("retry-after") == {"429": "7", "529": "1"}.get(case)
    assert answer.header("x-should-retry") is None
    assert_names_nobody(answer, lane)
    assert b"acme" not in answer.body and b"vendor" not in answer.raw + answer.body
    row = troubled.row(answer.call)
    assert (row["state"], row["outcome"], row["status"]) == (VOID, "upstream_error", status)
    assert (row["cost_nanos"], len(row["attempts"])) == (0, len(lane.asked()))
    assert len(lane.asked()) == 1


def test_it_is_told_in_the_callers_dialect(troubled: Troubled) -> None:
    lane = troubled.lane("claude")
    lane.script(unhappy(529))
    answer = troubled.call(lane)
    assert answer.status == 429
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert answer.json()["request_id"] == answer.call


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_a_502_at_once_and_never_an_answer(troubled: Troubled, case: str) -> None:
    lane = troubled.lane()
    lane.script(GARBAGE[case], HELLO)
    before = troubled.worker_bytes()
    answer = troubled.call(lane)
    assert troubled.worker_bytes() - before < 16 << 20
    assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_protocol_error")
    assert_names_nobody(answer, lane)
    assert b"hello" not in answer.body
    after = troubled.call(lane)
    assert (after.status, after.body) == (200, completion())
    broken, fine = lane.asked()
    assert broken.connection != fine.connection
    row = troubled.row(answer.call)
    assert (row["state"], row["cost_nanos"], row["attempts"][0]["outcome"]) == (
        VOID,
        0,
        "upstream_protocol_error",
    )
    assert row["took_ms"] < 1000


def test_a_long_error_of_the_clients_passes_whole(troubled: Troubled) -> None:
    lane = troubled.lane()
    body = error("x" * 1_000_000)
    lane.script(unhappy(400, body), HELLO)
    answer = troubled.call(lane)
    assert (answer.status, answer.body, answer.end) == (400, body, COMPLETE)
    assert troubled.call(lane).status == 200


def test_an_error_without_end_is_not_waited_for(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script([head(500), Repeat(b"x" * 65536)])
    answer = troubled.call(lane)
    assert answer.status == 502
    assert troubled.row(answer.call)["took_ms"] < 1000


def test_an_error_that_drips_is_judged_by_what_came(troubled: Troubled) -> None:
    lane = troubled.lane("pair")
    lane.script([head(500, "content-length: 1000"), *drip(b"x" * 1000, 0.2)])
    lane.script(HELLO, place=1)
    answer = troubled.call(lane)
    assert answer.status == 200
    assert 1000 < troubled.row(answer.call)["took_ms"] < 5000


REASONS = [b"299 A\tB", b"299 caf\xe9", b"299 ", b"299", b"200 \xff"]


@pytest.mark.parametrize("reason", REASONS)
def test_an_odd_reason_is_no_reason_to_fail(troubled: Troubled, reason: bytes) -> None:
    lane = troubled.lane()
    lane.script([b"HTTP/1.1 %b\r\ncontent-length: 2\r\nx-ratelimit-note: \xe4\tx\r\n\r\n{}" % reason])
    answer = troubled.call(lane)
    assert (answer.status, answer.body) == (int(reason[:3]), b"{}")
    assert answer.header("x-ratelimit-note") == "\xe4\tx"


# -- resting ---------------------------------------------------------------------------------------


def test_a_credential_rests_and_the_client_is_told_how_long(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script(unhappy(429, b"{}", "retry-after: 30"), HELLO)
    assert troubled.call(lane).status == 429
    resting = troubled.call(lane)
    assert (resting.status, resting.json()["error"]["code"]) == (503, "upstream_unavailable")
    assert 1 <= int(resting.header("retry-after") or 0) <= 30
    assert len(lane.asked()) == 1


def test_a_refused_credential_rests(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script(unhappy(401), HELLO)
    assert troubled.call(lane).status == 502
    resting = troubled.call(lane)
    assert resting.status == 503
    assert int(resting.header("retry-after") or 0) >= 1
    assert len(lane.asked()) == 1


def test_an_upstream_that_fails_once_is_asked_again(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script(unhappy(500), HELLO)
    assert [troubled.call(lane).status for _ in range(2)] == [502, 200]


def test_a_short_rest_ends(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script(unhappy(429, b"{}", "retry-after: 1"), HELLO)
    assert troubled.call(lane).status == 429
    wait_for(lambda: troubled.call(lane).status == 200, "rested", within_s=promised(3.0))


# -- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True])
def test_silence_before_the_first_byte_is_a_504_at_its_limit(troubled: Troubled, is_stream: bool) -> None:
    lane = troubled.lane("impatient")
    lane.script([Pause()])
    answer = troubled.ask(lane.body(stream=is_stream))
    assert (answer.status, answer.json()["error"]["code"]) == (504, "upstream_timeout")
    row = troubled.row(answer.call)
    assert (row["state"], row["outcome"], row["cost_nanos"]) == (VOID, "upstream_error", 0)
    assert 1000 <= row["took_ms"] <= 3000


def test_a_head_that_drips_is_silence(troubled: Troubled) -> None:
    lane = troubled.lane("impatient")
    drip = [action for byte in b"HTTP/1.1 200 OK\r\nx-x: " for action in (bytes([byte]), Pause(0.3))]
    lane.script(drip)
    assert troubled.call(lane).status == 504


def test_a_stream_that_falls_silent_is_cut_and_billed_as_far_as_it_came(troubled: Troubled) -> None:
    lane = troubled.lane("impatient")
    content = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
    lane.script([chunked_head(), chunk(content), Pause()])
    answer = troubled.ask(lane.body(stream=True))
    assert (answer.status, answer.body, answer.end) == (200, content, CUT)
    row = troubled.row(answer.call)
    assert (row["state"], row["outcome"], row["cut"]) == (SETTLED, "cut", "upstream_timeout")
    assert (row["provenance"], row["usage"]["output"]) == ("counted", 1)


@pytest.mark.parametrize("begun", [False, True])
def test_a_call_has_an_end_in_time(troubled: Troubled, begun: bool) -> None:
    lane = troubled.lane("hurried")
    content = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
    ticking = [action for _ in range(40) for action in (chunk(content), Pause(0.1))]
    lane.script([chunked_head(), *ticking] if begun else [Pause()])
    answer = troubled.ask(lane.body(stream=True))
    row = troubled.row(answer.call)
    if begun:
        assert (answer.status, answer.end) == (200, CUT)
        assert (row["state"], row["outcome"], row["cut"]) == (SETTLED, "cut", "time_limit")
    else:
        assert (answer.status, answer.json()["error"]["code"]) == (504, "time_limit")
        assert answer.header("x-should-retry") == "false"
        assert (row["state"], row["cost_nanos"]) == (VOID, 0)
    assert row["took_ms"] <= 3000


# -- a reasonable connection for everybody else ----------------------------------------------------


def test_one_hostile_upstream_leaves_a_keep_alive_client_its_connection(troubled: Troubled) -> None:
    bad, good = troubled.lane(), troubled.lane()
    bad.script(GARBAGE["a flood of 1xx"])
    good.script(HELLO)
    auth = f"authorization: Bearer {troubled.key}"
    with troubled.connect() as client:
        assert client.ask(request("POST", CHAT, auth, body=bad.body())).status == 502
        assert client.ask(request("POST", CHAT, auth, body=good.body())).body == completion()
