"""What changes between two compiled routes.yaml: facts for `headrace diff`, as plain JSON values.

Owns which fields count as a change: not lines, not the order of the file, and of secrets only that they
are others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.routing.parameters import Parameters, in_words
from proxy.snapshot import Rates

UNSEEN = "another secret"

Row = Mapping[str, Any]

# Section of the answer -> (section of the document, how its rows are named).
_SECTIONS = {
    "station": "station",
    "results": "results",
    "endpoint": "endpoints",
    "upstream": "upstreams",
    "route": "routes",
    "tasks": "families",
    "model": "models",
    "tier": "tiers",
    "multiplier": "multipliers",
    "price": "prices",
}


def difference(old: Row, new: Row) -> list[dict[str, Any]]:
    """One row per change: what, name, and either `added`, `removed` or `changed` {member: [old, new]}."""
    changes: list[dict[str, Any]] = []
    for what, section in _SECTIONS.items():
        before, after = _named(old, section), _named(new, section)
        for name in sorted(before.keys() | after.keys()):
            if name not in after:
                changes.append({"what": what, "name": name, "change": "removed"})
            elif name not in before:
                changes.append({"what": what, "name": name, "change": "added"})
            elif members := _changed(before[name], after[name]):
                changes.append({"what": what, "name": name, "change": "changed", "members": members})
    return changes


def _named(document: Row, section: str) -> dict[str, dict[str, Any]]:
    """The rows of a section by name, flat: `mirrors.cdn.host` -> value."""
    rows: Any = _prices(document) if section == "prices" else document.get(section)
    if section in ("station", "results"):
        return {section: _flat(rows)} if rows else {}
    if section == "routes":
        return {f"{'|'.join(row['methods'])} {row['path']}": _flat(_told(row)) for row in rows}
    if isinstance(rows, list):
        return {row["name"]: _flat(row) for row in rows}
    return {name: _flat(row) if isinstance(row, dict) else {"": row} for name, row in rows.items()}


def _told(route: Row) -> Row:
    """Each rule for parameters is a member of its own, in the words that callers are told."""
    given = route["parameters"]
    if given is None:
        return route
    rules = {in_words(rule): True for rule in Parameters.from_document(given).rules}
    return {**route, "parameters": {**given, "rules": rules}}


def _prices(document: Row) -> dict[str, Any]:
    """What each name or glob costs; for the models of the file, what they cost in the end."""
    own, official = document["prices"], document["official_prices"]
    rates = Rates(own, official)
    sold = {name: price.content for name in document["models"] if (price := rates.price_for(name))}
    return {**official, **own, **sold}


def _flat(row: Row, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for member, value in row.items():
        path = f"{prefix}{member}"
        if path == "line":
            continue
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(item.get("name", i)): item for i, item in enumerate(value)}
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def _changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    members = {}
    for path in sorted(before.keys() | after.keys()):
        pair = [before.get(path), after.get(path)]
        if pair[0] != pair[1]:
            members[path] = [None, UNSEEN] if path.endswith(".secret") else pair
    return members
