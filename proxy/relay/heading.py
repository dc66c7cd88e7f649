"""The head of a relayed answer: status, the headers that pass, our own, and the client's framing.

Owns the decision how the body ends for this client; pure.
"""

from __future__ import annotations

from typing import NamedTuple

from proxy.http1.head import Field, Framing, Head
from proxy.http1.headers import REASONS, filter_response, serialize
from proxy.relay.answers import own_headers
from proxy.relay.exchange import Exchange
from proxy.routing.table import Upstream


class Heading(NamedTuple):
    head: bytes
    chunked: bool
    is_event_stream: bool


def heading_for(x: Exchange, upstream: Upstream, head: Head, frame: Framing, changes_length: bool) -> Heading:
    """`changes_length`: an event may be left out, so a Content-Length of the upstream is not ours."""
    assert x.snapshot is not None and x.dialect is not None
    dialect = x.snapshot.dialects[upstream.dialect]
    own = own_headers(x)
    own_names = {name for name, _ in own}
    fields: list[Field] = [
        field
        for field in filter_response(
            head.headers, dialect.response_pass, dialect.response_pass_prefixes, upstream.headers
        )
        if field[0] not in own_names
    ]
    fields += own
    fields.append((b"server-timing", b"relay;dur=%.2f" % ((x.sent - x.uploaded) * 1000)))
    is_event_stream = (head.value(b"content-type") or b"").lower().startswith(b"text/event-stream")
    if is_event_stream:
        fields.append((b"x-accel-buffering", b"no"))  # nginx in front must not collect events
    chunked = False
    if frame.kind == "none":
        if frame.length is not None:
            fields.append((b"content-length", b"%d" % frame.length))
    elif frame.kind == "length" and not (changes_length and is_event_stream):
        fields.append((b"content-length", b"%d" % (frame.length or 0)))
    elif x.http10:
        x.keep_alive = False  # the end of the connection is the end of the body
    else:
        chunked = True
        fields.append((b"transfer-encoding", b"chunked"))
    if not x.keep_alive or x.http10:
        x.keep_alive = False
        fields.append((b"connection", b"close"))
    reason = REASONS.get(head.status, head.reason)
    return Heading(serialize(head.status, reason, fields), chunked, is_event_stream)
