"""What a worker lets rest, whom it lets try, and how it orders mirrors by what it has measured."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import UpstreamClosed, UpstreamConnectFailed, UpstreamRefused, UpstreamStale
from proxy.relay.cooldown import FAILURES_IN_A_ROW, TRIAL_MS, Cooldowns
from proxy.relay.measures import FORGET_MS
from proxy.routing.selection import RESTING, TRIAL, Choice, Place, Wish, by_preference
from tests.routing.compiling import table

FILE = """\
upstreams:
  one:
    dialect: openai
    mirrors:
      direct: {url: "https://direct.example"}
      cdn: {url: "https://cdn.example"}
      hk: {url: "https://hk.example"}
    credentials: {main: "${env:A}", spare: "${env:B}"}
  plain:
    dialect: openai
    mirrors: {direct: {url: "https://plain.example"}}
    credentials: {main: "${env:A}"}
models: {m: {candidates: [{upstream: one}, {upstream: plain}]}}
prices: {m: {input: 1 USD, output: 1 USD}}
"""
TABLE = table(FILE, {"A": "a", "B": "b"})
MIRRORS = TABLE.upstreams["one"].mirrors
DIRECT, CDN, HK = range(3)


def choice(mirror: int = DIRECT, credential: int = 0, upstream: str = "one", model: str = "m") -> Choice:
    up = TABLE.upstreams[upstream]
    return Choice(up, up.mirrors[mirror], up.credentials[credential], model)


def tell(teller: Node, *others: Node) -> None:
    """A second has passed: what one worker has measured is told to the others."""
    news = json.loads(json.dumps(teller.cooldowns.measures.news()))
    for other in others:
        other.cooldowns.measures.heard(news, other.now_ms)


class Node:
    """A worker's cooldowns, its clock, and what it told control."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.told: list[dict[str, Any]] = []
        self.cooldowns = Cooldowns(lambda: self.now_ms, lambda op, args: self.told.append(args))

    def order(self, *, is_stream: bool = True) -> list[str]:
        mirrors = by_preference(MIRRORS, Wish("m", is_stream), self.cooldowns.rank)
        return [mirror.name for mirror in mirrors]

    def fail(self, where: Choice, times: int = FAILURES_IN_A_ROW) -> None:
        for _ in range(times):
            self.cooldowns.failed(where, UpstreamConnectFailed.code)

    def answer(self, where: Choice, first_byte_s: float) -> None:
        self.cooldowns.answered(where, self.now_ms - int(first_byte_s * 1000))

    def measure(self, **first_byte_s: float) -> None:
        for mirror in MIRRORS:
            where = choice(MIRRORS.index(mirror))
            self.cooldowns.begin(where, is_stream=True)
            self.answer(where, first_byte_s[mirror.name])


@pytest.fixture
def node() -> Node:
    return Node()


# -- credentials -----------------------------------------------------------------------------------


def test_a_busy_credential_rests_for_its_model_at_every_mirror_and_no_mirror_rests(node: Node) -> None:
    node.cooldowns.report(choice(), 429, 20.0)
    assert node.cooldowns.is_cooling(choice(CDN))
    assert not node.cooldowns.is_cooling(choice(model="other"))
    assert not node.cooldowns.is_cooling(choice(credential=1))
    assert node.cooldowns.rank(MIRRORS[DIRECT], False) is None
    assert node.cooldowns.shortest_s() == 20.0
    assert node.told == [
        {"upstream": "one", "mirror": "", "credential": "main", "model": "m",
         "event": "status:429", "retry_after_s": 20.0},
    ]  # fmt: skip


def test_controls_word_counts_for_all_models_of_a_credential(node: Node) -> None:
    node.cooldowns.cool(Place("one", "", "main"), node.now_ms + 5_000)
    assert node.cooldowns.is_cooling(choice())
    assert not node.cooldowns.begin(choice(), is_stream=True)
    node.cooldowns.uncool(Place("one", "", "main"))
    assert not node.cooldowns.is_cooling(choice())


def test_after_its_rest_one_call_tries_a_credential_and_the_others_wait_for_its_answer(node: Node) -> None:
    node.cooldowns.cool(Place("one", "", "main"), node.now_ms + 5_000)
    node.now_ms += 5_000
    assert not node.cooldowns.is_cooling(choice())
    assert node.cooldowns.begin(choice(), is_stream=False)
    assert node.cooldowns.is_cooling(choice())
    assert not node.cooldowns.begin(choice(), is_stream=False)
    node.cooldowns.answered(choice(), None)
    assert not node.cooldowns.is_cooling(choice())
    assert [(m["event"], m["credential"], m["model"]) for m in node.told] == [("ok", "main", "")]


def test_a_trial_that_says_nothing_leaves_the_next_one_its_turn(node: Node) -> None:
    node.cooldowns.cool(Place("one", "", "main"), node.now_ms)
    assert node.cooldowns.begin(choice(), is_stream=False)
    node.now_ms += TRIAL_MS
    assert node.cooldowns.begin(choice(), is_stream=False)


def test_an_answer_to_an_earlier_call_does_not_end_a_credentials_rest(node: Node) -> None:
    node.cooldowns.report(choice(), 429, 20.0)
    node.answer(choice(), 0.1)
    assert node.cooldowns.is_cooling(choice())


# -- mirrors ---------------------------------------------------------------------------------------


def test_failures_in_a_row_rest_a_mirror_and_no_credential(node: Node) -> None:
    node.fail(choice(CDN), FAILURES_IN_A_ROW - 1)
    assert node.told == []
    node.cooldowns.report(choice(CDN), 502, None)
    assert [(m["mirror"], m["credential"], m["event"]) for m in node.told] == [("cdn", "", "status:502")]
    assert node.cooldowns.rank(MIRRORS[CDN], False) == RESTING
    assert not node.cooldowns.is_cooling(choice(CDN))


def test_an_answer_between_failures_keeps_a_mirror_going(node: Node) -> None:
    for _ in range(10):
        node.fail(choice(CDN), FAILURES_IN_A_ROW - 1)
        node.answer(choice(CDN), 0.1)
    assert node.told == []


def test_what_says_nothing_about_a_mirror_counts_against_none(node: Node) -> None:
    for outcome in (UpstreamStale.code, UpstreamRefused.code, "ok", "client_left", "status:400"):
        for _ in range(20):
            node.cooldowns.failed(choice(CDN), outcome)
    assert node.cooldowns.is_calm and node.told == []


def test_half_open_a_mirror_is_tried_first_by_one_call_and_a_failure_closes_it_at_once(node: Node) -> None:
    node.fail(choice(DIRECT))
    node.cooldowns.cool(Place("one", "direct"), node.now_ms + 2_000)
    assert node.order(is_stream=False) == ["cdn", "hk", "direct"]
    node.now_ms += 2_000
    assert node.order(is_stream=False) == ["direct", "cdn", "hk"]
    node.cooldowns.begin(choice(DIRECT), is_stream=False)
    assert node.order(is_stream=False) == ["cdn", "hk", "direct"]
    told = len(node.told)
    node.fail(choice(DIRECT), 1)
    assert len(node.told) == told + 1
    node.now_ms += 60_000
    node.cooldowns.begin(choice(DIRECT), is_stream=False)
    node.cooldowns.answered(choice(DIRECT), None)
    assert node.told[-1]["event"] == "ok"
    assert node.order(is_stream=False) == ["direct", "cdn", "hk"]


# -- what was measured -----------------------------------------------------------------------------


def test_each_mirror_is_tried_by_one_stream_before_it_is_judged(node: Node) -> None:
    assert node.order() == ["direct", "cdn", "hk"]
    node.cooldowns.begin(choice(DIRECT), is_stream=True)
    assert node.order() == ["cdn", "hk", "direct"]
    node.cooldowns.begin(choice(CDN), is_stream=True)
    assert node.order()[0] == "hk"
    assert node.cooldowns.rank(MIRRORS[HK], True) == TRIAL


def test_auto_follows_the_time_to_the_first_byte(node: Node) -> None:
    node.measure(direct=0.9, cdn=0.2, hk=0.5)
    assert node.order() == ["cdn", "hk", "direct"]
    assert node.order(is_stream=False) == ["cdn", "hk", "direct"]
    for _ in range(50):
        node.answer(choice(CDN), 3.0)
    assert node.order() == ["hk", "direct", "cdn"]


def test_mirrors_that_are_about_as_fast_keep_the_order_of_the_file(node: Node) -> None:
    node.measure(direct=0.33, cdn=0.32, hk=0.3)
    assert node.order() == ["direct", "cdn", "hk"]


def test_a_fast_mirror_that_often_fails_comes_behind_a_slow_one(node: Node) -> None:
    node.measure(direct=0.1, cdn=0.8, hk=0.9)
    for _ in range(8):
        node.fail(choice(DIRECT), 1)
        node.answer(choice(DIRECT), 0.1)
    assert node.order()[0] == "cdn"


def test_a_mirror_whose_streams_break_off_comes_behind_although_they_all_begin_well(node: Node) -> None:
    node.measure(direct=0.1, cdn=0.8, hk=0.9)
    for _ in range(8):
        node.answer(choice(DIRECT), 0.1)
        node.cooldowns.failed(choice(DIRECT), UpstreamClosed.code)
    assert node.order()[0] == "cdn"
    assert node.told == []


def test_what_was_measured_is_forgotten_and_measured_again(node: Node) -> None:
    node.measure(direct=0.9, cdn=0.2, hk=0.5)
    node.now_ms += FORGET_MS + 1
    assert node.cooldowns.rank(MIRRORS[DIRECT], False) is None
    assert node.order() == ["direct", "cdn", "hk"]


def test_all_is_calm_while_nothing_rests_and_no_mirror_has_failed(node: Node) -> None:
    assert node.cooldowns.is_calm
    node.fail(choice(CDN), 1)
    assert not node.cooldowns.is_calm
    node.answer(choice(CDN), 0.1)
    assert node.cooldowns.is_calm
    node.cooldowns.report(choice(), 429, 1.0)
    assert not node.cooldowns.is_calm
    node.now_ms += 2_000  # a rest that is over is on until a call has tried
    assert not node.cooldowns.is_calm and not node.cooldowns.is_cooling(choice())
    node.answer(choice(), 0.1)
    assert node.cooldowns.is_calm
    node.cooldowns.cool(choice().places[1], node.now_ms + 1_000)
    assert not node.cooldowns.is_calm
    node.cooldowns.uncool(choice().places[1])
    assert node.cooldowns.is_calm


# -- several workers ---------------------------------------------------------------------------------


def test_workers_of_a_node_order_mirrors_by_what_any_of_them_has_measured():
    first, second = Node(), Node()
    first.measure(direct=0.4, cdn=0.05, hk=0.2)
    tell(first, second)
    assert second.order() == first.order() == ["cdn", "hk", "direct"]
    assert first.cooldowns.measures.news() == second.cooldowns.measures.news() == []  # nothing goes round
    for _ in range(30):
        second.answer(choice(CDN), 3.0)
    second.fail(choice(HK), times=3)
    tell(second, first)
    assert first.order() == second.order() == ["direct", "cdn", "hk"]


def test_a_hundred_calls_that_are_told_at_once_count_as_a_hundred():
    first, second, third = Node(), Node(), Node()
    for node in (first, second):
        for _ in range(100):
            node.answer(choice(CDN), 0.1)
        tell(node, third)
    for _ in range(100):
        first.answer(choice(CDN), 0.9)
    tell(first, third)
    place = choice(CDN).mirror_place
    measured = third.cooldowns.measures.first_bytes(third.now_ms)[place]
    assert measured == pytest.approx(0.9, abs=0.01)


def test_a_mirror_that_failed_elsewhere_is_not_tried_first_here():
    first, second = Node(), Node()
    for node in (first, second):
        node.measure(direct=0.1, cdn=0.2, hk=0.3)
    first.fail(choice(DIRECT), times=4)
    assert first.order()[0] == "cdn"
    assert second.order()[0] == "direct"
    tell(first, second)
    assert second.order()[0] == "cdn"
