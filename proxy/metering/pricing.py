"""What usage costs: prices, and the one function that multiplies them.

Owns the form of a price and the arithmetic of money.md 1 to 4. Integers only: prices are nano-units
of the station's currency per million tokens, or per call, second, character, image, tool call or
unit; multipliers are parts per million. Pure.

The content of a price, as the rate card and the journal keep it (every member is optional):

    {"input": N, "output": N, "cache_read": N, "cache_write_5m": N, "cache_write_1h": N,
     "input_audio": N, "cached_audio": N, "input_image": N, "output_audio": N, "output_image": N,
     "call": N, "second": N, "character": N, "image": N,
     "tools": {kind: N per call}, "units": {kind: N per unit},
     "above": [{"input_tokens": 200000, "input": N, ...}, ...],
     "service_tiers": {"flex": {"input": N, ...}, ...},
     "sizes": {"1024x1024": N, "1024x1024/hd": N},
     "multiplied": false, "free": true}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import gcd
from operator import itemgetter
from typing import Any

import orjson
from msgspec import Struct

from proxy.metering.usage import Usage

PPM = 1_000_000  # a multiplier of one
SCALE = 1_000_000  # token prices are per million; unit prices are scaled to them
_SCALE_MULTIPLIED = SCALE * PPM * PPM

# Bucket -> where its price is, in order: a price that is missing is that of the plain text of its side.
TOKEN_BUCKETS: dict[str, tuple[str, ...]] = {
    "input": ("input",),
    "cache_read": ("cache_read", "input"),
    "cache_write_5m": ("cache_write_5m", "input"),
    "cache_write_1h": ("cache_write_1h", "cache_write_5m", "input"),
    "input_audio": ("input_audio", "input"),
    "cached_audio": ("cached_audio", "cache_read", "input_audio", "input"),
    "input_image": ("input_image", "input"),
    "output": ("output",),
    "output_audio": ("output_audio", "output"),
    "output_image": ("output_image", "output"),
}
# Bucket -> (its price, what one of it is worth in SCALE): thousandths of a second, characters, ...
UNIT_BUCKETS: dict[str, tuple[str, int]] = {
    "seconds_ms": ("second", SCALE // 1000),
    "characters": ("character", SCALE),
    "images": ("image", SCALE),
    "calls": ("call", SCALE),
}
FIGURES = frozenset(TOKEN_BUCKETS) | {name for name, _ in UNIT_BUCKETS.values()}


# Nanos x 10^6 of one of each bucket of a Usage that can have a price, whatever a price names and leaves out.
Figures = Mapping[str, int]


@dataclass(frozen=True)
class Price:
    """What one model costs. `id` is the hash of `content`; a price with another content is another."""

    id: str
    content: Mapping[str, Any]
    free: bool = False
    multiplied: bool = True
    tools: Mapping[str, int] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    # By what `narrowed` makes a difference.
    service_tiers: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def _levels(self) -> tuple[tuple[int, Figures], ...]:
        """(above so many input tokens, figures of the buckets), the highest first, 0 last."""
        named = {name: value for name, value in self.content.items() if name in FIGURES}
        levels = [(0, _resolved(named))]
        for level in sorted(self.content.get("above", ()), key=itemgetter("input_tokens")):
            named |= level  # what a level does not name stays as below it
            levels.append((level["input_tokens"], _resolved(named)))
        return tuple(reversed(levels))

    @cached_property
    def flat(self) -> Figures | None:
        """The figures for every call; None where they depend on the input."""
        return self._levels[0][1] if len(self._levels) == 1 else None

    def figures(self, input_tokens: int) -> Figures:
        """The figures for a call with so many input tokens."""
        for above, figures in self._levels:
            if input_tokens > above:
                return figures
        return self._levels[-1][1]

    def narrowed(self, *, service_tier: str = "", size: str = "", quality: str = "") -> Price:
        """The price under what the answer (or request) said; the same price where it makes no difference."""
        content = dict(self.content)
        if changes := content.get("service_tiers", {}).get(service_tier):
            del content["service_tiers"]
            content |= changes
        figure = size_figure(content, size, quality)
        if figure is not None:
            del content["sizes"]
            content["image"] = figure
        return self if content == self.content else price_from_content(content)


def _resolved(named: Mapping[str, int]) -> Figures:
    tokens = {
        bucket: next((named[name] for name in names if name in named), 0)
        for bucket, names in TOKEN_BUCKETS.items()
    }
    units = {bucket: named.get(name, 0) * worth for bucket, (name, worth) in UNIT_BUCKETS.items()}
    return tokens | units


def price_from_content(content: Mapping[str, Any]) -> Price:
    """Raises ValueError on a member that this build does not know or a figure that is no integer."""
    canonical = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    _check(content)
    return Price(
        id=hashlib.sha256(canonical).hexdigest()[:16],
        content=content,
        free=bool(content.get("free", False)),
        multiplied=bool(content.get("multiplied", True)),
        tools=content.get("tools", {}),
        units=content.get("units", {}),
        service_tiers=content.get("service_tiers", {}),
        sizes=content.get("sizes", {}),
    )


_TABLES = frozenset({"tools", "units", "sizes"})
_FLAGS = frozenset({"multiplied", "free"})


def _check(content: Mapping[str, Any]) -> None:
    for name, value in content.items():
        if name in FIGURES:
            _check_figure(name, value)
        elif name in _TABLES:
            for kind, figure in value.items():
                _check_figure(f"{name}.{kind}", figure)
        elif name == "above":
            for level in value:
                _check({k: v for k, v in level.items() if k != "input_tokens"})
                _check_figure("above.input_tokens", level["input_tokens"])
        elif name == "service_tiers":
            for tier in value.values():
                _check(tier)
        elif name not in _FLAGS:
            raise ValueError(f"a price has no member {name!r}")


def _check_figure(name: str, value: object) -> None:
    if type(value) is not int or value < 0:
        raise ValueError(f"the price {name!r} must be a whole number of nanos, not {value!r}")


def is_glob(name: str) -> bool:
    """`*` is the only wildcard, as everywhere in routes.yaml."""
    return "*" in name


@lru_cache(maxsize=4096)
def glob_pattern(glob: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, glob.split("*"))), re.DOTALL)


def cost_nanos(price: Price, usage: Usage, model_ppm: int, tier_ppm: int) -> int:
    """Nano-units of the station's currency: the one place where usage becomes money.

    One division for the whole call, rounded half to even, as SQL does in NUMERIC:
    sum(quantity x price) x model_ppm x tier_ppm / 10^18.
    """
    return cost_of(price, usage, usage.as_dict(), model_ppm, tier_ppm)


def cost_of(price: Price, usage: Usage, told: Mapping[str, Any], model_ppm: int, tier_ppm: int) -> int:
    """The same for who has it as a dict already: most of it is not even there."""
    if price.free:
        return 0
    at = price.flat or price.figures(usage.input_tokens_all())
    total: int = 0
    for bucket, count in told.items():
        if bucket in at:
            total += count * at[bucket]
    if usage.tools or usage.units or usage.waived:
        total += _cost_of_kinds(price, at, usage)
    if not price.multiplied:
        return round_half_even(total, SCALE)
    return round_half_even(total * model_ppm * tier_ppm, _SCALE_MULTIPLIED)


class TextRate(Struct, frozen=True):
    """What calls cost that consume nothing but text: `cost_nanos`, with all that is fixed worked out."""

    input: int
    output: int
    cache_read: int
    call: int
    divisor: int

    def cost_nanos(self, input_tokens: int, output_tokens: int, cache_read: int = 0) -> int:
        total = input_tokens * self.input + output_tokens * self.output + self.call
        if cache_read:
            total += cache_read * self.cache_read
        # Most prices are whole nanos a token.
        return total if self.divisor == 1 else round_half_even(total, self.divisor)


def text_rate(price: Price, model_ppm: int, tier_ppm: int) -> TextRate | None:
    """None: what one token costs depends on how many there are."""
    if price.free:
        return TextRate(0, 0, 0, 0, 1)
    at = price.flat
    if at is None:
        return None
    ppm = model_ppm * tier_ppm if price.multiplied else PPM * PPM
    figures = (at["input"], at["output"], at["cache_read"], at["calls"])
    rate = (*(figure * ppm for figure in figures), _SCALE_MULTIPLIED)
    common = gcd(*rate)  # shorter integers, the same fraction
    return TextRate(*(part // common for part in rate))


def _cost_of_kinds(price: Price, at: Figures, usage: Usage) -> int:
    tools = sum(count * price.tools.get(kind, 0) for kind, count in usage.tools.items())
    units = sum(count * unit_figure(price, at, kind) for kind, count in usage.units.items())
    waived: int = sum(
        (getattr(usage, bucket) - usage.charged(bucket)) * at[bucket] for bucket in usage.waived
    )
    return tools * SCALE + units - waived


def unit_figure(price: Price, at: Figures, kind: str) -> int:
    """Nanos x 10^6 of one unit. One without a price of its own that counts tokens costs what the model's
    tokens cost."""
    bucket = token_bucket(kind)
    if kind in price.units:
        return price.units[kind] if bucket else price.units[kind] * SCALE
    return at[bucket] if bucket else 0


def token_bucket(kind: str) -> str | None:
    """`compaction_cache_read` counts tokens of `cache_read`: prices are per million. None: no tokens."""
    bucket = kind.partition("_")[2]
    return bucket if bucket in TOKEN_BUCKETS else None


def round_half_even(amount: int, divisor: int) -> int:
    """amount / divisor to the nearest integer; a tie goes to the even one. divisor > 0."""
    whole, rest = divmod(amount, divisor)
    double = rest + rest
    if double == divisor:
        return whole + whole % 2
    return whole + 1 if double > divisor else whole


# -- options of a request --------------------------------------------------------------------------


def size_figure(content: Mapping[str, Any], size: str, quality: str) -> int | None:
    """Nanos per image of a size and quality, by the most particular name in `sizes`."""
    sizes: Mapping[str, int] = content.get("sizes", {})
    return next((sizes[name] for name in (f"{size}/{quality}", size, f"*/{quality}") if name in sizes), None)


_PLAIN = frozenset({"auto", "default", "standard", "standard_only", "on_demand"})
# Tools that the client runs itself, or that cost nothing but tokens.
_FREE_TOOLS = (
    "function", "custom", "computer", "text_editor", "bash", "memory", "web_fetch", "tool_search", "mcp",
    "local_shell", "apply_patch", "namespace",
)  # fmt: skip
# `web_search_20250305`, `web_search_preview`, `web_search_preview_2025_03_11`: the same tool.
_VERSION = re.compile(r"(?:_preview)?(?:_\d{8}|_\d{4}_\d\d_\d\d)?$")


def unpriced_options(price: Price, request: Mapping[str, Any], kind: str) -> list[str]:
    """What a request asks for that has no price here: the call must be refused, never be free.

    Names of request members (`service_tier`, `speed`, `tools`, `size`), or `input` and `output` when
    the price lacks a whole side of what an operation of this kind consumes.
    """
    if price.free:
        return []
    missing = []
    for name in ("service_tier", "speed"):
        asked = request.get(name)
        if asked is not None and not _is_priced(asked, price.content):
            missing.append(name)
    kinds = tool_kinds(request) if "tools" in request or "web_search_options" in request else ()
    if not all(_is_tool_priced(kind, price) for kind in kinds):
        missing.append("tools")
    if is_priced_plainly(price, kind):
        return missing
    return missing + _unpriced_sides(price.content, request, kind)


OPTIONS = frozenset({"service_tier", "speed", "tools", "web_search_options"})


def is_priced_plainly(price: Price, kind: str) -> bool:
    """Has a request of this kind a price whenever it has none of OPTIONS? True of nearly every price."""
    return price.free or (kind not in _SIDES and "input" in price.content and "output" in price.content)


# What must have a price, by the kind of an operation: of each group one figure or unit. Others: both sides.
_BOTH = (("input",), ("output",))
_SIDES: dict[str, tuple[tuple[str, ...], ...]] = {
    "calls": (("call",),),
    "amounts": (("call", "second", "image", "character"),),
    "embeddings": (("input",),),
    "images": (("output", "output_image", "image"),),
    "pages": (("page",),),
    "predictions": (("image", "input"),),
    "rerank": (("input", "search_unit"),),
    "speech": (("character", "second", "output", "output_audio"),),
    "transcription": (("second", "input", "input_audio"),),
    "training": (("training_input",),),
    "caching": (("input",), ("token_hour",)),
}


def _is_priced(tier: object, content: Mapping[str, Any]) -> bool:
    return type(tier) is str and (tier in _PLAIN or tier in content.get("service_tiers", ()))


def _unpriced_sides(content: Mapping[str, Any], request: Mapping[str, Any], kind: str) -> list[str]:
    if "call" in content:
        return []
    if kind == "images" and "sizes" in content:
        size, quality = str(request.get("size", "")), str(request.get("quality", ""))
        return [] if size_figure(content, size, quality) is not None or "image" in content else ["size"]
    priced = content.keys() | content.get("units", {}).keys()
    return [names[0] for names in _SIDES.get(kind, _BOTH) if priced.isdisjoint(names)]


def _is_tool_priced(kind: str, price: Price) -> bool:
    return kind in price.tools or f"{kind}_input" in price.units or _PER_ANSWER.get(kind, "") in price.tools


# Gemini's tools are told by the name of a member; for some models an answer that searched is charged, for
# others each search.
_BY_MEMBER = {
    "google_search": "web_search",
    "googleSearch": "web_search",
    "google_search_retrieval": "web_search",
    "googleSearchRetrieval": "web_search",
    "google_maps": "google_maps",
    "googleMaps": "google_maps",
    "enterpriseWebSearch": "enterprise_web_search",
}
_PER_ANSWER = {"web_search": "grounding"}


def tool_kinds(request: Mapping[str, Any]) -> list[str]:
    """Server tools that a request offers, without their version: `web_search_20250305` -> `web_search`."""
    kinds: list[str] = []
    tools = request.get("tools")
    for tool in tools if type(tools) is list else ():
        kind = tool.get("type") if type(tool) is dict else None
        if type(kind) is str and not kind.startswith(_FREE_TOOLS):
            kinds.append(_VERSION.sub("", kind))
        elif kind is None and type(tool) is dict:
            kinds += [_BY_MEMBER[name] for name in tool if name in _BY_MEMBER]
    if request.get("web_search_options") is not None:
        kinds.append("web_search")
    return kinds
