"""The journal's immutable records and their encoding.

Owns the fields of each entry; `encode` and `decode` are inverse. A record never changes; a
correction is a new record. Amounts are nano-units of the station's currency, times are
milliseconds of the Unix epoch, ids are UUIDv7 as 32 hex digits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson


@dataclass  # Begin and End without slots: orjson writes an instance's dict twice as fast (2 us per call)
class Begin:
    """A call was admitted: its hold is set aside and its price is fixed. Written before dispatch."""

    TAG: ClassVar[str] = "B"
    id: str
    at_ms: int
    account: int
    key: int
    lease: str  # "" when the hold comes from an outage allowance
    hold_nanos: int
    model: str  # as the client named it
    operation: str
    dialect: str  # the caller's
    price: str  # price id; its content is a PriceEntry written before
    model_ppm: int
    tier_ppm: int
    tier: str
    endpoint: str
    generation: int
    stream: bool
    input_bound: int  # tokens: billed as `estimated` input if the relay dies
    request_bytes: int
    override: str = ""  # id of a per-account price, when there is one
    parent: str = ""
    multiplied: bool = True


@dataclass(slots=True)
class Attempt:
    """One try at one upstream within a call."""

    upstream: str
    mirror: str
    credential: str
    outcome: str  # "ok", an error's code, or "status:NNN"
    status: int = 0
    upstream_id: str = ""
    started_ms: int = 0
    took_ms: int = 0
    cost_nanos: int = 0  # estimated upstream cost


@dataclass(slots=True)
class Progress:
    """Where a live stream was at a checkpoint."""

    id: str
    bytes: int
    events: int
    input: int  # tokens as far as the vendor told or we counted
    output: int


@dataclass(slots=True)
class Checkpoint:
    """Once a second, one per worker: all its live calls that have received content."""

    TAG: ClassVar[str] = "C"
    at_ms: int
    live: list[Progress]


# How a call ended (`End.outcome`); the words that receipts show.
COMPLETE = "complete"
FAILED = "failed"  # nothing is billed: refused or broken before any output
UPSTREAM_ERROR = "upstream_error"  # the upstream answered with an error
INTERRUPTED_CLIENT = "interrupted_client"
INTERRUPTED_UPSTREAM = "interrupted_upstream"
INTERRUPTED_RELAY = "interrupted_relay"
CUT = "cut"  # by our own time limit, revocation or shutdown

SETTLED = "settled"
VOID = "void"
PENDING = "pending"  # still being counted: a Settle follows
DEFERRED = "deferred"  # what it started goes on: the hold is its binding's, an Observed ends it


@dataclass
class End:
    """A call is over. Holds all that the usage row needs, so that Begin can stay in the journal."""

    TAG: ClassVar[str] = "E"
    id: str
    at_ms: int
    began_ms: int
    state: str  # SETTLED, VOID, PENDING or DEFERRED
    outcome: str
    account: int
    key: int
    lease: str
    hold_nanos: int
    cost_nanos: int
    model: str
    operation: str
    dialect: str
    price: str
    model_ppm: int
    tier_ppm: int
    tier: str
    endpoint: str
    generation: int
    stream: bool
    status: int  # what the client was answered; 0: nothing
    provenance: str
    usage: dict[str, Any] = field(default_factory=dict)  # Usage.as_dict()
    attempts: list[Attempt] = field(default_factory=list)
    upstream: str = ""
    mirror: str = ""
    credential: str = ""
    upstream_id: str = ""  # the vendor's request id
    upstream_model: str = ""  # the model that the vendor says it ran
    cut: str = ""  # why, when outcome is not COMPLETE
    flags: list[str] = field(default_factory=list)
    request_bytes: int = 0
    response_bytes: int = 0
    events: int = 0
    rurt_ms: int = 0
    ttft_ms: int = -1  # -1: no byte of an answer came
    took_ms: int = 0
    free_nanos: int = 0
    override: str = ""
    parent: str = ""
    multiplied: bool = True
    client: str = ""  # the caller's user agent, cut to 120 characters


@dataclass(slots=True)
class Settle:
    """Closes a pending End, or corrects a closed call (`corrects` is then the call's id)."""

    TAG: ClassVar[str] = "S"
    id: str
    at_ms: int
    cost_nanos: int
    provenance: str
    usage: dict[str, Any] = field(default_factory=dict)
    corrects: str = ""
    flags: list[str] = field(default_factory=list)  # in addition to those of the End


@dataclass(slots=True)
class Bind:
    """An id that lives at the vendor belongs to (account, upstream, credential)."""

    TAG: ClassVar[str] = "I"
    id: str
    at_ms: int
    account: int
    key: int
    kind: str  # file, batch, response, task:FAMILY, ...
    vendor_id: str
    upstream: str
    mirror: str
    credential: str
    hold_nanos: int = 0  # more than 0: `id` is the call's, and its End is DEFERRED
    lease: str = ""
    content: dict[str, Any] = field(default_factory=dict)  # the vendor's object, where it is small
    hook: str = ""  # where the account wants to be told of its changes


@dataclass(slots=True)
class Observed:
    """A bound thing was seen in a state: by our poll or a client's own, by a callback, by an operator."""

    TAG: ClassVar[str] = "O"
    id: str
    at_ms: int
    vendor_id: str
    upstream: str
    state: str  # one of ledger.bindings.STATES
    usage: dict[str, Any] = field(default_factory=dict)  # at the submit's price; {}: the vendor told none
    credential: str = ""
    content: dict[str, Any] = field(default_factory=dict)  # as in Bind
    parts: list[dict[str, Any]] = field(default_factory=list)  # usage at other prices: ledger.bindings.Part
    mark: str = ""  # what its account is told, if it asked to be: dialects.news.News
    body: str = ""
    files: dict[str, str] = field(default_factory=dict)  # to be kept: id of the result -> the vendor's URL


@dataclass(slots=True)
class PriceEntry:
    """The content of a price, journaled by each life of a worker before the first Begin naming it."""

    TAG: ClassVar[str] = "P"
    id: str
    content: dict[str, Any]


@dataclass(slots=True)
class Allowance:
    """Credit granted while Postgres was away, so that a restart does not refill it."""

    TAG: ClassVar[str] = "A"
    id: str
    at_ms: int
    account: int
    amount_nanos: int


Entry = Begin | Checkpoint | End | Settle | Bind | Observed | PriceEntry | Allowance

_KINDS: dict[str, type[Entry]] = {
    kind.TAG: kind for kind in (Begin, Checkpoint, End, Settle, Bind, Observed, PriceEntry, Allowance)
}


def encode(entry: Entry) -> bytes:
    """One tag byte, then the fields as JSON."""
    return entry.TAG.encode() + orjson.dumps(entry)


def decode(payload: bytes) -> Entry:
    """Raises ValueError on a tag or a field that this build does not know."""
    kind = _KINDS.get(payload[:1].decode("latin-1"))
    if kind is None:
        raise ValueError("unknown journal entry")
    data = orjson.loads(payload[1:])
    try:
        if kind is Checkpoint:
            data["live"] = [Progress(**p) for p in data["live"]]
        elif kind is End:
            data["attempts"] = [Attempt(**a) for a in data["attempts"]]
        return kind(**data)
    except (TypeError, KeyError) as e:
        raise ValueError(f"journal entry {kind.__name__} of another build") from e
