"""What a dialect is: per operation, where the facts sit on the wire.

Owns the shapes that every dialect fills in as tables and that the relay reads; knows no vendor.
An operation fixes the wire format of request and answer. A caller's dialect decides how our own
errors look, an upstream's dialect decides path, authentication and the headers that pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy.metering.scanner import ANY, Pointer
from proxy.metering.usage import Usage

__all__ = ["ANY", "Dialect", "Meter", "OperationSpec", "Pointer", "UsagePointers"]


@dataclass(frozen=True, slots=True)
class UsagePointers:
    """Where the usage of an answer is. Several places: the last non-null one seen wins."""

    places: tuple[Pointer, ...]  # within an event or a whole answer
    read: Callable[[dict[str, Any]], Usage | None]
    """Vendor's object -> disjoint buckets; None: it holds no figure that we know."""
    overlay: bool = False  # Anthropic: every non-null field of a later object replaces the earlier


@dataclass(frozen=True, slots=True)
class OperationSpec:
    """One kind of call, the same for every upstream that offers it."""

    name: str
    path: str = ""  # what {operation_path} in a dialect's paths stands for
    methods: tuple[str, ...] = ("POST",)
    request: str = "json"  # "json" | "none"
    model_at: str = "body"  # "body" | "path" | "none"
    streams: bool = False  # has a `stream` member
    include_usage: bool = False  # understands stream_options.include_usage
    generates_text: bool = False  # its output can be counted where the vendor reports no usage
    billed: bool = True  # False: free (models, count_tokens, moderations)
    replayable: bool = True  # False: never sent twice once a byte was written (tasks, images)
    guarded: tuple[str, ...] = ("model", "stream", "stream_options", "n", "max_tokens")
    terminal_hint: bytes = b""  # in the tail of a read: it may hold the terminal event
    meter: UsagePointers | None = None


class Meter(Protocol):
    """Reads one answer as a spectator. Never raises; a parse error sets `degraded`.

    State is bounded at 64 KiB, whatever arrives.
    """

    complete: bool  # the terminal event was seen
    finished: bool  # a finish_reason / stop_reason was seen: only usage may still come
    degraded: bool
    events: int
    error: bool  # the vendor reported an error inside the answer
    model: str  # what the vendor says it ran, or ""
    vendor_id: str  # the answer's own id, or ""
    service_tier: str  # as the answer says, or ""
    unread_bytes: int  # of generated text that was too long to be kept for counting

    def feed(self, content: bytes) -> None:
        """The next decoded content bytes, cut anywhere."""

    def finish(self) -> None:
        """The framing ended: what is buffered is all there is."""

    def usage(self) -> Usage | None:
        """What the vendor reported so far; None: nothing.

        Until `usage_is_final` its output is provisional: an interrupted call is charged for the
        larger of it and what was counted.
        """

    def usage_is_final(self) -> bool:
        """True once the figures cannot grow any more."""

    def take_text(self) -> list[str]:
        """Generated text since the last call, kept only while no usage is known, for counting."""


@dataclass(frozen=True, slots=True)
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
    error_body: Callable[..., bytes] = field(kw_only=True)
    """(kind, code, message, param, status, request_id) -> JSON body of our own refusal."""
    stream_error: Callable[..., bytes] = field(kw_only=True)
    """Same arguments -> the SSE bytes that tell a running stream's client of an error."""
    id_header: bytes = b"x-request-id"  # how the vendor names its request id
    own_id_headers: tuple[bytes, ...] = (b"x-request-id",)  # how we name ours
    make_meter: Callable[[OperationSpec, bool], Meter] = field(kw_only=True)
    """(operation, is_event_stream) -> a fresh meter for one answer with status < 400 or not."""
