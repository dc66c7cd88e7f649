"""The head of a relayed answer: status, the headers that pass, our own, and the client's framing.

Owns the decision how the body ends for this client; pure.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from proxy.dialects import DIALECTS
from proxy.dialects.base import Dialect
from proxy.http1.head import Framing, Head
from proxy.http1.headers import REASONS, Admission, field_lines, status_line
from proxy.relay.answers import own_fields
from proxy.relay.exchange import Exchange
from proxy.routing.table import HeaderPolicy, Upstream

RATES = tuple({dialect.rates.prefix for dialect in DIALECTS.values()})


# What comes bit by bit; Gemini's arrays of JSON do not say so.
_STREAMS = (b"text/event-stream", b"application/x-ndjson", b"application/stream+json")


class Heading(NamedTuple):
    head: bytes
    chunked: bool
    is_event_stream: bool


@lru_cache(maxsize=256)  # one per upstream and caller's dialect, also of the table before a reload
def _admission(policy: HeaderPolicy, vendor: Dialect, caller: Dialect, tells_rates: bool) -> Admission:
    """The vendor's request ids do not pass beside ours, nor what is left there beside what is left here."""
    passed, prefixes = vendor.response_pass, vendor.response_pass_prefixes
    hidden = RATES if tells_rates else ()
    return Admission(passed, prefixes, policy, refused=caller.own_id_headers, hidden=hidden)


@lru_cache(maxsize=256)
def _is_stream(content_type: bytes | None) -> bool:
    return content_type is not None and content_type.lower().startswith(_STREAMS)


@lru_cache
def _framing_lines(is_event_stream: bool, has_length: bool, chunked: bool, keep_alive: bool) -> bytes:
    """How the body goes to the client. `has_length`: a place for it is left."""
    lines = {
        b"x-accel-buffering: no\r\n": is_event_stream,  # nginx in front must not collect events
        b"content-length: %d\r\n": has_length,
        b"transfer-encoding: chunked\r\n": chunked,
        b"connection: close\r\n": not keep_alive,
    }
    return b"".join([line for line, is_said in lines.items() if is_said])


def heading_for(
    x: Exchange, upstream: Upstream, dialect: Dialect, head: Head, frame: Framing, changes_length: bool
) -> Heading:
    """`dialect` is the upstream's; `changes_length`: an event may be left out, so a Content-Length of
    the upstream is not ours."""
    assert x.dialect is not None and x.operation is not None
    ticket = x.ticket if x.standing is not None and x.standing.tells_rates else None
    rates = b"" if ticket is None else field_lines(ticket.rates(x.dialect.rates, x.at_ms))
    admission = _admission(upstream.headers, dialect, x.dialect, ticket is not None)
    is_event_stream = _is_stream(head.value(b"content-type")) or x.operation.streams_unasked
    if frame.kind == "none" or (frame.kind == "length" and not (changes_length and is_event_stream)):
        length, chunked = frame.length, False
    else:  # for 1.0 the end of the connection is the end of the body
        length, chunked = None, not x.head.is_http10
    framing = _framing_lines(is_event_stream, length is not None, chunked, x.keep_alive)
    block = b"%b%b%bserver-timing: relay;dur=%.2f\r\n%b%b\r\n" % (
        status_line(head.status, REASONS.get(head.status, head.shape.reason)),
        admission.lines(head),
        own_fields(x),
        (x.sent - x.uploaded) * 1000,
        rates,
        framing if length is None else framing % length,
    )
    return Heading(block, chunked, is_event_stream)
