"""Official prices: a bundled price library flattened into our own rate card, once per load.

Owns the translation of `genai_prices` (the only module that knows it) into contents of
metering.pricing: integers in the station's currency, names and globs as routes.yaml has them. Used
by the compile step only; a worker never imports the library. Pure: the day is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any

from proxy.metering.pricing import FIGURES, glob_pattern, is_glob

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, PriceVariant, Provider

Content = dict[str, Any]

# Who makes a model says what it costs; then those who resell under names of their own. Of two that
# price the same name, the earlier one counts.
MAKERS = (
    "openai", "anthropic", "google", "deepseek", "x-ai", "mistral", "zhipuai", "zai", "moonshotai", "minimax",
    "cohere", "perplexity", "voyageai",
)  # fmt: skip
RESELLERS = ("azure", "openrouter", "aws", "groq", "cerebras", "together", "fireworks", "novita")

_MILLION, _THOUSAND, _HOUR = Decimal(1_000_000), Decimal(1_000), Decimal(3_600)

# The library's price -> (our member, how many of our units it is for). Token prices are per million in both.
_FIGURES: dict[str, tuple[str, Decimal]] = {
    "input_mtok": ("input", Decimal(1)),
    "output_mtok": ("output", Decimal(1)),
    "cache_read_mtok": ("cache_read", Decimal(1)),
    "cache_write_mtok": ("cache_write_5m", Decimal(1)),
    "cache_write_1h_mtok": ("cache_write_1h", Decimal(1)),
    "input_audio_mtok": ("input_audio", Decimal(1)),
    "cache_audio_read_mtok": ("cached_audio", Decimal(1)),
    "input_image_mtok": ("input_image", Decimal(1)),
    "output_audio_mtok": ("output_audio", Decimal(1)),
    "output_image_mtok": ("output_image", Decimal(1)),
    "requests_kcount": ("call", _THOUSAND),
    "input_mchars": ("character", _MILLION),
    "audio_hours": ("second", _HOUR),
    "input_audio_hours": ("second", _HOUR),
}
_TOOLS = {"web_searches_kcount": "web_search", "storage_searches_kcount": "file_search"}
_UNITS = {"input_document_kpages": "page"}
# Finer than our buckets, and not dearer than what they then cost.
_IGNORED = frozenset({
    "cache_image_read_mtok", "input_annotated_document_kpages", "output_reasoning_mtok",
    "output_citation_mtok",
})  # fmt: skip

# What the library does not know, in USD: one picture, and those of other sizes and qualities.
_PICTURES: dict[str, tuple[str, dict[str, str]]] = {
    "dall-e-2": ("0.02", {"256x256": "0.016", "512x512": "0.018", "1024x1024": "0.02"}),
    "dall-e-3": (
        "0.04",
        {
            "1024x1024": "0.04", "1024x1792": "0.08", "1792x1024": "0.08",
            "1024x1024/hd": "0.08", "1024x1792/hd": "0.12", "1792x1024/hd": "0.12", "*/hd": "0.08",
        },
    ),
}  # fmt: skip

# Google charges these models by the answer that searched, later ones by the search.
_PER_ANSWER = re.compile(r"gemini-(?:[a-z]+-)*[12]\.")

_DATED = re.compile(r"\^([^\\()\[\]|*+?]*(?:\\\.[^\\()\[\]|*+?]*)*)\\d\{[48]\}.*\$")
_DASHED_DATE = re.compile(r"-(20\d\d)-(\d\d)-(\d\d)$")


def official_prices(
    currency: str, rates: Mapping[str, Decimal], on: date | None = None
) -> dict[str, Content]:
    """Contents by model name or glob, names in lower case.

    `rates` says what one unit of a currency is worth in the station's. `on`: the day whose prices
    count; None: with all changes that are announced. Raises LookupError when there is no rate for USD.
    """
    from genai_prices.data import providers  # 150 ms

    if currency == "USD":
        rate = Decimal(1)
    elif "USD" in rates:
        rate = rates["USD"]
    else:
        raise LookupError("official prices are in USD: `rates` needs one for it")
    by_id = {provider.id: provider for provider in providers}
    ranked = [by_id[provider_id] for provider_id in (*MAKERS, *RESELLERS) if provider_id in by_id]
    card: dict[str, Content] = {}
    for provider in ranked:
        for model in provider.models:
            content = _content(model, rate, on or date.max)
            if content:
                for name in names(model.match, globs=provider.id in MAKERS):
                    if _may_price(provider, name, ranked, card):
                        card.setdefault(name, content)
    for name, (image, sizes) in _PICTURES.items():
        by_size = {size: _nanos(Decimal(price), rate) for size, price in sizes.items()}
        card.setdefault(name, {"image": _nanos(Decimal(image), rate), "sizes": by_size})
    return card


def _may_price(provider: Provider, name: str, ranked: list[Provider], card: Mapping[str, Content]) -> bool:
    """A name belongs to the maker whose models are called so; others fill the gaps, name by name."""
    bare = name.strip("*")
    owner = next((p for p in ranked if p.model_match and p.model_match.is_match(bare)), provider)
    if owner is provider:
        return True
    return not is_glob(name) and not any(is_glob(g) and glob_pattern(g).fullmatch(name) for g in card)


def names(match: Any, *, globs: bool) -> Iterator[str]:
    """The names and globs that a clause of the library accepts.

    A pattern with a date becomes one for dates of this century. What cannot be said with `*` is
    left out: such a name has no price until the operator gives it one.
    """
    for clause in getattr(match, "or_", ()):
        yield from names(clause, globs=globs)
    for clause in getattr(match, "and_", ()):
        # Its other parts only exclude names that have a more particular price.
        yield from names(clause, globs=globs)
    if name := getattr(match, "equals", ""):
        yield name
        if compact := _DASHED_DATE.sub(r"-\1\2\3", name).replace(name, ""):
            yield compact  # as OpenRouter and others spell it
    if not globs:
        return
    if start := getattr(match, "starts_with", ""):
        yield f"{start}*"
    if part := getattr(match, "contains", ""):
        yield f"*{part}*"
    if (pattern := getattr(match, "regex", "")) and (found := _DATED.fullmatch(pattern)):
        yield found[1].replace("\\", "") + "20*"


def _content(model: ModelInfo, rate: Decimal, on: date) -> Content | None:
    """None: the library prices something of it that we cannot count."""
    standard = _standard(model, on)
    if not _known(standard):
        return None
    searched = "grounding" if _PER_ANSWER.match(model.id) else "web_search"
    content = _flat(standard, rate, searched)
    tiers: dict[str, Content] = {}
    for variant in reversed(model.price_variants or ()):  # the first of two wins
        name = _tier_name(variant, on)
        if name and _known(variant.prices):
            full = _flat({**standard, **_figures(variant.prices)}, rate, searched)
            changes = {key: value for key, value in full.items() if value != content.get(key)}
            if "above" in content and "above" not in full:
                changes["above"] = []
            if changes:
                tiers[name] = changes
    if tiers:
        content["service_tiers"] = tiers
    return content


def _standard(model: ModelInfo, on: date) -> dict[str, Any]:
    """The prices of a day. Those of hours of the day count at their dearest: a card has no clock."""
    if not isinstance(model.prices, list):
        return _figures(model.prices)
    standard, *later = model.prices
    figures = _figures(standard.prices)
    for conditional in later:
        constraint = conditional.constraint
        starts = getattr(constraint, "start_date", None)
        if constraint is None or (starts is not None and starts <= on):
            figures = _figures(conditional.prices)
    for conditional in later:
        if hasattr(conditional.constraint, "start_time"):
            other = _figures(conditional.prices)
            if _base(other.get("input_mtok")) > _base(figures.get("input_mtok")):
                figures = other
    return figures


def _base(price: Any) -> Decimal:
    return getattr(price, "base", price) or Decimal(0)


def _figures(price: ModelPrice) -> dict[str, Any]:
    return {key: value for key, value in vars(price).items() if value is not None and key[0] != "_"}


def _known(prices: Any) -> bool:
    keys = prices if isinstance(prices, dict) else _figures(prices)
    return bool(keys) and all(
        key in _FIGURES or key in _TOOLS or key in _UNITS or key in _IGNORED for key in keys
    )


def _tier_name(variant: PriceVariant, on: date) -> str:
    """What `service_tier` says when this variant applies; "": it cannot be told."""
    starts = getattr(variant.constraint, "start_date", None)
    if (variant.constraint is not None and starts is None) or (starts is not None and starts > on):
        return ""
    if len(variant.when) != 1:
        return ""
    kind, name = next(iter(variant.when.items()))
    return name if kind in ("service_tier", "speed", "processing") else ""


def _flat(prices: Mapping[str, Any], rate: Decimal, searched: str) -> Content:
    """`searched` is what a search is called there."""
    content: Content = {}
    starts = sorted({tier.start for price in prices.values() for tier in getattr(price, "tiers", ())})
    for start in (0, *starts):
        level = _level(prices, start, rate)
        if searched != "web_search" and "web_search" in level.get("tools", {}):
            level["tools"][searched] = level["tools"].pop("web_search")
        if start == 0:
            content = level
        else:
            changed = {k: v for k, v in level.items() if k in FIGURES and v != content.get(k)}
            content.setdefault("above", []).append({"input_tokens": start, **changed})
    return content


def _level(prices: Mapping[str, Any], start: int, rate: Decimal) -> Content:
    """The figures of a call with more than `start` input tokens."""
    level: Content = {}
    for key, price in prices.items():
        value = _base(price)
        for tier in getattr(price, "tiers", ()):
            if tier.start <= start and start > 0:
                value = tier.price
        if key in _FIGURES:
            member, per = _FIGURES[key]
            level[member] = _nanos(value / per, rate)
        elif key in _TOOLS:
            level.setdefault("tools", {})[_TOOLS[key]] = _nanos(value / _THOUSAND, rate)
        elif key in _UNITS:
            level.setdefault("units", {})[_UNITS[key]] = _nanos(value / _THOUSAND, rate)
    return level


def _nanos(amount: Decimal, rate: Decimal) -> int:
    return int((amount * rate * 1_000_000_000).to_integral_value(ROUND_HALF_EVEN))
