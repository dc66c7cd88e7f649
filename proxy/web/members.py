"""Members of JSON bodies that are more than a text: amounts, times, and the settings of a key.

Owns how they are read and how a key is shown; what they mean is the store's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from aiohttp import web

from proxy.access.limits import KINDS, SPEND
from proxy.errors import ClientFault
from proxy.ledger.amounts import as_text
from proxy.routing import texts, units
from proxy.store.key_records import KeySettings
from proxy.web.answers import text_member
from proxy.web.mirrors import preference_member

REFERENCE_CHARACTERS_MAX = 200
KEY_MEMBERS = frozenset(f.name for f in fields(KeySettings))


def amount_member(document: dict[str, Any], name: str) -> tuple[Decimal, str | None]:
    """`"10"` or `"10 CNY"`; a text, because a JSON number is a float to most who write one."""
    try:
        amount = units.amount(text_member(document, name))
    except ValueError as e:
        raise ClientFault(f"{name!r}: {e}.", param=name) from e
    return amount.value, amount.currency


def reference_of(request: web.Request) -> str:
    """What makes a posting one, however often it is asked for. Raises ClientFault."""
    reference = request.headers.get("Idempotency-Key", "")
    if not 0 < len(reference) <= REFERENCE_CHARACTERS_MAX:
        raise ClientFault(f"This needs an Idempotency-Key of at most {REFERENCE_CHARACTERS_MAX} characters.")
    return reference


def settings_of(document: dict[str, Any], base: KeySettings) -> KeySettings:
    """`base` with what the document names. Raises ClientFault."""
    chosen: dict[str, Any] = {}
    for name, value in document.items():
        match name:
            case "label" | "note":
                chosen[name] = text_member(document, name)
            case "mirror":
                chosen[name] = preference_member(document, name)
            case "ip_allow":
                chosen[name] = None if value is None else networks_of(name, value)
            case "models" | "routes" | "endpoints":
                chosen[name] = None if value is None else texts_of(name, value)
            case "own_receipts":
                if not isinstance(value, bool | None):
                    raise ClientFault("'own_receipts' must be true or false.", param=name)
                chosen[name] = value or None
            case "expires_at":
                chosen[name] = None if value is None else time_of(name, value)
            case _:
                chosen[name] = limit_member(document, name)
    return replace(base, **chosen)


def limit_member(document: dict[str, Any], kind: str) -> int | None:
    """A limit by its kind: an amount, or a number; null takes it away. Raises ClientFault."""
    if document[kind] is None:
        return None
    is_amount = KINDS[kind].unit == SPEND
    return nanos_member(document, kind) if is_amount else count_of(kind, document[kind])


def shown_limits(amounts: Mapping[str, int]) -> dict[str, int | str]:
    """By kind. Money is told as text."""
    return {kind: as_text(n) if KINDS[kind].unit == SPEND else n for kind, n in amounts.items()}


def shown_key(key: dict[str, Any]) -> dict[str, Any]:
    """Without its digest: whoever sees a list needs none."""
    shown = {name: value for name, value in key.items() if name != "digest"}
    return shown | {name: shown_limits(key[name]) for name in ("limits", "account_limits")}


def networks_of(name: str, value: object) -> tuple[str, ...]:
    try:
        return tuple(texts.network(text) for text in texts_of(name, value))
    except ValueError as e:
        raise ClientFault(f"{name!r}: {e}.", param=name) from e


def nanos_member(document: dict[str, Any], name: str) -> int:
    """An amount in the station's currency."""
    return units.nanos(amount_member(document, name)[0], Decimal(1))


def texts_of(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ClientFault(f"{name!r} must be a list of texts.", param=name)
    return tuple(value)


def count_of(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ClientFault(f"{name!r} must be a whole number.", param=name)
    return value


def time_of(name: str, value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError as e:
        raise ClientFault(f"{name!r} must be a time such as 2026-01-31T00:00:00+08:00.", param=name) from e
    if moment.tzinfo is None:
        raise ClientFault(f"{name!r} needs a time zone.", param=name)
    return moment
