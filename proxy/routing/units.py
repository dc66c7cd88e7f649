"""Texts of routes.yaml that stand for quantities: durations, sizes, rates, amounts, multipliers.

Owns their spelling. Pure; every function raises ValueError with words for the operator. No floats:
what is written is what is billed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal

NANOS = 1_000_000_000
PPM = 1_000_000
MULTIPLIER_MAX = 10_000
DURATION_MS_MAX = 24 * 3_600_000  # a call that takes longer is not one call
DAY_MS = 24 * 3_600_000
LASTING_MS_MAX = 90 * DAY_MS  # as long as calls are remembered
AMOUNT_MAX = Decimal(1_000_000_000)  # in nano-units it must fit into a BIGINT with room for sums

# Patterns, without anchors: the JSON Schema shows them to editors.
DURATION = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*(ms|s|min|m|h)"
LASTING = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*(ms|s|min|m|h|d)"
SIZE = r"([0-9]{1,12})\s*(B|kB|KB|KiB|MB|MiB|GB|GiB)?"
RATE = r"([0-9]{1,12})\s*/\s*(min|minute|day)"
SPENDING = r"([0-9]{1,12}(?:\.[0-9]{1,18})?(?:\s*[A-Z]{3})?)\s*/\s*(day|month)"
AMOUNT = r"([0-9]{1,12}(?:\.[0-9]{1,18})?)(?:\s*([A-Z]{3}))?"
PERIOD = r"(?:([0-9]{1,4})\s*)?(day|week|month|year)s?"
CURRENCY = "[A-Z]{3}"

_WHOLE = re.compile(r"[0-9]{1,15}")
_DECIMAL = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,18})?")
_DURATION_MS = {"ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000}
_SIZE_BYTES = {"b": 1, "kb": 10**3, "kib": 1 << 10, "mb": 10**6, "mib": 1 << 20, "gb": 10**9, "gib": 1 << 30}
_EXACT = Context(prec=80, rounding=ROUND_HALF_EVEN)  # wide enough for any two numbers that are accepted


@dataclass(frozen=True, slots=True)
class Amount:
    """Money as it is written; `currency` None: the station's."""

    value: Decimal
    currency: str | None


@dataclass(frozen=True, slots=True)
class Rate:
    count: int
    per: str  # minute | day


@dataclass(frozen=True, slots=True)
class Spending:
    amount: Amount
    per: str  # day | month


@dataclass(frozen=True, slots=True)
class Period:
    """A span of the calendar: months are clipped calendar months in the station's time zone."""

    count: int
    unit: str  # day | week | month | year


def whole(text: str) -> int:
    """A whole number, 0 or more."""
    if not _WHOLE.fullmatch(text):
        raise ValueError("must be a whole number")
    return int(text)


def flag(text: str) -> bool:
    """`true` or `false` and nothing else: YAML's other words for them have surprised enough people."""
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def decimal(text: str) -> Decimal:
    """A number without sign and exponent."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError("must be a plain number such as 1.5")
    return Decimal(text)


def positive_decimal(text: str) -> Decimal:
    """More than zero."""
    value = decimal(text)
    if not value:
        raise ValueError("must be more than 0")
    return value


def signed_decimal(text: str) -> Decimal:
    """A plain number, or one below zero."""
    return -decimal(text[1:]) if text.startswith("-") else decimal(text)


def duration_ms(text: str) -> int:
    """`100s`, `5 s`, `1.5 min`, `250ms`, `1h` -> milliseconds."""
    found = re.fullmatch(DURATION, text)
    if found is None:
        raise ValueError("must be a duration such as 100s, 250ms, 5 min or 1h")
    ms = int(Decimal(found[1]) * _DURATION_MS[found[2]])
    if not 0 < ms <= DURATION_MS_MAX:
        raise ValueError("must be more than nothing and at most 24h")
    return ms


def lasting_ms(text: str) -> int:
    """What outlives a call: a duration, or `7d`."""
    found = re.fullmatch(LASTING, text)
    if found is None:
        raise ValueError("must be a time such as 30 min, 12h or 7d")
    ms = int(Decimal(found[1]) * (_DURATION_MS | {"d": DAY_MS})[found[2]])
    if not 0 < ms <= LASTING_MS_MAX:
        raise ValueError("must be more than nothing and at most 90d")
    return ms


def size_bytes(text: str) -> int:
    """`32 MiB`, `500kB`, `1024` -> bytes."""
    found = re.fullmatch(SIZE, text)
    if found is None:
        raise ValueError("must be a size such as 32 MiB or 500 kB")
    return int(found[1]) * _SIZE_BYTES[(found[2] or "B").lower()]


def rate(text: str) -> Rate:
    """`3/min` -> 3 per minute, `200/day` -> 200 per day of the station's calendar."""
    found = re.fullmatch(RATE, text)
    if found is None:
        raise ValueError("must be a rate such as 3/min or 200/day")
    return Rate(int(found[1]), "day" if found[2] == "day" else "minute")


def spending(text: str) -> Spending:
    """`5 CNY/day`, `100/month` in the station's currency."""
    found = re.fullmatch(SPENDING, text)
    if found is None:
        raise ValueError("must be an amount per day or month such as 5 CNY/day")
    return Spending(amount(found[1]), found[2])


def amount(text: str) -> Amount:
    """`2.5 USD`, `0.30CNY`, or `2.5` in the station's currency."""
    found = re.fullmatch(AMOUNT, text)
    if found is None:
        raise ValueError("must be an amount such as 2.5 USD")
    value = Decimal(found[1])
    if value > AMOUNT_MAX:
        raise ValueError(f"must be at most {AMOUNT_MAX}")
    return Amount(value, found[2])


def period(text: str) -> Period:
    """`1 month`, `6 months`, `day`, `2 weeks`."""
    found = re.fullmatch(PERIOD, text)
    count = int(found[1] or 1) if found else 0
    if found is None or count == 0:
        raise ValueError("must be a period such as day, 1 month or 6 months")
    return Period(count, found[2])


def currency(text: str) -> str:
    """An ISO 4217 code."""
    if not re.fullmatch(CURRENCY, text):
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
    return int(
        _EXACT.multiply(_EXACT.multiply(value, rate), Decimal(NANOS)).to_integral_value(ROUND_HALF_EVEN)
    )
