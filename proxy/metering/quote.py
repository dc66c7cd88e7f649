"""What a price comes to, figure by figure, with its multipliers: for the command line and for pages.

Owns no arithmetic: each figure is what the one function that bills says of one unit, or of a million
tokens. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from proxy.metering.pricing import (
    FIGURES,
    TOKEN_BUCKETS,
    UNIT_BUCKETS,
    Price,
    cost_nanos,
    price_from_content,
    token_bucket,
)
from proxy.metering.usage import Usage

MILLION = 1_000_000
_KINDS = ("tools", "units", "sizes")


class Sale(NamedTuple):
    """What a model costs an account: a price and both multipliers, in parts per million."""

    price: Price
    model_ppm: int
    tier_ppm: int
    override: str = ""  # the id of the account's own price or multiplier, where there is one


class Quoted(NamedTuple):
    """One line of a price list."""

    figure: str  # as in routes.yaml
    above: int  # for calls with more input tokens than this
    service_tier: str
    official_nanos: int  # per million tokens, or for one
    nanos: int  # with the multipliers: what is billed
    per: str  # "1M tokens", or what one is


def quote(sale: Sale) -> list[Quoted]:
    """Every figure that the price names, those of levels and service tiers behind the plain ones."""
    content = sale.price.content
    plain = {name: content[name] for name in content if name in FIGURES or name in _KINDS}
    lines = list(_lines(sale, plain, 0, ""))
    for level in content.get("above", ()):
        named = {name: value for name, value in level.items() if name != "input_tokens"}
        lines += _lines(sale, named, level["input_tokens"], "")
    for tier, changes in content.get("service_tiers", {}).items():
        lines += _lines(sale, changes, 0, tier)
    return lines


def _lines(sale: Sale, named: Mapping[str, Any], above: int, tier: str) -> Iterator[Quoted]:
    flags = {name: sale.price.content[name] for name in ("multiplied",) if name in sale.price.content}
    for name, value in named.items():
        kinds = value.items() if isinstance(value, dict) else [("", value)]
        for kind, figure in kinds:
            flat = price_from_content({**flags, **({name: {kind: figure}} if kind else {name: figure})})
            if name == "sizes":
                flat = price_from_content({**flags, "image": figure})
            usage, per = _one(name, kind)
            full = f"{name}.{kind}" if kind else name
            billed = cost_nanos(flat, usage, sale.model_ppm, sale.tier_ppm)
            yield Quoted(full, above, tier, figure, billed, per)


_UNITS = {figure: bucket for bucket, (figure, _) in UNIT_BUCKETS.items()}


def _one(name: str, kind: str) -> tuple[Usage, str]:
    """The usage that a figure is the price of."""
    if name in TOKEN_BUCKETS:
        return Usage.from_dict({name: MILLION}), "1M tokens"
    if name == "second":
        return Usage(seconds_ms=1000), name
    if name == "sizes":
        return Usage(images=1), "image"
    if name == "tools":
        return Usage(tools={kind: 1}), "call"
    if name == "units":
        is_tokens = token_bucket(kind) is not None
        return Usage(units={kind: MILLION if is_tokens else 1}), "1M tokens" if is_tokens else kind
    return Usage.from_dict({_UNITS[name]: 1}), name
