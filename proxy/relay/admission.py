"""Who calls, may they, and is there room and money: phases 3 to 6 of a call's life.

Owns the conversation with control for what a worker does not hold in memory (cold keys, slices);
what is warm is answered without it. Decisions are taken in proxy/access, this module fetches.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from proxy.access.admission import Found, Gate
from proxy.access.keyring import KeyCache, KeyRecord
from proxy.access.limits import is_told, limits_of
from proxy.channel import Channel, ChannelError
from proxy.dialects.base import OperationSpec
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
from proxy.metering import bounds
from proxy.metering.bounds import hold_bound, plain_bound
from proxy.metering.pricing import (
    OPTIONS,
    PPM,
    cost_nanos,
    is_priced_plainly,
    price_from_content,
    text_rate,
    unpriced_options,
)
from proxy.metering.quote import Sale
from proxy.metering.usage import Usage
from proxy.relay import body, gathered
from proxy.relay.exchange import Exchange, Standing
from proxy.relay.lines import Lines
from proxy.routing.table import Model, Upstream
from proxy.telemetry import Stats, spawn

KEY_LOOKUP_S = 2.0
STANDINGS_MAX = 10_000
ESTIMATE_FLOOR_TOKENS = 1024  # output expected of a model before 100 calls were seen


_has_no_option = OPTIONS.isdisjoint
FREE = Sale(price_from_content({"free": True}), PPM, PPM)  # of operations that are not billed


@dataclass(slots=True)
class Desk:
    """What a worker holds in memory to admit calls; live state that outlives a reload."""

    channel: Channel
    keys: KeyCache
    gate: Gate
    stats: Stats
    wall_ms: Callable[[], int]
    estimates: dict[str, int] = field(default_factory=dict)  # model -> recent p95 of output tokens


class Admission:
    """Identifies, authorizes and admits calls."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._keys, self._gate = desk, desk.keys, desk.gate
        self._standings: dict[tuple[str, str, str], Standing] = {}
        self._looking_up: dict[bytes, asyncio.Task[KeyRecord | ProxyError]] = {}
        self._lines = Lines(desk.channel, desk.gate, desk.stats, desk.wall_ms)

    # -- identify --

    def identify(self, x: Exchange, digest: bytes) -> Awaitable[None] | None:
        """Fill in `x.key`: None when it is done, else what must be waited for.

        Raises InvalidKey and the refusals of KeyRecord.check and check_route; KeyLookupUnavailable for a
        cold key while control does not answer.
        """
        keys, at_ms = self._keys, x.at_ms
        record = keys.record(digest)
        if record is not None and at_ms < record.open_until_ms and at_ms < keys.stale_ms:
            x.key = record
            return None
        record = keys.get(digest, at_ms)
        if record is None:  # not held, or not for sure
            return self._identify_cold(x, digest)
        _let_in(x, record)
        return None

    async def _identify_cold(self, x: Exchange, digest: bytes) -> None:
        _let_in(x, await self._look_up(digest, x.address))

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
            reply = await desk.channel.call_again(
                "key", {"digest": digest.hex(), "address": address}, KEY_LOOKUP_S
            )
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

    def authorize(self, x: Exchange) -> None:
        """May this key use this model, and at what price? Fills in `x.standing`.

        Raises UnknownModel, ModelNotPermitted, ModelNotPriced, OptionNotPriced.
        """
        facts = x.facts
        assert facts is not None
        standing = facts.standing
        if (
            standing is None
            or standing.calls != (x.key, x.model, x.operation)
            or not (standing.is_lasting or standing.since_ms <= x.at_ms < standing.until_ms)
        ):
            standing = facts.standing = self._stand(x)
        x.standing = standing
        if not standing.is_priced or not _has_no_option(x.doc):
            unpriced = unpriced_options(standing.price, x.doc, standing.operation.kind)
            if unpriced:
                raise OptionNotPriced(param=unpriced[0])

    def _stand(self, x: Exchange) -> Standing:
        """Of the last such call with another head, if it is still so. Raises UnknownModel, ModelNotPermitted,
        ModelNotPriced."""
        key, operation = x.key, x.operation
        assert key is not None and operation is not None
        known = self._standings.get((key.digest, x.model, operation.name))
        if (
            known is not None
            and known.calls == (key, x.model, operation)
            and known.snapshot is x.snapshot
            and known.since_ms <= x.at_ms < known.until_ms
        ):
            return known
        standing = _stand(x, key, operation)
        if len(self._standings) >= STANDINGS_MAX:
            self._standings.clear()
        self._standings[key.digest, x.model, operation.name] = standing
        return standing

    # -- admit --

    def admit(self, x: Exchange) -> Awaitable[None] | None:
        """Take limits and the hold, fetching from control what this worker has not. Fills in `x.ticket`:
        None when it is done, else what must be waited for.

        Raises LimitExceeded, NoCredit, StationFault, Overloaded; what gathered.hold_nanos raises.
        """
        standing = x.standing
        assert standing is not None
        size, rate = len(x.content) + x.content_bound, standing.text_rate
        if (
            rate is None
            or size > body.PARSE_IN_THREAD_BYTES
            or (plain := plain_bound(x.doc, size, standing.context, standing.max_output)) is None
        ):
            return self._admit(x, standing)
        # As `hold`, for a plain conversation: nearly all are.
        tokens, output = x.input_bound, x.output_bound = plain
        if standing.tier.hold == "estimate":
            output = min(output, self._desk.estimates.get(x.model, ESTIMATE_FLOOR_TOKENS))
        x.tokens_expected = expected = tokens + output
        hold_nanos, footing = rate.cost_nanos(tokens, output), standing.found.footing
        if footing is not None and footing.account not in self._lines.waiting:
            x.ticket = self._gate.admit_again(footing, hold_nanos, x.at_ms, expected)
            if x.ticket is not None:
                return None
        return self._line_up(x, standing, hold_nanos)

    def _admit(self, x: Exchange, standing: Standing) -> Awaitable[None] | None:
        """What is no plain conversation, or takes long to look through."""
        if len(x.content) > body.PARSE_IN_THREAD_BYTES or standing.operation.calls_in:
            return self._admit_long(x, standing, standing.operation)
        return self._line_up(x, standing, self.hold(x, standing))

    def _line_up(self, x: Exchange, standing: Standing, hold_nanos: int) -> Awaitable[None] | None:
        return self._lines.admit(x, standing.key.account_id, hold_nanos, standing.limits, standing.found)

    async def _admit_long(self, x: Exchange, standing: Standing, operation: OperationSpec) -> None:
        """A request that takes long to look through."""
        hold_nanos = await asyncio.to_thread(self.hold, x, standing)
        if operation.calls_in:
            estimates = dict(self._desk.estimates)
            hold_nanos += await asyncio.to_thread(
                gathered.hold_nanos, x, standing, estimates, ESTIMATE_FLOOR_TOKENS
            )
        if (waiting := self._line_up(x, standing, hold_nanos)) is not None:
            await waiting

    def admit_for(self, x: Exchange, usage: Usage) -> Awaitable[None] | None:
        """The same for what was consumed already; limits of calls and tokens cannot undo it."""
        assert x.standing is not None
        standing = x.standing
        cost = cost_nanos(standing.price, usage, standing.model_ppm, standing.tier_ppm)
        return self._lines.admit(x, standing.key.account_id, cost, ())

    async def enter(self, x: Exchange, upstream: Upstream) -> ProxyError | None:
        """Take the limits of an upstream that has some, for as long as the call is there; the refusal."""
        assert upstream.limits is not None
        return await self._lines.enter(x, limits_of(f"u:{upstream.name}", upstream.limits.amounts()))

    def hold(self, x: Exchange, standing: Standing) -> int:
        """What is set aside for a call in nanos, by the operation's written formula (money.md 5)."""
        operation = standing.operation
        if not operation.billed:
            return 0
        size = len(x.content) + x.content_bound
        bound = hold_bound(operation.kind, x.doc, size, standing.context, standing.max_output)
        usage = bound.usage if operation.amounts is None else operation.amounts(x.doc)
        x.input_bound, x.output_bound = usage.input_tokens_all(), usage.output_tokens_all()
        if standing.tier.hold == "estimate":
            expected = self._desk.estimates.get(x.model, ESTIMATE_FLOOR_TOKENS) * bound.n
            usage.output = min(usage.output, expected)
        x.tokens_expected = x.input_bound + usage.output_tokens_all()
        return cost_nanos(standing.price, usage, standing.model_ppm, standing.tier_ppm)


def _let_in(x: Exchange, record: KeyRecord) -> None:
    """Raises the refusals of KeyRecord.check and check_route."""
    record.check(x.at_ms, x.address)
    if x.route is not None:
        assert x.snapshot is not None and x.endpoint is not None
        record.check_route(x.route.path, x.endpoint.name, x.snapshot.permitted)
    x.key = record


def _stand(x: Exchange, key: KeyRecord, operation: OperationSpec) -> Standing:
    """Raises UnknownModel, ModelNotPermitted, ModelNotPriced."""
    assert x.route is not None and x.snapshot is not None
    snapshot = x.snapshot
    tier_name, since_ms, until_ms = key.tier_span(x.at_ms)
    tier = snapshot.tier(tier_name)
    model: Model | None = None
    if x.model:
        model = snapshot.model_for(x.model)
        if model is None and not x.route.candidates:
            raise UnknownModel(param="model")
        status = snapshot.table.station.not_permitted_status
        if not snapshot.permitted(tier.models, x.model):
            raise ModelNotPermitted(param="model", status=status)
        key.check_model(x.model, snapshot.permitted, status)
    sale = snapshot.sale(x.model or operation.name, tier, key.overrides) if operation.billed else FREE
    if sale is None:
        raise ModelNotPriced(param="model")
    is_particular = operation.amounts is not None or operation.calls_in
    is_text = operation.billed and not is_particular and bounds.is_text(operation.kind)
    limits = key.limits(tier.name, tier.limits.amounts())
    if model is not None and model.limits is not None:
        limits += limits_of(f"m:{model.pattern}", model.limits.amounts())
    return Standing(
        calls=(key, x.model, operation),
        snapshot=snapshot,
        is_lasting=since_ms == -math.inf and until_ms == math.inf,
        since_ms=since_ms,
        until_ms=until_ms,
        key=key,
        operation=operation,
        tier=tier,
        model=model,
        context=None if model is None else model.context,
        max_output=None if model is None else model.max_output,
        price=sale.price,
        model_ppm=sale.model_ppm,
        tier_ppm=sale.tier_ppm,
        override=sale.override,
        limits=limits,
        found=Found.of(limits),
        tells_rates=any(map(is_told, limits)),
        is_priced=is_priced_plainly(sale.price, operation.kind),
        text_rate=text_rate(sale.price, sale.model_ppm, sale.tier_ppm) if is_text else None,
    )
