"""Ids that live at a vendor, who may use them, and what their end costs.

Owns the rule that an unbound and a foreign id look the same to a caller, and how the last observation
of a task becomes the closing entry of the call that submitted it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

from msgspec.structs import replace

from proxy.dialects.owned import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED
from proxy.ledger import entry, holds, settlement
from proxy.ledger.entry import Bind, End, Observed, Settle
from proxy.ledger.settlement import Bill, Figures, Terms
from proxy.metering.pricing import Price
from proxy.metering.usage import Provenance, Usage

# What a binding's row says.
BOUND = "bound"  # no money waits for it
PENDING = "pending"  # its hold is set aside until somebody learns the end
DISPUTED = "disputed"  # nobody learned it in time: an operator decides, or the time
SETTLED = "settled"
VOID = "void"

# What an Observed says, besides what tables of tasks do.
DUE = "due"  # it is over, and what it cost must be asked for
GONE = "gone"  # its owner deleted it at the vendor
CHARGED = "charged"  # an operator decides that the hold is taken
RELEASED = "released"  # an operator, or the time, decides that it is not: a loss of the station's
STATES = frozenset({QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED, DUE, GONE, CHARGED, RELEASED})
FINAL = frozenset({SUCCEEDED, FAILED, CANCELLED, CHARGED, RELEASED})

# (what the row says, what was observed) -> what the row says then. A missing pair changes nothing: the
# first end stands, except that a vendor's late success is believed after a failure.
NEXT = {
    (PENDING, SUCCEEDED): SETTLED,
    (PENDING, FAILED): VOID,
    (PENDING, CANCELLED): VOID,
    (PENDING, CHARGED): SETTLED,
    (PENDING, RELEASED): VOID,
    (DISPUTED, SUCCEEDED): SETTLED,
    (DISPUTED, FAILED): VOID,
    (DISPUTED, CANCELLED): VOID,
    (DISPUTED, CHARGED): SETTLED,
    (DISPUTED, RELEASED): VOID,
    (VOID, SUCCEEDED): SETTLED,
    (PENDING, GONE): DISPUTED,
}

WAS_DISPUTED = "disputed"  # a flag of the bill
EXISTS = "exists"  # why a call is void whose task was there before
ONE_CALL = Usage(calls=1)
_OUTCOMES = {SUCCEEDED: entry.COMPLETE, FAILED: entry.UPSTREAM_ERROR, CANCELLED: entry.FAILED}


@dataclass(frozen=True, slots=True)
class Binding:
    """A vendor's id belongs to an account and can only be reached with this credential."""

    vendor_id: str
    kind: str  # file, batch, response, task:FAMILY, ...
    account: int
    upstream: str
    mirror: str
    credential: str
    is_told: bool = False  # its account asked to be told of its changes
    made: str = ""  # the id of its Bind: lists are in this order; "": not known here

    @classmethod
    def of(cls, record: Bind) -> Binding:
        return cls(
            vendor_id=record.vendor_id,
            kind=record.kind,
            account=record.account,
            upstream=record.upstream,
            mirror=record.mirror,
            credential=record.credential,
            is_told=bool(record.hook),
            made=record.id,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def identity(self) -> tuple[str, str, str]:
        """What is unique: two vendors, and two accounts at one vendor, may use the same id."""
        return self.upstream, self.credential, self.vendor_id

    @property
    def home(self) -> tuple[str, str]:
        """Where calls that name it must go."""
        return self.upstream, self.credential


def usable(binding: Binding | None, account: int) -> Binding | None:
    """The binding if the account may use the id, else None: the caller is answered 404 either way."""
    return binding if binding is not None and binding.account == account else None


class Part(TypedDict):
    """A share of a task's usage that is priced by another model than its submit's."""

    id: str  # of the usage row, where it is not the first
    model: str
    price: str  # price id
    model_ppm: int
    tier_ppm: int
    override: str  # as in End
    usage: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Closing:
    """What the end of a task becomes: usage rows, or a correction of the one that is there."""

    ends: list[End] = field(default_factory=list)
    correction: Settle | None = None


def deferred(outcome: str, asked: Usage) -> Bill:
    """Of a call that started something, by what it asked for: it costs nothing until that has ended."""
    figures = Figures(counted=asked, is_estimate=True)
    return replace(settlement.pending(outcome, figures), state=entry.DEFERRED)


def undone(end: End) -> End:
    """The End of a call whose task turned out to be another call's: it exists already."""
    return replace(
        end, state=entry.VOID, cost_nanos=0, usage={}, provenance=Provenance.NONE, lease="",
        cut=end.cut or EXISTS,
    )  # fmt: skip


def closed(end: End, seen: Observed, was: str, prices: Mapping[str, Price]) -> Closing:
    """The end of a task by what was seen last; `was` is what its row said before.

    Costs what the prices say that were fixed when it was submitted. Its hold went to the binding, so
    that no lease is named any more. Raises KeyError: a price is missing.
    """
    if was == VOID:
        found = _bill(end, seen, _reported(seen.usage), prices[end.price], [])
        return Closing(correction=_correction(end.id, seen, found))
    holds.resolved(end.id, end.state, entry.VOID if NEXT[was, seen.state] == VOID else entry.SETTLED)
    flags = [WAS_DISPUTED] if was == DISPUTED or seen.state in (CHARGED, RELEASED) else []
    if not seen.parts:
        return Closing([_end(end, seen, _bill(end, seen, _reported(seen.usage), prices[end.price], flags))])
    ends: list[End] = []
    for part in seen.parts:
        is_first = not ends
        call = replace(
            end,
            id=end.id if is_first else part["id"],
            parent=end.parent if is_first else end.id,
            model=part["model"],
            price=part["price"],
            model_ppm=part["model_ppm"],
            tier_ppm=part["tier_ppm"],
            override=part["override"],
            multiplied=prices[part["price"]].multiplied,
        )
        told = Usage.from_dict(part["usage"])
        ends.append(_end(call, seen, _bill(call, seen, told, prices[part["price"]], flags)))
    return Closing(ends)


def corrected(call: End, seen: Observed, price: Price) -> Closing:
    """The same for a call that was closed when its relay died: the row that is there is put right."""
    return Closing(correction=_correction(call.id, seen, _bill(call, seen, _reported(seen.usage), price, [])))


def _reported(usage: dict[str, Any]) -> Usage | None:
    return Usage.from_dict(usage) if usage else None


def _bill(end: End, seen: Observed, reported: Usage | None, price: Price, flags: list[str]) -> Bill:
    if seen.state == RELEASED:
        return Bill(entry.VOID, 0, {}, Provenance.NONE, flags)
    counted = Usage.from_dict(end.usage)
    if seen.state == CHARGED:
        flags = [*flags, settlement.CAPPED]
        return Bill(entry.SETTLED, end.hold_nanos, counted.as_dict(), Provenance.ESTIMATED, flags)
    outcome = _OUTCOMES[seen.state]
    if reported == ONE_CALL:  # a success, or an end that its family charges as one: what was asked for
        reported, outcome = replace(counted, input=0), entry.COMPLETE
    figures = Figures(reported, reported is not None, counted, is_estimate=True)
    found = settlement.bill(end, outcome, figures, price, Terms())
    return replace(found, flags=[*flags, *found.flags])


def _end(end: End, seen: Observed, found: Bill) -> End:
    return replace(
        end,
        at_ms=max(seen.at_ms, end.began_ms),
        state=found.state,
        outcome=_OUTCOMES.get(seen.state, end.outcome),
        cut=CANCELLED if seen.state == CANCELLED else end.cut,
        lease="",
        cost_nanos=found.cost_nanos,
        provenance=found.provenance,
        usage=found.usage,
        flags=[*end.flags, *found.flags],
        took_ms=min(max(seen.at_ms - end.began_ms, end.took_ms), (1 << 31) - 1),
    )


def _correction(call: str, seen: Observed, found: Bill) -> Settle:
    return Settle(
        seen.id, seen.at_ms, found.cost_nanos, found.provenance, found.usage,
        corrects=call, flags=found.flags,
    )  # fmt: skip
