"""Texts of routes.yaml that stand for quantities: durations, sizes, rates, amounts, multipliers.

Owns their spelling. Pure; every function raises ValueError with words for the operator. No floats:
what is written is what is billed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

NANOS = 1_000_000_000
PPM = 1_000_000
MULTIPLIER_MAX = 10_000
DURATION_MS_MAX = 24 * 3_600_000  # a call that takes longer is not one call
AMOUNT_MAX = Decimal(1_000_000_000)  # in nano-units it must fit into a BIGINT with room for sums

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*(ms|s|min|m|h)")
_DURATION_MS = {"ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000}
_SIZE = re.compile(r"(\d{1,12})\s*(B|KB|KiB|MB|MiB|GB|GiB)?", re.IGNORECASE)
_SIZE_BYTES = {
    "b": 1,
    "kb": 1_000,
    "kib": 1 << 10,
    "mb": 1_000_000,
    "mib": 1 << 20,
    "gb": 10**9,
    "gib": 1 << 30,
}
_RATE = re.compile(r"(\d{1,9})\s*/\s*(min|m|minute)")
_DECIMAL = re.compile(r"\d{1,12}(?:\.\d{1,18})?")
_AMOUNT = re.compile(r"(\d{1,12}(?:\.\d{1,18})?)(?:\s*([A-Z]{3}))?")
_PERIOD = re.compile(r"(\d{1,4})\s*(day|week|month|year)s?")
_CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True, slots=True)
class Amount:
    """Money as it is written; `currency` None: the station's."""

    value: Decimal
    currency: str | None


@dataclass(frozen=True, slots=True)
class Period:
    """A span of the calendar: months are clipped calendar months in the station's time zone."""

    count: int
    unit: str  # day | week | month | year


def decimal(text: str) -> Decimal:
    """A number without sign and exponent."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError("must be a plain number such as 1.5")
    return Decimal(text)


def duration_ms(text: str) -> int:
    """`100s`, `5 s`, `1.5 min`, `250ms`, `1h` -> milliseconds."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError("must be a duration such as 100s, 250ms, 5 min or 1h")
    ms = int(Decimal(found[1]) * _DURATION_MS[found[2]])
    if not 0 < ms <= DURATION_MS_MAX:
        raise ValueError("must be more than nothing and at most 24h")
    return ms


def size_bytes(text: str) -> int:
    """`32 MiB`, `500kB`, `1024` -> bytes."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError("must be a size such as 32 MiB or 500 kB")
    return int(found[1]) * _SIZE_BYTES[(found[2] or "B").lower()]


def per_minute(text: str) -> int:
    """`3/min` -> 3."""
    found = _RATE.fullmatch(text)
    if found is None:
        raise ValueError("must be a rate per minute such as 3/min")
    return int(found[1])


def amount(text: str) -> Amount:
    """`2.5 USD`, `0.30CNY`, or `2.5` in the station's currency."""
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise ValueError("must be an amount such as 2.5 USD")
    value = Decimal(found[1])
    if value > AMOUNT_MAX:
        raise ValueError(f"must be at most {AMOUNT_MAX}")
    return Amount(value, found[2])


def period(text: str) -> Period:
    """`1 month`, `6 months`, `day`, `2 weeks`."""
    found = _PERIOD.fullmatch(text if text[:1].isdigit() else f"1 {text}")
    if found is None or int(found[1]) == 0:
        raise ValueError("must be a period such as day, 1 month or 6 months")
    return Period(int(found[1]), found[2])


def currency(text: str) -> str:
    """An ISO 4217 code."""
    if not _CURRENCY.fullmatch(text):
        raise ValueError("must be a currency code of three capital letters such as USD")
    return text


def multiplier_ppm(text: str) -> int:
    """`0.5` -> 500,000 parts per million."""
    ppm = decimal(text) * PPM
    if ppm != int(ppm):
        raise ValueError("has more than six digits behind the point")
    if ppm > MULTIPLIER_MAX * PPM:
        raise ValueError(f"must be at most {MULTIPLIER_MAX}")
    return int(ppm)


def nanos(value: Decimal, rate: Decimal) -> int:
    """An amount in nano-units of the station's currency; `rate` is what one unit of it is worth there."""
    return int((value * rate * NANOS).to_integral_value(rounding=ROUND_HALF_EVEN))
