"""What clients may do with HTTP: uploads, Expect, HTTP/1.0, HEAD, pipelining, preflights, codings."""

from __future__ import annotations

import gzip

import pytest

from tests.fakes.raw_client import COMPLETE, CUT, request
from tests.fakes.upstream_server import Pause, Request, chunk, chunked, chunked_head, head, whole
from tests.system.troubled import CHAT, HELLO, Lane, Troubled, completion, cost
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def lane(troubled: Troubled) -> Lane:
    """It answers well."""
    made = troubled.lane()
    made.script(HELLO)
    return made


@pytest.fixture(scope="module")
def auth(troubled: Troubled) -> str:
    return f"authorization: Bearer {troubled.key}"


# -- uploads ---------------------------------------------------------------------------------------


def test_a_chunked_upload_goes_upstream_with_a_length(troubled: Troubled, lane: Lane, auth: str) -> None:
    body = lane.body("in chunks")
    pieces = b"".join(chunk(body[at : at + 7]) for at in range(0, len(body), 7)) + chunk(b"")
    with troubled.connect() as client:
        answer = client.ask(request("POST", CHAT, auth, "transfer-encoding: chunked") + pieces)
    assert answer.body == completion()
    asked = lane.asked()[-1]
    assert asked.body == body
    assert asked.header(b"transfer-encoding") is None


def test_an_upload_may_be_cut_anywhere(troubled: Troubled, lane: Lane, auth: str) -> None:
    """Both framings, cut at every byte: each half arrives in a packet of its own."""
    body = b'{"model":"%b","messages":[]}' % lane.model.encode()
    for whole_request in (
        request("POST", CHAT, auth, body=body),
        request("POST", CHAT, auth, "transfer-encoding: chunked") + chunk(body) + chunk(b""),
    ):
        before = len(lane.asked())
        with troubled.connect() as client:
            for at in range(1, len(whole_request)):
                answer = client.ask(whole_request[:at], whole_request[at:])
                assert (answer.status, at) == (200, at)
        asked = lane.asked()[before:]
        assert len(asked) == len(whole_request) - 1
        assert {r.body for r in asked} == {body}


def test_one_byte_at_a_time_is_a_request_too(troubled: Troubled, lane: Lane, auth: str) -> None:
    data = request("POST", CHAT, auth, body=lane.body())
    with troubled.connect() as client:
        for at in range(len(data)):
            client.send(data[at : at + 1])
        assert client.answer().status == 200


@pytest.mark.parametrize("framing", ["content-length: 100", "transfer-encoding: chunked"])
def test_an_upload_that_breaks_off_is_no_request(
    troubled: Troubled, lane: Lane, auth: str, framing: str
) -> None:
    before = len(lane.asked())
    with troubled.connect() as client:
        client.send(request("POST", CHAT, auth, framing) + b'10\r\n{"model": "')
    assert troubled.call(lane).status == 200
    assert len(lane.asked()) == before + 1


def test_a_large_upload_arrives_as_it_was_sent(troubled: Troubled, auth: str) -> None:
    lane = troubled.lane()
    lane.script(HELLO)
    body = lane.body("ä" * 2_000_000)
    assert troubled.ask(body).status == 200
    assert lane.asked()[-1].body == body


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_behind_a_large_upload_comes_the_next_one(troubled: Troubled, auth: str, framing: str) -> None:
    """Reading pauses while a large body is taken: it must go on afterwards."""
    lane = troubled.lane()
    lane.script(HELLO)
    with troubled.connect() as client:
        for size in (200_000, 60_000, 1_000_000, 130_000, 10, 300_000):
            body = lane.body("x" * size)
            if framing == "length":
                client.send(request("POST", CHAT, auth, body=body))
            else:
                client.send(
                    request("POST", CHAT, auth, "transfer-encoding: chunked") + chunk(body) + chunk(b"")
                )
            assert client.answer().body == completion()
            assert lane.asked()[-1].body == body


# -- Expect ----------------------------------------------------------------------------------------


def test_a_client_that_expects_to_continue_is_told_to(troubled: Troubled, lane: Lane, auth: str) -> None:
    body = lane.body("after a while")
    fields = (auth, "expect: 100-continue", f"content-length: {len(body)}")
    with troubled.connect() as client:
        client.send(request("POST", CHAT, *fields))
        assert client.answer().status == 100
        assert client.ask(body).body == completion()
    assert lane.asked()[-1].body == body


@pytest.mark.parametrize(("key", "status"), [("sk-unknown", 401), ("", 401)])
def test_a_refused_client_is_not_told_to_send(troubled: Troubled, key: str, status: int) -> None:
    fields = (f"x-forwarded-for: {troubled.address()}", "expect: 100-continue", "content-length: 1000000")
    with troubled.connect() as client:
        answer = client.ask(request("POST", CHAT, f"authorization: Bearer {key}", *fields))
        assert (answer.status, answer.says_close) == (status, True)
        assert client.end() == CUT


@pytest.mark.parametrize("value", ["200-ok", "100-continue, x", "x=100-continue"])
def test_another_expectation_fails(troubled: Troubled, lane: Lane, auth: str, value: str) -> None:
    before = len(lane.asked())
    answer = troubled.ask(lane.body(), f"expect: {value}")
    assert (answer.status, answer.json()["error"]["code"]) == (417, "expectation_failed")
    assert len(lane.asked()) == before


# -- HTTP/1.0 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [(), ("connection: keep-alive",)], ids=["plain", "keep-alive"])
def test_a_client_of_http_1_0_gets_one_answer_and_the_end(
    troubled: Troubled, lane: Lane, auth: str, fields: tuple[str, ...]
) -> None:
    with troubled.connect() as client:
        answer = client.ask(request("POST", CHAT, auth, *fields, body=lane.body(), version="1.0"))
        assert (answer.body, answer.end, answer.says_close) == (completion(), COMPLETE, True)
        assert client.end() == CUT


def test_a_stream_to_http_1_0_is_not_chunked_and_ends_with_the_connection(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script([chunked([b"data: a\n\n", b"data: [DONE]\n\n"])])
    answer = troubled.ask(lane.body(stream=True), version="1.0")
    assert (answer.body, answer.end) == (b"data: a\n\ndata: [DONE]\n\n", COMPLETE)
    assert answer.header("transfer-encoding") is None


def test_a_refusal_to_http_1_0_ends_the_connection(troubled: Troubled) -> None:
    with troubled.connect() as client:
        answer = client.ask(request("POST", CHAT, body=b"{}", version="1.0"))
        assert (answer.status, answer.says_close) == (401, True)
        assert client.end() == CUT


# -- one after the other ---------------------------------------------------------------------------


def test_a_connection_serves_many_calls(troubled: Troubled, lane: Lane, auth: str) -> None:
    with troubled.connect() as client:
        for _ in range(30):
            assert client.ask(request("POST", CHAT, auth, body=lane.body())).body == completion()


def test_connection_close_is_obeyed(troubled: Troubled, lane: Lane, auth: str) -> None:
    with troubled.connect() as client:
        answer = client.ask(request("POST", CHAT, auth, "connection: close", body=lane.body()))
        assert (answer.body, answer.says_close) == (completion(), True)
        assert client.end() == CUT


def test_pipelined_calls_are_answered_in_order(troubled: Troubled, auth: str) -> None:
    lane = troubled.lane()
    lane.script([lambda asked: whole(asked.body)])
    bodies = [lane.body(f"number {n}") for n in range(20)]
    with troubled.connect() as client:
        client.send(b"".join(request("POST", CHAT, auth, body=body) for body in bodies))
        assert [client.answer().body for _ in bodies] == bodies


def test_a_refused_call_in_a_pipeline_stands_in_its_place(troubled: Troubled, lane: Lane, auth: str) -> None:
    good = request("POST", CHAT, auth, body=lane.body())
    bad = request("POST", CHAT, auth, body=b"[]")
    with troubled.connect() as client:
        client.send(good + bad + good)
        assert [client.answer().status for _ in range(3)] == [200, 400, 200]


def test_a_half_close_counts_as_leaving(troubled: Troubled, auth: str) -> None:
    lane, key = troubled.lane(), troubled.customer()
    pause = Pause()
    lane.script([pause, *HELLO])
    with troubled.connect() as client:
        client.send(request("POST", CHAT, f"authorization: Bearer {key}", body=lane.body()))
        wait_for(pause.reached.is_set, "asked")
        client.half_close()
        assert client.end() == CUT
    assert troubled.row_of(key)["outcome"] == "interrupted_client"


# -- HEAD and OPTIONS ------------------------------------------------------------------------------


def test_head_is_get_without_a_body(troubled: Troubled, auth: str) -> None:
    with troubled.connect() as client:
        full = client.ask(request("GET", "/v1/models", auth), method="GET")
        answer = client.ask(request("HEAD", "/v1/models", auth), method="HEAD")
        assert (answer.status, answer.header("content-length")) == (200, str(len(full.body)))
        assert client.ask(request("GET", "/healthz"), method="GET").json() == {"status": "ok"}


def test_a_preflight_needs_no_key(troubled: Troubled) -> None:
    with troubled.connect() as client:
        answer = client.ask(
            request(
                "OPTIONS", CHAT, "origin: https://chat.test", "access-control-request-method: POST",
                "access-control-request-headers: authorization, content-type",
            ),
            method="OPTIONS",
        )  # fmt: skip
        assert answer.status == 204
        assert answer.header("content-length") is None  # RFC 9110 8.6: none with a 204
        assert answer.header("access-control-allow-origin") == "*"
        assert "POST" in (answer.header("access-control-allow-methods") or "")
        assert "authorization" in (answer.header("access-control-allow-headers") or "")
        assert client.is_open()


def test_answers_of_an_endpoint_with_cors_may_be_read_by_web_pages(
    troubled: Troubled, lane: Lane, auth: str
) -> None:
    answer = troubled.ask(lane.body(), "origin: https://chat.test")
    assert answer.header("access-control-allow-origin") == "*"
    assert "x-request-id" in (answer.header("access-control-expose-headers") or "")


def test_an_endpoint_without_cors_has_none(troubled: Troubled, lane: Lane, auth: str) -> None:
    with troubled.connect() as client:
        answer = client.ask(request("POST", CHAT, auth, "host: plain.test", body=lane.body()))
        assert answer.status == 200
        assert answer.header("access-control-allow-origin") is None
        fields = ("host: plain.test", "access-control-request-method: POST", "origin: https://chat.test")
        assert client.ask(request("OPTIONS", CHAT, *fields), method="OPTIONS").status == 405


def test_an_upstreams_own_cors_does_not_pass(troubled: Troubled, auth: str) -> None:
    lane = troubled.lane()
    lane.script([whole(completion(), 200, "access-control-allow-origin: https://vendor.test")])
    answer = troubled.call(lane)
    assert [v for n, v in answer.fields if n == "access-control-allow-origin"] == ["*"]


# -- codings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "asked"),
    [(None, b"identity"), ("gzip, br, zstd", b"gzip, br, zstd"), ("*", b"gzip, deflate, br, zstd"),
     ("compress, br", b"br"), ("dcb", b"identity"), ("gzip;q=0, deflate", b"deflate"),
     ("identity", b"identity")],
)  # fmt: skip
def test_what_the_meter_cannot_decode_is_not_asked_for(
    troubled: Troubled, lane: Lane, accepted: str | None, asked: bytes
) -> None:
    fields = () if accepted is None else (f"accept-encoding: {accepted}",)
    assert troubled.ask(lane.body(), *fields).status == 200
    assert lane.asked()[-1].header(b"accept-encoding") == asked


def test_a_compressed_answer_passes_as_it_is_and_is_metered(troubled: Troubled) -> None:
    lane = troubled.lane()
    body = gzip.compress(completion())
    lane.script([whole(body, 200, "content-encoding: gzip")])
    answer = troubled.ask(lane.body(), "accept-encoding: gzip")
    assert (answer.body, answer.header("content-encoding")) == (body, "gzip")
    assert troubled.row(answer.call)["cost_nanos"] == cost(9, 12)


# -- streams ---------------------------------------------------------------------------------------


def test_the_head_of_a_stream_comes_before_its_first_event(troubled: Troubled, auth: str) -> None:
    lane = troubled.lane()
    pause = Pause()
    lane.script([chunked_head(), pause, chunk(b"data: [DONE]\n\n"), chunk(b"")])
    with troubled.connect() as client:
        client.send(request("POST", CHAT, auth, body=lane.body(stream=True)))
        answer = client.head()
        assert (answer.status, answer.header("x-accel-buffering")) == (200, "no")
        pause.end()
        assert client.chunk() == b"data: [DONE]\n\n"
        assert client.chunk() == b""


def test_every_event_is_passed_on_when_it_comes(troubled: Troubled, auth: str) -> None:
    lane = troubled.lane()
    events = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % n for n in range(5)]
    pauses = [Pause() for _ in events]
    steps = [step for event, pause in zip(events, pauses, strict=True) for step in (chunk(event), pause)]
    lane.script([chunked_head(), *steps, chunk(b"data: [DONE]\n\n"), chunk(b"")])
    with troubled.connect() as client:
        client.send(request("POST", CHAT, auth, body=lane.body(stream=True)))
        client.head()
        for event, pause in zip(events, pauses, strict=True):
            assert client.chunk() == event
            pause.end()
        assert client.chunk() == b"data: [DONE]\n\n"


def test_the_usage_that_was_not_asked_for_is_left_out(troubled: Troubled) -> None:
    lane = troubled.lane()
    said = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hi"}}],"usage":null}\n\n'
    usage = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12}}\n\n'
    done = b"data: [DONE]\n\n"
    lane.script([chunked([said, usage, done])])
    silent = troubled.ask(lane.body(stream=True))
    assert silent.body == said + done
    asking = troubled.ask(lane.body(stream=True, stream_options={"include_usage": True}))
    assert asking.body == said + usage + done
    for answer in (silent, asking):
        row = troubled.row(answer.call)
        assert (row["provenance"], row["cost_nanos"]) == ("final", cost(9, 12))


def test_events_go_on_after_done_until_the_framing_ends(troubled: Troubled, auth: str) -> None:
    """Its connection is used again only when its body has ended."""
    lane = troubled.lane()
    pause = Pause()
    lane.script([chunked_head(), chunk(b"data: [DONE]\n\n"), pause, chunk(b": bye\n\n"), chunk(b"")])
    with troubled.connect() as client:
        client.send(request("POST", CHAT, auth, body=lane.body(stream=True)))
        client.head()
        assert client.chunk() == b"data: [DONE]\n\n"
        pause.end()
        assert client.chunk() == b": bye\n\n"
        assert client.chunk() == b""


def test_a_default_model_is_put_into_the_body(troubled: Troubled) -> None:
    lane = Lane("lane-solo-0", troubled.server)
    asked: list[Request] = []
    lane.script([lambda r: asked.append(r) or whole(completion())])
    body = b'{ "messages": [{"role":"user","content":"Hi"}], "x": 1.50 }'
    assert troubled.ask(body, path="/v1/default").status == 200
    assert asked[0].body == b'{"model":"lane-solo-0",' + body[1:]


def test_an_unknown_content_type_of_an_answer_is_no_reason_to_change_it(troubled: Troubled) -> None:
    lane = troubled.lane()
    lane.script([head(200, "content-type: text/html", "content-length: 5") + b"<p/>\n"])
    answer = troubled.call(lane)
    assert (answer.body, answer.header("content-type")) == (b"<p/>\n", "text/html")
