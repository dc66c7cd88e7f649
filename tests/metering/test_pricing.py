"""Money is integers, multiplied in one place, rounded once; what has no price is refused, never free."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.metering.pricing import (
    FIGURES,
    PPM,
    TOKEN_BUCKETS,
    UNIT_BUCKETS,
    cost_nanos,
    is_priced_plainly,
    price_from_content,
    round_half_even,
    text_rate,
    unpriced_options,
)
from proxy.metering.usage import Usage

M = 1_000_000


def cost(content: dict[str, Any], usage: Usage, model_ppm: int = PPM, tier_ppm: int = PPM) -> int:
    return cost_nanos(price_from_content(content), usage, model_ppm, tier_ppm)


# -- arithmetic --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "divisor", "rounded"),
    [
        (5, 10, 0),
        (15, 10, 2),
        (25, 10, 2),
        (26, 10, 3),
        (24, 10, 2),
        (0, 3, 0),
        (10**30 + 1, 10, 10**29),
        (-5, 10, 0),
    ],
)
def test_a_tie_goes_to_the_even_one(amount: int, divisor: int, rounded: int):
    assert round_half_even(amount, divisor) == rounded == round(Fraction(amount, divisor))


def test_a_bill_by_hand():
    # 1,000 uncached, 500 cached and 200 output tokens of a model at 2.50, 1.25 and 10 per million.
    content = {"input": 2_500_000_000, "cache_read": 1_250_000_000, "output": 10_000_000_000}
    usage = Usage(input=1000, cache_read=500, output=200)
    assert cost(content, usage) == 2_500_000 + 625_000 + 2_000_000
    assert cost(content, usage, 1_500_000, 500_000) == (2_500_000 + 625_000 + 2_000_000) * 3 // 4


contents = st.dictionaries(st.sampled_from(sorted(FIGURES)), st.integers(0, 10**12), max_size=14)
quantities = st.builds(
    Usage,
    **{name: st.integers(0, 10**7) for name in (*TOKEN_BUCKETS, *UNIT_BUCKETS)},
    tools=st.dictionaries(st.sampled_from(["web_search", "other"]), st.integers(0, 50)),
    units=st.dictionaries(st.sampled_from(["page", "compaction_input"]), st.integers(0, 5000)),
)
multipliers = st.integers(0, 5 * PPM)


@settings(max_examples=200, deadline=None)
@given(contents, quantities, multipliers, multipliers)
def test_one_division_for_the_whole_call(
    content: dict[str, Any], usage: Usage, model_ppm: int, tier_ppm: int
):
    content = {**content, "tools": {"web_search": 7}, "units": {"page": 11}}
    exact = Fraction(usage.tools.get("web_search", 0) * 7 + usage.units.get("page", 0) * 11)
    for bucket, names in TOKEN_BUCKETS.items():
        figure = next((content[name] for name in names if name in content), 0)
        exact += Fraction(getattr(usage, bucket) * figure, M)
    exact += Fraction(usage.units.get("compaction_input", 0) * content.get("input", 0), M)
    exact += usage.calls * content.get("call", 0) + usage.images * content.get("image", 0)
    exact += usage.characters * content.get("character", 0)
    exact += Fraction(usage.seconds_ms * content.get("second", 0), 1000)
    assert cost(content, usage, model_ppm, tier_ppm) == round(exact * model_ppm * tier_ppm / (PPM * PPM))


@settings(max_examples=100, deadline=None)
@given(contents, st.booleans(), multipliers, multipliers, *[st.integers(0, 10**7)] * 3)
def test_a_text_costs_by_its_rate_what_it_costs(
    content: dict[str, int],
    multiplied: bool,
    model_ppm: int,
    tier_ppm: int,
    tokens: int,
    output: int,
    cached: int,
):
    price = price_from_content({**content, "multiplied": multiplied})
    rate = text_rate(price, model_ppm, tier_ppm)
    assert rate is not None
    usage = Usage(calls=1, input=tokens, output=output, cache_read=cached)
    assert rate.cost_nanos(tokens, output, cached) == cost_nanos(price, usage, model_ppm, tier_ppm)


def test_a_text_has_no_rate_where_its_price_depends_on_its_length():
    above = [{"input_tokens": 200_000, "input": 2}]
    assert text_rate(price_from_content({"input": 1, "output": 1, "above": above}), PPM, PPM) is None
    free = text_rate(price_from_content({"free": True, "input": 1, "call": 9}), PPM, PPM)
    assert free is not None and free.cost_nanos(10**9, 10**9) == 0


@given(contents, quantities, quantities)
def test_more_usage_never_costs_less(content: dict[str, Any], usage: Usage, more: Usage):
    sums = {name: getattr(usage, name) + getattr(more, name) for name in (*TOKEN_BUCKETS, *UNIT_BUCKETS)}
    assert cost(content, Usage(**sums)) >= cost(
        content, Usage(**{name: getattr(usage, name) for name in sums})
    )


# -- what a price says -----------------------------------------------------------------------------


def test_what_is_cached_costs_as_input_where_it_has_no_price():
    content = {"input": 3 * M, "output": 9 * M}
    for bucket in (
        "cache_read",
        "cache_write_5m",
        "cache_write_1h",
        "input_audio",
        "cached_audio",
        "input_image",
    ):
        assert cost(content, Usage(**{bucket: 10})) == 30
    for bucket in ("output_audio", "output_image"):
        assert cost(content, Usage(**{bucket: 10})) == 90


def test_an_hour_of_cache_costs_as_five_minutes_before_it_costs_as_input():
    assert cost({"input": M, "cache_write_5m": 2 * M}, Usage(cache_write_1h=10)) == 20


def test_reasoning_is_a_note_and_not_priced_again():
    assert cost({"input": M, "output": M}, Usage(output=10, reasoning=10)) == 10


def test_free_is_free_and_not_multiplied_is_not_multiplied():
    assert cost({"free": True, "input": M}, Usage(input=5)) == 0
    assert cost({"call": 300, "multiplied": False}, Usage(calls=1), 2 * PPM, 3 * PPM) == 300


def test_a_long_context_costs_its_level_for_all_tokens():
    long = {"input_tokens": 100, "input": 3 * M, "output": 4 * M}
    content = {"input": M, "output": M, "above": [{"input_tokens": 200, "input": 2 * M}, long]}
    assert cost(content, Usage(input=100, output=10)) == 110  # "above" is above
    assert cost(content, Usage(input=60, cache_read=41, output=10)) == 101 * 3 + 10 * 4
    assert (
        cost(content, Usage(input=201, output=10)) == 201 * 2 + 10 * 4
    )  # what it does not name stays as below


def test_tools_cost_per_call_and_tokens_on_top_cost_as_tokens():
    content = {
        "input": 2 * M,
        "output": 8 * M,
        "tools": {"web_search": 10},
        "units": {"advisor_input": 5 * M},
    }
    assert cost(content, Usage(tools={"web_search": 3})) == 30
    assert cost(content, Usage(units={"compaction_input": 7, "compaction_output": 1})) == 22
    assert cost(content, Usage(units={"advisor_input": 7})) == 35


def test_what_the_vendor_counts_and_waives_costs_nothing():
    price = price_from_content({"input": 2_000_000_000, "output": 8_000_000_000})
    counted = Usage(input=54, cache_read=448, output=24, waived={"cache_read": 448, "input": 47, "output": 3})
    billed = Usage(input=7, output=21)
    assert cost_nanos(price, counted, PPM, PPM) == cost_nanos(price, billed, PPM, PPM)
    assert counted.input_tokens_all() == 502


def test_the_answers_service_tier_decides():
    content = {
        "input": 4 * M,
        "above": [{"input_tokens": 100, "input": 8 * M}],
        "service_tiers": {"flex": {"input": 2 * M, "above": []}},
    }
    price = price_from_content(content)
    assert price.narrowed(service_tier="default") is price
    assert price.narrowed(service_tier="") is price
    flex = price.narrowed(service_tier="flex")
    assert flex.id != price.id
    assert cost_nanos(flex, Usage(input=1000), PPM, PPM) == 2000


def test_the_most_particular_size_counts():
    price = price_from_content({"image": 1, "sizes": {"1024x1024": 40, "1024x1024/hd": 80, "*/hd": 99}})
    images = Usage(images=2)
    assert [
        cost_nanos(price.narrowed(size=size, quality=quality), images, PPM, PPM)
        for size, quality in (("1024x1024", ""), ("1024x1024", "hd"), ("512x512", "hd"), ("512x512", ""))
    ] == [80, 160, 198, 2]


def test_a_price_with_another_content_has_another_id():
    one, two = price_from_content({"input": 1, "output": 2}), price_from_content({"output": 2, "input": 1})
    assert one.id == two.id
    assert len(one.id) == 16
    assert price_from_content({"input": 1, "output": 3}).id != one.id


@pytest.mark.parametrize(
    "content",
    [
        {"imput": 1},
        {"input": 1.5},
        {"input": -1},
        {"input": "1"},
        {"input": True},
        {"tools": {"x": 0.5}},
        {"above": [{"input_tokens": 5, "outputt": 1}]},
        {"service_tiers": {"flex": {"x": 1}}},
    ],
)
def test_a_price_that_is_not_understood_is_refused(content: dict[str, Any]):
    with pytest.raises(ValueError, match="price"):
        price_from_content(content)


# -- options -----------------------------------------------------------------------------------------

PRICED = {
    "input": 1, "output": 1, "tools": {"web_search": 5}, "units": {"advisor_input": 1},
    "service_tiers": {"flex": {"input": 1}, "fast": {"input": 2}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("request_doc", "missing"),
    [
        ({}, []),
        ({"service_tier": "auto"}, []),
        ({"service_tier": "flex"}, []),
        ({"service_tier": "priority"}, ["service_tier"]),
        ({"service_tier": ["flex"]}, ["service_tier"]),
        ({"speed": "fast"}, []),
        ({"speed": "ludicrous"}, ["speed"]),
        (
            {"tools": [{"type": "function"}, {"name": "own"}, {"type": "custom"}, {"type": "bash_20250124"}]},
            [],
        ),
        ({"tools": [{"type": "web_search_20250305"}]}, []),
        ({"tools": [{"type": "web_search_20250305"}, {"type": "code_execution_20250825"}]}, ["tools"]),
        ({"tools": [{"type": "advisor_20260301"}]}, []),
        ({"tools": "nonsense"}, []),
        ({"tools": [{"type": "web_search_preview_2025_03_11"}, {"type": "web_search_preview"}]}, []),
        ({"tools": [{"type": "image_generation"}]}, ["tools"]),
        ({"tools": [{"type": "local_shell"}, {"type": "mcp"}]}, []),
        ({"web_search_options": {}}, []),
        ({"tools": [{"google_search": {}}, {"functionDeclarations": []}, {"url_context": {}}]}, []),
        ({"tools": [{"googleMaps": {}}]}, ["tools"]),
    ],
)
def test_an_option_that_costs_extra_needs_a_price(request_doc: dict[str, Any], missing: list[str]):
    assert unpriced_options(price_from_content(PRICED), request_doc, "chat") == missing


@pytest.mark.parametrize(
    ("content", "request_doc", "missing"),
    [
        ({"image": 5}, {"size": "512x512", "quality": "hd"}, []),
        ({"output": 5, "input": 1}, {"size": "512x512"}, []),
        ({"sizes": {"512x512": 5}}, {"size": "512x512"}, []),
        ({"sizes": {"512x512": 5}}, {"size": "1024x1024"}, ["size"]),
        ({"sizes": {"512x512": 5}}, {}, ["size"]),
        ({"input": 5}, {}, ["output"]),
    ],
)
def test_images_are_priced_by_piece_by_size_or_by_token(
    content: dict[str, Any], request_doc: dict[str, Any], missing: list[str]
):
    assert unpriced_options(price_from_content(content), request_doc, "images") == missing


@pytest.mark.parametrize(
    ("content", "operation", "missing"),
    [
        ({"input": 5}, "embeddings", []),
        ({"input": 5}, "chat", ["output"]),
        ({"output": 5}, "messages", ["input"]),
        ({"call": 5}, "chat", []),
        ({"character": 5}, "speech", []),
        ({"input": 5}, "speech", ["character"]),
        ({"second": 5}, "transcription", []),
        ({"output": 5}, "transcription", ["second"]),
        ({"input": 5, "output": 5}, "calls", ["call"]),
        ({"input": 5, "output": 5}, "training", ["training_input"]),
        ({"units": {"training_input": 5}}, "training", []),
        ({"free": True}, "chat", []),
        ({}, "completions", ["input", "output"]),
    ],
)
def test_a_side_without_a_price_is_not_free(content: dict[str, Any], operation: str, missing: list[str]):
    price = price_from_content(content)
    assert unpriced_options(price, {}, operation) == missing
    assert not (missing and is_priced_plainly(price, operation))
