"""Preferences of mirrors in JSON bodies: `"auto"`, a name, or names in the order to try.

Owns how they are read; what they mean is proxy/routing/selection.py's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from proxy.errors import ClientFault
from proxy.routing.selection import AUTO, Preference, preference


def preference_member(
    document: dict[str, Any], name: str, known: Collection[str] | None = None
) -> Preference:
    """`known`: the station's mirrors, where whoever asks should be told of a slip. Raises ClientFault."""
    value = document[name]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ClientFault(f"{name!r} must be 'auto', the name of a mirror, or a list of names.", param=name)
    try:
        chosen = preference(names)
    except ValueError as e:
        raise ClientFault(f"{name!r}: {e}.", param=name) from e
    if known is not None and not {AUTO, *known}.issuperset(names):
        raise ClientFault(f"{name!r}: the mirrors are {', '.join(sorted(known))}.", param=name)
    return chosen
