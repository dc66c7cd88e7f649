"""Calls that wait for a slice: one line per account, served in the order of arrival.

Owns the conversation with control about slices of money and limits. Calls that come together share
what one message brings; a newcomer does not take what was fetched for those before it. What control grants
too late is taken all the same: it goes back when it is idle, where it would be lost otherwise.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from time import monotonic

from proxy.access.admission import NOWHERE, Back, Found, Gate, Shortage, Ticket
from proxy.access.limits import EVER, KINDS, SPEND, Limit, Want, shown
from proxy.channel import Args, Channel, ChannelError
from proxy.errors import InternalError, LimitExceeded, NoCredit, Overloaded, ProxyError, StationFault
from proxy.relay.exchange import Exchange
from proxy.telemetry import Stats, spawn

SLICE_S = 1.3  # control has 0.3 s for a direct hold (money.md 6), and may be busy
LIMIT_S = 1.0
ROUNDS_MAX = 4  # grants that do not suffice for one call: limits and money are fetched one after the other
LINE_MAX = 10_000  # calls of one account that wait; beyond, the station is overloaded


@dataclass(slots=True, eq=False)
class _Waiting:
    x: Exchange
    hold_nanos: int
    limits: tuple[Limit, ...]
    admitted: asyncio.Future[ProxyError | None]


class Lines:
    """Admits calls: at once where this worker holds enough, else in line."""

    def __init__(self, channel: Channel, gate: Gate, stats: Stats, wall_ms: Callable[[], int]) -> None:
        self._channel = channel
        self._stats = stats
        self._wall_ms = wall_ms
        self._gate = gate
        self.waiting: dict[int, deque[_Waiting]] = {}  # the line of each account that has one
        self._topping_up: set[int] = set()

    def admit(
        self, x: Exchange, account: int, hold_nanos: int, limits: tuple[Limit, ...], found: Found = NOWHERE
    ) -> Awaitable[None] | None:
        """Fill in `x.ticket`: None when it is done, else what must be waited for. `found` keeps where that
        was, for the next call with the same limits.

        Raises LimitExceeded, NoCredit, StationFault, Overloaded.
        """
        if account in self.waiting:
            return self._wait(x, account, hold_nanos, limits)
        # By the moment when the call came: so is what else is decided about it.
        ticket = self._gate.admit(account, hold_nanos, limits, x.at_ms, x.tokens_expected, found)
        if type(ticket) is not Ticket:
            return self._wait(x, account, hold_nanos, limits)
        x.ticket = ticket
        if hold_nanos and self._gate.slices.is_low(account, ticket.left_nanos, hold_nanos):
            self._top_up(x, hold_nanos)
        return None

    async def _wait(self, x: Exchange, account: int, hold_nanos: int, limits: tuple[Limit, ...]) -> None:
        """In the line of its account; the first one begins it."""
        line = self.waiting.get(account)
        if line is None:
            line = self.waiting[account] = deque()
            spawn("admission line", self._serve(account, line))
        elif len(line) >= LINE_MAX:
            raise Overloaded(retry_after_s=1.0)
        waiting = _Waiting(x, hold_nanos, limits, asyncio.get_running_loop().create_future())
        line.append(waiting)
        since = monotonic()
        refused = await waiting.admitted
        self._stats.observe("hold_wait_seconds", monotonic() - since)
        if refused is not None:
            raise refused

    async def _serve(self, account: int, line: deque[_Waiting]) -> None:
        try:
            while line:
                first = line[0]
                refused = None if first.admitted.done() else await self._admit_first(account, line)
                line.popleft()
                if not first.admitted.done():
                    first.admitted.set_result(refused)
                elif first.x.ticket is not None and not first.x.settled:
                    # It left while it was being admitted, and nobody else knows of its ticket.
                    self._give(self._gate.close(first.x.ticket, 0))
                    first.x.ticket = None
        finally:
            del self.waiting[account]
            for waiting in line:  # a bug of ours, or the end of the worker: nobody waits for ever
                if not waiting.admitted.done():
                    waiting.admitted.set_result(InternalError())

    async def _admit_first(self, account: int, line: deque[_Waiting]) -> ProxyError | None:
        """Admit the first of the line, fetching what is missing. Returns its refusal."""
        first = line[0]
        for _ in range(ROUNDS_MAX):
            got = self._gate.admit(
                account, first.hold_nanos, first.limits, self._wall_ms(), first.x.tokens_expected
            )
            if isinstance(got, Ticket):
                first.x.ticket = got
                return None
            refused = await self._fetch(first.x, got, line)
            if refused is not None:
                return refused
        return Overloaded(retry_after_s=1.0)

    async def enter(self, x: Exchange, limits: tuple[Limit, ...]) -> ProxyError | None:
        """Take the limits of the upstream that the call goes to next, after leaving the one before.
        Returns the refusal, which tells nobody what those limits are."""
        for _ in range(ROUNDS_MAX):
            if x.ticket is None:
                return None  # the client left, and the call is closed
            self._give(self._gate.leave(x.ticket))
            wants = self._gate.enter(x.ticket, limits, self._wall_ms())
            if not wants:
                return None
            refused = await self._fetch_limits(x, wants, 1)
            if isinstance(refused, LimitExceeded):
                return LimitExceeded(retry_after_s=refused.retry_after_s)
            if refused is not None:
                return refused
        return Overloaded(retry_after_s=1.0)

    async def _fetch(self, x: Exchange, shortage: Shortage, line: deque[_Waiting]) -> ProxyError | None:
        if shortage.wants:
            return await self._fetch_limits(x, shortage.wants, len(line))
        assert shortage.money is not None
        need, want_nanos = shortage.money
        behind = sum(waiting.hold_nanos for waiting in line)
        return await self._fetch_slice(x, need, max(want_nanos, behind))

    async def _fetch_limits(self, x: Exchange, wants: Iterable[Want], waiting: int) -> ProxyError | None:
        """All that is missing at once; the refusal that takes longest to end."""
        asks = [self._fetch_limit(x, want, waiting) for want in wants]
        refusals = [refused for refused in await asyncio.gather(*asks) if refused is not None]
        return max(refusals, key=lambda refused: refused.retry_after_s or 0.0, default=None)

    async def _fetch_limit(self, x: Exchange, want: Want, waiting: int) -> ProxyError | None:
        """`waiting` are the calls in line: each needs about as much."""
        assert x.standing is not None
        limit, need = want.limit, want.need
        most = need if want.want == need else max(want.want, min(need * waiting, limit.amount))
        args = {"bucket": limit.bucket, "kind": limit.kind, "limit": limit.amount, "need": need, "want": most}

        def take(reply: Args) -> None:
            if reply.get("granted"):
                self._gate.limits.add(limit, reply["granted"], reply["until_ms"], reply["left"])

        try:
            reply = await self._channel.call_again(
                "limit", {**args, "tier": x.standing.tier.name}, LIMIT_S, late=take
            )
        except ChannelError as e:
            return StationFault(retry_after_s=1.0, detail=str(e))
        take(reply)
        if reply.get("granted"):
            return None
        if reply.get("outage"):
            return StationFault(retry_after_s=5.0, detail=f"{limit.bucket}: Postgres is away")
        return self._exceeded(x, limit, reply["retry_after_s"])

    def _exceeded(self, x: Exchange, limit: Limit, retry_after_s: float) -> ProxyError:
        """The refusal. Who has spent what he may has no credit, until a new day or month begins."""
        assert x.standing is not None and x.dialect is not None
        if limit.unit == SPEND:
            status = x.standing.snapshot.table.station.no_credit_status
            wait_s = retry_after_s if KINDS[limit.kind].window != EVER else None
            return NoCredit("The spending limit is reached.", status=status, retry_after_s=wait_s)
        refused, now_ms = LimitExceeded(retry_after_s=retry_after_s), self._wall_ms()
        until_ms = now_ms + int(retry_after_s * 1000)
        refused.fields = tuple(shown(limit, 0, until_ms, x.dialect.rates, now_ms))
        return refused

    def _give(self, back: Back) -> None:
        for bucket, count in back:
            self._channel.notify("limit_give", {"bucket": bucket, "n": count})

    async def _fetch_slice(self, x: Exchange, need: int, want: int) -> ProxyError | None:
        assert x.key is not None and x.standing is not None
        account = x.key.account_id
        args = {"account": account, "need": need, "want": want, "tier": x.standing.tier.name}

        def take(reply: Args) -> None:
            if "granted" in reply:
                self._gate.slices.add(account, reply["lease"], reply["granted"])

        try:
            reply = await self._channel.call_again("slice", args, SLICE_S, late=take)
        except ChannelError as e:
            return StationFault(retry_after_s=1.0, detail=str(e))
        take(reply)
        if reply.get("refused") == "no_credit":
            return NoCredit(status=x.standing.snapshot.table.station.no_credit_status)
        if "granted" not in reply:
            return StationFault(retry_after_s=5.0, detail=f"slice refused: {reply.get('refused')}")
        return None

    def _top_up(self, x: Exchange, hold_nanos: int) -> None:
        """Ask ahead, so that the next call need not wait. What is refused here shows when it is needed."""
        assert x.key is not None
        account = x.key.account_id
        if account not in self._topping_up:
            self._topping_up.add(account)
            spawn("top up", self._fetch_ahead(account, x, hold_nanos))

    async def _fetch_ahead(self, account: int, x: Exchange, hold_nanos: int) -> None:
        try:
            _, want = self._gate.slices.wants(account, hold_nanos)
            await self._fetch_slice(x, 1, want)
        finally:
            self._topping_up.discard(account)
