"""What is compressed passes as it was sent, both ways, and is understood and metered all the same."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import partial

import brotli
import orjson
import pytest
from backports import zstd

from tests.fakes.upstream_server import whole
from tests.system.troubled import INPUT, OUTPUT, SETTLED, Lane, Troubled, completion

CODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": partial(gzip.compress, compresslevel=1), "deflate": partial(zlib.compress, level=1),
    "br": partial(brotli.compress, quality=1), "zstd": zstd.compress,
}  # fmt: skip


SAID = completion("Hi", {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16})
LONG = completion("Hi " * 500, {"prompt_tokens": 11, "completion_tokens": 500, "total_tokens": 511})


def answers(lane: Lane, content: bytes, coding: str) -> None:
    lane.script([whole(content, 200, f"content-encoding: {coding}")])


@pytest.mark.parametrize("coding", CODE)
def test_a_coded_answer_passes_as_it_is_and_is_metered(troubled: Troubled, coding: str) -> None:
    lane = troubled.lane()
    content = CODE[coding](LONG)
    answers(lane, content, coding)
    answer = troubled.ask(lane.body(), "accept-encoding: gzip, deflate, br, zstd")
    assert (answer.status, answer.body, answer.header("content-encoding")) == (200, content, coding)
    assert lane.asked()[-1].header(b"accept-encoding") == b"gzip, deflate, br, zstd"
    row = troubled.row(answer.call)
    assert (row["state"], row["provenance"]) == (SETTLED, "final")
    assert row["cost_nanos"] == 11 * INPUT + 500 * OUTPUT


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_an_answer_that_is_only_said_to_be_coded_is_metered(troubled: Troubled, coding: str) -> None:
    lane = troubled.lane()
    content = SAID
    answers(lane, content, coding)
    answer = troubled.call(lane)
    assert (answer.body, answer.header("content-encoding")) == (content, coding)
    assert troubled.row(answer.call)["cost_nanos"] == 11 * INPUT + 5 * OUTPUT


@pytest.mark.parametrize("coding", CODE)
def test_an_answer_that_is_a_bomb_passes_and_is_bounded(troubled: Troubled, coding: str) -> None:
    lane = troubled.lane()
    content = CODE[coding](b'{"choices":[{"message":{"content":"%b"}}]}' % (b"x" * (32 << 20)))
    answers(lane, content, coding)
    before = troubled.worker_bytes()
    answer = troubled.call(lane)
    assert answer.body == content
    row = troubled.row(answer.call)
    assert "metering_degraded" in row["flags"]
    assert row["provenance"] == "estimated"
    assert troubled.worker_bytes() - before < 32 << 20


@pytest.mark.parametrize("coding", CODE)
def test_a_coded_request_passes_as_it_is(troubled: Troubled, coding: str) -> None:
    lane = troubled.lane()
    answers(lane, SAID, "identity")
    content = CODE[coding](lane.body("Hi " * 1000))
    answer = troubled.ask(content, f"content-encoding: {coding}")
    assert answer.status == 200
    sent = lane.asked()[-1]
    assert (sent.body, sent.header(b"content-encoding")) == (content, coding.encode())
    assert sent.header(b"content-length") == b"%d" % len(content)
    row = troubled.row(answer.call)
    assert (row["model"], row["request_bytes"]) == (lane.model, len(content))


def test_a_coded_request_of_which_something_must_change_is_sent_decoded(troubled: Troubled) -> None:
    lane = troubled.lane("renamed")
    answers(lane, SAID, "identity")
    assert troubled.ask(gzip.compress(lane.body()), "content-encoding: gzip").status == 200
    sent = lane.asked()[-1]
    assert orjson.loads(sent.body)["model"] == "their-model"
    assert sent.header(b"content-encoding") is None


def test_a_coded_stream_that_asks_for_usage_is_sent_decoded(troubled: Troubled) -> None:
    lane = troubled.lane()
    answers(lane, SAID, "identity")
    troubled.ask(gzip.compress(lane.body(stream=True)), "content-encoding: gzip")
    sent = lane.asked()[-1]
    assert orjson.loads(sent.body)["stream_options"] == {"include_usage": True}
    assert sent.header(b"content-encoding") is None


def test_requests_whose_coding_lies_or_explodes_are_refused(troubled: Troubled) -> None:
    lane = troubled.lane()
    answers(lane, SAID, "identity")
    plain = lane.body()
    bomb = orjson.dumps({"model": lane.model, "messages": "x" * (40 << 20)})
    for coding, code in CODE.items():
        assert troubled.ask(plain, f"content-encoding: {coding}").status == 400
        assert troubled.ask(code(plain)[:-6], f"content-encoding: {coding}").status == 400
        assert troubled.ask(code(bomb), f"content-encoding: {coding}").status == 413
    assert troubled.ask(plain, "content-encoding: compress").status == 415
    assert troubled.ask(plain, "content-encoding: gzip, br").status == 415
    assert lane.asked() == []
    assert troubled.call(lane).status == 200
