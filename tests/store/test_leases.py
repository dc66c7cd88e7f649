"""A balance is leased to nodes and never more than it."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import StateError
from proxy.store import leases
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.leases import Leases
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, YUAN, Life, end, new_id


@pytest.fixture
async def lender(database) -> Leases:
    lender = Leases(database, NODE, "life1")
    await lender.register()
    return lender


async def available(database, account):
    return await database.fetchval("SELECT available_nanos FROM account WHERE id = $1", account)


async def balance(database, account):
    return await database.fetchval("SELECT balance_nanos FROM account WHERE id = $1", account)


async def test_a_grant_takes_from_what_is_available_and_not_from_the_balance(database, accounts, lender):
    assert await lender.grant(new_id(), accounts[0], YUAN, 5 * YUAN) == 5 * YUAN
    assert await available(database, accounts[0]) == 95 * YUAN
    assert await balance(database, accounts[0]) == 100 * YUAN


async def test_a_grant_is_as_much_as_there_is_but_not_less_than_needed(database, accounts, lender):
    assert await lender.grant(new_id(), accounts[0], YUAN, 98 * YUAN) == 98 * YUAN
    assert await lender.grant(new_id(), accounts[0], YUAN, 5 * YUAN) == 2 * YUAN
    assert await lender.grant(new_id(), accounts[0], 1, 5 * YUAN) is None
    assert await available(database, accounts[0]) == 0


async def test_asking_twice_for_the_same_lease_grants_once(database, accounts, lender):
    lease = new_id()
    assert [await lender.grant(lease, accounts[0], YUAN, YUAN) for _ in range(2)] == [YUAN, YUAN]
    assert await lender.extend(lease, YUAN, YUAN, 2 * YUAN) == 3 * YUAN
    assert await lender.extend(lease, YUAN, YUAN, 2 * YUAN) == 3 * YUAN
    assert await available(database, accounts[0]) == 97 * YUAN


async def test_grants_under_eight_connections_are_exact(database_dsn, database, accounts, lender):
    """500 of 100 yuan in units of 0.2, asked for 800 times at once: 500 get one, nobody more."""
    database = await Database.connect(database_dsn, size=8)
    lender = Leases(database, NODE, "life1")
    unit = YUAN // 5
    granted = await asyncio.gather(*(lender.grant(new_id(), accounts[0], unit, unit) for _ in range(800)))
    assert [g for g in granted if g is not None] == [unit] * 500
    assert await available(database, accounts[0]) == 0
    await database.close()


async def test_grants_and_extensions_of_odd_sizes_never_pass_the_balance(database_dsn, accounts, lender):
    database = await Database.connect(database_dsn, size=8)
    lender = Leases(database, NODE, "life1")

    async def spend(number: int) -> int:
        lease, total = new_id(), 0
        for step in range(6):
            want = (number * 7 + step * 3 + 1) * YUAN // 10
            got = (
                await lender.grant(lease, accounts[0], want // 2, want)
                if not total
                else await lender.extend(lease, total, want // 2, want)
            )
            total = got or total
        return total

    totals = await asyncio.gather(*(spend(n) for n in range(16)))
    assert sum(totals) + await available(database, accounts[0]) == 100 * YUAN
    assert await available(database, accounts[0]) >= 0
    await database.close()


async def test_closing_returns_what_was_not_used(database, journal_dir, accounts, lender, drainer):
    lease = new_id()
    await lender.grant(lease, accounts[0], YUAN, YUAN)
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, end(accounts[0], lease=lease)])
    await drainer.run_once()
    assert await lender.used(life.name) == {lease: 45_000}
    await lender.close(lease)
    assert await available(database, accounts[0]) == 100 * YUAN - 45_000
    await lender.close(lease)
    assert await available(database, accounts[0]) == 100 * YUAN - 45_000
    await life.write([end(accounts[0], lease=lease)])
    await drainer.run_once()
    assert await available(database, accounts[0]) == 100 * YUAN - 90_000
    await life.die()


async def test_a_part_can_be_given_back_but_not_what_was_used(
    database, journal_dir, accounts, lender, drainer
):
    lease = new_id()
    await lender.grant(lease, accounts[0], 100_000, 100_000)
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, end(accounts[0], lease=lease)])
    await drainer.run_once()
    assert await lender.give_back(lease, 100_000, 60_000) is None
    assert await lender.give_back(lease, 100_000, 40_000) == 60_000
    assert await lender.give_back(lease, 100_000, 1) is None
    assert await available(database, accounts[0]) == 100 * YUAN - 60_000
    await life.die()


async def test_a_new_life_finds_its_own_leases_and_closes_those_of_earlier_ones(database, accounts, lender):
    mine, older = new_id(), new_id()
    await Leases(database, NODE, "life0").grant(older, accounts[0], YUAN, YUAN)
    await lender.grant(mine, accounts[1], YUAN, YUAN)
    assert [(found.id, found.granted_nanos) for found in await lender.open()] == [(mine, YUAN)]
    assert await lender.close_earlier_lives() == 1
    assert [await available(database, a) for a in accounts[:2]] == [100 * YUAN, 99 * YUAN]


async def test_a_retired_node_gets_nothing_any_more(database, accounts, lender):
    await lender.grant(new_id(), accounts[0], YUAN, YUAN)
    (node,) = await leases.nodes(database)
    assert (node.open_leases, node.set_aside_nanos, node.retired_at) == (1, YUAN, None)
    assert await leases.retire(database, NODE) == 1
    assert await available(database, accounts[0]) == 100 * YUAN
    assert await lender.grant(new_id(), accounts[0], YUAN, YUAN) is None
    with pytest.raises(StateError, match="retired"):
        await lender.register()
    with pytest.raises(LookupError):
        await leases.retire(database, "0199a000-0000-7000-8000-00000000000f")


async def test_a_node_that_lives_is_not_retired_by_mistake(database, accounts, lender):
    await lender.grant(new_id(), accounts[0], YUAN, YUAN)
    windows = lender.windows()
    await windows.beat(NOW_MS)
    assert [node.is_alive for node in await leases.nodes(database)] == [True]
    with pytest.raises(StateError, match="alive"):
        await leases.retire(database, NODE)
    assert await available(database, accounts[0]) == 99 * YUAN
    await windows.leave()
    assert [node.is_alive for node in await leases.nodes(database)] == [False]
    assert await leases.retire(database, NODE) == 1
    await windows.beat(NOW_MS)
    assert await leases.retire(database, NODE, even_alive=True) == 0


async def test_a_frozen_account_gets_no_lease(database, accounts, lender):
    await Catalog(database).set_account("ada", status="frozen")
    assert await lender.grant(new_id(), accounts[0], 1, YUAN) is None


async def test_a_settlement_is_never_refused_and_may_overdraw(
    database, journal_dir, accounts, lender, drainer
):
    lease = new_id()
    await lender.grant(lease, accounts[0], 100 * YUAN, 100 * YUAN)
    life = Life(journal_dir)
    tokens = {"input": 0, "output": 100_000_000}  # 200 yuan
    await life.write([PRICE_ENTRY, end(accounts[0], lease=lease, usage=tokens)])
    await drainer.run_once()
    assert await balance(database, accounts[0]) == -100 * YUAN
    await lender.close(lease)
    assert await available(database, accounts[0]) == -100 * YUAN
    assert await lender.grant(new_id(), accounts[0], 1, YUAN) is None
    await life.die()
