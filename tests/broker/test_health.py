"""Bad answers become cooldowns by the rules, and only by them."""

from __future__ import annotations

import pytest

from proxy.broker.health import FAILING, HealthBook


def event(
    what: str, retry_after_s: float | None = None, model: str = "gpt-4o", credential: str = "main"
) -> dict:
    return {
        "upstream": "openai",
        "mirror": "direct",
        "credential": credential,
        "model": model,
        "event": what,
        "retry_after_s": retry_after_s,
    }


def test_a_429_rests_one_model_for_as_long_as_the_provider_asks() -> None:
    book = HealthBook()
    cool = book.report(event("status:429", 20), now_ms=1_000)
    assert cool is not None
    assert (cool["upstream"], cool["credential"], cool["model"]) == ("openai", "main", "gpt-4o")
    assert cool["until_ms"] == 21_000
    assert book.current(21_000) == []


@pytest.mark.parametrize(
    ("what", "model"), [("status:401", ""), ("status:402", ""), ("status:403", "gpt-4o")]
)
def test_a_credential_that_is_refused_rests_with_a_reason(what: str, model: str) -> None:
    cool = HealthBook().report(event(what), now_ms=0)
    assert cool is not None
    assert cool["model"] == model
    assert cool["until_ms"] >= 600_000
    assert cool["why"]


def test_the_same_news_from_many_workers_is_told_once() -> None:
    book = HealthBook()
    assert book.report(event("status:429", 20), now_ms=0) is not None
    assert book.report(event("status:429", 20), now_ms=0) is None
    longer = book.report(event("status:429", 60), now_ms=10)
    assert longer is not None
    assert longer["since_ms"] == 0


def test_an_upstream_that_fails_now_and_then_does_not_rest() -> None:
    book = HealthBook()
    spread_ms = int(FAILING.within_s * 1000)
    assert [book.report(event("status:500"), now_ms=n * spread_ms) for n in range(50)] == [None] * 50


def test_a_burst_of_failures_rests_shortly() -> None:
    book = HealthBook()
    told = [book.report(event("status:502"), now_ms=n) for n in range(FAILING.after)]
    assert told[:-1] == [None] * (FAILING.after - 1)
    assert told[-1] is not None
    assert told[-1]["until_ms"] == FAILING.after - 1 + int(FAILING.rest_s * 1000)


def test_a_provider_cannot_ask_for_for_ever() -> None:
    cool = HealthBook().report(event("status:503", 1e9), now_ms=0)
    assert cool is not None
    assert cool["until_ms"] == int(FAILING.rest_max_s * 1000)


def test_what_is_the_callers_fault_concerns_no_credential() -> None:
    book = HealthBook()
    assert [book.report(event(what), 0) for what in ("ok", "status:400", "status:404", "client_gone")] == [
        None
    ] * 4


def test_an_operator_ends_a_rest_and_a_new_control_keeps_it() -> None:
    book = HealthBook()
    book.report(event("status:401"), 0)
    book.report(event("status:429", 30), 0)
    book.report(event("status:429", 30, credential="spare"), 0)
    heir = HealthBook()
    heir.restore(book.current(1), 1)
    assert heir.current(1) == book.current(1)
    freed = heir.enable("openai", "main")
    assert {m["model"] for m in freed} == {"", "gpt-4o"}
    assert [m["credential"] for m in heir.current(1)] == ["spare"]
