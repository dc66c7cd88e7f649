"""The items of a bill: what of each bucket was used, and what one of it costs.

Owns how a cost is told apart again; `pricing.cost_nanos` stays the one function that charges. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from proxy.metering.pricing import SCALE, TOKEN_BUCKETS, UNIT_BUCKETS, Price, token_bucket, unit_figure
from proxy.metering.usage import Usage


@dataclass(frozen=True, slots=True)
class Item:
    """`count` of a bucket at `price_nanos` for each `per` of them, before multipliers."""

    bucket: str
    count: int
    price_nanos: int
    per: int  # a power of ten


def items(price: Price, usage: Usage) -> Iterator[Item]:
    """All that was used, in the order of the buckets; count x price_nanos / per adds up to the cost before
    its multipliers and its one rounding. `reasoning` is within `output` and no item of its own."""
    at = price.figures(usage.input_tokens_all())
    for bucket in TOKEN_BUCKETS:
        if count := usage.charged(bucket):
            yield Item(bucket, count, _unless_free(price, at[bucket]), SCALE)
    for bucket, (_, worth) in UNIT_BUCKETS.items():
        if (count := getattr(usage, bucket)) and (figure := at[bucket]):  # most are counted only
            yield Item(bucket, count, _unless_free(price, figure // worth), SCALE // worth)
    for kind, count in usage.tools.items():
        yield Item(kind, count, _unless_free(price, price.tools.get(kind, 0)), 1)
    for kind, count in usage.units.items():
        per = SCALE if token_bucket(kind) else 1
        yield Item(kind, count, _unless_free(price, unit_figure(price, at, kind) * per // SCALE), per)


def _unless_free(price: Price, figure: int) -> int:
    return 0 if price.free else figure
