"""Prices of single accounts, instead of what routes.yaml says.

Owns which of an account's overrides a model gets. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.routing.globs import Globs


@dataclass(frozen=True, slots=True)
class Override:
    """One of `ppm` and `content` is given: a multiplier in place of those of model and tier, or a price
    in place of the price and both multipliers."""

    id: int
    model: str  # a name or a glob
    ppm: int | None
    content: Mapping[str, Any] | None  # as metering.pricing keeps it


def override_for(overrides: Sequence[Override], model: str) -> Override | None:
    """Exact, else the most literal glob, as everywhere in routes.yaml."""
    if not overrides:
        return None
    by_model = {override.model: override for override in overrides}
    pattern = Globs(by_model).find(model)
    return None if pattern is None else by_model[pattern]
