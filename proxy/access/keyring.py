"""Look up keys by the SHA-256 of the whole key and decide what a key may do.

Owns a worker's cache of key records. Pure: `now_ms` is an argument. Records come from control; a
record that control did not confirm for 15 minutes counts as unknown (money.md, "accounts, keys").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from proxy.access.limits import Limit, limits_of
from proxy.access.overrides import Override
from proxy.access.tiers import Held
from proxy.errors import (
    AccountFrozen,
    AddressNotAllowed,
    InvalidKey,
    KeyExpired,
    ModelNotPermitted,
    RouteNotPermitted,
)

STALE_MS = 15 * 60 * 1000  # Postgres may be away this long before warm keys turn cold
NEGATIVE_MS = 10_000  # an unknown key stays unknown this long; a key made meanwhile is pushed
CACHE_MAX = 100_000  # records; about 1 KB each
NEGATIVE_MAX = 20_000

Preference = str | tuple[str, ...]
Permitted = Callable[[tuple[str, ...], str], bool]  # (globs, name)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key and what of its account matters to a call."""

    digest: str
    key_id: int
    account_id: int
    status: str
    account_status: str
    tiers: tuple[Held, ...]  # in the order in which the account has them; the last one never ends
    models: tuple[str, ...] | None  # globs; None: all that the tier allows
    routes: tuple[str, ...] | None  # globs of their paths as routes.yaml has them; None: all
    endpoints: tuple[str, ...] | None  # globs of their names; None: all
    mirror: Preference
    expires_ms: int | None
    ip_allow: tuple[str, ...] | None
    amounts: Mapping[str, int]  # of its limits, by access.limits.KINDS
    account_amounts: Mapping[str, int]  # of those that all keys of its account share
    masked: str
    overrides: tuple[Override, ...] = ()  # prices of this account
    open_until_ms: float = field(init=False)  # before that, neither `check` nor `check_route` refuses it

    def __post_init__(self) -> None:
        is_free = self.ip_allow is None and self.routes is None and self.endpoints is None
        is_active = self.status == "active" and self.account_status == "active"
        ends_ms = math.inf if self.expires_ms is None else self.expires_ms
        object.__setattr__(self, "open_until_ms", ends_ms if is_free and is_active else -math.inf)

    @classmethod
    def from_message(cls, data: dict[str, Any]) -> KeyRecord:
        """From control's plain form (channel op `key`)."""
        mirror = data.get("mirror") or "auto"
        return cls(
            digest=data["digest"],
            key_id=data["key_id"],
            account_id=data["account_id"],
            status=data["status"],
            account_status=data["account_status"],
            tiers=tuple(Held(tier, until_ms) for tier, until_ms in data["tiers"]),
            models=_names(data, "models"),
            routes=_names(data, "routes"),
            endpoints=_names(data, "endpoints"),
            mirror=mirror if isinstance(mirror, str) else tuple(mirror),
            expires_ms=data.get("expires_ms"),
            ip_allow=_names(data, "ip_allow"),
            amounts=data.get("limits") or {},
            account_amounts=data.get("account_limits") or {},
            masked=data.get("masked", ""),
            overrides=tuple(Override(*row) for row in data.get("overrides") or ()),
        )

    def tier_at(self, now_ms: int) -> str:
        """Workers expire an earned tier by the clock themselves."""
        return self.tier_span(now_ms)[0]

    def tier_span(self, now_ms: int) -> tuple[str, float, float]:
        """The tier at a moment; from when until when it is that one."""
        since = -math.inf
        for tier, until_ms in self.tiers:
            if until_ms is None:
                return tier, since, math.inf
            if now_ms < until_ms:
                return tier, since, until_ms
            since = max(since, until_ms)
        return "", since, math.inf

    def check(self, now_ms: int, address: str) -> None:
        """May this key be used at all, now and from there? Raises the refusal."""
        if self.status != "active":
            raise InvalidKey
        if self.expires_ms is not None and now_ms >= self.expires_ms:
            raise KeyExpired
        if self.account_status != "active":
            raise AccountFrozen
        if self.ip_allow is not None and not _is_allowed(address, self.ip_allow):
            raise AddressNotAllowed

    def check_route(self, path: str, endpoint: str, permitted: Permitted) -> None:
        """Raises RouteNotPermitted where the key's own globs leave the route or the endpoint out."""
        if self.routes is not None and not permitted(self.routes, path):
            raise RouteNotPermitted
        if self.endpoints is not None and not permitted(self.endpoints, endpoint):
            raise RouteNotPermitted

    def check_model(self, model: str, permitted: Permitted, status: int | None = None) -> None:
        """Raises ModelNotPermitted, with the station's `status`, where the key's own globs leave it out."""
        if self.models is not None and not permitted(self.models, model):
            raise ModelNotPermitted(param="model", status=status)

    def limits(self, tier: str, of_tier: Mapping[str, int | None]) -> tuple[Limit, ...]:
        """The limits that one call of this key counts against: its own, its account's, and those that each
        account of a tier has."""
        account = f"a{self.account_id}"
        return (
            *limits_of(f"k{self.key_id}", self.amounts),
            *limits_of(account, self.account_amounts),
            *limits_of(f"{account}:{tier}", of_tier),
        )


def _names(data: dict[str, Any], name: str) -> tuple[str, ...] | None:
    values = data.get(name)
    return None if values is None else tuple(values)


def _is_allowed(address: str, allowed: tuple[str, ...]) -> bool:
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    return any(ip in ip_network(net, strict=False) for net in allowed)


class KeyCache:
    """Digest -> record, with what is known not to exist."""

    def __init__(self) -> None:
        self._records: dict[bytes, KeyRecord] = {}
        self._unknown: dict[bytes, int] = {}
        self.stale_ms = STALE_MS  # before that, what is held is what `get` gives
        self.record = self._records.get

    def get(self, digest: bytes, now_ms: int) -> KeyRecord | None:
        """The record, or None: ask control. Raises InvalidKey for a key known not to exist."""
        record = self._records.get(digest)
        if record is not None:
            return record if now_ms < self.stale_ms else None
        until = self._unknown.get(digest)
        if until is not None:
            if now_ms < until:
                raise InvalidKey
            del self._unknown[digest]
        return None

    def confirm(self, now_ms: int) -> None:
        """Control says: what you hold is current."""
        self.stale_ms = now_ms + STALE_MS

    def put(self, digest: bytes, record: KeyRecord, now_ms: int) -> None:
        """A looked-up or pushed record. The oldest goes first when the cache is full."""
        self._unknown.pop(digest, None)
        self._records[digest] = record
        self.stale_ms = max(self.stale_ms, now_ms + STALE_MS)
        if len(self._records) > CACHE_MAX:
            del self._records[next(iter(self._records))]

    def put_unknown(self, digest: bytes, now_ms: int) -> None:
        self._records.pop(digest, None)
        self._unknown[digest] = now_ms + NEGATIVE_MS
        if len(self._unknown) > NEGATIVE_MAX:
            del self._unknown[next(iter(self._unknown))]

    def change(self, digest: bytes, record: KeyRecord | None, now_ms: int) -> None:
        """Pushed by control: only what is held is replaced; a key made just now is not unknown."""
        self._unknown.pop(digest, None)
        if record is None:
            self._records.pop(digest, None)
        elif digest in self._records:
            self.put(digest, record, now_ms)
