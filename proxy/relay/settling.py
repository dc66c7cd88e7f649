"""Every call ends here, once: what is known of it becomes an End, its hold is resolved, its slices go back.

Owns the calls that are open (`live`) and the journal entries of their ends. Plain functions: no await
where money changes. Who ends a call (terminal event, a lost connection, a time limit, a client that
left) is the pump's business, what it costs is proxy/ledger/settlement.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from logging import getLogger
from time import monotonic
from typing import Any

from proxy import telemetry
from proxy.access.admission import Gate, Ticket
from proxy.errors import ProxyError, Source
from proxy.journal.segments import Journal
from proxy.ledger import bindings, entry, settlement
from proxy.ledger.settlement import Facts, Figures, Terms, Waiver
from proxy.metering.pricing import Price
from proxy.metering.usage import Provenance, Usage
from proxy.relay import prompts
from proxy.relay.exchange import Exchange
from proxy.relay.metering_task import Tap
from proxy.relay.ownership import Fate
from proxy.telemetry import Stats

log = getLogger("headrace.calls")

KEPT_PROMPTS_BYTES_MAX = 64 << 20  # request bodies kept for counting while their streams run, per worker
COUNT_AT_ONCE_BYTES = 200_000  # more would take over 5 ms: counted in a thread, the End is pending
CLIENT_CHARS_MAX = 120  # of a user agent
CHECKPOINT_CALLS_MAX = 2000  # per frame: about 200 KB

# Ways to end that are billed by the vendor's own word or not at all.
_NOT_COUNTED = frozenset({entry.FAILED, entry.UPSTREAM_ERROR})

_NO_WAIVERS: frozenset[Waiver] = frozenset()
_FREE_IF_BROKEN = frozenset({Waiver.ON_BREAK})

Then = Callable[[BaseException | None], None]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ends; `status` is what the client is answered where no upstream's answer is relayed."""

    outcome: str
    why: str = ""
    status: int = 0
    is_whole: bool = False  # the answer came to its end


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
        self._stats = stats
        self._loop = loop
        self._wall_ms = wall_ms
        self._known_prices: set[str] = set()
        self._kept_bytes = 0
        self._change: asyncio.Future[None] | None = None

    # -- begin --

    def begin(self, x: Exchange) -> entry.Begin:
        """Fix the price and open the call. Its price is journaled before the first Begin that names it."""
        assert x.ticket is not None and x.key is not None and x.snapshot is not None
        assert x.standing is not None
        assert x.operation is not None and x.dialect is not None and x.endpoint is not None
        standing = x.standing
        price = standing.price
        self._know(price)
        x.begin = entry.Begin(
            id=x.id,
            at_ms=x.at_ms,
            account=x.ticket.account,
            key=x.key.key_id,
            lease=x.ticket.lease,
            hold_nanos=x.ticket.hold_nanos,
            model=x.model,
            operation=x.operation.name,
            dialect=x.dialect.name,
            price=price.id,
            model_ppm=standing.model_ppm,
            tier_ppm=standing.tier_ppm,
            tier=standing.tier.name,
            endpoint=x.endpoint.name,
            generation=x.snapshot.generation,
            stream=x.is_stream,
            input_bound=x.input_bound,
            request_bytes=x.request_bytes,
            override=standing.override,
            parent=x.parent,
            multiplied=price.multiplied,
        )
        self.live[x.id] = x
        return x.begin

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

    def complete(self, x: Exchange, tap: Tap | None, is_framed: bool, then: Then) -> None:
        """The answer is whole. `then` runs when End is written and releases its last bytes."""
        if tap is not None and is_framed:
            tap.finish()
        failed = x.attempts[-1].status >= 400 or (tap is not None and tap.meter.error)
        self._close(x, tap, Ending(entry.UPSTREAM_ERROR if failed else entry.COMPLETE, is_whole=True), then)

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
        self._close(x, tap, Ending(outcome, why), None)

    def refuse(self, x: Exchange, error: ProxyError) -> None:
        """The call ends with an error of ours before anything reached the client."""
        outcome = entry.UPSTREAM_ERROR if error.source is Source.UPSTREAM else entry.FAILED
        self._undo(x, Ending(outcome, error.code, status=error.status))

    def abandon(self, x: Exchange) -> None:
        """The client left before the call was sent anywhere."""
        self._undo(x, Ending(entry.FAILED, "client_left"))

    def _undo(self, x: Exchange, ending: Ending) -> None:
        if x.begin is not None and not x.settled:
            self._close(x, None, ending, None)
        else:
            self._release(x, 0, {})

    def _close(self, x: Exchange, tap: Tap | None, ending: Ending, then: Then | None) -> None:
        """The only way out of `live`."""
        if x.settled or x.begin is None or x.standing is None:
            return
        x.settled = True
        x.outcome = ending.outcome
        begin, price = x.begin, x.standing.price
        facts = self._facts(x, tap, ending)
        reported = tap.meter.usage() if tap is not None else None
        if reported is not None:
            price = self._narrowed(x, price, tap)
        fate = x.ownership.conclude(x, ending.outcome) if x.ownership is not None else Fate.OVER
        if fate is Fate.GOES_ON:
            self._defer(x, facts, price, then)
            return
        is_last_word = ending.is_whole or (tap is not None and tap.meter.usage_is_final())
        is_final = reported is not None and is_last_word
        terms = self._terms(x)
        uncounted = b""
        if fate is Fate.EXISTS:
            facts.cut, figures = bindings.EXISTS, Figures()
        elif is_final or price.free or ending.outcome in _NOT_COUNTED:
            figures = Figures(reported, is_final)
        else:
            figures, uncounted = self._counted(x, tap, reported)
        if uncounted:
            end = settlement.pending(begin, facts, figures, price)
            assert x.ticket is not None
            late = self._settle_late(end, x.ticket, (figures, price, terms), uncounted)
            telemetry.spawn("settle late", late)
        else:
            end = settlement.settled(begin, facts, figures, price, terms)
        # While Begin waits to be written they share their fate: no End without it.
        self._journal.append(entry.encode(end), then, settle=x.has_begun)
        # What is still being counted is spent at its hold: nobody spends it twice meanwhile.
        self._release(x, end.hold_nanos if uncounted else end.cost_nanos, end.usage)
        self._tell(x, end)

    def _defer(self, x: Exchange, facts: Facts, price: Price, then: Then | None) -> None:
        """The call is over, what it started at the vendor is not: its hold is the binding's from here on."""
        assert x.begin is not None
        assert x.operation is not None
        if x.operation.amounts is not None:
            counted = x.operation.amounts(x.doc)
        else:
            counted = Usage(calls=1, input=x.begin.input_bound)
        known = Figures(counted=counted, is_estimate=True)
        end = bindings.deferred(settlement.pending(x.begin, facts, known, price))
        self._journal.append(entry.encode(end), then, settle=True)
        self._release(x, end.hold_nanos, end.usage)
        self._tell(x, end)

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

    def _facts(self, x: Exchange, tap: Tap | None, ending: Ending) -> Facts:
        last = x.attempts[-1] if x.attempts else entry.Attempt("", "", "", "")
        now = monotonic()
        meter = tap.meter if tap is not None else None
        answered = x.answered or (now if tap is not None and tap.total else 0.0)
        return Facts(
            outcome=ending.outcome,
            at_ms=self._wall_ms(),
            status=ending.status or x.status or (last.status if tap is not None else 0),
            cut=ending.why,
            attempts=x.attempts,
            upstream=last.upstream,
            mirror=last.mirror,
            credential=last.credential,
            upstream_id=last.upstream_id or (meter.vendor_id[:128] if meter else ""),
            upstream_model=meter.model[:128] if meter else "",
            response_bytes=tap.total if tap is not None else 0,
            events=meter.events if meter else 0,
            rurt_ms=int((x.uploaded - x.arrived) * 1000),
            ttft_ms=max(0, int((answered - x.uploaded) * 1000)) if answered else -1,
            took_ms=int((now - x.arrived) * 1000),
            client=x.facts.user_agent[:CLIENT_CHARS_MAX] if x.facts is not None else "",
            flags=["metering_degraded"] if meter is not None and meter.degraded else [],
        )

    def _terms(self, x: Exchange) -> Terms:
        assert x.snapshot is not None and x.route is not None
        last = x.attempts[-1].upstream if x.attempts else ""
        upstream = x.snapshot.table.upstreams.get(last)
        model = x.standing.model if x.standing is not None else None
        return Terms(
            trusted=upstream is None or upstream.trust == "full",
            input_max=model.context if model else None,
            output_max=x.output_bound,
            waivers=_FREE_IF_BROKEN if x.route.on_break == "free" else _NO_WAIVERS,
            within_hold=x.is_drained,
        )

    def _narrowed(self, x: Exchange, price: Price, tap: Tap | None) -> Price:
        """The answer's service tier decides, and the size and quality that were asked for."""
        if not price.content.get("service_tiers") and not price.content.get("sizes"):
            return price
        narrowed = price.narrowed(
            service_tier=tap.meter.service_tier if tap is not None else "",
            size=str(x.doc.get("size") or ""),
            quality=str(x.doc.get("quality") or ""),
        )
        self._know(narrowed)
        return narrowed

    def _know(self, price: Price) -> None:
        if price.id not in self._known_prices:
            self._known_prices.add(price.id)
            self._journal.append(
                entry.encode(entry.PriceEntry(price.id, dict(price.content))), None, settle=True
            )

    def _release(self, x: Exchange, cost_nanos: int, usage: Mapping[str, Any]) -> None:
        """Resolve the hold, give the limits back, forget the call."""
        self.live.pop(x.id, None)
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

    async def _settle_late(
        self, end: entry.End, ticket: Ticket, known: tuple[Figures, Price, Terms], content: bytes
    ) -> None:
        """What takes too long to count at once is counted in a thread; the Settle follows the End."""
        figures, price, terms = known
        assert figures.counted is not None
        figures.counted.input = await asyncio.to_thread(prompts.count, content, end.model)
        settle = settlement.late(end, figures, price, terms, self._wall_ms())
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

    def _tell(self, x: Exchange, end: entry.End) -> None:
        stats = self._stats
        stats.inc("calls_total", end.operation, end.outcome)
        stats.inc("request_bytes_total", by=end.request_bytes)
        stats.inc("response_bytes_total", by=end.response_bytes)
        for attempt in end.attempts:
            stats.inc("upstream_attempts_total", attempt.upstream, attempt.mirror, attempt.outcome)
        stats.observe("call_seconds", end.took_ms / 1000, end.operation)
        if x.sent > x.uploaded:  # else it was an upload: the rest of it came later
            stats.observe("overhead_seconds", x.sent - x.uploaded)
        if end.stream:
            stats.observe("first_byte_seconds", end.ttft_ms / 1000, end.operation)
            stats.inc("stream_events_total", by=end.events)
        if end.provenance != Provenance.FINAL.value:
            stats.inc("usage_provenance_total", end.provenance)
        if end.flags and "metering_degraded" in end.flags:
            stats.inc("metering_degraded_total")
        if end.outcome == entry.INTERRUPTED_CLIENT:
            stats.inc("client_disconnects_total")
        if end.outcome != entry.COMPLETE:
            log.info("call ended early", extra={"call": x.id, "outcome": end.outcome, "why": end.cut})
