"""How an amount is shown: nano-units of the station's currency as a decimal text, exact.

Reading amounts is `routing.units`'.
"""

from __future__ import annotations

from decimal import Decimal


def as_text(nanos: int) -> str:
    """12_500_000_000 -> '12.5'; never an exponent, no zeros behind the last digit."""
    return plain(Decimal(nanos).scaleb(-9))


def plain(value: Decimal) -> str:
    """Without exponent and without zeros behind the last digit."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
