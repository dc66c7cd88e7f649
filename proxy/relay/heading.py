"""The head of a relayed answer: status, the headers that pass, our own, and the client's framing.

Owns the decision how the body ends for this client; pure. What answers have in common that go one way and
whose heads have one shape is decided once.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import compress
from typing import NamedTuple

from msgspec import Struct

from proxy.access.limits import rate_lines, tightest
from proxy.dialects import DIALECTS
from proxy.dialects.base import Dialect
from proxy.http1.head import SHAPES_REMEMBERED_MAX, Head, Kind, Shape
from proxy.http1.headers import REASONS, Admission, status_line
from proxy.relay.answers import ID, own_lines
from proxy.relay.exchange import Exchange
from proxy.relay.ids import dashed
from proxy.routing.table import HeaderPolicy, Upstream

RATES = tuple({dialect.rates.prefix for dialect in DIALECTS.values()})

# What comes bit by bit; Gemini's arrays of JSON do not say so.
_STREAMS = (b"text/event-stream", b"application/x-ndjson", b"application/stream+json")


class Heading(Struct, gc=False):
    head: bytes
    chunked: bool
    is_event_stream: bool


class Terms(NamedTuple):
    """Of a call, what matters for the heads of its answers."""

    policy: HeaderPolicy
    vendor: Dialect
    caller: Dialect
    streams_unasked: bool
    has_cors: bool
    is_http10: bool
    hides_usage: bool  # an event may be left out, so a Content-Length of the upstream is not ours


class Mould(Struct, frozen=True):
    start: bytes  # the status line
    admitted: tuple[bool, ...]  # which lines of the vendor's head pass
    added: bytes  # lines that the operator sets
    ours: bytes  # with a place for the call's id
    rest: bytes  # with places for our share of the time, the rates and the length
    has_length: bool
    chunked: bool
    is_event_stream: bool


class Moulds(dict[tuple[Shape, Kind, bool, bool], Mould]):
    """Of all calls with the same terms: (what the vendor's head is like, how its body ends, keep_alive,
    whether rates are told) -> how the client's head is made."""

    __slots__ = ("_terms",)

    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    def make(self, head: Head, keep_alive: bool, tells_rates: bool) -> Mould:
        terms, kind = self._terms, (head.value(b"content-type") or b"").lower()
        is_event_stream = kind.startswith(_STREAMS) or terms.streams_unasked
        is_sized = head.kind == "length" and not (terms.hides_usage and is_event_stream)
        has_length = head.length is not None and (is_sized or head.kind == "none")
        # For 1.0 the end of the connection is the end of the body.
        chunked = not is_sized and head.kind != "none" and not terms.is_http10
        framing = {
            b"x-accel-buffering: no\r\n": is_event_stream,  # nginx in front must not collect events
            b"content-length: %d\r\n": has_length,
            b"transfer-encoding: chunked\r\n": chunked,
            b"connection: close\r\n": not keep_alive,
        }
        admission = _admission(terms.policy, terms.vendor, terms.caller, tells_rates)
        said = b"".join([line for line, is_said in framing.items() if is_said])
        mould = Mould(
            status_line(head.status, REASONS.get(head.status, head.shape.reason)),
            admission[head.shape],
            admission.added,
            own_lines(terms.caller, terms.has_cors),
            b"server-timing: relay;dur=%.2f\r\n%b" + said + b"\r\n",
            has_length,
            chunked,
            is_event_stream,
        )
        if head.shape.is_remembered:
            if len(self) == SHAPES_REMEMBERED_MAX:
                self.clear()
            self[head.shape, head.kind, keep_alive, tells_rates] = mould
        return mould


@lru_cache(maxsize=256)  # one per upstream and caller's dialect, also of the table before a reload
def _admission(policy: HeaderPolicy, vendor: Dialect, caller: Dialect, tells_rates: bool) -> Admission:
    """The vendor's request ids do not pass beside ours, nor what is left there beside what is left here."""
    passed, prefixes = vendor.response_pass, vendor.response_pass_prefixes
    hidden = RATES if tells_rates else ()
    return Admission(passed, prefixes, policy, refused=caller.own_id_headers, hidden=hidden)


_moulds = lru_cache(maxsize=256)(Moulds)


def moulds_for(x: Exchange, upstream: Upstream, vendor: Dialect, hides_usage: bool) -> Moulds:
    """Of calls like this one, to that upstream."""
    assert x.dialect is not None and x.operation is not None and x.endpoint is not None
    return _moulds(
        Terms(
            upstream.headers,
            vendor,
            x.dialect,
            x.operation.streams_unasked,
            x.endpoint.cors,
            x.head.is_http10,
            hides_usage,
        )
    )


def heading_for(x: Exchange, moulds: Moulds, head: Head) -> Heading:
    """`head` is the upstream's."""
    standing, keep_alive = x.standing, x.keep_alive
    ticket = x.ticket if standing is not None and standing.tells_rates else None
    mould = moulds.get((head.shape, head.kind, keep_alive, ticket is not None))
    if mould is None:
        mould = moulds.make(head, keep_alive, ticket is not None)
    rates = b""
    if ticket is not None and x.dialect is not None:
        footing = ticket.footing
        told = (footing and footing.told) or tightest(ticket.shares)
        rates = rate_lines(told, x.dialect.rates, x.at_ms)
    relay_ms = (x.sent - x.uploaded) * 1000
    block = [
        mould.start,
        *compress(head.lines, mould.admitted),
        mould.added,
        mould.ours.replace(ID, dashed(x.id)),
        mould.rest % ((relay_ms, rates, head.length) if mould.has_length else (relay_ms, rates)),
    ]
    return Heading(b"".join(block), mould.chunked, mould.is_event_stream)
