"""Bad answers become cooldowns by the rules, and only by them."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.broker.health import FORGET_MS, RULES, HealthBook


def event(what: str, retry_after_s: float | None = None, **place: str) -> dict[str, Any]:
    where = {"upstream": "openai", "mirror": "", "credential": "main", "model": "gpt-4o", **place}
    return {**where, "event": what, "retry_after_s": retry_after_s}


def of_mirror(what: str) -> dict[str, Any]:
    return event(what, mirror="cdn", credential="", model="")


def cool(book: HealthBook, said: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """What workers are told: it must be a cooldown."""
    message = book.report(said, now_ms)
    assert message is not None
    assert message[0] == "cool"
    return message[1]


def test_a_429_rests_one_model_for_as_long_as_the_provider_asks() -> None:
    book = HealthBook()
    told = cool(book, event("status:429", 20), now_ms=1_000)
    assert (told["upstream"], told["mirror"]) == ("openai", "")
    assert (told["credential"], told["model"], told["until_ms"]) == ("main", "gpt-4o", 21_000)
    assert book.current(21_000) == []


@pytest.mark.parametrize(
    ("what", "model"), [("status:401", ""), ("status:402", ""), ("status:403", "gpt-4o")]
)
def test_a_credential_that_is_refused_is_disabled_with_a_reason(what: str, model: str) -> None:
    book = HealthBook()
    told = cool(book, event(what), now_ms=0)
    assert told["model"] == model
    assert told["until_ms"] >= 600_000
    (row,) = book.rows(1)
    assert (row["state"], row["why"]) == ("disabled", RULES[what].why)


def test_a_mirror_that_fails_rests_and_its_credential_does_not() -> None:
    book = HealthBook()
    told = cool(book, of_mirror("status:502"), now_ms=0)
    assert (told["mirror"], told["credential"], told["until_ms"]) == ("cdn", "", 2_000)
    assert cool(book, event("status:429"), now_ms=0)["mirror"] == ""
    assert len(book.places) == 2


def test_the_same_news_from_many_workers_is_told_once() -> None:
    book = HealthBook()
    assert book.report(event("status:429", 20), now_ms=0) is not None
    assert book.report(event("status:429", 20), now_ms=0) is None
    assert book.report(event("status:429"), now_ms=5) is None
    assert cool(book, event("status:429", 60), now_ms=10)["since_ms"] == 0


def test_each_failed_trial_doubles_the_rest_until_an_answer_ends_it() -> None:
    book, now_ms, rests = HealthBook(), 0, []
    for _ in range(7):
        until_ms = cool(book, of_mirror("upstream_connect_failed"), now_ms)["until_ms"]
        rests.append((until_ms - now_ms) // 1000)
        now_ms = until_ms
        assert book.rows(now_ms)[0]["state"] == "half-open"
    assert rests == [2, 4, 8, 16, 32, 60, 60]
    assert book.report(of_mirror("ok"), now_ms) == (
        "uncool", {"upstream": "openai", "mirror": "cdn", "credential": "", "model": ""}
    )  # fmt: skip
    assert book.report(of_mirror("ok"), now_ms) is None
    assert cool(book, of_mirror("upstream_timeout"), now_ms)["rest_s"] == 2


def test_a_trial_that_nobody_made_is_forgotten() -> None:
    book = HealthBook()
    book.report(of_mirror("status:500"), 0)
    assert cool(book, of_mirror("status:500"), FORGET_MS + 2_001)["rest_s"] == 2
    assert book.current(2 * FORGET_MS + 10_000) == []
    assert book.places == {}


@pytest.mark.parametrize("what", ["status:429", "status:503"])
def test_a_provider_cannot_ask_for_for_ever(what: str) -> None:
    assert cool(HealthBook(), event(what, 1e9), now_ms=0)["until_ms"] == 300_000


def test_what_is_the_callers_fault_concerns_nobody() -> None:
    book = HealthBook()
    assert [book.report(event(what), 0) for what in ("ok", "status:400", "status:404", "client_gone")] == [
        None
    ] * 4


def test_an_operator_ends_a_rest_and_a_new_control_keeps_it() -> None:
    book = HealthBook()
    for said in (event("status:401"), event("status:429", 30), of_mirror("status:500")):
        book.report(said, 0)
    book.report(event("status:429", 30, credential="spare"), 0)
    heir = HealthBook()
    heir.restore(book.current(1), 1)
    assert heir.current(1) == book.current(1)
    freed = heir.enable("openai", credential="main")
    assert {(op, m["model"]) for op, m in freed} == {("uncool", ""), ("uncool", "gpt-4o")}
    assert [m["mirror"] for _, m in heir.enable("openai", mirror="cdn")] == ["cdn"]
    assert [m["credential"] for m in heir.current(1)] == ["spare"]
