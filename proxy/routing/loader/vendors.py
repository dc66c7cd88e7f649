"""What the loader must know of dialects and official prices; both live in layers above or beside it.

Owns the shapes of these arguments only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol


class Operation(Protocol):
    """See dialects.base.OperationSpec."""

    @property
    def name(self) -> str: ...
    @property
    def api(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def methods(self) -> tuple[str, ...]: ...
    @property
    def model_at(self) -> str: ...
    @property
    def guarded(self) -> tuple[str, ...]: ...
    @property
    def request(self) -> str: ...


class Dialect(Protocol):
    """See dialects.base.Dialect."""

    @property
    def operations(self) -> Mapping[str, Operation]: ...
    @property
    def paths(self) -> Mapping[str, str]: ...
    @property
    def query(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def auth(self) -> tuple[bytes, bytes]: ...


Content = dict[str, Any]  # of a price, as metering.pricing has it
OfficialPrices = Callable[[str, Mapping[str, Decimal]], Mapping[str, Content]]


@dataclass(frozen=True, slots=True)
class Vendors:
    """The dialects of this build, the official prices by model name, the built-in task families as texts.

    `prices` takes the station's currency and rates; it raises LookupError when a rate is missing.
    """

    dialects: Mapping[str, Dialect]
    prices: OfficialPrices
    families: Mapping[str, str] = field(default_factory=dict)
