"""The head of a relayed answer: status, the headers that pass, our own, and the client's framing.

Owns the decision how the body ends for this client; pure.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from proxy.dialects import DIALECTS
from proxy.dialects.base import Dialect
from proxy.http1.head import Framing, Head
from proxy.http1.headers import REASONS, Admission, serialize
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
def _admission(policy: HeaderPolicy, vendor: Dialect, caller: Dialect) -> Admission:
    """The vendor's request ids do not pass beside ours."""
    passed, prefixes = vendor.response_pass, vendor.response_pass_prefixes
    return Admission(passed, prefixes, policy, refused=caller.own_id_headers)


def heading_for(
    x: Exchange, upstream: Upstream, dialect: Dialect, head: Head, frame: Framing, changes_length: bool
) -> Heading:
    """`dialect` is the upstream's; `changes_length`: an event may be left out, so a Content-Length of
    the upstream is not ours."""
    assert x.dialect is not None
    admission = _admission(upstream.headers, dialect, x.dialect)
    fields = admission.fields(head.headers, head.values(b"connection"))
    kind = (head.value(b"content-type") or b"").lower()
    is_event_stream = kind.startswith(_STREAMS) or (x.operation is not None and x.operation.streams_unasked)
    own = [own_fields(x), b"server-timing: relay;dur=%.2f\r\n" % ((x.sent - x.uploaded) * 1000)]
    if x.standing is not None and x.standing.tells_rates and x.ticket is not None:
        fields = [field for field in fields if not field[0].startswith(RATES)]  # what is left there, not here
        own += [b"%b: %b\r\n" % field for field in x.ticket.rates(x.dialect.rates, x.at_ms)]
    if is_event_stream:
        own.append(b"x-accel-buffering: no\r\n")  # nginx in front must not collect events
    chunked = False
    if frame.kind == "none":
        if frame.length is not None:
            own.append(b"content-length: %d\r\n" % frame.length)
    elif frame.kind == "length" and not (changes_length and is_event_stream):
        own.append(b"content-length: %d\r\n" % (frame.length or 0))
    elif not x.head.is_http10:  # for 1.0 the end of the connection is the end of the body
        chunked = True
        own.append(b"transfer-encoding: chunked\r\n")
    if not x.keep_alive:
        own.append(b"connection: close\r\n")
    vendor = serialize(head.status, REASONS.get(head.status, head.reason), fields)
    return Heading(b"%b%b\r\n" % (vendor[:-2], b"".join(own)), chunked, is_event_stream)
