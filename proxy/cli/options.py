"""How the values of options are written: names, limits, amounts, moments.

Owns their reading; argparse shows the words of a mistake.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from proxy.access.limits import KINDS, SPEND
from proxy.routing import texts, units
from proxy.routing.selection import AUTO, Preference, preference

ALL = "all"  # takes a restriction of a key away again


def told(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse shows the words of an ArgumentTypeError only."""

    def parse(text: str) -> Any:
        try:
            return read(text)
        except ValueError as e:
            raise argparse.ArgumentTypeError(f"{text!r}: {e}") from e

    return parse


def names(text: str) -> tuple[str, ...] | None:
    return None if text == ALL else tuple(name.strip() for name in text.split(",") if name.strip())


def yes_or_no(text: str) -> bool | None:
    if text not in ("yes", "no"):
        raise ValueError("must be yes or no")
    return True if text == "yes" else None


def mirror(text: str) -> Preference:
    return preference(names(text) or (AUTO,))


def limit(text: str) -> int | None:
    return None if text == ALL else units.whole(text)


def amount_limit(text: str) -> int | None:
    return None if text == ALL else nanos(text)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """An option per kind of limit; what is not given is not in the namespace."""
    for kind, of in KINDS.items():
        what, read = ("an amount", amount_limit) if of.unit == SPEND else ("a number", limit)
        option = "--" + kind.replace("_", "-")
        words = f"{what}, or {ALL}: the tier's alone"
        parser.add_argument(option, type=told(read), default=argparse.SUPPRESS, help=words)


def nanos(text: str) -> int:
    """An amount in the station's currency, to the last of nine digits behind the point."""
    found = units.amount(text.removeprefix("-"))
    exact = units.nanos(found.value, Decimal(1))
    if found.currency is not None or Decimal(exact) != found.value * units.NANOS:
        raise ValueError("must be an amount in the station's currency, without its name")
    return -exact if text.startswith("-") else exact


def networks(text: str) -> tuple[str, ...] | None:
    found = names(text)
    return None if found is None else tuple(map(texts.network, found))


def moment(text: str) -> datetime | None:
    if text == "never":
        return None
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def listed(names: str | Sequence[str] | None) -> str:
    """In a cell of a table."""
    return names if isinstance(names, str) else ",".join(names or ("-",))
