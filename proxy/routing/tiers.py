"""What the station sells, as the compiled table has it: tiers with their limits and quotas, gateways.

Owns these shapes. Immutable and pure; amounts are nano-units of the station's currency, multipliers parts
per million.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.routing.units import Period


@dataclass(frozen=True, slots=True)
class OnOutage:
    """What a node may grant while Postgres is away."""

    kind: str = "refuse"  # allowance | unlimited | refuse
    allowance_nanos: int = 0  # per account and node


@dataclass(frozen=True, slots=True)
class Limits:
    """What calls may take together; None: any number. The names are those of access.limits.KINDS."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    spend_per_day: int | None = None  # nanos
    spend_per_month: int | None = None
    concurrency: int | None = None

    def amounts(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class FreeQuota:
    """What calls cost nothing until it is used up, in each period of the station's calendar."""

    amount_nanos: int
    every: Period


@dataclass(frozen=True, slots=True)
class Earning:
    """Whoever pays so much within such a time has the tier for that time."""

    top_up_nanos: int
    lasts: Period


@dataclass(frozen=True, slots=True)
class Tier:
    name: str
    rank: int
    models: tuple[str, ...]  # globs
    multiplier_ppm: int
    limits: Limits
    hold: str  # estimate | max
    on_outage: OnOutage | None
    free_quota: FreeQuota | None
    earned_by: tuple[Earning, ...]


@dataclass(frozen=True, slots=True)
class Gateway:
    """Who tells of payments."""

    name: str
    kind: str  # epay | stripe | hmac
    secret: str = field(repr=False)
    url: str
    pid: str
    currency: str
    rate: str  # what one unit of its currency is worth in the station's
    window_ms: int


def limits_from(data: Mapping[str, Any] | None) -> Limits | None:
    return Limits(**data) if data else None


def _on_outage(data: Mapping[str, Any] | None) -> OnOutage | None:
    return None if data is None else OnOutage(**data)


def tier_from(data: Mapping[str, Any]) -> Tier:
    quota = data["free_quota"]
    return Tier(
        **{
            **data,
            "models": tuple(data["models"]),
            "limits": Limits(**data["limits"]),
            "on_outage": _on_outage(data["on_outage"]),
            "free_quota": quota and FreeQuota(quota["amount_nanos"], Period(*quota["every"])),
            "earned_by": tuple(Earning(nanos, Period(*lasts)) for nanos, lasts in data["earned_by"]),
        }
    )
