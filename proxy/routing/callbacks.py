"""How the station takes part in callbacks: where vendors may call it, and what it may call itself.

Owns the shape of the compiled section `callbacks`. Immutable and pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.routing.foreign import Network, networks

PREFIX = "/callbacks/"


@dataclass(frozen=True, slots=True)
class Callbacks:
    """`url` is where vendors are told to call, without the token; "": they are given nothing to call."""

    url: str = ""
    allow: tuple[Network, ...] = ()  # networks beside the public ones that customers' URLs may lead to


def callbacks_from(data: Mapping[str, Any] | None) -> Callbacks:
    """From the table's document."""
    return Callbacks(data["url"], networks(data["allow"])) if data is not None else Callbacks()
