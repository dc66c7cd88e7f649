"""Every call ends here, once: what is known of it becomes an End, its hold is resolved, its slices go back.

Owns the calls that are open (`live`) and the journal entries of their ends. Plain functions: no await
where money changes. Who ends a call (terminal event, a lost connection, a time limit, a client that
left) is the pump's business, what it costs is proxy/ledger/settlement.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from logging import getLogger
from time import monotonic
from typing import Any, NamedTuple

from msgspec import Struct

from proxy import telemetry
from proxy.access.admission import Gate, Ticket
from proxy.dialects.base import Meter
from proxy.errors import ProxyError, Source
from proxy.journal.segments import Journal
from proxy.ledger import bindings, entry, settlement
from proxy.ledger.entry import COMPLETE, DEFERRED
from proxy.ledger.settlement import Bill, Course, Figures, Terms, Waiver, ended, plain_bill
from proxy.metering.pricing import Price
from proxy.metering.usage import Usage
from proxy.relay import prompts
from proxy.relay.exchange import Exchange
from proxy.relay.metering_task import Tap
from proxy.relay.ownership import EXISTS, GOES_ON, OVER, Fate
from proxy.relay.tally import DEGRADED, Tally
from proxy.telemetry import Stats

log = getLogger("headrace.calls")

KEPT_PROMPTS_BYTES_MAX = 64 << 20  # request bodies kept for counting while their streams run, per worker
COUNT_AT_ONCE_BYTES = 200_000  # more would take over 5 ms: counted in a thread, the End is pending
CHECKPOINT_CALLS_MAX = 2000  # per frame: about 200 KB

# Ways to end that are billed by the vendor's own word or not at all.
_NOT_COUNTED = frozenset({entry.FAILED, entry.UPSTREAM_ERROR})

_NO_WAIVERS: frozenset[Waiver] = frozenset()
_FREE_IF_BROKEN = frozenset({Waiver.ON_BREAK})

_OVER = frozenset({entry.SETTLED, entry.VOID})

Then = Callable[[BaseException | None], None]


class _Early(Struct, frozen=True, gc=False):
    """What else there is to say of a call that was not simply answered."""

    status: int = 0  # what the client is answered where no upstream's answer is relayed
    why: str = ""


_NOT = _Early()


class _Unsettled(NamedTuple):
    """A call whose request is still to be counted."""

    figures: Figures
    price: Price
    terms: Terms
    content: bytes


class Settler:
    """Opens and closes the calls of one worker."""

    def __init__(
        self,
        gate: Gate,
        journal: Journal,
        notify: Callable[[str, dict[str, Any]], object],
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
        wall_ms: Callable[[], int],
    ) -> None:
        self.live: dict[str, Exchange] = {}
        self._gate = gate
        self._journal = journal
        self._notify = notify
        self._tally = Tally(stats)
        self._loop = loop
        self._wall_ms = wall_ms
        self._known_prices: set[str] = set()
        self._kept_bytes = 0
        self._change: asyncio.Future[None] | None = None

    # -- begin --

    def begin(self, x: Exchange) -> entry.Begin:
        """Fix the price and open the call. Its price is journaled before the first Begin that names it."""
        standing, ticket, dialect, endpoint = x.standing, x.ticket, x.dialect, x.endpoint
        assert standing is not None and ticket is not None and dialect is not None and endpoint is not None
        price = standing.price
        if price.id not in self._known_prices:
            self._know(price)
        # By position, in the order of Begin's fields: with keywords it takes three times as long.
        begin = x.begin = entry.Begin(
            x.id,
            x.at_ms,
            ticket.account,
            standing.key.key_id,
            ticket.lease,
            ticket.hold_nanos,
            x.model,
            standing.operation.name,
            dialect.name,
            price.id,
            standing.model_ppm,
            standing.tier_ppm,
            standing.tier.name,
            endpoint.name,
            standing.snapshot.generation,
            x.is_stream,
            x.input_bound,
            len(x.coded or x.content) if x.upload is None else x.upload.size,
            standing.override,
            x.parent,
            price.multiplied,
        )
        self.live[x.id] = x
        return begin

    def drop_request(self, x: Exchange) -> None:
        """A stream has begun: forget the request, but for what counting may need if it is cut."""
        assert x.operation is not None
        is_priced_by_size = x.operation.kind == "images"
        x.doc = {name: x.doc.get(name) for name in ("size", "quality")} if is_priced_by_size else {}
        x.spans, x.coded = {}, b""
        size = len(x.content)
        if self._kept_bytes + size > KEPT_PROMPTS_BYTES_MAX:
            content, x.content = x.content, b""
            telemetry.spawn("count prompt", self._count_prompt(x, content))
        else:
            self._kept_bytes += size
            x.kept_bytes = size

    # -- ends --

    def complete(self, x: Exchange, tap: Tap | None, then: Then) -> None:
        """The answer is whole and read. `then` runs when End is written and releases its last bytes."""
        begin, standing, outcome = x.begin, x.standing, COMPLETE
        if x.attempts[-1].status >= 400 or (tap is not None and tap.meter.error):
            outcome = entry.UPSTREAM_ERROR
        elif (
            tap is not None and begin is not None and standing is not None and x.ownership is None
            and not (tap.meter.degraded or x.is_drained or x.settled)
            and (usage := tap.meter.usage()) is not None
        ):  # fmt: skip
            price, rate = standing.price, standing.text_rate
            if price.sizes or tap.meter.service_tier in price.service_tiers:
                price, rate = self._narrowed(x, price, tap.meter), None
            bill = plain_bill(begin, usage, price, rate, standing.context, x.output_bound)
            if bill is not None:
                x.settled, x.outcome = True, COMPLETE
                self._end(x, tap, bill, price, then)
                return
        self._close(x, tap, outcome, then=then)

    def interrupt(
        self, x: Exchange, tap: Tap | None, outcome: str, why: str, *, is_sent: bool = False
    ) -> None:
        """The call ends early; `is_sent`: the upstream had the request, so that its input is consumed."""
        if tap is not None:
            tap.read()
            if tap.meter.error:
                outcome = entry.UPSTREAM_ERROR
        elif not is_sent:
            outcome = entry.FAILED
        self._close(x, tap, outcome, _Early(why=why))

    def refuse(self, x: Exchange, error: ProxyError) -> None:
        """The call ends with an error of ours before anything reached the client."""
        outcome = entry.UPSTREAM_ERROR if error.source is Source.UPSTREAM else entry.FAILED
        self._undo(x, outcome, error.code, error.status)

    def abandon(self, x: Exchange) -> None:
        """The client left before the call was sent anywhere."""
        self._undo(x, entry.FAILED, "client_left")

    def _undo(self, x: Exchange, outcome: str, why: str, status: int = 0) -> None:
        if x.begin is not None and not x.settled:
            self._close(x, None, outcome, _Early(status, why))
        else:
            self._release(x, 0, {})

    def _close(
        self, x: Exchange, tap: Tap | None, outcome: str, early: _Early = _NOT, then: Then | None = None
    ) -> None:
        """However the call ended; with `then` the answer came to its end."""
        begin, standing, ticket = x.begin, x.standing, x.ticket
        if x.settled or begin is None or standing is None:
            return
        x.settled, x.outcome = True, outcome
        price, figures = standing.price, Figures()
        if tap is not None:
            reported = tap.meter.usage()
            if reported is not None:
                price = self._narrowed(x, price, tap.meter)
                figures = Figures(reported, then is not None or tap.meter.usage_is_final())
        fate = OVER if x.ownership is None else x.ownership.conclude(x, outcome)
        bill, unsettled = self._bill(x, tap, price, fate, figures)
        if tap is not None and tap.meter.degraded:
            bill.flags.insert(0, DEGRADED)
        if fate is EXISTS:
            early = _Early(early.status, bindings.EXISTS)
        end = self._end(x, tap, bill, price, then, early)
        if unsettled is not None:
            assert ticket is not None
            telemetry.spawn("settle late", self._settle_late(end, ticket, unsettled))
        if outcome != COMPLETE:
            log.info("call ended early", extra={"call": x.id, "outcome": outcome, "why": end.cut})

    def _end(
        self, x: Exchange, tap: Tap | None, bill: Bill, price: Price, then: Then | None, early: _Early = _NOT
    ) -> entry.End:
        """The only way out of `live`: the call is written down with what it costs, its hold is resolved."""
        begin, at_s, uploaded = x.begin, monotonic(), x.uploaded
        assert begin is not None
        if tap is None:
            status, vendor_id, model, size, events = early.status or x.status, "", "", 0, 0
        else:
            meter, size, status = tap.meter, tap.total, x.status or x.attempts[-1].status
            x.response_bytes = size
            vendor_id, model, events = meter.vendor_id, meter.model, meter.events
        answered = x.answered or (at_s if size else 0.0)  # it may be before the request was uploaded
        if answered > uploaded:
            ttft_ms = int((answered - uploaded) * 1000)
        else:
            ttft_ms = 0 if answered else -1
        went = Course(
            x.attempts,
            status,
            vendor_id,
            model,
            early.why,
            size,
            events,
            int((uploaded - x.arrived) * 1000),
            ttft_ms,
            int((at_s - x.arrived) * 1000),
            x.facts.user_agent if x.facts is not None else "",
        )
        end = ended(begin, bill, price.id, x.outcome, self._wall_ms(), went)
        # While Begin waits to be written they share their fate: no End without it.
        self._journal.append(entry.encode(end), then, settle=x.has_begun or bill.state == DEFERRED)
        # What is still being counted is spent at its hold: nobody spends it twice meanwhile. So is what goes
        # on at the vendor: that hold is the binding's from here on.
        self._release(x, bill.cost_nanos if bill.state in _OVER else begin.hold_nanos, bill.usage)
        self._tally.add(end, x.sent - uploaded)
        return end

    def _bill(
        self, x: Exchange, tap: Tap | None, price: Price, fate: Fate, figures: Figures
    ) -> tuple[Bill, _Unsettled | None]:
        """What a call costs, however it ended, and what is left to be counted of it."""
        assert x.begin is not None and x.operation is not None
        outcome, terms = x.outcome, self._terms(x)
        if fate is GOES_ON:
            amounts = x.operation.amounts
            asked = Usage(calls=1, input=x.begin.input_bound) if amounts is None else amounts(x.doc)
            return bindings.deferred(outcome, asked), None
        if fate is EXISTS:
            figures = Figures()
        elif not (figures.is_final or price.free or outcome in _NOT_COUNTED):
            figures, uncounted = self._counted(x, tap, figures.reported)
            if uncounted:
                return settlement.pending(outcome, figures), _Unsettled(figures, price, terms, uncounted)
        return settlement.bill(x.begin, outcome, figures, price, terms), None

    def _counted(self, x: Exchange, tap: Tap | None, reported: Usage | None) -> tuple[Figures, bytes]:
        """Our own count of what the vendor did not tell, and the request if it is too long to count now."""
        assert x.begin is not None
        counted = Usage(calls=1, output=tap.counted_output() if tap is not None else 0)
        is_estimate = tap is not None and tap.is_estimate
        content = b""
        if x.prompt_tokens < 0 and (reported is None or not reported.input_tokens_all()):
            content = x.content
        if len(content) > COUNT_AT_ONCE_BYTES:
            counted.input = x.begin.input_bound
            return Figures(reported, False, counted, is_estimate), content
        if content:
            x.prompt_tokens = prompts.count(content, x.model)
        counted.input = max(x.prompt_tokens, 0)
        return Figures(reported, False, counted, is_estimate), b""

    def _terms(self, x: Exchange) -> Terms:
        assert x.snapshot is not None and x.route is not None and x.standing is not None
        last = x.attempts[-1].upstream if x.attempts else ""
        upstream = x.snapshot.table.upstreams.get(last)
        return Terms(
            trusted=upstream is None or upstream.trust == "full",
            input_max=x.standing.context,
            output_max=x.output_bound,
            waivers=_FREE_IF_BROKEN if x.route.on_break == "free" else _NO_WAIVERS,
            within_hold=x.is_drained,
        )

    def _narrowed(self, x: Exchange, price: Price, meter: Meter) -> Price:
        """The answer's service tier decides, and the size and quality that were asked for."""
        narrowed = price.narrowed(
            service_tier=meter.service_tier,
            size=str(x.doc.get("size") or ""),
            quality=str(x.doc.get("quality") or ""),
        )
        if narrowed.id not in self._known_prices:
            self._know(narrowed)
        return narrowed

    def _know(self, price: Price) -> None:
        self._known_prices.add(price.id)
        record = entry.PriceEntry(price.id, dict(price.content))
        self._journal.append(entry.encode(record), None, settle=True)

    def _release(self, x: Exchange, cost_nanos: int, usage: Mapping[str, Any]) -> None:
        """Resolve the hold, give the limits back, forget the call."""
        self.live.pop(x.id, None)
        if x.kept_bytes:
            self._kept_bytes -= x.kept_bytes
            x.kept_bytes = 0
        x.content = x.coded = b""
        if x.upload is not None:
            x.upload.close()
        if x.ticket is not None:
            for bucket, count in self._gate.close(x.ticket, cost_nanos, usage):
                self._notify("limit_give", {"bucket": bucket, "n": count})
            x.ticket = None
        if x.submission is not None:
            x.submission.over(x, cost_nanos)
            x.submission = None
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    # -- counting --

    async def _count_prompt(self, x: Exchange, content: bytes) -> None:
        x.prompt_tokens = await asyncio.to_thread(prompts.count, content, x.model)

    async def _settle_late(self, end: entry.End, ticket: Ticket, left: _Unsettled) -> None:
        """What takes too long to count at once is counted in a thread; the Settle follows the End."""
        assert left.figures.counted is not None
        left.figures.counted.input = await asyncio.to_thread(prompts.count, left.content, end.model)
        settle = settlement.late(end, left.figures, left.price, left.terms, self._wall_ms())
        self._journal.append(entry.encode(settle), None, settle=True)
        self._gate.correct(ticket, settle.cost_nanos - end.hold_nanos)

    # -- what others see --

    def checkpoint(self) -> None:
        """Once a second: where the live answers are, for the case that this process dies."""
        live = []
        for x in self.live.values():
            tap = x.pump.tap if x.pump is not None else None
            if tap is None or not tap.total:
                continue
            reported = tap.meter.usage()
            live.append(
                entry.Progress(
                    x.id,
                    tap.total,
                    tap.meter.events,
                    reported.input_tokens_all() if reported else 0,
                    max(tap.estimated_output(), reported.output_tokens_all() if reported else 0),
                )
            )
        for at in range(0, len(live), CHECKPOINT_CALLS_MAX):
            self._journal.append(
                entry.encode(entry.Checkpoint(self._wall_ms(), live[at : at + CHECKPOINT_CALLS_MAX])), None
            )

    async def wait_for_change(self, timeout_s: float) -> None:
        """Until a call is closed, or the time is over."""
        self._change = self._loop.create_future()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._change
        self._change = None
