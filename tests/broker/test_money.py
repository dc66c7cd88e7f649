"""Money for workers, from a real Postgres that comes and goes: never more than there is, on trust no
more than the tier allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.broker.money import IDLE_MS, NO_CREDIT, ON_TRUST, OUTAGE, REFUSAL_MS, Ask, MoneyDesk
from proxy.broker.outage import Outage
from proxy.broker.recall import BUSY_MS, Recall
from proxy.broker.trust import Trust
from proxy.relay.ids import IdSource
from proxy.routing.table import OnOutage
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.leases import Leases
from tests.fakes.cable import Cable

NODE = "0199a000-0000-7000-8000-0000000000aa"
LIFE = "0199a0000000700080000000000000bb"
YUAN = 1_000_000_000
ALLOWANCE = OnOutage("allowance", 5 * YUAN)


class Written(list):
    """A journal of trust that keeps what was written."""

    async def write(self, account: int, amount: int) -> None:
        await asyncio.sleep(0)
        self.append((account, amount))


class Desk:
    """A money desk with its surroundings; the clock stands until it is moved."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.outage = Outage()
        self.journal = Written()
        ids = IdSource()
        self.money = MoneyDesk(
            self.outage, Trust(self.journal.write), lambda: ids.next(self.now_ms), lambda: self.now_ms
        )

    async def take(
        self, account: int, need: int, want: int = 0, worker: str = "w0-a", policy=ALLOWANCE
    ) -> dict:
        return await self.money.take(Ask(worker, account, need, want or need, policy))


@pytest.fixture
async def bank(database: Database) -> Leases:
    leases = Leases(database, NODE, LIFE)
    await leases.register()
    return leases


@pytest.fixture
async def account(database: Database) -> int:
    catalog = Catalog(database)
    found = await catalog.create_account("ada")
    await catalog.top_up("ada", 100 * YUAN, "start")
    return found.id


@pytest.fixture
async def desk(bank: Leases) -> Desk:
    desk = Desk()
    await desk.money.open(bank, [])
    desk.outage.probed(True)
    return desk


async def available(database: Database) -> int:
    return await database.fetchval("SELECT available_nanos FROM account")


async def test_a_slice_comes_from_a_lease_and_the_next_ones_from_the_same(
    desk: Desk, account: int, database: Database
) -> None:
    first = await desk.take(account, 1 * YUAN, 2 * YUAN)
    assert first["granted"] == 2 * YUAN
    left = await available(database)
    second = await desk.take(account, 1 * YUAN, 2 * YUAN, worker="w1-a")
    assert second["lease"] == first["lease"]
    assert await available(database) == left  # without asking Postgres
    assert await database.fetchval("SELECT count(*) FROM lease") == 1


async def test_many_workers_never_get_more_than_the_balance_and_get_all_of_it(
    desk: Desk, account: int, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.broker.money.BANK_S", 30.0)  # a busy machine is no outage
    asks = [desk.take(account, YUAN, 3 * YUAN, worker=f"w{n % 4}-a") for n in range(300)]
    replies = await asyncio.gather(*asks)
    granted = sum(reply.get("granted", 0) for reply in replies)
    assert granted <= 100 * YUAN
    assert granted + await available(database) + 0 >= 99 * YUAN
    assert {"refused": "no_credit"} in replies


async def test_the_last_of_a_balance_is_handed_out_by_need(desk: Desk, account: int) -> None:
    await desk.take(account, 96 * YUAN)
    replies = [await desk.take(account, YUAN, 5 * YUAN, worker=f"w{n}-a") for n in range(4)]
    assert [reply["granted"] for reply in replies] == [YUAN] * 4
    assert await desk.take(account, YUAN) == NO_CREDIT


async def test_a_refusal_is_believed_for_a_second_and_a_top_up_ends_it(
    desk: Desk, account: int, database: Database
) -> None:
    assert await desk.take(account, 200 * YUAN) == NO_CREDIT
    await Catalog(database).top_up("ada", 300 * YUAN, "more")
    assert await desk.take(account, 200 * YUAN) == NO_CREDIT
    assert (await desk.take(account, 10 * YUAN))["granted"] == 10 * YUAN  # less than what was refused
    desk.now_ms += REFUSAL_MS
    assert (await desk.take(account, 200 * YUAN))["granted"] == 200 * YUAN


async def test_what_a_worker_gives_back_is_anothers_and_what_is_idle_goes_home(
    desk: Desk, account: int, database: Database
) -> None:
    reply = await desk.take(account, 80 * YUAN)
    await desk.money.give("w0-a", account, reply["lease"], 80 * YUAN)
    assert (await desk.take(account, 70 * YUAN, worker="w1-a"))["lease"] == reply["lease"]
    await desk.money.give("w1-a", account, reply["lease"], 70 * YUAN)
    await desk.money.tidy()
    assert await available(database) < 100 * YUAN  # it was drawn on just now
    desk.now_ms += IDLE_MS + 1
    await desk.money.tidy()
    assert await available(database) == 100 * YUAN
    assert (await desk.take(account, 100 * YUAN))["granted"] == 100 * YUAN


async def test_a_dead_workers_rest_is_free_only_once_it_was_adopted(desk: Desk, account: int) -> None:
    reply = await desk.take(account, 100 * YUAN)
    assert await desk.take(account, 50 * YUAN, worker="w1-a") == NO_CREDIT
    desk.money.adopted("w0-a", {reply["lease"]: 30 * YUAN})
    assert (await desk.take(account, 70 * YUAN, worker="w1-a"))["granted"] == 70 * YUAN
    desk.now_ms += REFUSAL_MS
    assert await desk.take(account, YUAN, worker="w1-a") == NO_CREDIT


async def test_a_new_control_hands_out_of_old_leases_only_what_nobody_holds(
    desk: Desk, bank: Leases, account: int
) -> None:
    reply = await desk.take(account, 100 * YUAN)
    await desk.money.give("w0-a", account, reply["lease"], 60 * YUAN)
    heir = Desk()
    await heir.money.open(bank, ["w0-a"])
    heir.outage.probed(True)
    assert await heir.take(account, YUAN, worker="w1-a") == NO_CREDIT  # all is leased, and w0 was not heard
    heir.now_ms += REFUSAL_MS
    heir.money.heard("w0-a", [(account, reply["lease"], 40 * YUAN)])
    assert (await heir.take(account, 60 * YUAN, worker="w1-a"))["granted"] == 60 * YUAN
    heir.now_ms += REFUSAL_MS
    assert await heir.take(account, YUAN, worker="w1-a") == NO_CREDIT


async def test_what_adopted_workers_spent_is_not_handed_out_by_a_new_control(
    desk: Desk, bank: Leases, account: int, database: Database
) -> None:
    reply = await desk.take(account, 100 * YUAN)
    await database.execute(
        "INSERT INTO lease_use (lease, incarnation, used_nanos) VALUES ($1, 'w0-a', $2), ($1, 'w1-a', $3)",
        reply["lease"], 30 * YUAN, 5 * YUAN,
    )  # fmt: skip
    await database.execute("UPDATE lease SET used_nanos = $1", 35 * YUAN)
    heir = Desk()
    await heir.money.open(bank, ["w1-a"])  # w0 is dead and adopted
    heir.outage.probed(True)
    heir.money.heard("w1-a", [(account, reply["lease"], 20 * YUAN)])
    assert (await heir.take(account, 50 * YUAN, worker="w2-a"))["granted"] == 50 * YUAN
    assert await heir.take(account, YUAN, worker="w2-a") == NO_CREDIT


async def test_closing_gives_everything_back(desk: Desk, account: int, database: Database) -> None:
    await desk.take(account, 10 * YUAN)
    await desk.money.close()
    assert await available(database) == 100 * YUAN
    assert desk.money.leased() == 0


async def test_a_frozen_account_gets_nothing_more(desk: Desk, account: int, database: Database) -> None:
    await desk.take(account, YUAN)
    await Catalog(database).set_account("ada", status="frozen")
    assert await desk.take(account, 90 * YUAN) == NO_CREDIT


# -- Postgres away -------------------------------------------------------------------------------


@pytest.fixture
async def cable(database_dsn: str, tmp_path: Path) -> AsyncIterator[Cable]:
    async with Cable(database_dsn, tmp_path / "cable") as cable:
        yield cable


@pytest.fixture
async def far_desk(cable: Cable, account: int) -> AsyncIterator[Desk]:
    """Its way to Postgres can be cut."""
    database = await Database.connect(cable.dsn)
    leases = Leases(database, NODE, LIFE)
    await leases.register()
    desk = Desk()
    await desk.money.open(leases, [])
    desk.outage.probed(True)
    yield desk
    cable.mend()
    await database.close()


async def test_an_allowance_is_for_those_who_had_credit_and_ends(
    far_desk: Desk, cable: Cable, account: int
) -> None:
    await far_desk.take(account, YUAN)
    cable.cut()
    replies = [await far_desk.take(account, 2 * YUAN) for _ in range(6)]
    granted = [r for r in replies if r.get("lease") == ON_TRUST]
    assert far_desk.outage.is_away
    assert sum(r["granted"] for r in granted) == 4 * YUAN  # of 5, and nothing is cut in two
    assert replies[-1] == OUTAGE
    assert sum(amount for _, amount in far_desk.journal) == 4 * YUAN
    assert await far_desk.take(account + 1, YUAN) == OUTAGE  # never seen


async def test_the_policy_of_the_tier_decides(far_desk: Desk, cable: Cable, account: int) -> None:
    await far_desk.take(account, YUAN)
    cable.cut()
    assert await far_desk.take(account, 50 * YUAN, policy=OnOutage("refuse", 0)) == OUTAGE
    unlimited = await far_desk.take(account, 50 * YUAN, policy=OnOutage("unlimited", 0))
    assert unlimited == {"lease": ON_TRUST, "granted": 50 * YUAN}


async def test_slices_at_hand_go_on_without_postgres(far_desk: Desk, cable: Cable, account: int) -> None:
    reply = await far_desk.take(account, YUAN, 2 * YUAN)
    cable.cut()
    assert (await far_desk.take(account, YUAN, 2 * YUAN, worker="w1-a"))["lease"] == reply["lease"]
    assert far_desk.journal == []


async def test_back_again_nothing_was_granted_twice(
    far_desk: Desk, cable: Cable, account: int, database: Database
) -> None:
    await far_desk.take(account, 10 * YUAN)
    far_desk.now_ms += IDLE_MS + 1
    cable.cut()
    await asyncio.gather(*(far_desk.take(account, 60 * YUAN) for _ in range(3)))
    cable.mend()
    far_desk.outage.probed(True)
    await far_desk.money.trust.end()
    far_desk.now_ms += REFUSAL_MS
    replies = [await far_desk.take(account, 30 * YUAN, worker=f"w{n}-b") for n in range(5)]
    assert [r["granted"] for r in replies if "granted" in r] == [30 * YUAN] * 3
    leased = await database.fetchval("SELECT sum(granted_nanos) FROM lease")
    assert leased == far_desk.money.leased()
    assert await available(database) + leased == 100 * YUAN


async def test_a_restart_does_not_refill_an_allowance() -> None:
    from proxy.ledger.entry import Allowance

    written = Written()
    trust = Trust(written.write)
    assert await trust.extend(7, ALLOWANCE, 2 * YUAN, 4 * YUAN) == 4 * YUAN
    heir = Trust(written.write)
    heir.restore(Allowance("0" * 32, 0, account, amount) for account, amount in written)
    assert await heir.extend(7, ALLOWANCE, 2 * YUAN, 2 * YUAN) == 0
    assert await heir.extend(7, ALLOWANCE, 1 * YUAN, 2 * YUAN) == 1 * YUAN
    await heir.end()
    fresh = Trust(written.write)
    fresh.restore(Allowance("0" * 32, 0, account, amount) for account, amount in written)
    assert await fresh.extend(7, ALLOWANCE, 5 * YUAN, 5 * YUAN) == 5 * YUAN


async def test_what_the_journal_refuses_was_not_granted() -> None:
    async def broken(account: int, amount: int) -> None:
        raise OSError

    trust = Trust(broken)
    with pytest.raises(OSError):
        await trust.extend(7, ALLOWANCE, YUAN, YUAN)
    working = Written()
    trust._write = working.write
    assert await trust.extend(7, replace(ALLOWANCE, allowance_nanos=YUAN), YUAN, YUAN) == YUAN


# -- what others hold --------------------------------------------------------------------------------


class Workers:
    """The workers of a node: what each gives when it is asked for an account's money."""

    def __init__(self, desk: Desk) -> None:
        self.gives: dict[str, tuple[str, int]] = {}  # worker -> (lease, amount)
        self.asked: list[str] = []
        self._money = desk.money
        desk.money.recall = Recall(self._tell)

    def _tell(self, worker: str, op: str, args: dict) -> bool:
        self.asked.append(worker)
        lease, amount = self.gives.get(worker, ("", 0))
        if amount:
            self._money.returned(worker, lease, amount)
        asyncio.get_running_loop().call_soon(self._money.recall.answered, worker, args["id"])
        return True


async def test_what_another_worker_does_not_need_comes_before_a_refusal(desk: Desk, account: int) -> None:
    workers = Workers(desk)
    held = await desk.take(account, 100 * YUAN)
    assert await desk.take(account, YUAN, worker="w1-a") == NO_CREDIT
    assert workers.asked == ["w0-a"]
    workers.gives["w0-a"] = (held["lease"], 30 * YUAN)
    desk.now_ms += REFUSAL_MS
    assert (await desk.take(account, 30 * YUAN, worker="w1-a"))["granted"] == 30 * YUAN


async def test_what_another_node_does_not_need_comes_back(
    desk: Desk, account: int, database: Database
) -> None:
    """The first to ask leased more than it needs; nothing is left in Postgres."""
    leases = Leases(database, NODE.replace("aa", "cc"), LIFE.replace("bb", "dd"))
    await leases.register()
    other = Desk()
    await other.money.open(leases, [])
    other.outage.probed(True)
    for one, bank in ((desk, Leases(database, NODE, LIFE)), (other, leases)):
        Workers(one)
        one.money.recall.open(bank.windows())
        one.money.recall.nodes = 2
    await desk.take(account, 60 * YUAN)
    assert await available(database) == 0
    desk.now_ms += BUSY_MS + 1  # until then it might need it itself

    async def answer() -> None:
        while not (asked := await desk.money.recall.asked()):
            await asyncio.sleep(0.01)
        assert asked == [account]
        await desk.money.recalled(account)

    answering = asyncio.ensure_future(answer())
    got = await other.take(account, 20 * YUAN)
    await answering
    if got == NO_CREDIT:  # on a slow machine it is there for the next call
        other.now_ms += REFUSAL_MS
        got = await other.take(account, 20 * YUAN)
    assert got["granted"] == 20 * YUAN
    assert await database.fetchval("SELECT sum(granted_nanos) FROM lease") == 100 * YUAN


async def test_parts_that_are_too_small_for_either_node_come_together(
    desk: Desk, account: int, database: Database
) -> None:
    """A refused node gives up what it cannot use, however busy it is."""
    held = await desk.take(account, 97 * YUAN)
    await desk.money.recalled(account)
    assert await available(database) == 0
    await desk.money.give("w0-a", account, held["lease"], 1 * YUAN)
    assert await desk.take(account, 10 * YUAN) == NO_CREDIT  # 4 are free
    await desk.money.recalled(account)
    assert await available(database) == 4 * YUAN


async def test_a_node_that_needs_it_itself_gives_nothing_back(
    desk: Desk, account: int, database: Database
) -> None:
    held = await desk.take(account, 60 * YUAN)
    await desk.money.give("w0-a", account, held["lease"], 60 * YUAN)
    await desk.money.recalled(account)
    assert await available(database) == 0
    desk.now_ms += BUSY_MS + 1
    await desk.money.recalled(account)
    assert await available(database) == 100 * YUAN
