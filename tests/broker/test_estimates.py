"""What a model's calls usually take."""

from __future__ import annotations

from proxy.broker.estimates import CALLS_MIN, CALLS_REMEMBERED, Estimates


def test_a_model_is_estimated_only_after_enough_calls() -> None:
    estimates = Estimates()
    for n in range(CALLS_MIN - 1):
        estimates.add("m", n)
    assert estimates.figures() == {}
    estimates.add("m", CALLS_MIN - 1)
    assert estimates.figures() == {"m": 95}


def test_old_calls_are_forgotten() -> None:
    estimates = Estimates()
    for tokens in [9_000] * 1_000 + [10] * CALLS_REMEMBERED:
        estimates.add("m", tokens)
    assert estimates.figures() == {"m": 10}
