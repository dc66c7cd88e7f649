"""Calls at an endpoint that cuts silence: when something is said, what, and where it may stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from proxy.dialects import DIALECTS
from proxy.errors import ProxyError, UpstreamBusy
from proxy.http1.head import Head
from proxy.relay.heading import Heading
from proxy.relay.heartbeat import Heartbeat, hint, rhythm_of
from proxy.routing.table import Endpoint
from tests.fakes.calls import call
from tests.fakes.upstream_server import unchunked

TIMEOUT_S = 100.0
OTHERS = {
    "cdn": Endpoint("cdn", "https://cdn.test", (), "", "", 100_000, False, ()),
    "direct": Endpoint("direct", "https://api.test", (), "", "", None, False, ()),
    "slow": Endpoint("slow", "https://slow.test", (), "", "", 60_000, False, ()),
}
TRICKLE = Endpoint("cdn", "https://cdn.test", (), "", "", 100_000, False, (), slow_calls="trickle")
EVENTS = Heading(b"HTTP/1.1 200 OK\r\nvendor: head\r\n\r\n", True, True)
WHOLE = Heading(b"HTTP/1.1 200 OK\r\nvendor: head\r\n\r\n", True, False)
WORD = b'data: {"a":1}\n\n'


class Client:
    def __init__(self) -> None:
        self.got = b""
        self.is_gone = self.is_paused = False

    def write(self, data: bytes) -> None:
        self.got += data

    def writelines(self, pieces: Sequence[bytes]) -> None:
        self.got += b"".join(pieces)


class Timer:
    """One timer at a time, and the clock that it follows."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: tuple[float, Callable[[], None]] | None = None

    def start(self, seconds: float, callback: Callable[[], None]) -> Any:
        assert self.due is None
        self.due = (self.now + seconds, callback)
        return self

    def cancel(self) -> None:
        self.due = None

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while self.due is not None and self.due[0] <= end:
            (self.now, callback), self.due = self.due, None
            callback()
        self.now = end


class Cut:
    """A pump that notes how it was cut."""

    def __init__(self) -> None:
        self.said: tuple[str, ProxyError] | None = None

    def cut(self, why: str, error: ProxyError) -> None:
        self.said = (why, error)


class Kept:
    """A call with its heartbeat."""

    def __init__(
        self, *, stream: bool = True, dialect: str = "openai", endpoint: Endpoint = OTHERS["cdn"], **how: Any
    ) -> None:
        self.timer, self.client = Timer(), Client()
        name = "messages" if dialect == "anthropic" else how.pop("operation", "chat")
        self.x = call(
            client=self.client,
            endpoint=endpoint,
            dialect=DIALECTS[dialect],
            operation=DIALECTS[dialect].operations[name],
            is_stream=stream,
            uploaded=self.timer.now,
            key=SimpleNamespace(endpoints=None),
            snapshot=SimpleNamespace(table=SimpleNamespace(endpoints=OTHERS)),
            pump=Cut(),
            **how,
        )
        rhythm = rhythm_of(self.x)
        assert rhythm is not None
        self.heartbeat = Heartbeat(self.x, rhythm, self.timer.start, lambda: self.timer.now)
        self.heartbeat.__enter__()

    def answer(self, heading: Heading = EVENTS, status: int = 200, **headers: str) -> Any:
        """The attempt's head has come; where its content goes."""
        fields = [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
        return self.heartbeat.delivery(Head.of(status, fields), heading)

    def take(self) -> bytes:
        """What the client got since the last look."""
        got, self.client.got = self.client.got, b""
        return got


def body_of(answer: bytes) -> bytes:
    return unchunked(answer.partition(b"\r\n\r\n")[2])


# -- streams ---------------------------------------------------------------------------------------


def test_before_the_first_byte_silence_commits_a_200_and_a_comment_each_time() -> None:
    kept = Kept()
    kept.timer.run(39.9)
    assert kept.take() == b""
    kept.timer.run(40.2)
    head, _, body = kept.take().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
    assert b"\r\nx-request-id: " in head
    assert b"\r\ntransfer-encoding: chunked" in head
    assert unchunked(body) == b": keep-alive\n\n" * 2
    assert not kept.x.has_begun_answer  # another candidate may still answer


def test_an_anthropic_stream_gets_pings() -> None:
    kept = Kept(dialect="anthropic")
    kept.timer.run(40)
    assert body_of(kept.take()) == b'event: ping\ndata: {"type": "ping"}\n\n'


@pytest.mark.parametrize(
    ("dialect", "operation", "query", "beat"),
    [
        ("gemini", "stream_generate_content", "alt=sse", b"\r\n\r\n"),
        ("vertex", "stream_generate_content", "$alt=sse&key=x", b"\r\n\r\n"),
        ("vertex", "stream_raw_predict", "", b"\r\n\r\n"),
        ("mistral", "chat", "", b": keep-alive\n\n"),
        ("cohere", "cohere.chat", "", b": keep-alive\n\n"),
        ("dashscope", "dashscope.text", "", b": keep-alive\n\n"),
    ],
)
def test_the_events_of_every_family_are_kept_apart_by_what_its_clients_skip(
    dialect: str, operation: str, query: str, beat: bytes
) -> None:
    kept = Kept(dialect=dialect, operation=operation, query=query)
    kept.timer.run(40)
    assert body_of(kept.take()) == beat


@pytest.mark.parametrize(
    ("dialect", "operation", "query"),
    [
        ("gemini", "stream_generate_content", ""),
        ("gemini", "stream_generate_content", "alt=json"),
        ("cohere", "cohere.chat_v1", ""),
        ("ollama", "ollama.chat", ""),
        ("bedrock", "converse_stream", ""),
    ],
)
def test_nothing_is_said_within_arrays_between_lines_and_in_frames(
    dialect: str, operation: str, query: str
) -> None:
    spec = DIALECTS[dialect].operations[operation]
    x = call(endpoint=OTHERS["cdn"], dialect=DIALECTS[dialect], operation=spec, is_stream=True, query=query)
    assert rhythm_of(x) is None


def test_an_answer_behind_an_early_head_comes_without_its_own() -> None:
    kept = Kept()
    kept.timer.run(40)
    kept.take()
    kept.answer().write((WORD,), False, kept.timer.now)
    assert unchunked(kept.take()) == WORD
    assert (kept.x.status, kept.x.answered) == (200, kept.timer.now)


def test_an_answer_in_time_is_as_the_upstream_sent_it_until_it_falls_silent() -> None:
    kept = Kept()
    out = kept.answer()
    out.write((), False, kept.timer.now)
    for _ in range(5):
        kept.timer.run(39)
        out.write((WORD,), False, kept.timer.now)
    assert kept.take().count(b"keep-alive") == 0
    kept.timer.run(40)
    assert unchunked(kept.take()) == b": keep-alive\n\n"
    out.write((WORD,), True, kept.timer.now)
    assert kept.timer.due is None


@pytest.mark.parametrize(
    ("pieces", "beats"),
    [
        ([b"data: 1\n\n"], 1),
        ([b"data: 1\r\n\r\n"], 1),
        ([b"data: 1\n", b"\n"], 1),
        ([b"data: 1\r\n", b"\r", b"\n"], 1),
        ([b"data: 1"], 0),
        ([b"data: 1\n"], 0),
        ([b"data: 1\r\n\r"], 0),
        ([b"data: 1\n\nd"], 0),
    ],
)
def test_a_beat_stands_between_events_only(pieces: list[bytes], beats: int) -> None:
    kept = Kept()
    out = kept.answer()
    for piece in pieces:
        out.write((piece,), False, kept.timer.now)
    kept.take()
    kept.timer.run(41)
    assert kept.take().count(b": keep-alive\n\n") == beats


@pytest.mark.parametrize(
    ("heading", "headers"),
    [
        (EVENTS, {"content_encoding": "gzip"}),
        (replace(EVENTS, chunked=False), {}),
        (WHOLE, {}),
    ],
    ids=["coded", "of a known length", "no events"],
)
def test_nothing_is_written_into_an_answer_that_has_no_place_for_it(
    heading: Heading, headers: dict[str, str]
) -> None:
    kept = Kept()
    kept.answer(heading, **headers).write((b"\n\n",), False, kept.timer.now)
    kept.take()
    kept.timer.run(200)
    assert kept.take() == b""


def test_a_client_that_does_not_read_is_sent_no_beats() -> None:
    kept = Kept()
    kept.client.is_paused = True
    kept.timer.run(200)
    assert kept.take() == b""


def test_a_client_that_left_and_a_call_that_is_settled_end_it() -> None:
    for how in ({"settled": True}, {}):
        kept = Kept(**how)
        kept.client.is_gone = not how
        kept.timer.run(40)
        assert (kept.take(), kept.timer.due) == (b"", None)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_refusal_behind_an_early_head_is_an_event_that_ends_the_stream(dialect: str) -> None:
    kept = Kept(dialect=dialect)
    kept.timer.run(40)
    kept.take()
    kept.heartbeat.refuse(UpstreamBusy())
    content = unchunked(kept.take())
    data = orjson.loads(content[content.index(b"{") :])
    assert data["error"]["message"] == UpstreamBusy.text
    assert content.startswith(b"event: error\ndata: " if dialect == "anthropic" else b"data: ")
    assert content.endswith(b"\n\n")


def test_an_error_of_the_vendor_behind_an_early_head_is_told_with_its_words() -> None:
    kept = Kept()
    kept.timer.run(40)
    kept.take()
    out = kept.answer(WHOLE, 400, content_type="application/json")
    body = b'{\n "error": {"message": "too long", "type": "invalid_request_error", "code": "length"}\n}'
    out.write((body[:20],), False, kept.timer.now)
    out.write((body[20:],), True, kept.timer.now)
    got = kept.take()
    assert got.endswith(b"0\r\n\r\n")
    error = orjson.loads(unchunked(got).removeprefix(b"data: "))["error"]
    assert (error["message"], error["code"]) == ("too long", "length")
    assert kept.x.status == 400


@pytest.mark.parametrize(("heading", "coding"), [(WHOLE, "identity"), (EVENTS, "gzip")])
def test_an_answer_that_breaks_an_early_heads_promise_is_an_error(heading: Heading, coding: str) -> None:
    kept = Kept()
    kept.timer.run(40)
    kept.take()
    kept.answer(heading, content_encoding=coding).write((b'{"id": 1}',), True, kept.timer.now)
    assert b'"code":"upstream_unavailable"' in unchunked(kept.take())


def test_a_client_of_http_1_0_gets_an_early_head_and_beats_without_unchunked() -> None:
    kept = Kept(version=(1, 0), keep_alive=False)
    kept.timer.run(40)
    head, _, body = kept.take().partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"chunked" not in head
    assert body == b": keep-alive\n\n"


# -- answers in one piece --------------------------------------------------------------------------


def test_a_whole_answer_that_comes_too_late_is_refused_before_the_cut_with_a_hint() -> None:
    kept = Kept(stream=False)
    kept.timer.run(94.9)
    assert kept.x.pump.said is None
    kept.timer.run(0.2)
    why, error = kept.x.pump.said
    assert why == "endpoint_time_limit"
    assert (error.status, error.should_retry) == (504, False)
    assert "100 s" in error.message
    assert "https://api.test" in error.message
    assert "slow.test" not in error.message


def test_a_hint_names_only_ways_that_there_are() -> None:
    cdn, direct = OTHERS["cdn"], OTHERS["direct"]
    limit = "This endpoint cuts answers that take longer than 100 s."
    assert hint(cdn, [], may_stream=False) == limit
    assert hint(cdn, [cdn], may_stream=True) == f"{limit} Set 'stream': true."
    there = "se an endpoint without this limit: https://api.test."
    assert hint(cdn, [cdn, direct], may_stream=True) == f"{limit} Set 'stream': true or u{there}"
    assert hint(cdn, [cdn, direct], may_stream=False) == f"{limit} U{there}"


def test_a_hint_waits_for_an_attempt_and_says_nothing_once_an_answer_has_begun() -> None:
    kept = Kept(stream=False)
    pump, kept.x.pump = kept.x.pump, None
    kept.timer.run(96)
    kept.x.pump = pump
    kept.timer.run(1)
    assert pump.said is not None
    late = Kept(stream=False)
    late.answer(WHOLE).write((b"{",), False, late.timer.now)
    late.timer.run(200)
    assert late.x.pump.said is None


def test_white_space_trickles_before_the_json_and_never_inside() -> None:
    kept = Kept(stream=False, endpoint=TRICKLE)
    kept.timer.run(80)
    head, _, body = kept.take().partition(b"\r\n\r\n")
    assert b"content-type: application/json\r\n" in head
    out = kept.answer(WHOLE)
    kept.timer.run(40)
    out.write((b'{"a":',), False, kept.timer.now)
    kept.timer.run(200)
    out.write((b"1}",), True, kept.timer.now)
    content = unchunked(body + kept.take())
    assert content == b'   {"a":1}'
    assert orjson.loads(content) == {"a": 1}


def test_an_error_behind_white_space_is_the_dialects_body() -> None:
    kept = Kept(stream=False, endpoint=TRICKLE, dialect="anthropic")
    kept.timer.run(40)
    kept.heartbeat.refuse(UpstreamBusy())
    assert orjson.loads(body_of(kept.take()))["type"] == "error"


def test_a_head_of_an_attempt_that_is_over_is_never_sent() -> None:
    """Its head had come, it was lost before its content, and the next one is slow."""
    kept = Kept(stream=False, endpoint=TRICKLE)
    kept.answer(WHOLE)
    kept.x.pump = Cut()
    kept.timer.run(40)
    assert b"vendor: head" not in kept.take()
    kept.answer(WHOLE).write((b"{}",), True, kept.timer.now)
    assert unchunked(kept.take()) == b"{}"


def test_where_white_space_has_no_place_a_late_answer_is_refused() -> None:
    kept = Kept(stream=False, endpoint=TRICKLE, operation="speech")
    kept.timer.run(96)
    assert kept.x.pump.said is not None


def test_a_call_that_is_over_holds_its_heartbeat_no_longer() -> None:
    for seconds, error, is_held in ((0, None, False), (0, UpstreamBusy, False), (40, None, False)):
        kept = Kept()
        kept.timer.run(seconds)
        kept.heartbeat.__exit__(error)
        assert (kept.x.heartbeat is not None, kept.timer.due) == (is_held, None)
    kept = Kept()
    kept.timer.run(40)
    kept.heartbeat.__exit__(UpstreamBusy)
    assert kept.x.heartbeat is kept.heartbeat  # it still has to tell of it
    kept.heartbeat.refuse(UpstreamBusy())
    assert kept.x.heartbeat is None


def test_an_endpoint_without_a_limit_needs_no_heartbeat() -> None:
    chat = DIALECTS["openai"].operations["chat"]
    x = call(endpoint=OTHERS["direct"], dialect=DIALECTS["openai"], operation=chat, is_stream=True)
    assert rhythm_of(x) is None
