"""Limits of a station, counted over workers and nodes that come and go, in a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from proxy.broker.limits import FOREVER_MS, IDLE_MS, MINUTE_MS, REFUSAL_MS, Ask, LimitDesk, window
from proxy.broker.outage import Outage
from proxy.broker.recall import BUSY_MS, Recall
from proxy.routing.table import OnOutage
from proxy.store.database import Database
from proxy.store.leases import Leases

START_MS = 1_800_000_000_000  # the begin of a minute
ALLOW, REFUSE = OnOutage("unlimited"), OnOutage("refuse")
RPM, CALLS, SPEND = "requests_per_minute", "concurrency", "spend_total"
LIFE = "0199a00000007000800000000000000"


class Node:
    """The limits of one node; its clock stands until it is moved."""

    def __init__(self, number: int, workers: int = 2) -> None:
        self.number = number
        self.now_ms = START_MS
        self.outage = Outage()
        self.desk = LimitDesk(self.outage, workers, lambda: self.now_ms)
        self.gives: dict[str, Callable[[str], list[tuple[str, int, int]]]] = {}

    async def open(self, database: Database, life: int = 0) -> Node:
        leases = Leases(
            database, f"0199a000-0000-7000-8000-00000000000{self.number}", f"{LIFE}{self.number + life}"
        )
        await leases.register()
        self.desk.recall = Recall(self.tell)
        self.desk.recall.open(leases.windows())
        await self.desk.open(leases.windows(), [])
        self.outage.probed(True)
        return self

    def tell(self, worker: str, op: str, args: dict[str, Any]) -> bool:
        """To a worker, which answers at once with what its test says."""
        if worker not in self.gives:
            return False
        for bucket, ends_ms, amount in self.gives[worker](args["owner"]):
            self.desk.give(worker, bucket, ends_ms, amount)
        asyncio.get_running_loop().call_soon(self.desk.recall.answered, worker, args["id"])
        return True

    async def ask(self, need: int, amount: int = 10, **how: Any) -> dict[str, Any]:
        kind = how.get("kind", RPM)
        owner, policy = how.get("owner", "k1"), how.get("policy", REFUSE)
        worker, want = how.get("worker", "w0-a"), how.get("want", need)
        return await self.desk.take(Ask(worker, f"{owner}:{kind}", kind, amount, need, want, policy))

    async def take(self, need: int, amount: int = 10, **how: Any) -> int:
        return int((await self.ask(need, amount, **how))["granted"])


@pytest.fixture
async def node(database: Database) -> Node:
    return await Node(1).open(database)


@pytest.fixture
async def nodes(database: Database) -> list[Node]:
    """Four of one station; each answers the recalls of the others."""
    made = [await Node(n).open(database) for n in range(1, 5)]
    for one in made:
        await one.desk.tidy()
    return made


def test_windows_are_minutes_and_the_stations_days_and_months() -> None:
    shanghai = ZoneInfo("Asia/Shanghai")
    at = START_MS + 12_345  # 2027-01-15 16:00:12 there
    assert window(RPM, at, shanghai) == (START_MS, START_MS + MINUTE_MS)
    day = window("tokens_per_day", at, shanghai)
    assert (day.ends_ms - day.begins_ms, day.begins_ms % 86_400_000) == (86_400_000, 16 * 3_600_000)
    month = window("spend_per_month", at, shanghai)
    assert month.ends_ms - month.begins_ms == 31 * 86_400_000
    assert window(SPEND, at, shanghai) == (0, FOREVER_MS)
    assert window(CALLS, at, shanghai) == (0, 0)


async def test_a_minute_grants_no_more_than_its_limit_to_all_workers_together(node: Node) -> None:
    node.now_ms += 15_000
    assert await node.ask(7) == {"granted": 7, "until_ms": START_MS + MINUTE_MS, "left": 3}
    assert await node.take(3, worker="w1-a") == 3
    refused = await node.ask(1)
    assert (refused["granted"], refused["retry_after_s"], refused["outage"]) == (0, 45.0, False)
    node.now_ms += 45_000
    assert await node.take(7) == 7


async def test_a_raised_limit_counts_at_once(node: Node) -> None:
    assert await node.take(10) == 10
    assert await node.take(5, 15) == 5
    assert await node.take(1, 5) == 0


async def test_calls_at_once_come_back_by_return_and_by_death(node: Node) -> None:
    assert await node.take(6, kind=CALLS) == 6
    assert await node.take(4, kind=CALLS, worker="w1-a") == 4
    refused = await node.ask(1, kind=CALLS, worker="w1-a")
    assert refused["granted"] == 0 and refused["retry_after_s"] > 0
    node.desk.give("w0-a", f"k1:{CALLS}", 0, 2)
    assert await node.take(2, kind=CALLS, worker="w1-a") == 2
    node.desk.lost("w1-a")
    assert node.desk.busy() == {f"k1:{CALLS}": 4}
    node.desk.lost("w0-a")
    assert node.desk.busy() == {}


async def test_a_new_control_believes_what_workers_say_they_hold(database: Database, node: Node) -> None:
    assert await node.take(9, kind=CALLS) == 9
    assert await node.take(1, kind=CALLS, worker="w1-a") == 1
    assert await node.take(8) == 8
    again = Node(1)
    await again.open(database)  # the same life of the node
    again.desk.heard("w0-a", [(f"k1:{CALLS}", 0, 3), (f"k1:{RPM}", START_MS + MINUTE_MS, 6)])
    assert again.desk.busy()[f"k1:{CALLS}"] == 10  # w1 was not heard yet
    again.desk.heard("w1-a", [])
    await again.desk.tidy()
    assert again.desk.busy() == {f"k1:{CALLS}": 3}
    assert await again.take(7, kind=CALLS) == 7
    assert await again.take(2) == 2
    assert await again.take(1) == 0  # what was on its way to a worker may have been used


async def test_without_postgres_a_node_counts_alone_where_the_tier_allows_it() -> None:
    node = Node(1)
    assert await node.take(6, policy=ALLOW) == 6
    assert await node.take(4, policy=ALLOW, worker="w1-a") == 4
    assert (await node.ask(1, policy=ALLOW))["outage"] is False
    refused = await node.ask(1, owner="k2", policy=REFUSE)
    assert (refused["granted"], refused["outage"]) == (0, True)
    assert await node.take(10, kind=CALLS, policy=REFUSE) == 10
    assert await node.take(1, kind=CALLS, policy=REFUSE) == 0


async def test_what_a_node_counted_alone_is_drawn_when_postgres_is_back(
    nodes: list[Node], database: Database
) -> None:
    one, other = nodes[:2]
    assert await other.take(7, kind=CALLS) == 7
    one.outage.probed(False)
    one.outage.probed(False)
    assert await one.take(6, kind=CALLS) == 6  # 13 at once: within the limit of each node
    one.outage.probed(True)
    assert await one.take(1, kind=CALLS) == 0
    one.desk.give("w0-a", f"k1:{CALLS}", 0, 4)
    one.now_ms += REFUSAL_MS  # a refusal is believed so long
    assert await one.take(1, kind=CALLS) == 1  # 7 + 3
    assert await one.take(1, kind=CALLS) == 0


async def test_four_nodes_together_grant_the_limit_and_not_one_more(nodes: list[Node]) -> None:
    async def drain(node: Node) -> int:
        granted = 0
        while got := await node.take(1, 100, want=8):
            granted += got
        return granted

    assert sum(await asyncio.gather(*map(drain, nodes))) == 100


async def test_one_node_may_use_all_of_a_limit(nodes: list[Node]) -> None:
    taken = [await nodes[0].take(1, 1000, want=40) for _ in range(40)]
    assert sum(taken) == 1000
    assert await nodes[1].take(1, 1000) == 0


async def test_an_idle_key_gets_what_another_worker_holds_and_does_not_need(node: Node) -> None:
    assert await node.take(10, worker="w1-a") == 10
    node.gives["w1-a"] = lambda owner: [(owner, START_MS + MINUTE_MS, 6)]
    assert await node.take(1) == 1
    assert await node.take(5) == 5


async def test_an_idle_node_gets_what_another_node_holds_and_does_not_need(nodes: list[Node]) -> None:
    had, idle = nodes[:2]
    assert await had.take(10) == 10
    had.gives["w0-a"] = lambda owner: [(owner, START_MS + MINUTE_MS, 4)]
    had.now_ms += BUSY_MS + 1  # until then it might need it itself

    async def answer() -> None:
        while not (asked := await had.desk.recall.asked()):
            await asyncio.sleep(0.01)
        for owner in asked:
            await had.desk.recalled(str(owner))

    answering = asyncio.ensure_future(answer())
    if not await idle.take(1):  # on a slow machine the answer is there for the next call
        await answering
        idle.now_ms += REFUSAL_MS
        assert await idle.take(1) == 1
    await answering
    assert await idle.take(3) == 3
    assert await idle.take(1) == 0


async def test_what_nobody_asks_for_goes_back_to_postgres(node: Node, database: Database) -> None:
    assert await node.take(4, 1000, want=100) == 100
    node.desk.give("w0-a", f"k1:{RPM}", START_MS + MINUTE_MS, 90)
    await node.desk.tidy()
    granted = "SELECT sum(granted) FROM limit_slice"
    assert await database.fetchval(granted) > 10
    node.now_ms += IDLE_MS + 1
    await node.desk.tidy()
    assert await database.fetchval(granted) == 10
    node.now_ms += MINUTE_MS * 2
    await node.desk.tidy()
    assert await database.fetchval("SELECT count(*) FROM limit_slice") == 0


async def test_many_idle_windows_go_back_at_once(node: Node, database: Database) -> None:
    for n in range(30):
        assert await node.take(1, 1000, owner=f"k{n}", want=100) == 100
        node.desk.give("w0-a", f"k{n}:{RPM}", START_MS + MINUTE_MS, 40 + n)
    await database.execute("UPDATE limit_slice SET granted = 777 WHERE bucket LIKE 'k7:%'")
    node.now_ms += IDLE_MS + 1
    await node.desk.tidy()
    rows = await database.fetch("SELECT bucket, granted FROM limit_slice")
    left = {row["bucket"]: row["granted"] for row in rows}
    assert left == {f"k{n}:{RPM}": 777 if n == 7 else 60 - n for n in range(30)}
    assert await node.take(677 + 47, 1000, owner="k7") == 677 + 47  # and now it knows what it has


async def test_calls_of_a_dead_node_do_not_count(nodes: list[Node], database: Database) -> None:
    assert await nodes[0].take(10, kind=CALLS) == 10
    assert await nodes[1].take(1, kind=CALLS) == 0
    await database.execute("UPDATE node SET alive_until = now() WHERE id::text LIKE '%1'")
    nodes[1].now_ms += REFUSAL_MS
    assert await nodes[1].take(1, kind=CALLS) == 1


async def test_a_lost_answer_is_healed_by_the_next(node: Node, database: Database) -> None:
    assert await node.take(1, 1000, want=1) == 1
    await database.execute("UPDATE limit_slice SET granted = granted + 30")  # as if a draw was not heard of
    assert await node.take(1000 - 250 - 30, 1000) == 720
    assert sum([await node.take(1, 1000, want=50) for _ in range(10)]) == 279


async def test_a_worker_that_died_gives_back_what_it_did_not_spend(node: Node, database: Database) -> None:
    how = {"kind": SPEND, "owner": "a1"}
    assert await node.take(1000, 1000, **how) == 1000
    await node.desk.adopted("w0-a")  # its journal tells of no call
    assert await node.take(1000, 1000, worker="w1-a", **how) == 1000


async def test_the_next_life_gets_what_the_one_before_did_not_spend(database: Database) -> None:
    first = await Node(1).open(database)
    how = {"kind": SPEND, "owner": "a1"}
    assert await first.take(1000, 1000, **how) == 1000
    assert await first.take(5, kind=CALLS) == 5
    second = await Node(1).open(database, life=1)
    assert await second.take(10, kind=CALLS) == 10
    assert await second.take(1, 1000, **how) == 0
    await second.desk.close_earlier_lives()
    second.now_ms += REFUSAL_MS
    assert await second.take(1000, 1000, **how) == 1000
