"""Slices of limits as rows: never more than the limit, and what a life really spent."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from proxy.store.database import Database
from proxy.store.leases import Leases
from proxy.store.windows import Idle, Windows
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, YUAN, Life, begin, end, new_id

OTHER = NODE.replace("01", "02")
END_MS = NOW_MS + 3_600_000
COST = 45_000  # of tests.store.journals.end


async def windows_of(database: Database, node: str = NODE, life: str = "") -> Windows:
    leases = Leases(database, node, life or new_id())
    await leases.register()
    made = leases.windows()
    await made.beat(NOW_MS)
    return made


async def test_as_much_as_is_left_is_drawn_or_nothing(database):
    one, two = await windows_of(database), await windows_of(database, OTHER)
    assert await one.draw("k1:x", END_MS, 100, 1, 70) == (70, 30)
    assert await two.draw("k1:x", END_MS, 100, 40, 80) == (0, 30)
    assert await two.draw("k1:x", END_MS, 100, 10, 80) == (30, 0)
    assert await one.draw("k1:x", END_MS + 1, 100, 1, 1) == (1, 99)  # the next window
    assert await one.put_back([Idle("k1:x", END_MS, 70, 20), Idle("k1:x", END_MS + 1, 5, 1)]) == [50, 1]
    assert await two.draw("k1:x", END_MS, 100, 1, 80) == (50, 0)


async def test_many_who_draw_at_once_get_the_limit_and_not_one_more(database):
    nodes = [await windows_of(database, NODE.replace("01", f"1{n}")) for n in range(4)]
    draws = [nodes[n % 4].draw("k1:x", END_MS, 100, 1, 3) for n in range(120)]
    await asyncio.gather(*draws)
    assert await database.fetchval("SELECT sum(granted) FROM limit_slice") == 100


async def test_calls_of_nodes_that_are_not_heard_of_are_over(database):
    one, two = await windows_of(database), await windows_of(database, OTHER)
    assert await one.draw("k1:concurrency", 0, 5, 1, 5) == (5, 0)
    assert await two.draw("k1:concurrency", 0, 5, 1, 5) == (0, 0)
    await one.leave()
    assert await two.draw("k1:concurrency", 0, 5, 1, 5) == (5, 0)


async def test_a_recall_is_heard_for_a_moment(database):
    one = await windows_of(database)
    await one.recall("k1:x")
    await one.recall("k1:x")
    assert await one.recalled(10.0) == ["k1:x"]
    await database.execute("UPDATE recall SET at = at - interval '11 seconds'")
    assert await one.recalled(10.0) == []


@pytest.mark.parametrize("owner", ["account", "key"])
async def test_a_life_that_is_over_keeps_what_it_spent(database, journal_dir, accounts, drainer, owner):
    """Two calls of this window, one of another key and one of an earlier window."""
    account, life = accounts[0], new_id()
    key = await database.fetchval(
        "INSERT INTO api_key (account, digest, masked) VALUES ($1, sha256('x'), 'sk-') RETURNING id", account
    )
    first = await windows_of(database, life=life)
    bucket = f"a{account}:spend_per_month" if owner == "account" else f"k{key}:spend_per_month"
    assert await first.draw(bucket, END_MS, 10 * YUAN, 1, 10 * YUAN) == (10 * YUAN, 0)
    calls = [end(account, key=key), end(account, key=key), end(account, key=key + 1)]
    calls.append(end(account, key=key, began_ms=NOW_MS - 90_000))
    worker = Life(journal_dir, f"w0-{new_id()}")
    await worker.write([PRICE_ENTRY, *(begin(account, id=call.id) for call in calls), *calls])
    await drainer.run_once()
    spent = COST * (3 if owner == "account" else 2)
    assert await first.lives() == [worker.name]
    assert await first.spent(bucket, NOW_MS - 60_000, [worker.name]) == spent
    second = await windows_of(database)
    await second.close_earlier_lives(lambda bucket: NOW_MS - 60_000)
    assert await second.draw(bucket, END_MS, 10 * YUAN, 1, 10 * YUAN) == (10 * YUAN - spent, 0)
    await second.close_earlier_lives(lambda bucket: NOW_MS - 60_000)  # once more is harmless
    assert (await second.draw(bucket, END_MS, 10 * YUAN, 1, 1)).left == 0
    await worker.die()


# -- whatever happens --------------------------------------------------------------------------------


class Station(RuleBasedStateMachine):
    """Three nodes draw of one limit, give back, lose answers, die and come back; a model of plain sums."""

    def __init__(self, databases) -> None:
        super().__init__()
        self.databases = databases
        self.dsn = databases.take()
        self.runner = asyncio.Runner()

    @initialize(amount=st.integers(1, 300), is_at_once=st.booleans())
    def start(self, amount, is_at_once) -> None:
        async def begin_station() -> None:
            self.database = await Database.connect(self.dsn)
            self.nodes = [await windows_of(self.database, NODE.replace("01", f"2{n}")) for n in range(3)]

        self.amount = amount
        self.ends_ms = 0 if is_at_once else END_MS
        self.bucket = "k1:concurrency" if is_at_once else "k1:requests_per_day"
        self.runner.run(begin_station())
        self.has = [0, 0, 0]
        self.lost = 0  # of lives that are over

    @rule(n=st.integers(0, 2), need=st.integers(1, 40), more=st.integers(0, 80))
    def draw(self, n, need, more) -> None:
        total, left = self.runner.run(
            self.nodes[n].draw(self.bucket, self.ends_ms, self.amount, need, need + more)
        )
        free = self.amount - sum(self.has) - self.lost
        self.has[n] += min(need + more, free) if free >= need else 0
        assert (total, left) == (self.has[n], self.amount - sum(self.has) - self.lost)

    @rule(n=st.integers(0, 2), part=st.integers(1, 60), off=st.sampled_from([0, 0, 0, 1]))
    def put_back(self, n, part, off) -> None:
        part = min(part, self.has[n])
        idle = Idle(self.bucket, self.ends_ms, self.has[n] + off, part)
        if not off:
            self.has[n] -= part
        assert self.runner.run(self.nodes[n].put_back([idle])) == [self.has[n]]

    @rule(n=st.integers(0, 2))
    def restart(self, n) -> None:
        """A new life: calls at once are over, of a window nobody knows what was used."""

        async def again() -> Windows:
            node = await windows_of(self.database, NODE.replace("01", f"2{n}"))
            await node.forget_calls_of_earlier_lives()
            return node

        self.nodes[n] = self.runner.run(again())
        self.lost += self.has[n] if self.ends_ms else 0
        self.has[n] = 0

    @invariant()
    def never_more_than_the_limit(self) -> None:
        if hasattr(self, "lost"):
            sql = "SELECT coalesce(sum(granted), 0)::bigint FROM limit_slice"
            assert self.runner.run(self.database.fetchval(sql)) == sum(self.has) + self.lost <= self.amount

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.runner.run(self.database.close())
        self.runner.close()
        self.databases.give_back(self.dsn)


def test_never_more_than_the_limit_whatever_happens(databases):
    run_state_machine_as_test(
        lambda: Station(databases),
        settings=settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
