"""Calls that wait for control: what it grants is used, or goes back; nothing of it is lost on the way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import telemetry
from proxy.access.admission import Gate
from proxy.access.limits import Limit, LimitBook
from proxy.broker.limits import Ask, LimitDesk
from proxy.broker.outage import Outage
from proxy.channel import Channel, ChannelServer, Peer
from proxy.dialects import DIALECTS
from proxy.errors import InternalError, LimitExceeded, NoCredit, StationFault
from proxy.ledger.balances import ON_TRUST, Slices
from proxy.relay import lines as module
from proxy.relay.exchange import Exchange
from proxy.relay.lines import Lines
from proxy.relay.returns import Returns
from proxy.routing.table import OnOutage
from proxy.telemetry import Stats
from tests.fakes.calls import call
from tests.waiting import until

NOW = 1_800_000_000_000
ONE = Limit("k7:concurrency", "concurrency", 1)
ACCOUNT = 7


class Control:
    """Grants from a purse and a real desk of limits; `busy` holds its answers up."""

    def __init__(self) -> None:
        self.purse = 1000
        self.limits = LimitDesk(Outage(), 1, lambda: NOW)  # without Postgres it counts alone
        self.asked: list[str] = []
        self.busy = asyncio.Event()
        self.busy.set()
        handlers = {
            "slice": self.slice,
            "limit": self.limit,
            "limit_give": self.limit_give,
            "give": self.give,
            "recalled": lambda peer, args: self.recalled.append(args),
        }
        self.recalled: list[dict[str, Any]] = []
        self.server = ChannelServer(lambda peer, args: {}, lambda peer: None, handlers)

    async def slice(self, peer: Peer, args: dict[str, Any]) -> dict[str, Any]:
        self.asked.append("slice")
        await self.busy.wait()
        granted = min(self.purse, max(args["need"], args["want"]))
        if granted < args["need"]:
            return {"refused": "no_credit"}
        self.purse -= granted
        return {"lease": "lease", "granted": granted}

    async def limit(self, peer: Peer, args: dict[str, Any]) -> dict[str, Any]:
        self.asked.append("limit")
        await self.busy.wait()
        asked = [args[name] for name in ("bucket", "kind", "limit", "need", "want")]
        return await self.limits.take(Ask("w0", *asked, OnOutage("unlimited")))

    def limit_give(self, peer: Peer, args: dict[str, Any]) -> None:
        self.limits.give("w0", args["bucket"], args.get("until_ms", 0), args["n"])

    def give(self, peer: Peer, args: dict[str, Any]) -> None:
        self.purse += args["amount"]


class Worker:
    """What a worker has of it."""

    def __init__(self, path: str) -> None:
        self.gate = Gate(Slices(), LimitBook(1))
        self.channel = Channel(path, lambda: {"slot": 0, "incarnation": "w0-1", "pid": 1}, {})
        self.returns = Returns(self.channel, self.gate, lambda: NOW)
        self.lines = Lines(self.channel, self.gate, Stats(), lambda: NOW)

    async def admit(self, hold: int = 0, *limits: Limit) -> Exchange:
        x = a_call()
        if (waiting := self.lines.admit(x, ACCOUNT, hold, limits)) is not None:
            await waiting
        return x

    def give_back(self) -> None:
        """What is idle, twice: the first look finds that it was touched."""
        for _ in range(2):
            self.returns.idle()


def a_call() -> Exchange:
    tier = SimpleNamespace(name="All")
    snapshot = SimpleNamespace(table=SimpleNamespace(station=SimpleNamespace(no_credit_status=402)))
    return call(
        key=SimpleNamespace(account_id=ACCOUNT),
        standing=SimpleNamespace(tier=tier, snapshot=snapshot),
        dialect=DIALECTS["openai"],
    )


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Control, Worker]]:
    path = str(tmp_path / "channel.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        control, worker = Control(), Worker(path)
        await control.server.start(listener)
        worker.channel.start()
        await worker.channel.wait_connected()
        yield control, worker
        await telemetry.cancel_all()
        control.server.close()


Both = tuple[Control, Worker]


async def test_what_is_missing_is_fetched_and_shared(both: Both) -> None:
    control, worker = both
    calls = await asyncio.gather(*(worker.admit(10) for _ in range(20)))
    assert all(x.ticket is not None and x.ticket.hold_nanos == 10 for x in calls)
    assert worker.gate.slices.figures(ACCOUNT)[1] == 200
    assert len(control.asked) < 20


async def test_calls_are_refused_one_by_one_when_the_money_is_used_up(both: Both) -> None:
    control, worker = both
    control.purse = 25
    answers = await asyncio.gather(*(worker.admit(10) for _ in range(5)), return_exceptions=True)
    admitted = [x for x in answers if isinstance(x, Exchange)]
    refused = [x for x in answers if isinstance(x, NoCredit)]
    assert (len(admitted), len(refused)) == (2, 3)
    assert {error.status for error in refused} == {402}


async def test_a_limit_is_refused_with_a_time(both: Both) -> None:
    _, worker = both
    await worker.admit(0, ONE)
    with pytest.raises(LimitExceeded) as refused:
        await worker.admit(0, ONE)
    assert refused.value.retry_after_s == 1.0


async def test_who_leaves_while_control_is_asked_takes_nothing(both: Both) -> None:
    control, worker = both
    control.busy.clear()
    waiting = asyncio.ensure_future(worker.admit(10, ONE))
    await until(lambda: control.asked == ["limit"])
    waiting.cancel()
    control.busy.set()
    await until(lambda: not worker.lines.waiting)
    assert worker.gate.slices.figures(ACCOUNT)[1] == 0
    await until(lambda: control.limits.busy() == {})
    assert (await worker.admit(10, ONE)).ticket is not None


async def test_what_is_granted_too_late_is_not_lost(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    control, worker = both
    monkeypatch.setattr(module, "LIMIT_S", 0.02)
    monkeypatch.setattr(module, "SLICE_S", 0.02)
    control.busy.clear()
    for hold, limits in ((0, (ONE,)), (10, ())):
        with pytest.raises(StationFault):
            await worker.admit(hold, *limits)
    control.busy.set()
    await until(lambda: worker.gate.limits.held() == [(ONE.bucket, 0, 1)])
    await until(lambda: sum(worker.gate.slices.figures(ACCOUNT)) + control.purse == 1000)
    worker.give_back()
    await until(lambda: control.limits.busy() == {} and control.purse == 1000)


async def test_a_line_that_is_served_is_gone(both: Both) -> None:
    _, worker = both
    await worker.admit(10)
    assert worker.lines.waiting == {}


async def test_a_line_that_breaks_lets_nobody_wait(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control answers what nobody understands: an error, not silence."""
    control, worker = both

    async def nonsense(args: dict[str, Any]) -> dict[str, Any]:
        return {"granted": "much"}

    monkeypatch.setitem(control.server._handlers, "slice", lambda peer, args: nonsense(args))
    answers = await asyncio.gather(*(worker.admit(10) for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [InternalError] * 3
    assert worker.lines.waiting == {}


async def test_an_upstreams_limit_refuses_without_telling_it_and_is_free_when_the_call_goes_on(
    both: Both,
) -> None:
    control, worker = both
    there = Limit("u:one:concurrency", "concurrency", 1)
    first, second = await worker.admit(10), await worker.admit(10)
    assert await worker.lines.enter(first, (there,)) is None
    refused = await worker.lines.enter(second, (there,))
    assert isinstance(refused, LimitExceeded) and refused.fields == ()
    elsewhere = Limit("u:two:concurrency", "concurrency", 1)
    assert await worker.lines.enter(first, (elsewhere,)) is None
    await until(lambda: control.limits.busy() == {"u:two:concurrency": 1})
    assert await worker.lines.enter(second, (there,)) is None


async def test_who_has_spent_what_he_may_has_no_credit(both: Both) -> None:
    _, worker = both
    spend = Limit("k7:spend_per_day", "spend_per_day", 15)
    ever = Limit("k8:spend_total", "spend_total", 15)
    await worker.admit(10, spend)
    await worker.admit(10, ever)
    with pytest.raises(NoCredit) as refused:
        await worker.admit(10, spend)
    assert refused.value.status == 402 and refused.value.retry_after_s
    with pytest.raises(NoCredit) as refused:
        await worker.admit(10, ever)
    assert refused.value.retry_after_s is None


# -- what goes back --------------------------------------------------------------------------------


async def test_what_is_free_goes_back_when_it_is_recalled(both: Both) -> None:
    control, worker = both
    many = Limit("k7:requests_per_day", "requests_per_day", 400)
    await worker.admit(10, many)
    worker.gate.slices.add(ACCOUNT, ON_TRUST, 70)  # of an outage: not control's to give to others
    held, free = worker.gate.slices.figures(ACCOUNT)[1], worker.gate.slices.figures(ACCOUNT)[0] - 70
    worker.returns.recall({"id": 1, "owner": ACCOUNT})
    worker.returns.recall({"id": 2, "owner": many.bucket})
    await until(lambda: len(control.recalled) == 2)
    money, limits = control.recalled
    assert (money["id"], money["slices"], money["limits"]) == (1, [[ACCOUNT, "lease", free]], [])
    assert (limits["id"], limits["slices"]) == (2, [])
    assert [(bucket, n) for bucket, _, n in limits["limits"]] == [(many.bucket, 99)]
    assert worker.gate.slices.figures(ACCOUNT) == (70, held)


async def test_what_control_does_not_hear_is_kept(both: Both) -> None:
    control, worker = both
    many = Limit("k7:requests_per_day", "requests_per_day", 400)
    await worker.admit(10, many)
    before = worker.gate.slices.figures(ACCOUNT), worker.gate.limits.held()
    control.server.close()
    await until(lambda: not worker.channel.connected)
    worker.returns.recall({"id": 1, "owner": ACCOUNT})
    worker.returns.recall({"id": 2, "owner": many.bucket})
    worker.give_back()
    assert (worker.gate.slices.figures(ACCOUNT), worker.gate.limits.held()) == before
