"""Prices as routes.yaml may have them.

Owns their grammar; what a figure is worth in the station's currency is `loader.rates`'.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from proxy.routing.scalars import Flag, Money, Positive, Text


class Figures(BaseModel):
    """Amounts: the first ones per million tokens, the others for one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Money | None = None
    output: Money | None = None
    cache_read: Money | None = None
    cache_write_5m: Money | None = None
    cache_write_1h: Money | None = None
    input_audio: Money | None = None
    cached_audio: Money | None = None
    input_image: Money | None = None
    output_audio: Money | None = None
    output_image: Money | None = None
    call: Money | None = None
    second: Money | None = None
    character: Money | None = None
    image: Money | None = None
    tools: dict[Text, Money] = Field(default_factory=dict)  # ten thousand prices: copying {} is slower
    units: dict[Text, Money] = Field(default_factory=dict)
    sizes: dict[Text, Money] = Field(default_factory=dict)


class Level(Figures):
    """Figures of calls with more than so many input tokens."""

    input_tokens: Positive


class Price(Figures):
    above: list[Level] = Field(default_factory=list)
    service_tiers: dict[Text, Figures] = Field(default_factory=dict)
    multiplied: Flag = True
    free: Flag = False
