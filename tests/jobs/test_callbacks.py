"""Customers are told of each change of their tasks: signed, in order, until it is taken or a day is over."""

from __future__ import annotations

import base64
import hmac
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.dialects.owned import RUNNING, SUCCEEDED
from proxy.jobs import callbacks
from proxy.jobs.callbacks import Deliverer, pause_s, signed
from proxy.jobs.guarded import Reply
from proxy.routing.foreign import networks
from proxy.store.catalog import Catalog
from proxy.store.drainer import Drainer
from proxy.store.due import DueTasks
from proxy.store.outbox import Outbox
from proxy.telemetry import Stats
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, YUAN, Life, Station
from tests.store.tasks import DAYS, seen
from tests.store.told import hooked
from tests.waiting import until

LOOPBACK = networks(["127.0.0.0/8"])
HOUR_S = 3600


class Receiver:
    """A customer's server: takes what is signed, remembers what came."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str]] = []  # (event, body)
        self.headers: list[dict[str, str]] = []
        self.answers: list[web.Response] = []  # to come first
        self.tries: Counter[str] = Counter()
        self.is_down = False
        app = web.Application()
        app.router.add_post("/{name:.*}", self.take)
        self.server = TestServer(app)

    async def take(self, request: web.Request) -> web.StreamResponse:
        event = request.headers["webhook-id"]
        self.tries[event] += 1
        self.headers.append(dict(request.headers))
        if self.is_down:
            return web.Response(status=503)
        if self.answers:
            return self.answers.pop(0)
        self.taken.append((event, await request.text()))
        return web.Response(status=204)

    @property
    def bodies(self) -> list[str]:
        return [body for _, body in self.taken]


class Rig:
    """A node's deliverer, a receiver, and a clock that stands until it is moved."""

    def __init__(self, database, drainer: Drainer, life: Life, receiver: Receiver) -> None:
        self.database = database
        self.drainer = drainer
        self.life = life
        self.receiver = receiver
        self.now_ms = NOW_MS + 60_000
        self.outbox = Outbox(database)
        self.tasks = DueTasks(database, "c-1")
        self.session = callbacks.guarded(lambda: self.allowed)
        self.allowed = LOOPBACK
        self.stats = Stats()
        self.deliverer = self.make()

    def make(self, session=None) -> Deliverer:
        return Deliverer(self.outbox, session or self.session, lambda: self.now_ms, self.stats)

    async def submit(self, account: int, vendor_id: str, hook: str) -> str:
        entries = hooked(account, vendor_id, hook)
        await self.life.write([PRICE_ENTRY, *entries])
        await self.drainer.run_once()
        return entries[0].id

    async def see(self, vendor_id: str, *marks: str, end: str = "") -> None:
        """Looks at a task, each a second after the one before."""
        looks = []
        for mark in (*marks, *([end] if end else [])):
            entry = seen(
                vendor_id, SUCCEEDED if mark == end else RUNNING, mark=mark, body=f'{{"is":"{mark}"}}'
            )
            entry.at_ms = self.now_ms = self.now_ms + 1000
            looks.append(entry)
        await self.tasks.settle(looks, DAYS)

    async def round(self, *deliverers: Deliverer, after_s: float = 0) -> int:
        self.now_ms += int(after_s * 1000)
        deliverers = deliverers or (self.deliverer,)
        begun = sum([await deliverer.run_once() for deliverer in deliverers])
        await until(lambda: all(deliverer.is_idle for deliverer in deliverers))
        return begun

    async def rounds(self, *deliverers: Deliverer) -> None:
        """Until nothing is due."""
        while await self.round(*deliverers):
            pass

    async def states(self) -> list[tuple[int, str, int]]:
        sql = "SELECT sequence, state, tries FROM outbox ORDER BY binding, sequence"
        return [tuple(row) for row in await self.database.fetch(sql)]

    @property
    def hook(self) -> str:
        return str(self.receiver.server.make_url("/hook?task=1"))


@pytest.fixture
async def account(database) -> int:
    catalog = Catalog(database)
    account = (await catalog.create_account("ada")).id
    await catalog.top_up("ada", 100 * YUAN, "start")
    return account


@pytest.fixture
async def rig(database, tmp_path: Path, account):
    journal = tmp_path / "journal"
    journal.mkdir()
    life, receiver = Life(journal), Receiver()
    await receiver.server.start_server()
    rig = Rig(database, Drainer(database, journal, NODE, Station(), now_ms=lambda: NOW_MS), life, receiver)
    yield rig
    await rig.session.close()
    await life.die()
    await receiver.server.close()


def is_signed(headers: dict[str, str], body: str, secret: str) -> bool:
    """As a receiver's library does it, from the specification's text."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
    wanted = base64.b64encode(hmac.new(key, text, "sha256").digest()).decode()
    return any(hmac.compare_digest(part, f"v1,{wanted}") for part in headers["webhook-signature"].split(" "))


async def test_each_change_is_told_once_in_order_and_signed(rig, account):
    await rig.submit(account, "t1", rig.hook)
    await rig.see("t1", "10%", "50%", end="done")
    await rig.rounds()
    assert rig.receiver.bodies == ['{"is":"10%"}', '{"is":"50%"}', '{"is":"done"}']
    assert set(rig.receiver.tries.values()) == {1}
    assert [state for _, state, _ in await rig.states()] == ["delivered"] * 3
    secret = (await rig.outbox.secrets(account)).text
    for headers, body in zip(rig.receiver.headers, rig.receiver.bodies, strict=True):
        assert is_signed(headers, body, secret)
        assert not is_signed(headers, body + " ", secret)
        assert headers["Content-Type"] == "application/json"
        assert headers["webhook-timestamp"] == str(rig.now_ms // 1000)


async def test_while_a_secret_is_being_changed_both_sign(rig, account):
    old = (await rig.outbox.secrets(account)).text
    new = (await rig.outbox.rotate(account, rig.now_ms)).text
    await rig.submit(account, "t1", rig.hook)
    await rig.see("t1", "10%")
    await rig.rounds()
    [headers], [body] = rig.receiver.headers, rig.receiver.bodies
    assert is_signed(headers, body, old) and is_signed(headers, body, new)


async def test_a_receiver_that_is_down_for_an_hour_gets_everything_once_it_is_back_in_order(rig, account):
    names = [f"t{n}" for n in range(5)]
    for name in names:
        await rig.submit(account, name, rig.hook)
    rig.receiver.is_down = True
    began = rig.now_ms
    changes = iter(range(1, 13))
    while rig.now_ms < began + HOUR_S * 1000:  # a change of each task every five minutes
        for name in names if (n := next(changes, None)) else ():
            await rig.see(name, f"{name} {n:02}")
        for _ in range(10):
            await rig.round(after_s=30)
    for name in names:
        await rig.see(name, end=f"{name} end")
    assert rig.receiver.taken == []
    assert max(rig.receiver.tries.values()) < 20  # it is not hammered
    rig.receiver.is_down = False
    for _ in range(200):
        await rig.round(after_s=10)
    for name in names:
        told = [body[7:-2] for body in rig.receiver.bodies if f'"{name} ' in body]
        assert told == sorted(told) and told[-1] == f"{name} end" and len(told) == 13
    assert len({event for event, _ in rig.receiver.taken}) == len(rig.receiver.taken) == 65
    assert await rig.outbox.waiting() == 0


async def test_after_a_day_an_event_is_given_up_and_can_be_sent_again(rig, account):
    await rig.submit(account, "t1", rig.hook)
    await rig.see("t1", "10%")
    rig.receiver.is_down = True
    for _ in range(200):
        await rig.round(after_s=500)
    [(_, state, tries)] = await rig.states()
    assert (state, tries > 50) == ("failed", True)
    [event] = await rig.outbox.events(10)
    assert (event["status"], event["note"]) == (503, "answered 503")
    rig.receiver.is_down = False
    assert await rig.round() == 0
    await rig.outbox.resend([event["id"]], rig.now_ms)
    await rig.rounds()
    assert rig.receiver.bodies == ['{"is":"10%"}']
    assert set(rig.receiver.tries) == {event["id"]}


async def test_a_receiver_that_wants_no_more_gets_no_more_of_an_event(rig, account):
    await rig.submit(account, "t1", rig.hook)
    await rig.see("t1", "10%", "20%")
    rig.receiver.answers = [web.Response(status=410)]
    await rig.rounds()
    assert [(state, tries) for _, state, tries in await rig.states()] == [("failed", 1), ("delivered", 1)]


async def test_a_redirect_is_no_delivery(rig, account):
    await rig.submit(account, "t1", rig.hook)
    await rig.see("t1", "10%")
    rig.receiver.answers = [web.Response(status=307, headers={"Location": rig.hook})]
    await rig.round()
    assert [(state, tries) for _, state, tries in await rig.states()] == [("waiting", 1)]
    assert sum(rig.receiver.tries.values()) == 1


async def test_an_address_that_is_not_public_is_not_connected_to_and_that_is_all_its_owner_learns(
    rig, account
):
    await rig.submit(account, "t1", rig.hook)
    await rig.see("t1", "10%")
    rig.allowed = ()
    await rig.round()
    assert rig.receiver.tries == {}
    [event] = await rig.outbox.events(10)
    assert event["note"] in ("not a public address", "not a URL to send to: its address is not a public one")


class Dying:
    """A session of a control that is killed at a step of a delivery."""

    def __init__(self, session, *, after_sending: bool) -> None:
        self._session = session
        self._after_sending = after_sending

    async def fetch(self, *args, **more) -> Reply:
        if self._after_sending:
            await self._session.fetch(*args, **more)
        raise KeyError("killed")  # nothing is noted


@pytest.mark.parametrize(("after_sending", "tries"), [(False, 1), (True, 2)])
async def test_a_control_that_dies_before_or_after_sending_repeats_the_same_event_at_most(
    rig, account, after_sending, tries
):
    await rig.submit(account, "t1", rig.hook)
    await rig.see("t1", "10%", end="done")
    await rig.round(rig.make(Dying(rig.session, after_sending=after_sending)))
    assert await rig.round(after_s=29) == 0  # it is claimed still
    await rig.round(after_s=1.1)
    await rig.rounds()
    assert list(dict.fromkeys(rig.receiver.bodies)) == ['{"is":"10%"}', '{"is":"done"}']
    assert sorted(rig.receiver.tries.values()) == sorted([1, tries])


async def test_three_nodes_send_each_event_once(rig, account):
    for n in range(12):
        await rig.submit(account, f"t{n}", rig.hook)
        await rig.see(f"t{n}", "10%", "20%")
    nodes = [rig.make() for _ in range(3)]
    for _ in range(20):
        await rig.round(*nodes, after_s=1)
    assert len(rig.receiver.taken) == 24
    assert set(rig.receiver.tries.values()) == {1}


def test_the_pause_doubles_up_to_a_quarter_of_an_hour_and_is_not_shorter_than_the_receiver_asks_for():
    assert [pause_s(n, None) for n in (1, 2, 3, 9, 99)] == [5, 10, 20, 900, 900]
    asked = Reply(503, {"Retry-After": "120"}, b"", True)
    assert pause_s(1, asked) == 120
    assert pause_s(1, Reply(503, {"Retry-After": "999999"}, b"", True)) == 3600
    assert pause_s(1, Reply(503, {"Retry-After": "soon"}, b"", True)) == 5


def test_the_signature_is_that_of_the_specifications_libraries():
    """The vector of the reference implementations."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    text = b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330." + b'{"test": 2432232314}'
    expected = base64.b64encode(hmac.digest(secret, text, "sha256")).decode()
    assert expected == "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    fields = signed("00", 1614265330, b'{"test": 2432232314}', [secret])
    again = hmac.digest(secret, b'evt_00.1614265330.{"test": 2432232314}', "sha256")
    assert fields["webhook-signature"] == "v1," + base64.b64encode(again).decode()


class Weather:
    """A receiver as a sender sees it: mostly it takes what comes; it may be away, be slow, or take an event
    and have its answer lost. A sender may die in front of it or behind it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.arrived: list[tuple[str, str]] = []  # (event, body)
        self.is_fine = False

    async def fetch(self, method: str, url: str, *, most_bytes: int, data: bytes, headers: Any) -> Reply:
        turn = 0.0 if self.is_fine else self.chance.random()
        if turn > 0.9:
            raise KeyError("the sender died before it sent")
        if turn > 0.7:
            raise TimeoutError
        if turn > 0.6:
            return Reply(self.chance.choice([500, 429, 302]), {"Retry-After": "7"}, b"", True)
        self.arrived.append((headers["webhook-id"], data.decode()))
        if turn > 0.5:
            raise KeyError("the sender died before it noted it")
        if turn > 0.4:
            raise TimeoutError  # its answer was lost
        return Reply(200, {}, b"", True)


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_on_the_way_a_task_is_told_in_order_and_nothing_of_it_is_lost(
    rig, account, seed
):
    chance = random.Random(seed)
    weather = Weather(chance)
    nodes = [rig.make(weather) for _ in range(3)]
    looks: Counter[str] = Counter()
    for name in (names := [f"t{n}" for n in range(6)]):
        await rig.submit(account, name, f"https://h{chance.randrange(3)}.example/")
    for _ in range(60):
        match chance.choice(["look", "round", "round", "later"]):
            case "look":
                name = chance.choice(names)
                looks[name] += 1
                await rig.see(name, f"{name} {looks[name]:03}")
            case "round":
                await rig.round(*chance.sample(nodes, chance.randint(1, 3)))
            case "later":
                rig.now_ms += chance.randrange(60_000)
    for name in names:
        await rig.see(name, end=f"{name} end")
    weather.is_fine = True
    while await rig.outbox.waiting():
        await rig.round(*nodes, after_s=300)
    for name in names:
        came = [body[7:-2] for _, body in weather.arrived if f'"{name} ' in body]
        assert came == sorted(came)  # repeated where it must be, never behind a later one
        assert list(dict.fromkeys(came)) == [
            *(f"{name} {n:03}" for n in range(1, looks[name] + 1)),
            f"{name} end",
        ]
    assert len(dict(weather.arrived)) == len(set(weather.arrived)) == sum(looks.values()) + len(names)
