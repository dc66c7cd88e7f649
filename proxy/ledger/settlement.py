"""What is billed when a call ends, well or not: facts and usage become the closing entry of its hold.

Owns the table of money.md, "What is billed when a call does not end well", as BILLED, and the sanity
bounds of what an upstream claims. Pure; amounts are nano-units of the station's currency.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from proxy.ledger import entry, holds
from proxy.ledger.entry import SETTLED, Attempt, Begin, End, Progress, Settle
from proxy.metering.pricing import Price, TextRate, cost_nanos, cost_of
from proxy.metering.usage import FIELDS, Provenance, Usage, as_dict

# No call has more tokens, milliseconds or characters, nor more of what is priced one by one. With these
# every cost fits into 64 bits, whatever an upstream claims.
COUNT_MAX = 10**9
SINGLE_MAX = 10**6
SINGLES = frozenset({"images", "calls", "tools", "units"})

# Text comes first: where a claim is cut, it is what is believed first.
_TEXT = ("input", "cache_read", "cache_write_5m", "cache_write_1h")
INPUT = (*_TEXT, "input_audio", "cached_audio", "input_image")
OUTPUT = ("output", "output_audio", "output_image")

NO_ATTEMPT = Attempt("", "", "", "")
FINAL = Provenance.FINAL

# What is remarkable about a bill (`End.flags`).
CAPPED = "capped_at_hold"  # the price of the usage is more; the audit expects the hold
WAIVED = "waived"  # free by an option of the station or the route; the audit expects 0
RECONCILE = "reconcile"  # the vendor may know more: compare with its bill
DISTRUSTED = "claim_cut"  # an upstream of low trust claimed more than is possible
OVER_INPUT = "anomaly_input"  # a trusted upstream reports more than the context window
OVER_OUTPUT = "anomaly_output"  # ... or more than max_tokens allows
ABSURD = "anomaly_absurd"  # a figure was negative or over its maximum


class Billed(Enum):
    """Which usage a way of ending is billed by."""

    NOTHING = auto()
    REPORTED = auto()  # only what the vendor itself reported beside an output
    SO_FAR = auto()  # the vendor's figures as far as they go, else our own count


class Waiver(Enum):
    """Which option makes a way of ending free."""

    NEVER = auto()
    ON_BREAK = auto()  # the route's on_break: free
    ON_CUT = auto()  # the station's option for calls that we cut ourselves


# How a call ended -> what the key holder pays, and what makes even that free.
BILLED: dict[str, tuple[Billed, Waiver]] = {
    entry.COMPLETE:             (Billed.SO_FAR,      Waiver.NEVER),
    entry.FAILED:               (Billed.NOTHING,     Waiver.NEVER),
    entry.UPSTREAM_ERROR:       (Billed.REPORTED,    Waiver.NEVER),
    entry.INTERRUPTED_CLIENT:   (Billed.SO_FAR,      Waiver.NEVER),
    entry.INTERRUPTED_UPSTREAM: (Billed.SO_FAR,      Waiver.ON_BREAK),
    entry.INTERRUPTED_RELAY:    (Billed.SO_FAR,      Waiver.NEVER),
    entry.CUT:                  (Billed.SO_FAR,      Waiver.ON_CUT),
}  # fmt: skip


class Figures(Struct, frozen=True, gc=False):
    """What is known about the consumption of a call when it ends.

    `reported` is the vendor's word (`is_final`: its last one), `counted` our own figures for what it
    did not say: tokens of the whole input and of the output that was delivered. `is_estimate`: they
    come from byte counts or a checkpoint, not from a tokenizer.
    """

    reported: Usage | None = None
    is_final: bool = False
    counted: Usage | None = None
    is_estimate: bool = False


class Terms(Struct, frozen=True, gc=False):
    """What the table, the model and the options say about this call. Bounds are tokens; None: unknown."""

    trusted: bool = True
    input_max: int | None = None  # the context window
    output_max: int | None = None  # max_tokens of the request, else the model's, times n
    waivers: frozenset[Waiver] = frozenset()
    within_hold: bool = False  # read on without the client (drain): it cannot stop us any more


class Bill(Struct, frozen=True, gc=False):
    """What a call costs and why; `state` is what its End says."""

    state: str
    cost_nanos: int
    usage: dict[str, Any]  # Usage.as_dict()
    provenance: str
    flags: list[str] = []


class Course(Struct, frozen=True, gc=False):
    """How a call went, as far as no bill depends on it: fields of its End."""

    attempts: list[Attempt]
    status: int = 0
    vendor_id: str = ""  # how the answer itself names the request: for where its head does not
    upstream_model: str = ""
    cut: str = ""
    response_bytes: int = 0
    events: int = 0
    rurt_ms: int = 0
    ttft_ms: int = -1
    took_ms: int = 0
    client: str = ""


def ended(begin: Begin, found: Bill, price: str, outcome: str, at_ms: int, went: Course) -> End:
    """The End of a call: what its Begin says, what it costs, and how it went.

    `price` is Begin's, narrowed by the service tier that the answer names.
    """
    attempts = went.attempts
    last = attempts[-1] if attempts else NO_ATTEMPT
    # By position, in the order of End's fields: with keywords it takes four times as long (2.5 us), and a
    # field that is set afterwards as long as five that are given.
    return End(
        begin.id,
        at_ms,
        begin.at_ms,
        found.state,
        outcome,
        begin.account,
        begin.key,
        begin.lease,
        begin.hold_nanos,
        found.cost_nanos,
        begin.model,
        begin.operation,
        begin.dialect,
        price,
        begin.model_ppm,
        begin.tier_ppm,
        begin.tier,
        begin.endpoint,
        begin.generation,
        begin.stream,
        went.status,
        found.provenance,
        found.usage,
        attempts,
        last.upstream,
        last.mirror,
        last.credential,
        last.upstream_id or went.vendor_id,
        went.upstream_model,
        went.cut,
        found.flags,
        begin.request_bytes,
        went.response_bytes,
        went.events,
        went.rurt_ms,
        went.ttft_ms,
        went.took_ms,
        0,  # free_nanos
        begin.override,
        begin.parent,
        begin.multiplied,
        went.client,
    )


def pending(outcome: str, figures: Figures) -> Bill:
    """Of a call that is still being counted: it costs nothing until its Settle.

    Its usage is what recovery settles by, should the Settle never come.
    """
    usage, _ = consumed(outcome, figures)
    return Bill(entry.PENDING, 0, usage.as_dict(), Provenance.ESTIMATED)


def late(end: End, figures: Figures, price: Price, terms: Terms, at_ms: int) -> Settle:
    """Closes a pending End with what was counted meanwhile. Raises AlreadyClosed for any other End."""
    holds.resolved(end.id, end.state, entry.SETTLED)
    found = bill(end, end.outcome, figures, price, terms)
    return Settle(
        end.id, at_ms, found.cost_nanos, found.provenance, found.usage, flags=found.flags
    )  # fmt: skip


def interrupted(begin: Begin, progress: Progress | None, price: Price, now_ms: int) -> End:
    """Adoption: the End of a call whose relay died, by its last checkpoint and within its hold.

    Without a checkpoint no content is known to have arrived: void. Either way the vendor may bill us
    for more, so the row asks for reconciliation.
    """
    figures = Figures()
    if progress is not None:
        usage = Usage(input=progress.input or begin.input_bound, output=progress.output)
        figures = Figures(counted=usage, is_estimate=True)
    found = bill(begin, entry.INTERRUPTED_RELAY, figures, price, Terms(within_hold=True))
    found.flags.insert(0, RECONCILE)
    went = Course(
        [],
        cut="relay_died",
        response_bytes=0 if progress is None else progress.bytes,
        events=0 if progress is None else progress.events,
        took_ms=max(0, now_ms - begin.at_ms),
    )
    return ended(begin, found, price.id, entry.INTERRUPTED_RELAY, now_ms, went)


def recovered(end: End, price: Price, now_ms: int) -> Settle:
    """Adoption: closes a pending End whose relay died while counting, by what it knew, within the hold."""
    figures = Figures(counted=Usage.from_dict(end.usage), is_estimate=True)
    return late(end, figures, price, Terms(within_hold=True), now_ms)


def bill(call: Begin | End, outcome: str, figures: Figures, price: Price, terms: Terms) -> Bill:
    """The one way from figures to money."""
    usage, provenance = consumed(outcome, figures)
    if provenance == Provenance.NONE:
        return Bill(entry.VOID, 0, {}, provenance)
    usage, flags = bounded(usage, terms)
    if BILLED[outcome][1] in terms.waivers:
        flags.append(WAIVED)
    cost = cost_nanos(price, usage, call.model_ppm, call.tier_ppm)
    if terms.within_hold and cost > call.hold_nanos:
        flags.append(CAPPED)
    return Bill(entry.SETTLED, owed(cost, call.hold_nanos, flags), usage.as_dict(), provenance, flags)


# What a conversation consumes that is nothing but text.
_OF_TEXT = frozenset({"input", "cache_read", "output", "reasoning", "calls"})


def plain_bill(
    call: Begin,
    usage: Usage,
    price: Price,
    rate: TextRate | None,
    input_max: int | None,
    output_max: int | None,
) -> Bill | None:
    """What `bill` comes to, whatever else its terms are, for a complete call with the vendor's last word,
    where nothing about that is remarkable; else None. As of nearly every call.

    `rate`: of text, at `price` and the multipliers of the call, where it has one.
    """
    told = as_dict(usage)
    if rate is not None and usage.calls == 1 and _OF_TEXT.issuperset(told):
        text, cached, output = usage.input, usage.cache_read, usage.output
        # All bits of the four together: below zero if one of them is, else no less than the largest.
        if (
            0 <= text | cached | output | usage.reasoning <= COUNT_MAX
            and (input_max is None or text + cached <= input_max)
            and (output_max is None or output <= output_max)
        ):
            return Bill(SETTLED, rate.cost_nanos(text, output, cached), told, FINAL)
        return None
    if not is_plausible(usage, told, input_max, output_max):
        return None
    cost = cost_of(price, usage, told, call.model_ppm, call.tier_ppm)
    return Bill(SETTLED, cost, told, FINAL)


def owed(cost: int, hold: int, flags: list[str]) -> int:
    """What is taken of the price of the usage; the audit recomputes rows with it."""
    if WAIVED in flags:
        return 0
    return hold if CAPPED in flags else cost


def consumed(outcome: str, figures: Figures) -> tuple[Usage, str]:
    """The usage that a call is billed by, and where it is from. NONE: nothing is billed."""
    reported, counted = figures.reported, figures.counted
    billed = BILLED[outcome][0]
    if billed is Billed.REPORTED and reported is not None and reported.output_tokens_all() > 0:
        billed, counted = Billed.SO_FAR, None
    if billed is not Billed.SO_FAR or (reported is None and counted is None):
        return Usage(), Provenance.NONE
    if reported is None:
        assert counted is not None
        return counted, Provenance.ESTIMATED if figures.is_estimate else Provenance.COUNTED
    if figures.is_final or counted is None:
        return reported, Provenance.FINAL if figures.is_final else Provenance.EARLY
    # Of the output the vendor told what there was at that moment, and we have seen more since.
    text_in = reported.input if reported.input_tokens_all() else counted.input
    return replace(reported, input=text_in, output=max(reported.output, counted.output)), Provenance.EARLY


def bounded(usage: Usage, terms: Terms) -> tuple[Usage, list[str]]:
    """What is believed of a usage, and the flags that it earns.

    Absurd figures are cut for every upstream. Those over the call's own bounds are cut for an upstream
    of low trust, and only flagged for a trusted one.
    """
    flags: list[str] = []
    if is_plausible(usage, usage.as_dict(), terms.input_max, terms.output_max):
        return usage, flags
    if not _is_sane(usage):
        usage = _sane(usage)
        flags.append(ABSURD)
    too_much_in = terms.input_max is not None and usage.input_tokens_all() > terms.input_max
    too_much_out = terms.output_max is not None and usage.output_tokens_all() > terms.output_max
    if terms.trusted:
        if too_much_in:
            flags.append(OVER_INPUT)
        if too_much_out:
            flags.append(OVER_OUTPUT)
    elif too_much_in or too_much_out:
        usage = replace(usage)
        if terms.input_max is not None:
            _cut(usage, INPUT, terms.input_max)
        if terms.output_max is not None:
            _cut(usage, OUTPUT, terms.output_max)
            usage.reasoning = min(usage.reasoning, usage.output)
        flags.append(DISTRUSTED)
    return usage, flags


_PLAIN = frozenset(f.name for f in FIELDS if f.default == 0)  # not by kinds


def is_plausible(
    usage: Usage, told: Mapping[str, Any], input_max: int | None, output_max: int | None
) -> bool:
    """Can it be believed at the first look? What is within the smaller maximum is within both.
    `told` is the same usage as a dict."""
    return (
        _PLAIN.issuperset(told)
        and (not told or (min(told.values()) >= 0 and max(told.values()) <= SINGLE_MAX))
        and (input_max is None or usage.input_tokens_all() <= input_max)
        and (output_max is None or usage.output_tokens_all() <= output_max)
    )


def _is_sane(usage: Usage) -> bool:
    for name, counts in usage.as_dict().items():
        most = _most(name)
        for count in counts.values() if isinstance(counts, dict) else (counts,):
            if not 0 <= count <= most:
                return False
    return True


def _sane(usage: Usage) -> Usage:
    sane: dict[str, int | dict[str, int]] = {}
    for name, counts in usage.as_dict().items():
        most = _most(name)
        if isinstance(counts, dict):
            sane[name] = {kind: min(max(count, 0), most) for kind, count in counts.items()}
        else:
            sane[name] = min(max(counts, 0), most)
    return Usage.from_dict(sane)


def _most(name: str) -> int:
    return SINGLE_MAX if name in SINGLES else COUNT_MAX


def _cut(usage: Usage, buckets: tuple[str, ...], most: int) -> None:
    """Leave at most `most` tokens in the buckets, the plain ones first."""
    for name in buckets:
        kept = min(getattr(usage, name), most)
        setattr(usage, name, kept)
        most -= kept
