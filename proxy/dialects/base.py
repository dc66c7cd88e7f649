"""What a dialect is: per operation, where the facts sit on the wire.

Owns the shapes that every dialect fills in as tables and that the relay reads; knows no vendor.
An operation fixes the wire format of request and answer. A caller's dialect decides how our own
errors look, an upstream's dialect decides path, authentication and the headers that pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy.dialects.headers import X_RATES, RateHeaders
from proxy.dialects.naming import Naming
from proxy.dialects.owned import Condition, IdIn, IdOut, Listing, Places, Task
from proxy.metering.scanner import ANY, Pointer
from proxy.metering.usage import Usage

__all__ = [
    "ANY", "Dialect", "Meter", "Once", "OperationSpec", "Pointer", "Rules", "Session", "Tools",
    "UsagePointers",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class UsagePointers:
    """Where the usage of an answer is. Several places: the last non-null one seen wins."""

    places: tuple[Pointer, ...]  # within an event or a whole answer
    read: Callable[[dict[str, Any]], Usage | None]
    """Vendor's object -> disjoint buckets; None: it holds no figure that we know."""
    overlay: bool = False  # Anthropic: every non-null field of a later object replaces the earlier
    adds_up: bool = False  # results of a batch: the objects are of different calls
    spread: bool = False  # Ollama: the figures are members of the document itself; `places` names them
    last_first: tuple[Pointer, ...] = field(init=False, compare=False)  # `places` in the order of their word

    def __post_init__(self) -> None:
        object.__setattr__(self, "last_first", self.places[::-1])


@dataclass(frozen=True, slots=True)
class Tools:
    """Where the calls of server tools are in an answer: elements of arrays, each of one kind.

    A kind is what the pointers in `named` say, joined with "/" (`web_search_call/search`); `kinds` maps
    those that are charged to the names that prices have for them.
    """

    places: tuple[Pointer, ...]
    named: tuple[Pointer, ...]
    kinds: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Rules:
    """How the answers of an operation are read: pointers into one event of a stream or one whole answer.

    Of several places of a fact the last non-null one seen counts; text counts at all of them. Kinds are
    what `kind` points to: `response.completed`.
    """

    is_text: bool = True  # False: what is no event stream is sound, a picture, a file: not looked at
    values: bytes = b""  # first bytes of what is read as JSON values: b"[" an array's, b"{" lines
    kind: Pointer = ("type",)
    model: tuple[Pointer, ...] = (("model",),)
    vendor_id: tuple[Pointer, ...] = (("id",),)
    tier: tuple[Pointer, ...] = ()
    status: tuple[Pointer, ...] = ()
    waiting: frozenset[str] = frozenset()  # a status that says: the bill is told later, under the vendor's id
    finished: tuple[Pointer, ...] = ()  # not null: only usage may still come
    error: tuple[Pointer, ...] = (("error",),)  # true in the sense of Python
    text: tuple[Pointer, ...] = ()  # generated text
    terminal: frozenset[str] = frozenset()  # kinds of events behind which nothing counts
    failing: frozenset[str] = frozenset({"error"})  # kinds of events that report an error
    each: Mapping[str, str] = field(default_factory=dict)  # kind of event -> bucket that it adds one to
    counted: tuple[tuple[str, Pointer], ...] = ()
    """(bucket or `tools.KIND`, array whose elements count, or what is counted in elements of arrays)"""
    lasting: tuple[Pointer, ...] = ()  # seconds, where no usage tells them
    tools: Tools | None = None
    accepted: Condition = ()  # what an answer says that is no refusal: else nothing was begun, or consumed


@dataclass(frozen=True, slots=True)
class Session:
    """What is particular to a WebSocket whose frames are JSON values, whatever their opcode.

    A turn of a session is what is billed; it ends with the event that reports its usage.
    """

    model_in_query: tuple[str, ...] = ()  # parameters that name the model; the first is this dialect's own
    model_in_first: Pointer = ()  # or where the client's first frame does: the upstream is dialled then
    error: Callable[[str, str, str], bytes] | None = None
    """(kind, code, message) -> the text frame that tells a client; None: only the close frame does."""
    spoken: tuple[Pointer, ...] = ()  # generated sound, as base64
    transcriber: tuple[Pointer, ...] = ()  # the model that transcribes the caller's speech, as events name it
    transcribed: str = ""  # the kind of event that reports the usage of such a transcript
    transcript: str = ""  # the operation as which it is billed


# How OpenAI's streams end, and those of all who copied them. No other event of theirs is no JSON object.
DONE = b"[DONE]"

# A comment, as DeepSeek sends it: clients that read server-sent events skip it.
KEEP_ALIVE = b": keep-alive\n\n"

Foretell = Callable[[Mapping[str, Any], Mapping[str, Any], Callable[[bytes], bytes | None]], Usage | None]
"""(request document, content of the price, header of the answer by name) -> what is known of the usage
without the content of the answer; None: nothing."""


@dataclass(frozen=True, slots=True)
class Once:
    """Submits that are one: who clicks twice wants one job, and pays for one.

    The same account, path and `members` of the request within `within_s` of the first one's answer.
    """

    members: tuple[Pointer, ...] = ()  # (): the whole request
    within_s: float = 10.0


@dataclass(frozen=True, slots=True)
class OperationSpec:
    """One kind of call, the same for every upstream that offers it."""

    name: str
    path: str = ""  # what {operation_path} in a dialect's paths stands for
    methods: tuple[str, ...] = ("POST",)
    api: str = ""  # the API that it is part of: a file may name this instead of each operation
    kind: str = "text"  # what it consumes: how it is bounded and priced (metering.bounds, metering.pricing)
    request: str = "json"  # "json" | "form" (multipart or JSON, by its type) | "opaque" | "none" | "socket"
    model_at: str = "body"  # "body" (also a form's field) | "path" | "session" | "none"
    streams: bool = False  # has a `stream` member
    streams_unasked: bool = False  # what the absence of that member means
    stream_header: str = ""  # the request header that asks for a stream instead
    is_sse: bool = True  # its stream is server-sent events
    sse_query: tuple[str, ...] = ()  # ... but only where one of these query parameters says `sse`
    include_usage: bool = False  # understands stream_options.include_usage
    generates_text: bool = False  # its output can be counted where the vendor reports no usage
    billed: bool = True  # False: free (models, count_tokens, moderations)
    replayable: bool = True  # False: never sent twice once a byte was written (tasks, images)
    guarded: tuple[str, ...] = ("model", "stream", "stream_options", "n", "max_tokens")
    terminal_hint: bytes = b""  # in the tail of a read: it may hold the terminal event
    meter: UsagePointers | None = None
    rules: Rules | None = None  # how its answers are read; None: the dialect's own meter knows
    own_meter: MakeMeter | None = None  # of what rules cannot say
    foretold: Foretell | None = None
    amounts: Callable[[Mapping[str, Any]], Usage] | None = None  # of kind "amounts": what a request asks for
    naming: Naming | None = None  # which model is billed, where the request has none
    session: Session | None = None  # of request "socket"
    calls_in: Pointer = ()  # where a request holds others, each of which is a call of a model of its own
    ids_in: tuple[IdIn, ...] = ()  # what of the vendor's a request may name: unbound or foreign is 404
    ids_out: tuple[IdOut, ...] = ()  # what an answer makes the caller's: bound before the answer ends
    task: Task | None = None  # what it submits, or (where it is free) shows
    lists: Listing | None = None  # answered from bindings, never sent to the vendor
    forms: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Header or query parameter -> what it may say: any other word asks for a capability of the vendor's."""
    once: Once | None = None  # None: only an Idempotency-Key makes two submits one
    exists: Condition = ()  # what the answer to a submit says of a task that was there before
    links: tuple[Pointer, ...] = ()  # URLs of the vendor's API in an answer: they are to lead back here
    hurries: bool = False  # the task that it names may be over by it: it is asked about at once
    owns: bool = field(init=False)  # anything of the vendor's is in its requests or answers
    places: Places = field(init=False, compare=False)  # of `ids_in`
    kept_if: tuple[tuple[str, bool], ...] | None = field(init=False, compare=False)
    """Members of a request one of which decides that its vendor keeps something, each with its default;
    None: more than that decides."""

    def __post_init__(self) -> None:
        owns = bool(self.ids_in or self.ids_out or self.task or self.lists)
        object.__setattr__(self, "owns", owns)
        object.__setattr__(self, "places", Places(self.ids_in))
        says_all = not (self.task or self.lists) and all(place.asked for place in self.ids_out)
        kept_if = tuple((place.asked, place.by_default) for place in self.ids_out) if says_all else None
        object.__setattr__(self, "kept_if", kept_if)


class Meter(Protocol):
    """Reads one answer as a spectator. Never raises; a parse error sets `degraded`.

    State is bounded at 64 KiB, whatever arrives.
    """

    complete: bool  # the terminal event was seen
    finished: bool  # a finish_reason / stop_reason was seen: only usage may still come
    degraded: bool
    events: int
    error: bool  # the vendor reported an error inside the answer
    model: str  # what the vendor says it ran, or ""; like the other names short enough for a usage row
    vendor_id: str  # the answer's own id, or ""
    service_tier: str  # as the answer says, or ""
    unread_bytes: int  # of generated text that was too long to be kept for counting

    def foretell(self, usage: Usage | None) -> None:
        """What is known before the content comes; it counts unless the content tells more. None: nothing."""

    def feed(self, content: bytes) -> None:
        """The next decoded content bytes, cut anywhere."""

    def finish(self) -> None:
        """The framing ended: what is buffered is all there is."""

    def read_all(self, content: bytes) -> None:
        """All of an answer at once: `feed` and `finish`."""

    def usage(self) -> Usage | None:
        """What the vendor reported so far; None: nothing.

        Until `usage_is_final` its output is provisional: an interrupted call is charged for the
        larger of it and what was counted.
        """

    def usage_is_final(self) -> bool:
        """True once the figures cannot grow any more."""

    def take_text(self) -> list[str]:
        """Generated text since the last call, kept only while no usage is known, for counting."""


MakeMeter = Callable[[OperationSpec, bool], Meter]  # a fresh one: whether it is an event stream is a hint


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """One family of wire formats.

    `paths` maps operation -> default upstream path; `{model}` and `{operation_path}` are filled in.
    `auth` writes our credential: header name and prefix. Header names are lower-case bytes.
    """

    name: str
    operations: dict[str, OperationSpec]
    paths: dict[str, str]
    auth: tuple[bytes, bytes]  # (b"authorization", b"Bearer ")
    request_pass: frozenset[bytes]
    response_pass: frozenset[bytes]
    response_pass_prefixes: tuple[bytes, ...] = ()
    query: tuple[tuple[str, str], ...] = ()  # what the paths need by default (Azure's api-version)
    query_pass: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Query parameters of clients that are part of the call, and their values; none: any. Never a key."""
    error_body: Callable[..., bytes] = field(kw_only=True)
    """(kind, code, message, param, status, request_id) -> JSON body of our own refusal."""
    stream_error: Callable[..., bytes] = field(kw_only=True)
    """Same arguments -> the SSE bytes that tell a running stream's client of an error."""
    heartbeat: bytes = b""  # an event that clients skip, for streams that are silent; b"": there is none
    sign: Callable[[bytes, bytes, str, int], bytes] | None = None
    """(request line and header fields, body, our credential, now in ms) -> header lines that prove them."""
    id_header: bytes = b"x-request-id"  # how the vendor names its request id
    own_id_headers: tuple[bytes, ...] = (b"x-request-id",)  # how we name ours
    rates: RateHeaders = X_RATES  # how callers are told what is left of their limits
    meter_of: Callable[[OperationSpec], MakeMeter] = field(kw_only=True)
    """What reads the answers to an operation, with status < 400 or not."""

    def make_meter(self, operation: OperationSpec, is_event_stream: bool) -> Meter:
        """A fresh one, for one answer."""
        return self.meter_of(operation)(operation, is_event_stream)
