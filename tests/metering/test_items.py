"""The items of a bill add up to its cost."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from proxy.metering.items import Item, items
from proxy.metering.pricing import FIGURES, PPM, cost_nanos, price_from_content
from proxy.metering.usage import FIELDS, Usage

counts = st.integers(0, 10**7)
figures = st.integers(0, 10**12)
KINDS = ("web_search", "compaction_input")
contents = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(sorted(FIGURES), figures),
        "tools": st.fixed_dictionaries({"web_search": figures}),
        "units": st.dictionaries(st.sampled_from(KINDS), figures),
        "above": st.just([{"input_tokens": 1000, "input": 7}]),
        "free": st.booleans(),
    },
)
usages = st.fixed_dictionaries(
    {
        **{f.name: counts for f in FIELDS if f.default == 0},
        "tools": st.dictionaries(st.just("web_search"), counts),
        "units": st.dictionaries(st.sampled_from(KINDS), counts),
    }
)


@given(contents, usages)
def test_items_add_up_to_the_cost_before_its_multipliers(content, buckets):
    price, usage = price_from_content(content), Usage.from_dict(buckets)
    total = sum(Fraction(i.count * i.price_nanos, i.per) for i in items(price, usage))
    assert round(total) == cost_nanos(price, usage, PPM, PPM)


def test_each_bucket_is_told_with_its_own_price():
    content = {"input": 10, "cache_read": 1, "output": 40, "second": 5, "tools": {"code": 3}}
    usage = Usage(input=7, cache_read=8, output=9, reasoning=4, seconds_ms=1500, calls=1, tools={"code": 2})
    assert list(items(price_from_content(content), usage)) == [
        Item("input", 7, 10, 1_000_000),
        Item("cache_read", 8, 1, 1_000_000),
        Item("output", 9, 40, 1_000_000),
        Item("seconds_ms", 1500, 5, 1000),
        Item("code", 2, 3, 1),
    ]
