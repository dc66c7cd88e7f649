"""Who calls, may they, and is there room and money: phases 3 to 6 of a call's life.

Owns the conversation with control for what a worker does not hold in memory (cold keys, slices);
what is warm is answered without it. Decisions are taken in proxy/access, this module fetches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_address, ip_network
from urllib.parse import parse_qsl

from proxy.access.admission import Gate, Shortage
from proxy.access.keyring import KeyCache, KeyRecord
from proxy.access.limits import Want
from proxy.channel import Channel, ChannelError
from proxy.errors import (
    InvalidKey,
    KeyLookupUnavailable,
    LimitExceeded,
    MissingKey,
    ModelNotPermitted,
    ModelNotPriced,
    NoCredit,
    OptionNotPriced,
    Overloaded,
    ProxyError,
    StationFault,
    UnknownModel,
)
from proxy.metering.bounds import hold_bound
from proxy.metering.pricing import cost_nanos, unpriced_options
from proxy.relay.exchange import Exchange
from proxy.routing.table import Tier
from proxy.telemetry import spawn

KEY_LOOKUP_S = 2.0
SLICE_S = 0.3  # money.md 6: before a refusal for balance, at most this long
LIMIT_S = 1.0
ROUNDS_MAX = 8  # others may take what was fetched; then the station is overloaded
ESTIMATE_FLOOR_TOKENS = 1024  # output expected of a model before 100 calls were seen
KEY_CHARS_MAX = 512

_KEY_HEADERS = ("api-key", "x-api-key", "x-goog-api-key", "mj-api-secret")


@dataclass(slots=True)
class Desk:
    """What a worker holds in memory to admit calls; live state that outlives a reload."""

    channel: Channel
    keys: KeyCache
    gate: Gate
    wall_ms: Callable[[], int]
    estimates: dict[str, int] = field(default_factory=dict)  # model -> recent p95 of output tokens


class Admission:
    """Identifies, authorizes and admits calls."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._looking_up: dict[bytes, asyncio.Task[KeyRecord | ProxyError]] = {}
        self._fetching: dict[int, asyncio.Task[ProxyError | None]] = {}

    # -- identify --

    async def identify(self, x: Exchange) -> None:
        """Fill in `x.key`. Any spelling of the key on any path.

        Raises MissingKey, InvalidKey and the refusals of KeyRecord.check; KeyLookupUnavailable for a
        cold key while control does not answer.
        """
        secret = key_of(x.headers, x.query)
        if not secret:
            raise MissingKey
        if len(secret) > KEY_CHARS_MAX:
            raise InvalidKey
        digest = sha256(secret.encode("utf-8", "surrogateescape")).digest()
        record = self._desk.keys.get(digest, x.at_ms)
        if record is None:
            record = await self._look_up(digest, x.address)
        record.check(x.at_ms, x.address)
        x.key = record

    async def _look_up(self, digest: bytes, address: str) -> KeyRecord:
        """Ask control, once for all calls that wait for the same key."""
        task = self._looking_up.get(digest)
        if task is None:
            task = self._looking_up[digest] = spawn("key look-up", self._ask_for_key(digest, address))
            task.add_done_callback(lambda _: self._looking_up.pop(digest, None))
        found = await asyncio.shield(task)
        if isinstance(found, ProxyError):
            raise found
        return found

    async def _ask_for_key(self, digest: bytes, address: str) -> KeyRecord | ProxyError:
        """A refusal is a result: several calls may wait for it, or none any more."""
        desk = self._desk
        try:
            reply = await desk.channel.call("key", {"digest": digest.hex(), "address": address}, KEY_LOOKUP_S)
        except ChannelError as e:
            return KeyLookupUnavailable(retry_after_s=2.0, detail=str(e))
        if "record" in reply:
            record = KeyRecord.from_message(reply["record"])
            desk.keys.put(digest, record, desk.wall_ms())
            return record
        if "throttled" in reply:
            return LimitExceeded(
                "Too many unknown API keys from this address.", retry_after_s=reply["throttled"]
            )
        if "missing" in reply:
            desk.keys.put_unknown(digest, desk.wall_ms())
            return InvalidKey()
        return KeyLookupUnavailable(retry_after_s=2.0)

    # -- authorize --

    def authorize(self, x: Exchange) -> Tier:
        """May this key use this model, and what does it cost? Fills in model, tier and price.

        Raises UnknownModel, ModelNotPermitted, ModelNotPriced, OptionNotPriced.
        """
        assert (
            x.key is not None and x.snapshot is not None and x.route is not None and x.operation is not None
        )
        snapshot = x.snapshot
        tier = snapshot.tier(x.key.tier_at(x.at_ms))
        x.tier = tier.name
        if x.model:
            x.model_entry = snapshot.model_for(x.model)
            if x.model_entry is None and not x.route.candidates:
                raise UnknownModel(param="model")
            if not snapshot.permitted(tier.models, x.model):
                raise ModelNotPermitted(param="model")
            x.key.check_model(x.model, snapshot.permitted)
        if x.operation.billed:
            x.price = snapshot.price_for(x.model or x.operation.name)
            if x.price is None:
                raise ModelNotPriced(param="model")
            unpriced = unpriced_options(x.price, x.doc, x.operation.name)
            if unpriced:
                raise OptionNotPriced(param=unpriced[0])
        return tier

    # -- admit --

    async def admit(self, x: Exchange, tier: Tier) -> None:
        """Take limits and the hold, fetching from control what this worker has not. Fills in `x.ticket`.

        Raises LimitExceeded, NoCredit, StationFault, Overloaded.
        """
        assert x.key is not None and x.snapshot is not None
        desk = self._desk
        key = x.key
        hold = self.hold(x, tier)
        limits = key.limits(tier.name, tier.limits.requests_per_minute, tier.limits.concurrency or None)
        for _ in range(ROUNDS_MAX):
            got = desk.gate.admit(key.account_id, hold.nanos, limits, desk.wall_ms())
            if not isinstance(got, Shortage):
                x.ticket = got
                x.input_bound, x.output_bound = hold.input_tokens, hold.output_tokens
                return
            await self._fetch(x, got, tier)
        raise Overloaded(retry_after_s=1.0)

    def hold(self, x: Exchange, tier: Tier) -> Hold:
        """What is set aside for a call, by the operation's written formula (money.md 5)."""
        if x.price is None:
            return Hold(0, 0, None)
        assert x.operation is not None and x.snapshot is not None
        entry = x.model_entry
        bound = hold_bound(
            x.operation.name,
            x.doc,
            len(x.content),
            entry.context if entry else None,
            entry.max_output if entry else None,
        )
        usage = bound.usage
        output_max = usage.output_tokens_all()
        if tier.hold == "estimate":
            expected = self._desk.estimates.get(x.model, ESTIMATE_FLOOR_TOKENS) * bound.n
            usage.output = min(usage.output, expected)
        model_ppm = x.snapshot.multiplier_ppm(x.model)
        cost = cost_nanos(x.price, usage, model_ppm, tier.multiplier_ppm)
        return Hold(cost, usage.input_tokens_all(), output_max)

    async def _fetch(self, x: Exchange, shortage: Shortage, tier: Tier) -> None:
        for want in shortage.wants:
            await self._fetch_limit(want)
        if shortage.money is not None:
            assert x.key is not None
            account = x.key.account_id
            task = self._fetching.get(account)
            if task is None:
                # One at a time per account: calls that come together share what arrives.
                task = self._fetching[account] = spawn("slice", self._fetch_slice(x, shortage.money))
                task.add_done_callback(lambda _: self._fetching.pop(account, None))
            refused = await asyncio.shield(task)
            if refused is not None:
                raise refused

    async def _fetch_limit(self, want: Want) -> None:
        limit = want.limit
        args = {"bucket": limit.bucket, "kind": limit.kind, "limit": limit.amount, "want": want.count}
        try:
            reply = await self._desk.channel.call("limit", args, LIMIT_S)
        except ChannelError as e:
            raise StationFault(retry_after_s=1.0, detail=str(e)) from e
        if not reply.get("granted"):
            raise LimitExceeded(retry_after_s=reply.get("retry_after_s") or 1.0)
        self._desk.gate.limits.add(limit, reply["granted"], reply.get("until_ms") or 0)

    async def _fetch_slice(self, x: Exchange, money: tuple[int, int]) -> ProxyError | None:
        """A refusal is a result, as in _ask_for_key."""
        assert x.key is not None and x.snapshot is not None
        account = x.key.account_id
        args = {"account": account, "need": money[0], "want": money[1], "tier": x.tier}
        try:
            reply = await self._desk.channel.call("slice", args, SLICE_S + LIMIT_S)
        except ChannelError as e:
            return StationFault(retry_after_s=1.0, detail=str(e))
        if reply.get("refused") == "no_credit":
            return NoCredit(status=x.snapshot.table.station.no_credit_status)
        if "granted" not in reply:
            return StationFault(retry_after_s=5.0, detail=f"slice refused: {reply.get('refused')}")
        self._desk.gate.slices.add(account, reply["lease"], reply["granted"])
        return None


@dataclass(frozen=True, slots=True)
class Hold:
    nanos: int
    input_tokens: int
    output_tokens: int | None


def key_of(headers: Mapping[str, str], query: str) -> str:
    """The caller's key in any spelling; "" where there is none."""
    authorization = headers.get("Authorization")
    if authorization:
        scheme, _, rest = authorization.partition(" ")
        if scheme.lower() == "bearer" and rest:
            return rest.strip()
        if not rest and authorization != "midjourney-proxy":
            return authorization.strip()
    for name in _KEY_HEADERS:
        value = headers.get(name)
        if value:
            return value.strip()
    if "key=" in query:
        return dict(parse_qsl(query)).get("key", "")
    return ""


def client_address(peer: str, forwarded_for: str | None, trusted: tuple[str, ...]) -> str:
    """The caller's address: the last of X-Forwarded-For that no trusted proxy added."""
    if not forwarded_for or not _is_within(peer, trusted):
        return peer
    for hop in reversed([part.strip() for part in forwarded_for.split(",")]):
        if not _is_within(hop, trusted):
            return hop if _is_address(hop) else peer
    return peer


def _is_within(address: str, networks: tuple[str, ...]) -> bool:
    return _is_address(address) and any(
        ip_address(address) in ip_network(network, strict=False) for network in networks
    )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
