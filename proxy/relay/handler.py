"""THE MAIN PATH: from a client's request to a settled call. `handle` is the product in one function.

Owns the order of the phases; each phase is a function of the module that is named. Side roads raise
a ProxyError, which ingress turns into an answer in the caller's dialect. Settling is no phase of
this coroutine: it happens in the pump, so that it also happens when this coroutine is cancelled.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from random import random
from time import monotonic
from typing import TYPE_CHECKING

from proxy.errors import (
    CredentialsCooling,
    JournalUnavailable,
    ProxyError,
    Retry,
    ShuttingDown,
    StationFault,
)
from proxy.journal.crashpoint import crash_point
from proxy.journal.segments import Journal
from proxy.ledger import entry
from proxy.relay import body
from proxy.relay.admission import Admission, client_address
from proxy.relay.cooldown import Cooldowns
from proxy.relay.exchange import Exchange
from proxy.relay.pages import Pages
from proxy.relay.pool import Pool
from proxy.relay.pump import Plan, Pump, Tools
from proxy.relay.settling import Settler
from proxy.routing.canonical import canonical
from proxy.routing.rewrite import request_headers, upstream_target
from proxy.routing.selection import Choice, Wish, order

if TYPE_CHECKING:
    from proxy.snapshot import Snapshot

ATTEMPTS_MAX = 3
RESEND_BYTES_MAX = 1 << 20  # a larger request is not kept, so it cannot be sent twice
HOST_PORTS = {"http": 80, "https": 443}


@dataclass(slots=True)
class Relay:
    """What a worker serves calls with."""

    admission: Admission
    bodies: body.Bodies
    pages: Pages
    pool: Pool
    journal: Journal
    settler: Settler
    cooldowns: Cooldowns
    tools: Tools
    snapshot: Snapshot | None = None  # swapped whole by a reload; running calls keep theirs
    is_draining: bool = False

    async def handle(self, x: Exchange) -> None:
        """The life of one call (design.md section 4). Returns when the answer is complete."""
        try:
            self.accept(x)
            if await self.pages.serve(x):
                return
            self.match(x)
            await self.admission.identify(x)
            await self.bodies.read(x)
            x.uploaded = monotonic()
            await body.parse(x)
            tier = self.admission.authorize(x)
            choices = self.choose(x)
            await self.admission.admit(x, tier)
            await self.dispatch(x, choices)
        except ProxyError as e:
            self.settler.refuse(x, e)
            raise
        except asyncio.CancelledError:
            self.client_left(x)
            raise

    def accept(self, x: Exchange) -> None:
        """Canonical path, endpoint and the caller's address."""
        if self.snapshot is None:
            raise StationFault(retry_after_s=1.0)
        if self.is_draining:
            x.keep_alive = False
        snapshot = x.snapshot = self.snapshot
        x.path, x.query = canonical(x.raw_target)
        trusted = snapshot.table.station.trusted_proxies
        forwarded = x.headers.get("X-Forwarded-For")
        if forwarded is not None:
            x.address = client_address(x.address, forwarded, trusted)
        x.endpoint = snapshot.endpoint_for(x.headers.get("Host"))

    def match(self, x: Exchange) -> None:
        assert x.snapshot is not None
        found = x.snapshot.match(x.method, x.path)
        x.route, x.captures = found.route, found.captures
        x.dialect = x.snapshot.dialects[found.route.dialect]
        x.operation = x.dialect.operations[found.route.operation]
        if self.is_draining:
            raise ShuttingDown(retry_after_s=1.0)

    def choose(self, x: Exchange) -> list[Choice]:
        """Where the call may be tried, in order. Raises CredentialsCooling when there is nowhere."""
        assert x.snapshot is not None and x.route is not None and x.key is not None
        snapshot = x.snapshot
        choices = order(
            snapshot.candidates(x.route, x.model_entry),
            snapshot.table.upstreams,
            Wish(x.model, x.is_stream, x.key.mirror),
            self.cooldowns.is_cooling,
            random(),  # noqa: S311 - spreads load, guards nothing
        )
        if not choices:
            raise CredentialsCooling(retry_after_s=self.cooldowns.shortest_s())
        return choices

    async def dispatch(self, x: Exchange, choices: list[Choice]) -> None:
        """Begin, then try the choices until one has answered the client.

        Fails over only while nothing has reached the client, and where the operation may be sent
        again: a task, an image, a video never once a request byte was written.
        """
        assert x.operation is not None
        self.begin(x)
        error: ProxyError = CredentialsCooling(retry_after_s=1.0)
        may_resend = len(x.content) <= RESEND_BYTES_MAX and x.operation.replayable
        tried = 0
        for choice in choices:
            if tried == ATTEMPTS_MAX:
                break
            if tried and self.cooldowns.is_cooling(
                choice.upstream.name, choice.credential.name, choice.model
            ):
                continue
            plan = self.plan(x, choice)
            fresh = False
            while True:
                tried += 1
                pump = Pump(x, plan, self.tools)
                try:
                    connection = await self.pool.acquire(
                        choice.mirror,
                        choice.upstream.timeouts.connect_ms / 1000,
                        fresh=fresh,
                        reuse=choice.upstream.trust == "full",
                    )
                except ProxyError as e:
                    pump.fail_to_connect(e)
                    failure: ProxyError | None = e
                else:
                    failure = await pump.run(connection)
                if failure is None:
                    return
                error = failure
                if failure.retry is not Retry.REPLAY or fresh or not may_resend:
                    break
                fresh = True  # a stale pooled connection: once more, on a new one
            if error.retry is Retry.NO or (pump.is_sent and not may_resend):
                break
        raise error

    def begin(self, x: Exchange) -> None:
        """Write Begin; its continuation lets the first attempt send. Raises JournalUnavailable."""
        if not self.journal.available:
            raise JournalUnavailable(retry_after_s=5.0)
        begin = self.settler.begin(x)
        self.journal.append(entry.encode(begin), x.begin_written)
        crash_point("begin-appended")

    def plan(self, x: Exchange, choice: Choice) -> Plan:
        """What goes to one upstream: path, headers, body; and how long it may take."""
        assert x.snapshot is not None and x.route is not None and x.operation is not None
        upstream, mirror = choice.upstream, choice.mirror
        dialect = x.snapshot.dialects[upstream.dialect]
        offered = upstream.operations[x.operation.name]
        target = upstream_target(offered, mirror, choice.model, x.captures, x.query, dialect)
        injects = (
            x.is_stream
            and x.operation.include_usage
            and upstream.include_usage == "auto"
            and not body.asks_for_usage(x)
        )
        spec = dialect.operations[x.operation.name]
        content = body.outgoing(x, choice.model, model_in_body=spec.model_at == "body", include_usage=injects)
        fields = request_headers(x.raw_headers, dialect, upstream, x.route, choice.credential)
        coding = b"identity" if injects else _codings(x.headers.get("Accept-Encoding"))
        host = mirror.host if mirror.port == HOST_PORTS[mirror.scheme] else f"{mirror.host}:{mirror.port}"
        lines = [f"{x.method} {target} HTTP/1.1\r\nhost: {host}".encode(), b"accept-encoding: " + coding]
        lines += [name + b": " + value for name, value in fields]
        if x.operation.request != "none":
            lines.append(b"content-length: %d" % len(content))
        times = upstream.timeouts
        leave = x.snapshot.on_disconnect(x.model_entry, upstream)
        return Plan(
            choice=choice,
            dialect=dialect,
            head=b"\r\n".join(lines) + b"\r\n\r\n",
            body=content if x.operation.request != "none" else b"",
            method=x.method,
            hides_usage=injects,
            first_byte_s=(times.first_byte_stream_ms if x.is_stream else times.first_byte_whole_ms) / 1000,
            idle_s=times.idle_ms / 1000,
            deadline=x.arrived + times.total_ms / 1000 if times.total_ms else math.inf,
            drain_s=leave.drain_ms / 1000 if leave.kind == "drain" else 0.0,
        )

    def client_left(self, x: Exchange) -> None:
        """The client's connection is gone: the pump decides whether to read on; without one, undo."""
        if x.pump is not None:
            x.pump.client_left()
        else:
            self.settler.abandon(x)


def _codings(accepted: str | None) -> bytes:
    """The client's Accept-Encoding, narrowed to what the meter can decode."""
    if not accepted:
        return b"identity"
    offered = {
        part.split(";")[0].strip().lower()
        for part in accepted.split(",")
        if "q=0" not in part.replace(" ", "")
    }
    both = [coding for coding in ("gzip", "deflate") if coding in offered or "*" in offered]
    return ", ".join(both).encode() or b"identity"
