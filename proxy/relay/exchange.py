"""One call: the request as it came, what was decided about it, and how it stands.

Owns the state of a call and nothing else; the verbs are in the other modules of this package.
Times without a unit suffix are seconds of time.monotonic() (uvloop's own clock has only milliseconds).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from proxy.access.admission import Found, Ticket
from proxy.access.keyring import KeyRecord
from proxy.access.limits import Limit
from proxy.dialects.base import Dialect, OperationSpec
from proxy.dialects.links import Hosting
from proxy.errors import ProxyError
from proxy.ledger.bindings import Binding
from proxy.ledger.entry import Attempt, Begin
from proxy.metering.members import Span
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


NO_CAPTURES: Mapping[str, str] = {}
NO_DOC: dict[str, Any] = {}  # nobody changes a document


class Body(Protocol):
    """The request body of one call, as the front hands it over."""

    @property
    def announced(self) -> int:
        """Bytes, by its Content-Length; 0 where it has none. The head's own is of another request."""

    @property
    def content(self) -> bytes | None:
        """All of it where it came along with its head, else None: see `arrived`."""

    def arrived(self) -> bytes | None:
        """All of it when it is already here, else None."""

    @property
    def is_complete(self) -> bool: ...

    async def more(self) -> bytes:
        """The next piece; b"" at the end. Raises MalformedRequest when the client broke it off."""


class Client(Protocol):
    """The client's side of one connection."""

    @property
    def address(self) -> str:
        """Of who is connected: of a proxy, where there is one in between."""

    @property
    def is_gone(self) -> bool: ...
    @property
    def is_paused(self) -> bool:
        """The client reads more slowly than we write."""

    def write(self, data: bytes, /) -> None: ...
    def writelines(self, pieces: Sequence[bytes], /) -> None: ...
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

    calls: tuple[KeyRecord, str, OperationSpec]  # of whom, with which model as they have it ("": none), what
    snapshot: Snapshot
    is_lasting: bool  # the account has the tier at any time, else:
    since_ms: float  # from here on
    until_ms: float
    key: KeyRecord
    operation: OperationSpec
    tier: Tier
    model: Model | None  # None: a route without models
    context: int | None  # tokens of the model's, where they are known
    max_output: int | None
    price: Price
    model_ppm: int
    tier_ppm: int
    override: str  # the id of the account's own price or multiplier; "": there is none
    limits: tuple[Limit, ...]
    found: Found  # where its calls found them
    tells_rates: bool  # whether answers say what is left of them
    is_priced: bool  # all that a request without OPTIONS of a price can ask for
    text_rate: TextRate | None  # of plain conversations; None: their hold is worked out as any other


class Exchange:
    """The life of one call; its repr is the access-log line."""

    __slots__ = (
        "address", "answered", "arrived", "at_ms", "attempts", "begin", "body", "bound", "client",
        "coded", "content", "content_bound", "dialect", "doc", "endpoint", "facts", "has_begun", "head",
        "heads", "heartbeat", "hook", "hosting", "id", "input_bound", "is_drained", "is_stream",
        "keep_alive", "kept_bytes", "key", "model", "operation", "outcome", "output_bound", "ownership",
        "parent", "prompt_tokens", "pump", "response_bytes", "route", "sent", "settled", "sighting",
        "snapshot", "spans", "standing", "status", "submission", "ticket", "tokens_expected", "upload",
        "uploaded",
    )  # fmt: skip

    def __init__(
        self, id: str, client: Client, head: RequestHead, body: Body, arrived: float, at_ms: int
    ) -> None:
        self.id = id
        self.client, self.head, self.body = client, head, body
        self.address = client.address  # behind proxies that are trusted: the caller's own
        self.arrived, self.at_ms = arrived, at_ms  # first byte of the request, on both clocks
        self.keep_alive = head.keep_alive

        # canonical, identified, matched
        self.heads: Heads | None = None
        self.facts: HeadFacts | None = None
        self.snapshot: Snapshot | None = None
        self.endpoint: Endpoint | None = None
        self.key: KeyRecord | None = None
        self.route: Route | None = None
        self.dialect: Dialect | None = None  # the caller's
        self.operation: OperationSpec | None = None

        # the request body and its model
        self.content = b""  # decoded
        self.coded = b""  # the same as it came with a Content-Encoding, while no member of it has changed
        self.upload: Upload | None = None  # instead of `content`: a body that is not held in memory
        self.doc: dict[str, Any] = NO_DOC
        self.spans: Mapping[str, Span] | None = None  # of members in `content`; None: not looked for yet
        self.uploaded = 0.0  # last byte of the request
        self.content_bound = 0  # bytes of input that are elsewhere: what a session has been told
        self.model = ""
        self.is_stream = False

        # authorized and admitted
        self.standing: Standing | None = None
        self.ticket: Ticket | None = None
        self.input_bound = 0  # tokens
        self.output_bound: int | None = None  # tokens
        self.tokens_expected = 0  # in and out: what limits of tokens count until the call is over
        self.kept_bytes = 0  # of the request, kept for counting while the stream runs
        self.parent = ""  # the session that this call is a turn of
        self.begin: Begin | None = None
        self.has_begun = False  # Begin is written
        self.prompt_tokens = -1  # our own count of the input; -1: not counted
        self.attempts: list[Attempt] = []
        self.heartbeat: Heartbeat | None = None  # at an endpoint that cuts silence

        # what lives at the vendor
        self.bound: Binding | None = None  # what the request names, and where the call must go for it
        self.sighting: Sighting | None = None  # what the answer is read for
        self.hosting: Hosting | None = None  # what becomes of the files that the answer shows
        self.ownership: Ownership | None = None  # who concludes from either; None: there is neither
        self.hook = ""  # where the caller wants to be told of the task that it submits
        self.submission: Claim | None = None  # of a submit that may be another's
        self.pump: Runner | None = None

        # the answer
        self.status, self.outcome = 0, ""  # what the client was answered; 0: nothing yet
        self.answered = 0.0  # first byte of the answer
        self.response_bytes = 0
        self.sent = 0.0  # the request left for the upstream
        self.settled = False
        self.is_drained = False  # read on without the client

    @property
    def path(self) -> str:
        """Canonical; "": not known."""
        return self.facts.path if self.facts is not None else ""

    @property
    def query(self) -> str:
        return self.facts.query if self.facts is not None else ""

    @property
    def captures(self) -> Mapping[str, str]:
        """What the route's path holds."""
        return self.facts.captures if self.facts is not None else NO_CAPTURES

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
    def has_begun_answer(self) -> bool:
        return self.status != 0

    def __repr__(self) -> str:
        key = self.key.masked if self.key else "-"
        return (
            f"{self.id} {self.address} {key} {self.method} {self.path or '?'} model={self.model or '-'} "
            f"status={self.status} bytes={self.response_bytes} outcome={self.outcome or '-'} "
            f"attempts={len(self.attempts)}"
        )
