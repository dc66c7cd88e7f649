"""The bundled prices say in our integers what their library says, over random usage."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from random import Random
from typing import Any

import genai_prices
import pytest
from genai_prices.data import providers
from genai_prices.types import ModelInfo, TimeOfDateConstraint

from proxy.metering.pricedata import MAKERS, RESELLERS, names, official_prices
from proxy.metering.pricing import PPM, cost_nanos, price_from_content, unpriced_options
from proxy.metering.usage import Usage
from proxy.snapshot import Rates

DAY = date(2026, 11, 1)
CARD = Rates({}, official_prices("USD", {}, DAY))


def by_the_hour(model: ModelInfo) -> bool:
    return isinstance(model.prices, list) and any(
        isinstance(price.constraint, TimeOfDateConstraint) for price in model.prices
    )


def priced_models() -> list[tuple[str, str]]:
    """(provider, name) of all models whose maker says what they cost, by one name each."""
    return [
        (provider.id, name)
        for provider in providers
        if provider.id in ("openai", "anthropic", "google", "mistral", "x-ai", "deepseek", "perplexity")
        for model in provider.models
        if not by_the_hour(model)
        for name in [next(iter(names(model.match, globs=False)), "")]
        if name and provider.find_model(name) is model and CARD.price_for(name) is not None
        and ("gemini" in name or provider.id != "google")  # the others are resold
    ]  # fmt: skip


def any_usage(random: Random) -> Usage:
    scale = random.choice((10, 5_000, 400_000))
    buckets = (
        "input",
        "cache_read",
        "cache_write_5m",
        "cache_write_1h",
        "input_audio",
        "output",
        "output_audio",
    )
    return Usage(**{name: random.randint(0, scale) for name in buckets if random.random() < 0.6}, calls=1)


def as_the_library_counts(usage: Usage) -> genai_prices.Usage:
    """Its input and output include their parts."""
    return genai_prices.Usage(
        input_tokens=usage.input_tokens_all(),
        output_tokens=usage.output_tokens_all(),
        cache_read_tokens=usage.cache_read,
        cache_write_tokens=usage.cache_write_5m + usage.cache_write_1h,
        cache_write_1h_tokens=usage.cache_write_1h,
        input_audio_tokens=usage.input_audio,
        output_audio_tokens=usage.output_audio,
        cache_audio_read_tokens=0,
        cache_audio_write_tokens=0,
    )


@pytest.mark.parametrize(("provider", "model"), priced_models())
@pytest.mark.parametrize("service_tier", ["", "flex", "priority"])
def test_a_bill_is_the_librarys(provider: str, model: str, service_tier: str):
    random = Random(f"{provider}/{model}")
    price = CARD.price_for(model)
    assert price is not None
    for _ in range(5):
        usage = any_usage(random)
        wanted = genai_prices.calc_price(
            as_the_library_counts(usage),
            model,
            provider_id=provider,
            genai_request_timestamp=datetime(DAY.year, DAY.month, DAY.day, 12, tzinfo=UTC),
            price_context={"service_tier": service_tier} if service_tier else None,
        ).total_price
        nanos = int((wanted * 10**9).to_integral_value(ROUND_HALF_EVEN))
        assert cost_nanos(price.narrowed(service_tier=service_tier), usage, PPM, PPM) == nanos


def test_enough_models_are_compared():
    assert len(priced_models()) > 200


@pytest.mark.parametrize(
    "name",
    [
        "gpt-4o", "gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-35-turbo", "text-embedding-3-small", "o3",
        "claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "claude-haiku-4-5-20251001", "gemini-2.5-flash",
        "gpt-image-1", "deepseek-chat", "mistral-large-latest", "tts-1", "whisper-1", "openai/gpt-4o",
    ],
)  # fmt: skip
def test_well_known_names_have_a_price(name: str):
    assert CARD.price_for(name) is not None


def test_dated_names_cost_what_their_model_costs():
    for name, dated in (("claude-sonnet-4-5", "claude-sonnet-4-5-20250929"), ("gpt-4.1", "gpt-4.1-20250414")):
        assert content(name) == content(dated)


def content(name: str) -> Any:
    price = CARD.price_for(name)
    return price.content if price else None


def test_every_content_is_a_price():
    for figures in official_prices("USD", {}, DAY).values():
        price_from_content(figures)


def test_prices_come_in_the_stations_currency():
    card = official_prices("CNY", {"USD": Decimal("7.2")}, DAY)
    assert card["gpt-4o"]["input"] == 18_000_000_000
    with pytest.raises(LookupError):
        official_prices("CNY", {"EUR": Decimal(8)}, DAY)


def test_a_price_by_the_hour_counts_at_its_dearest():
    peak = Decimal(0)
    for model in next(p for p in providers if p.id == "deepseek").models:
        if model.id == "deepseek-v4-pro":
            assert isinstance(model.prices, list)
            peak = max(price.prices.input_mtok for price in model.prices)
    assert content("deepseek-v4-pro")["input"] == peak * 10**9


def test_a_price_that_begins_later_does_not_count_yet():
    before = official_prices("USD", {}, date(2026, 10, 1))["gpt-4.1"]
    assert "priority" not in before.get("service_tiers", {})
    assert content("gpt-4.1")["service_tiers"]["priority"]["input"] == 3_500_000_000


def test_a_makers_name_is_not_priced_by_others():
    assert content("gpt-4o")["tools"]["web_search"] > 0
    assert set(MAKERS).isdisjoint(RESELLERS)


def test_the_library_is_loaded_only_where_prices_are_compiled():
    code = "import sys, proxy.dialects, proxy.metering.pricedata; print('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def test_pictures_that_the_library_does_not_price_are_priced_by_size_and_quality():
    price = price_from_content(official_prices("USD", {})["dall-e-3"])
    asked = [("", ""), ("1024x1024", "standard"), ("1024x1024", "hd"), ("1792x1024", "hd"), ("", "hd")]
    figures = [price.narrowed(size=size, quality=quality).content["image"] for size, quality in asked]
    assert [figure // 10_000_000 for figure in figures] == [4, 4, 8, 12, 8]
    usage = Usage(images=2, calls=1)
    assert cost_nanos(price.narrowed(size="1024x1792"), usage, PPM, PPM) == 160_000_000


@pytest.mark.parametrize(
    ("model", "kind"), [("gemini-2.5-flash", "grounding"), ("gemini-3.1-flash-lite", "web_search")]
)
def test_gemini_searches_are_charged_as_google_does(model: str, kind: str):
    """https://ai.google.dev/gemini-api/docs/pricing: by the grounded prompt up to 2.5, then by the search."""
    price = CARD.price_for(model)
    assert price is not None and set(price.tools) == {kind}
    assert unpriced_options(price, {"tools": [{"google_search": {}}]}, "text") == []
