"""One call: the request as it came, what was decided about it, and how it stands.

Owns the state of a call and nothing else; the verbs are in the other modules of this package.
Times without a unit suffix are seconds of time.monotonic() (uvloop's own clock has only milliseconds).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from proxy.access.admission import Ticket
from proxy.access.keyring import KeyRecord
from proxy.access.limits import Limit
from proxy.dialects.base import Dialect, OperationSpec
from proxy.dialects.links import Hosting
from proxy.errors import ProxyError
from proxy.ledger.bindings import Binding
from proxy.ledger.entry import Attempt, Begin
from proxy.metering.pricing import Price, TextRate
from proxy.relay.request_head import RequestHead
from proxy.routing.table import Endpoint, Model, Route, Tier
from proxy.snapshot import Snapshot

if TYPE_CHECKING:
    from proxy.relay.heads import HeadFacts, Heads
    from proxy.relay.heartbeat import Heartbeat
    from proxy.relay.metering_task import Tap
    from proxy.relay.ownership import Ownership
    from proxy.relay.sighting import Sighting
    from proxy.relay.submissions import Claim
    from proxy.relay.uploads import Upload


class Body(Protocol):
    """The request body of one call, as the front hands it over."""

    @property
    def announced(self) -> int:
        """Bytes, by its Content-Length; 0 where it has none. The head's own is of another request."""

    def arrived(self) -> bytes | None:
        """All of it when it is already here, else None."""

    @property
    def is_complete(self) -> bool: ...

    async def more(self) -> bytes:
        """The next piece; b"" at the end. Raises MalformedRequest when the client broke it off."""


class Client(Protocol):
    """The client's side of one connection."""

    @property
    def is_gone(self) -> bool: ...
    @property
    def is_paused(self) -> bool:
        """The client reads more slowly than we write."""

    def write(self, data: bytes) -> None: ...
    def writelines(self, pieces: Sequence[bytes]) -> None: ...
    def hand_over(self, protocol: asyncio.Protocol) -> None:
        """Another protocol speaks from here on; it is given the head and what was received behind it."""

    def cut(self) -> None:
        """End the connection so that the client cannot take the answer for complete."""


class Runner(Protocol):
    """What carries a call out: a pump, or a turn of a session."""

    @property
    def tap(self) -> Tap | None:
        """The meter's end of the answer, once it has begun."""

    def send(self, refused: BaseException | None) -> None:
        """Begin is written, or could not be."""

    def cut(self, why: str, error: ProxyError) -> None:
        """End the call by our own decision."""

    def client_paused(self) -> None: ...
    def client_resumed(self) -> None: ...
    def client_left(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Standing:
    """What a key may do with a model under a table, and at what price; true as long as its first five are."""

    key: KeyRecord
    snapshot: Snapshot
    operation: OperationSpec
    since_ms: float  # the account has the tier
    until_ms: float
    tier: Tier
    model: Model | None  # None: a route without models
    context: int | None  # tokens of the model's, where they are known
    max_output: int | None
    price: Price
    model_ppm: int
    tier_ppm: int
    override: str  # the id of the account's own price or multiplier; "": there is none
    limits: tuple[Limit, ...]
    tells_rates: bool  # whether answers say what is left of them
    is_priced: bool  # all that a request without OPTIONS of a price can ask for
    text_rate: TextRate | None  # of plain conversations; None: their hold is worked out as any other


@dataclass(slots=True, eq=False)
class Exchange:
    """The life of one call; its repr is the access-log line."""

    id: str
    client: Client
    head: RequestHead
    body: Body
    address: str
    arrived: float  # first byte of the request
    at_ms: int  # the same moment on the wall clock
    keep_alive: bool = True

    # canonical, identified, matched
    heads: Heads | None = None
    facts: HeadFacts | None = None
    snapshot: Snapshot | None = None
    path: str = ""
    query: str = ""
    endpoint: Endpoint | None = None
    key: KeyRecord | None = None
    route: Route | None = None
    captures: Mapping[str, str] = field(default_factory=dict)
    dialect: Dialect | None = None  # the caller's
    operation: OperationSpec | None = None

    # the request body and its model
    content: bytes = b""  # decoded
    coded: bytes = b""  # the same as it came with a Content-Encoding, while no member of it has changed
    upload: Upload | None = None  # instead of `content`: a body that is not held in memory
    doc: dict[str, Any] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    uploaded: float = 0.0  # last byte of the request
    content_bound: int = 0  # bytes of input that are not in `content`: what a session has been told
    model: str = ""
    is_stream: bool = False

    # authorized and admitted
    standing: Standing | None = None
    ticket: Ticket | None = None
    input_bound: int = 0  # tokens
    output_bound: int | None = None  # tokens
    tokens_expected: int = 0  # in and out: what limits of tokens count until the call is over
    kept_bytes: int = 0  # of the request, kept for counting while the stream runs
    parent: str = ""  # the session that this call is a turn of
    begin: Begin | None = None
    has_begun: bool = False  # Begin is written
    prompt_tokens: int = -1  # our own count of the input; -1: not counted
    attempts: list[Attempt] = field(default_factory=list)
    heartbeat: Heartbeat | None = None  # at an endpoint that cuts silence

    # what lives at the vendor
    bound: Binding | None = None  # what the request names, and where the call must go for it
    sighting: Sighting | None = None  # what the answer is read for
    hosting: Hosting | None = None  # what becomes of the files that the answer shows
    ownership: Ownership | None = None  # who concludes from either; None: there is neither
    hook: str = ""  # where the caller wants to be told of the task that it submits
    submission: Claim | None = None  # of a submit that may be another's
    pump: Runner | None = None

    # the answer
    status: int = 0  # what the client was answered; 0: nothing yet
    answered: float = 0.0  # first byte of the answer
    response_bytes: int = 0
    sent: float = 0.0  # the request left for the upstream
    settled: bool = False
    is_drained: bool = False  # read on without the client
    outcome: str = ""

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def headers(self) -> Mapping[str, str]:
        """Case-insensitive."""
        return self.head.headers

    def begin_written(self, refused: BaseException | None) -> None:
        """Continuation of the journal's flush of Begin. Refused, it is a call that never began."""
        self.has_begun = refused is None
        if refused is not None:
            self.begin = None
        if self.pump is not None:
            self.pump.send(refused)

    @property
    def request_bytes(self) -> int:
        """Of the body as it came; of an upload that still comes, as far as that is known."""
        return len(self.coded or self.content) if self.upload is None else self.upload.size

    @property
    def has_begun_answer(self) -> bool:
        return self.status != 0

    def __repr__(self) -> str:
        key = self.key.masked if self.key else "-"
        return (
            f"{self.id} {self.address} {key} {self.method} {self.path or '?'} model={self.model or '-'} "
            f"status={self.status} bytes={self.response_bytes} outcome={self.outcome or '-'} "
            f"attempts={len(self.attempts)}"
        )
