"""Quantities are read exactly: no floats, no YAML surprises."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing import units
from proxy.routing.units import Amount, Period


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("100s", 100_000),
        ("5 s", 5_000),
        ("1.5 min", 90_000),
        ("250ms", 250),
        ("2m", 120_000),
        ("24h", 86_400_000),
    ],
)
def test_durations(text, ms):
    assert units.duration_ms(text) == ms


@pytest.mark.parametrize("text", ["5", "5 sec", "-1s", "0s", "25h", "1e3s", "", "s", "１s", "0.1ms"])
def test_no_durations(text):
    with pytest.raises(ValueError):
        units.duration_ms(text)


@pytest.mark.parametrize(
    ("text", "size"), [("1024", 1024), ("32 MiB", 32 << 20), ("500kB", 500_000), ("1GB", 10**9)]
)
def test_sizes(text, size):
    assert units.size_bytes(text) == size


def test_rates_are_per_minute_or_day():
    assert units.rate("3/min") == units.rate("3 / minute") == units.Rate(3, "minute")
    assert units.rate("200/day") == units.Rate(200, "day")
    for text in ("3/s", "3/h", "3", "/min", "1.5/min"):
        with pytest.raises(ValueError):
            units.rate(text)


def test_spending_is_per_day_or_month():
    assert units.spending("5 CNY/day") == units.Spending(Amount(Decimal(5), "CNY"), "day")
    assert units.spending("0.5 / month") == units.Spending(Amount(Decimal("0.5"), None), "month")
    for text in ("5 CNY", "5/min", "5 CNY/year", "/day"):
        with pytest.raises(ValueError):
            units.spending(text)


def test_amounts_keep_their_currency():
    assert units.amount("2.5 USD") == Amount(Decimal("2.5"), "USD")
    assert units.amount("0.30CNY") == Amount(Decimal("0.30"), "CNY")
    assert units.amount("7") == Amount(Decimal(7), None)
    for text in ("-1 USD", "1e3", "1,5 USD", "1 usd", "$1", ".5", "9999999999"):
        with pytest.raises(ValueError):
            units.amount(text)


def test_periods():
    assert units.period("day") == Period(1, "day")
    assert units.period("6 months") == Period(6, "month")
    for text in ("0 days", "fortnight", "1.5 months", "-1 day"):
        with pytest.raises(ValueError):
            units.period(text)


def test_multipliers_are_parts_per_million():
    assert units.multiplier_ppm("0.5") == 500_000
    assert units.multiplier_ppm("0.000001") == 1
    for text in ("0.0000001", "-1", "1e6", "10001", "free"):
        with pytest.raises(ValueError):
            units.multiplier_ppm(text)


def test_words_for_yes_and_no_are_two():
    assert units.flag("true") is True
    assert units.flag("false") is False
    for text in ("yes", "no", "on", "1", "True"):
        with pytest.raises(ValueError):
            units.flag(text)


@given(st.integers(0, 10**15), st.integers(1, 10**12))
def test_amounts_become_nanos_without_loss(micros, rate_millionths):
    value, rate = Decimal(micros).scaleb(-6), Decimal(rate_millionths).scaleb(-6)
    exact = micros * rate_millionths  # in units of 10^-12: a nano is a thousand of them
    assert abs(units.nanos(value, rate) * 1000 - exact) <= 500


def test_half_a_nano_goes_to_the_even_one():
    assert units.nanos(Decimal("0.0000000005"), Decimal(1)) == 0
    assert units.nanos(Decimal("0.0000000015"), Decimal(1)) == 2
