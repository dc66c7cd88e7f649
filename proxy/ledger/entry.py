"""The journal's immutable records and their encoding.

Owns the fields of each entry; `encode` and `decode` are inverse. A record never changes; a
correction is a new record. Amounts are nano-units of the station's currency, times are
milliseconds of the Unix epoch, ids are UUIDv7 as 32 hex digits.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import msgspec
import orjson
from msgspec import field


class Record(msgspec.Struct, gc=False, omit_defaults=True):
    """Made and written by C, in the order of its fields, without those that say what they say by default;
    nothing that it holds can hold it."""


class Begin(Record):
    """A call was admitted: its hold is set aside and its price is fixed. Written before dispatch."""

    TAG: ClassVar[bytes] = b"B"
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


class Attempt(Record):
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


class Progress(Record):
    """Where a live stream was at a checkpoint."""

    id: str
    bytes: int
    events: int
    input: int  # tokens as far as the vendor told or we counted
    output: int


class Checkpoint(Record):
    """Once a second, one per worker: all its live calls that have received content."""

    TAG: ClassVar[bytes] = b"C"
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


def _nobody() -> list[Attempt]:
    """A default that is written nevertheless: `decode` of every build looks for it."""
    return []


class End(Record):
    """A call is over. Holds all that the usage row needs, so that Begin can stay in the journal."""

    TAG: ClassVar[bytes] = b"E"
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
    attempts: list[Attempt] = field(default_factory=_nobody)
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


class Settle(Record):
    """Closes a pending End, or corrects a closed call (`corrects` is then the call's id)."""

    TAG: ClassVar[bytes] = b"S"
    id: str
    at_ms: int
    cost_nanos: int
    provenance: str
    usage: dict[str, Any] = field(default_factory=dict)
    corrects: str = ""
    flags: list[str] = field(default_factory=list)  # in addition to those of the End


class Bind(Record):
    """An id that lives at the vendor belongs to (account, upstream, credential)."""

    TAG: ClassVar[bytes] = b"I"
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


class Observed(Record):
    """A bound thing was seen in a state: by our poll or a client's own, by a callback, by an operator."""

    TAG: ClassVar[bytes] = b"O"
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


class PriceEntry(Record):
    """The content of a price, journaled by each life of a worker before the first Begin naming it."""

    TAG: ClassVar[bytes] = b"P"
    id: str
    content: dict[str, Any]


class Allowance(Record):
    """Credit granted while Postgres was away, so that a restart does not refill it."""

    TAG: ClassVar[bytes] = b"A"
    id: str
    at_ms: int
    account: int
    amount_nanos: int


Entry = Begin | Checkpoint | End | Settle | Bind | Observed | PriceEntry | Allowance

_KINDS: dict[bytes, type[Entry]] = {
    kind.TAG: kind for kind in (Begin, Checkpoint, End, Settle, Bind, Observed, PriceEntry, Allowance)
}

_write = msgspec.json.Encoder().encode


def encode(entry: Entry) -> bytes:
    """One tag byte, then the fields as JSON. What no UTF-8 can hold becomes `?`: half of a surrogate pair in
    a vendor's JSON, an odd byte in a client's name must not keep a call open."""
    try:
        return entry.TAG + _write(entry)
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(entry), ensure_ascii=False, separators=(",", ":"))
        return entry.TAG + text.encode("utf-8", "replace")


def decode(payload: bytes) -> Entry:
    """Raises ValueError on a tag or a field that this build does not know."""
    kind = _KINDS.get(payload[:1])
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
