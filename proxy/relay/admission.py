"""Who calls, may they, and is there room and money: phases 3 to 6 of a call's life.

Owns the conversation with control for what a worker does not hold in memory (cold keys, slices);
what is warm is answered without it. Decisions are taken in proxy/access, this module fetches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.access.admission import Gate
from proxy.access.keyring import KeyCache, KeyRecord
from proxy.access.limits import Limit
from proxy.channel import Channel, ChannelError
from proxy.errors import (
    InvalidKey,
    KeyLookupUnavailable,
    LimitExceeded,
    ModelNotPermitted,
    ModelNotPriced,
    OptionNotPriced,
    ProxyError,
    UnknownModel,
)
from proxy.metering.bounds import hold_bound
from proxy.metering.pricing import cost_nanos, unpriced_options
from proxy.relay.exchange import Exchange
from proxy.relay.lines import Lines
from proxy.routing.table import Tier
from proxy.telemetry import spawn

KEY_LOOKUP_S = 2.0
LIMITS_MEMO_MAX = 10_000
ESTIMATE_FLOOR_TOKENS = 1024  # output expected of a model before 100 calls were seen


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
        self._limits: dict[str, tuple[KeyRecord, Tier, tuple[Limit, ...]]] = {}
        self._looking_up: dict[bytes, asyncio.Task[KeyRecord | ProxyError]] = {}
        self._lines = Lines(desk.channel, desk.gate, desk.wall_ms)

    # -- identify --

    async def identify(self, x: Exchange, digest: bytes) -> None:
        """Fill in `x.key`.

        Raises InvalidKey and the refusals of KeyRecord.check; KeyLookupUnavailable for a cold key while
        control does not answer.
        """
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
        hold = self.hold(x, tier)
        limits = self._limits_of(x.key, tier)
        await self._lines.admit(x, hold.nanos, limits)
        x.input_bound, x.output_bound = hold.input_tokens, hold.output_tokens

    def _limits_of(self, key: KeyRecord, tier: Tier) -> tuple[Limit, ...]:
        """The limits of a key under a tier, worked out once for this record and table."""
        known = self._limits.get(key.digest)
        if known is None or known[0] is not key or known[1] is not tier:
            if len(self._limits) >= LIMITS_MEMO_MAX:
                self._limits.clear()
            limits = key.limits(tier.name, tier.limits.requests_per_minute, tier.limits.concurrency or None)
            known = self._limits[key.digest] = (key, tier, limits)
        return known[2]

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


@dataclass(frozen=True, slots=True)
class Hold:
    nanos: int
    input_tokens: int
    output_tokens: int | None
