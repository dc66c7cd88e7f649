"""THE MAIN PATH: from a client's request to a settled call. `handle` is the product in one function.

Owns the order of the phases; each phase is a function of the module that is named. Side roads raise
a ProxyError, which ingress turns into an answer in the caller's dialect. Settling is no phase of
this coroutine: it happens in the pump, so that it also happens when this coroutine is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import random
from typing import TYPE_CHECKING

from proxy.errors import (
    CredentialsCooling,
    InternalError,
    JournalUnavailable,
    ProxyError,
    Retry,
    StationFault,
    UnknownModel,
)
from proxy.journal.crashpoint import ARMED, crash_point
from proxy.journal.segments import Journal
from proxy.ledger import entry
from proxy.relay import body
from proxy.relay.admission import Admission
from proxy.relay.cooldown import Cooldowns
from proxy.relay.exchange import Exchange
from proxy.relay.heads import HeadFacts, Heads
from proxy.relay.heartbeat import heartbeat_for
from proxy.relay.hooks import Hooks
from proxy.relay.linking import changes_links
from proxy.relay.ownership import Ownership, is_untouched
from proxy.relay.pages import Pages
from proxy.relay.plan import ATTEMPTS_MAX, Plan, Tools
from proxy.relay.pool import Pool
from proxy.relay.pump import Pump
from proxy.relay.realtime import Sessions
from proxy.relay.settling import Settler
from proxy.relay.submissions import Submissions
from proxy.relay.upload_pump import UploadPump
from proxy.relay.uploads import Sending
from proxy.routing.selection import Choice, Wish, affinity, order

if TYPE_CHECKING:
    from proxy.routing.table import Route
    from proxy.snapshot import Snapshot

RESEND_BYTES_MAX = 1 << 20  # a larger request is not kept, so it cannot be sent twice


def may_resend(x: Exchange) -> bool:
    """Is the request still here, and of a kind that may reach a vendor twice?"""
    assert x.operation is not None
    is_here = len(x.content) <= RESEND_BYTES_MAX if x.upload is None else x.upload.may_resend
    return is_here and x.operation.replayable


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
    ownership: Ownership
    submissions: Submissions
    hooks: Hooks
    sessions: Sessions
    heads: Heads | None = None  # swapped whole by a reload; running calls keep theirs
    is_draining: bool = False

    async def handle(self, x: Exchange) -> None:
        """The life of one call (design.md section 4). Returns when the answer is complete."""
        try:
            heads = self.heads
            if heads is None:
                raise StationFault(retry_after_s=1.0)
            if self.is_draining:
                x.keep_alive = False
            facts = heads.accept(x)
            if facts.route is None:  # else a head that was seen before, and was a route's
                if await self.pages.serve(x):
                    return
                heads.match(x, facts)
                facts.plain_bytes = body.plain_bytes(facts)
            if (waiting := self.admission.identify(x, facts.digest or heads.digest(x, facts))) is not None:
                await waiting
            if facts.is_session:
                await self.sessions.serve(x, self.choose)
                return
            if (waiting := self.bodies.read(x, facts)) is not None:
                await waiting
            self.admission.authorize(x)
            operation = x.operation
            assert operation is not None
            if operation.owns and not is_untouched(x) and await self.own(x):
                return
            choices = self.choose(x)
            if (waiting := self.admission.admit(x)) is not None:
                await waiting
            if facts.endpoint.proxy_read_timeout_ms is None:
                await self.dispatch(x, choices)
            else:
                with heartbeat_for(x, self.tools.loop):
                    await self.dispatch(x, choices)
        except ProxyError as e:
            self.settler.refuse(x, e)
            raise
        except asyncio.CancelledError:
            self.client_left(x)
            raise
        except Exception:  # a bug of ours must not keep a hold
            self.settler.refuse(x, InternalError())
            raise

    def install(self, snapshot: Snapshot) -> None:
        """A new table: for calls that begin from now on. One assignment swaps all of it."""
        self.heads = Heads(snapshot)

    async def own(self, x: Exchange) -> bool:
        """What lives at the vendor: is what the request names its account's, and what does the answer make
        so? True: it was a list or a submit's repetition, and is answered. Raises UnknownId and the other
        refusals of ownership and submissions."""
        assert x.operation is not None
        if x.operation.ids_in:
            is_long = len(x.content) > body.PARSE_IN_THREAD_BYTES
            named = await asyncio.to_thread(self.ownership.names, x) if is_long else self.ownership.names(x)
            if named:
                await self.ownership.claim(x, named)
        if x.operation.lists is not None and await self.ownership.answer_list(x):
            return True
        self.ownership.watch(x)
        task = x.operation.task
        if task is None:
            return False
        if task.callback is not None:
            self.hooks.note(x, task.callback)
        if await self.submissions.claim(x):
            return True
        if x.hook and task.callback is not None:
            self.hooks.replace(x, task.callback)
        return False

    def choose(self, x: Exchange) -> Sequence[Choice]:
        """Where the call may be tried, in order. Raises CredentialsCooling when there is nowhere now, and
        UnknownModel when there never is."""
        facts = x.facts
        assert facts is not None
        model, choices = facts.only
        if model == x.model and x.bound is None and self.cooldowns.is_calm:
            return choices
        return self._choose(x, facts)

    def _choose(self, x: Exchange, facts: HeadFacts) -> Sequence[Choice]:
        """The same for any call."""
        heads, route = x.heads, x.route
        assert heads is not None and route is not None
        only = heads.only_choice(route, x) if x.bound is None else None
        choices: Sequence[Choice] = ()
        if only is None:
            choices = self._in_order(x, heads.snapshot, route)
        elif not self.cooldowns.is_cooling(only):
            choices = (only,)
            facts.only = x.model, choices
        if not choices:
            assert x.standing is not None
            if x.bound is None and not heads.snapshot.serves(route, x.standing.model):
                raise UnknownModel("This model is not offered under this path.", param="model")
            raise CredentialsCooling(retry_after_s=self.cooldowns.shortest_s())
        return choices

    def _in_order(self, x: Exchange, snapshot: Snapshot, route: Route) -> list[Choice]:
        """The choices of a call that may have several; [] where all of them rest."""
        assert x.key is not None and x.standing is not None and x.facts is not None
        if x.bound is not None:
            return [c for c in self.ownership.choices(x) if not self.cooldowns.is_cooling(c)]
        roll = affinity(x.key.account_id, x.content)
        return order(
            snapshot.candidates(route, x.standing.model),
            snapshot.table.upstreams,
            Wish(x.model, x.is_stream, x.facts.mirror or x.key.mirror),
            self.cooldowns.is_cooling_at,
            random() if roll is None else roll,  # noqa: S311 - spreads load, guards nothing
            self.cooldowns.rank,
        )

    async def dispatch(self, x: Exchange, choices: Sequence[Choice]) -> None:
        """Write Begin, then try the choices until one has answered the client.

        Fails over only while nothing has reached the client, and where the operation may be sent
        again: a task, an image, a video never once a request byte was written.
        """
        if not self.journal.available:
            raise JournalUnavailable(retry_after_s=5.0)
        # Its continuation lets the first attempt send.
        self.journal.append(entry.encode(self.settler.begin(x)), x.begin_written)
        ARMED and crash_point("begin-appended")
        tools, error, tried = self.tools, None, 0
        for choice in choices:
            is_watched = not self.cooldowns.is_calm or len(choice.upstream.mirrors) > 1
            if is_watched and not self.cooldowns.begin(choice, is_stream=x.is_stream):
                continue  # it began to cool while the list was walked
            if choice.upstream.limits is not None:
                error = await self.admission.enter(x, choice.upstream)
                if error is not None:
                    continue
            plan = self.plan(x, choice, is_watched)
            way, fresh = plan.way, plan.way.goes_once  # what goes once finds no stale connection
            while True:
                tried += 1
                pump = (UploadPump if plan.sending is not None else Pump)(x, plan, tools)
                try:
                    connection = self.pool.take(choice.mirror) if way.reuses and not fresh else None
                    if connection is None:
                        connection = await self.pool.connect(choice.mirror, way.connect_s, reuse=way.reuses)
                except ProxyError as e:
                    pump.fail_to_connect(e)
                    failure: ProxyError | None = e
                else:
                    failure = await pump.run(connection)
                if failure is None:
                    if x.attempts[-1].outcome != "ok":  # it may have broken off
                        self.cooldowns.failed(choice, x.attempts[-1].outcome)
                    return
                error = failure
                self.cooldowns.failed(choice, failure.code)
                if failure.retry is not Retry.REPLAY or fresh or not may_resend(x) or tried == ATTEMPTS_MAX:
                    break
                fresh = True  # a stale pooled connection: once more, on a new one
            if error.retry is Retry.NO or tried == ATTEMPTS_MAX or (pump.is_sent and not may_resend(x)):
                break
        raise error or CredentialsCooling(retry_after_s=self.cooldowns.shortest_s())

    def plan(self, x: Exchange, choice: Choice, is_watched: bool) -> Plan:
        """What goes to one upstream: path, headers, body; and how long it may take."""
        facts = x.facts
        assert facts is not None
        way = facts.way
        if way is None or way.calls != (choice, x.model, x.is_stream):
            return self._plan(x, facts, choice, is_watched)
        content = body.outgoing(x, way.model)
        return Plan(way, b"%bcontent-length: %d\r\n\r\n" % (way.head, len(content)), content, is_watched)

    def _plan(self, x: Exchange, facts: HeadFacts, choice: Choice, is_watched: bool) -> Plan:
        """The same for any call, and for the first one on its way."""
        heads, operation = x.heads, x.operation
        assert heads is not None and operation is not None
        injects = (
            x.is_stream
            and operation.include_usage
            and choice.upstream.include_usage == "auto"
            and not body.asks_for_usage(x)
        )
        is_kept = changes_links(x) or (x.heartbeat is not None and x.heartbeat.needs_identity)
        way = heads.way(x, facts, choice, hides_usage=injects, identity=injects or is_kept)
        head, content, sending = way.head, b"", None
        if x.upload is not None:
            sending = Sending(x.upload, way.model)
            framing = sending.framing
        elif operation.request != "none":
            content = body.outgoing(x, way.model, include_usage=injects)
            framing = b"content-length: %d\r\n" % len(content)
        else:
            framing = b""
        if facts.body_coding and content == x.coded:
            framing += b"content-encoding: %b\r\n" % facts.body_coding.encode()
        if way.dialect.sign is not None:
            head += way.dialect.sign(head, content, choice.credential.secret, self.tools.wall_ms())
        return Plan(way, head + framing + b"\r\n", content, is_watched, sending)

    def client_left(self, x: Exchange) -> None:
        """The client's connection is gone: the pump decides whether to read on; without one, undo."""
        if x.pump is not None:
            x.pump.client_left()
        else:
            self.settler.abandon(x)
