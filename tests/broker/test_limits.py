"""Limits of a node, counted over workers that come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.broker.limits import WINDOW_MS, LimitDesk


def rate(want: int, amount: int = 10) -> dict:
    return {"bucket": "k1:rpm", "kind": "rate", "limit": amount, "want": want}


def at_once(want: int, amount: int = 10) -> dict:
    return {"bucket": "k1:con", "kind": "concurrency", "limit": amount, "want": want}


def test_a_minute_grants_no_more_than_its_limit_to_all_workers_together() -> None:
    desk = LimitDesk()
    now_ms = 10 * WINDOW_MS + 15_000
    assert desk.take("w0", rate(7), now_ms) == {
        "granted": 7,
        "until_ms": 11 * WINDOW_MS,
        "retry_after_s": 0.0,
    }
    assert desk.take("w1", rate(7), now_ms)["granted"] == 3
    assert desk.take("w0", rate(7), now_ms) == {
        "granted": 0,
        "until_ms": 11 * WINDOW_MS,
        "retry_after_s": 45.0,
    }
    assert desk.take("w0", rate(7), 11 * WINDOW_MS)["granted"] == 7


def test_a_raised_limit_counts_at_once() -> None:
    desk = LimitDesk()
    assert desk.take("w0", rate(10), 0)["granted"] == 10
    assert desk.take("w0", rate(10, amount=15), 1)["granted"] == 5
    assert desk.take("w0", rate(10, amount=5), 2)["granted"] == 0


def test_concurrency_comes_back_by_return_and_by_death() -> None:
    desk = LimitDesk()
    assert desk.take("w0-a", at_once(6), 0)["granted"] == 6
    assert desk.take("w1-a", at_once(6), 0)["granted"] == 4
    refused = desk.take("w1-a", at_once(1), 0)
    assert refused["granted"] == 0
    assert refused["retry_after_s"] > 0
    desk.give("w0-a", "k1:con", 2)
    assert desk.take("w1-a", at_once(6), 0)["granted"] == 2
    desk.lost("w1-a")
    assert desk.busy() == {"k1:con": 4}
    desk.lost("w0-a")
    assert desk.busy() == {}


def test_a_new_control_believes_what_workers_say_they_hold() -> None:
    desk = LimitDesk()
    desk.reported("w0-a", {"k1:con": 9, "k2:con": 0})
    assert desk.take("w1-a", at_once(5), 0)["granted"] == 1
    desk.reported("w0-a", {"k1:con": 3})
    assert desk.take("w1-a", at_once(9), 0)["granted"] == 6


WORKERS = st.sampled_from(["w0", "w1", "w2"])


@given(
    st.lists(st.tuples(st.sampled_from(["take", "give", "lost"]), WORKERS, st.integers(1, 8)), max_size=60)
)
def test_never_more_at_once_than_the_limit_and_never_stuck(steps: list[tuple[str, str, int]]) -> None:
    desk, held = LimitDesk(), dict.fromkeys(("w0", "w1", "w2"), 0)
    for step, worker, count in steps:
        if step == "take":
            held[worker] += desk.take(worker, at_once(count), 0)["granted"]
        elif step == "give":
            count = min(count, held[worker])
            held[worker] -= count
            if count:
                desk.give(worker, "k1:con", count)
        else:
            held[worker] = 0
            desk.lost(worker)
        assert sum(held.values()) <= 10
        assert desk.busy().get("k1:con", 0) == sum(held.values())
    for worker in held:
        desk.lost(worker)
    assert desk.take("w0", at_once(10), 0)["granted"] == 10
