"""What no table took is applied once its reason is gone, exactly once."""

from __future__ import annotations

import asyncio

import pytest

from proxy.ledger import entry
from proxy.ledger.entry import Settle
from proxy.store.audit import audit
from proxy.store.catalog import Catalog
from proxy.store.drainer import days_of
from proxy.store.quarantine import Quarantine
from tests.store.journals import NOW_MS, PRICE_ENTRY, YUAN, Life, Station, begin, end, new_id

COST = 45_000


@pytest.fixture
def quarantine(database) -> Quarantine:
    return Quarantine(database, days_of(Station.timezone, NOW_MS))


async def drained(journal_dir, drainer, entries) -> None:
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, *entries])
    await drainer.run_once()
    await life.die()


async def late_account(database, id_: int) -> None:
    """An account that comes after its calls, as when a dump was restored in the wrong order."""
    await database.execute(
        "INSERT INTO account (id, name) OVERRIDING SYSTEM VALUE VALUES ($1, $2)", id_, f"late-{id_}"
    )
    await Catalog(database).top_up(f"late-{id_}", YUAN, f"late-{id_}")


async def test_it_lists_what_waits_and_why(database, journal_dir, accounts, drainer, quarantine):
    call = end(700)
    life = Life(journal_dir)
    life._journal.append(b"Znonsense")
    await life.write([PRICE_ENTRY, call])
    await drainer.run_once()
    await life.die()
    nonsense, known = sorted(await quarantine.waiting(), key=lambda found: found.kind)
    assert (known.kind, known.call, known.reason) == ("End", call.id, "there is no account 700")
    assert (nonsense.kind, nonsense.call, nonsense.size_bytes) == ("", "", 9)
    assert known.place.startswith(life.name)


async def test_an_entry_is_applied_once_when_its_account_is_there(
    database, journal_dir, accounts, drainer, adopter, quarantine
):
    call = end(700)
    await drained(journal_dir, drainer, [begin(700, id=call.id), call])
    (waiting,) = await quarantine.waiting()
    assert await quarantine.apply() == {waiting.id: "there is no account 700"}
    await late_account(database, 700)
    both = await asyncio.gather(quarantine.apply(), quarantine.apply())
    assert any(told == {waiting.id: ""} for told in both)
    assert await quarantine.waiting() == []
    assert (await Catalog(database).account("late-700")).balance_nanos == YUAN - COST
    assert await database.fetchval("SELECT count(*) FROM usage WHERE id = $1", call.id) == 1
    await adopter.run_once()
    assert await audit(database) == []


async def test_a_call_that_was_closed_meanwhile_is_corrected(
    database, journal_dir, accounts, drainer, quarantine
):
    """Adoption could not read its End and closed it by its checkpoint: the End is late truth."""
    call = end(accounts[0], usage={"input": 10, "output": 40}, cost_nanos=85_000)
    closed = end(accounts[0], id=call.id, outcome=entry.INTERRUPTED_RELAY, provenance="estimated")
    await drained(journal_dir, drainer, [closed])
    (life,) = await database.fetch("SELECT id FROM incarnation")
    id_ = await database.fetchval(
        "INSERT INTO quarantine (incarnation, segment, position, reason, payload)"
        " VALUES ($1, 1, 4096, 'of another build', $2) RETURNING id",
        life["id"], entry.encode(call),
    )  # fmt: skip
    assert await quarantine.apply([id_]) == {id_: ""}
    assert (await Catalog(database).account("ada")).balance_nanos == 100 * YUAN - 85_000
    row = await database.fetchrow("SELECT * FROM correction")
    assert (row["corrects"].hex, row["delta_nanos"], row["provenance"]) == (call.id, 40_000, "final")
    assert await audit(database) == []


async def test_what_cannot_be_applied_stays_and_moves_nothing(
    database, journal_dir, accounts, drainer, quarantine
):
    account = accounts[0]
    unfit = [end(account, cost_nanos=-1), end(account, client="a\0b"), Settle(new_id(), NOW_MS, 5, "final")]
    await drained(journal_dir, drainer, unfit)
    told = await quarantine.apply()
    assert len(told) == 3 and all(told.values())
    assert {found.id for found in await quarantine.waiting()} == set(told)
    assert (await Catalog(database).account("ada")).balance_nanos == 100 * YUAN
    assert await quarantine.dismiss(list(told)) == 3
    assert await quarantine.waiting() == [] and await quarantine.dismiss(list(told)) == 0
    with pytest.raises(LookupError, match=str(min(told))):
        await quarantine.apply(list(told))
