"""The audit is clean after honest work and names what somebody changed by hand."""

from __future__ import annotations

import re

import pytest

from proxy.ledger import entry
from proxy.ledger.entry import Bind, Checkpoint, Progress, Settle
from proxy.store.audit import audit
from proxy.store.catalog import Catalog
from proxy.store.journal_audit import audit_journals
from proxy.store.leases import Leases
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, YUAN, Life, begin, end, new_id


@pytest.fixture
async def books(database, journal_dir, accounts, drainer, adopter):
    """A station that has seen everything: leases, voids, pendings, corrections, an interrupted call."""
    lender = Leases(database, NODE, "life1")
    await lender.register()
    open_lease, closed_lease = new_id(), new_id()
    for lease in (open_lease, closed_lease):
        await lender.grant(lease, accounts[0], YUAN, YUAN)
    life, dead = Life(journal_dir, "w0-a"), Life(journal_dir, "w1-b")
    pending = end(accounts[1], state=entry.PENDING, cost_nanos=0)
    calls = [
        end(accounts[0], lease=open_lease),
        end(accounts[0], lease=closed_lease),
        end(accounts[1], state=entry.VOID, cost_nanos=0, usage={}, provenance="none"),
        *(end(a, at_ms=NOW_MS - 86_400_000 * n) for n in range(3) for a in accounts),
        pending,
    ]
    await life.write([PRICE_ENTRY, *(begin(c.account, id=c.id) for c in calls), *calls])
    await drainer.run_once()
    await lender.close(closed_lease)
    await life.write(
        [
            Settle(pending.id, NOW_MS, 45_000, "counted", {"input": 10, "output": 20}),
            Settle(new_id(), NOW_MS, 50_000, "final", {"input": 11}, corrects=calls[0].id),
            Bind(
                new_id(), NOW_MS, accounts[2], 1, "task:mj", "mj-1", "mj", "direct", "main", hold_nanos=YUAN
            ),
        ]
    )
    cut = begin(accounts[2], model="cut")
    await dead.write([PRICE_ENTRY, cut, Checkpoint(NOW_MS, [Progress(cut.id, 99, 9, 0, 5)])])
    await dead.die()
    await drainer.run_once()
    await adopter.run_once()
    await Catalog(database).top_up("ada", YUAN, "R9")
    yield life
    await life.die()


async def check(database, journal_dir):
    return [*await audit(database), *await audit_journals(database, journal_dir)]


async def test_honest_books_are_clean(database, journal_dir, books):
    assert [str(v) for v in await check(database, journal_dir)] == []


async def by_hand(database, statement, *args):
    """As somebody with the database password would: without the triggers."""
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        done = await connection.execute(statement, *args)
        assert not done.endswith(" 0"), done


FORGERIES = {
    "ledger amount": (
        "UPDATE ledger SET amount_nanos = amount_nanos + 1 WHERE reference = 'R9'",
        {"I2 append-only", "I4 balance"},
    ),
    "ledger note": ("UPDATE ledger SET note = 'x' WHERE reference = 'R9'", {"I2 append-only"}),
    "ledger deleted": ("DELETE FROM ledger WHERE reference = 'R9'", {"I2 append-only", "I4 balance"}),
    "ledger day": (
        "UPDATE ledger SET posted_day = posted_day - 1 WHERE kind = 'correction'",
        {"I2 append-only", "I4b usage"},
    ),
    "balance": (
        "UPDATE account SET balance_nanos = balance_nanos + 1 WHERE name = 'ben'",
        {"I4 balance", "I8 leases"},
    ),
    "available": (
        "UPDATE account SET available_nanos = available_nanos + 1 WHERE name = 'cy'",
        {"I8 leases"},
    ),
    "lease use": ("UPDATE lease SET used_nanos = used_nanos + 1 WHERE closed_at IS NULL", {"I8 leases"}),
    "usage cost": (
        "UPDATE usage SET cost_nanos = cost_nanos + 1 WHERE model = 'cut'",
        {"I2 append-only", "I4b usage", "I9 price"},
    ),
    "usage bucket": (
        "UPDATE usage SET usage = '{\"input\": 11, \"output\": 20}' WHERE model = 'cut'",
        {"I2 append-only", "I9 price"},
    ),
    "usage client": (
        "UPDATE usage SET client = 'curl' WHERE model = 'cut'",
        {"I2 append-only"},
    ),
    "usage deleted": (
        "DELETE FROM usage WHERE model = 'cut'",
        {"I4b usage"},
    ),
    "correction": (
        "UPDATE correction SET delta_nanos = delta_nanos + 1",
        {"I2 append-only", "I4b usage"},
    ),
    "price": (
        'UPDATE price SET content = \'{"input": 1, "output": 4000000000}\'',
        {"I9 price"},
    ),
    "trigger": ("ALTER TABLE ledger DISABLE TRIGGER balance", {"I2 append-only"}),
    "cursor": ("UPDATE segment_cursor SET ends = ends - 1 WHERE incarnation = 'w1-b'", {"I11 conservation"}),
    "pending again": (
        "INSERT INTO pending_usage SELECT id, account, NULL, 1, '{}', 'w1-b', 0 FROM usage LIMIT 1",
        {"I6 settle once", "I11 conservation"},
    ),
    "no hold": (
        "UPDATE usage SET hold_nanos = 0 WHERE model = 'cut'",
        {"I2 append-only", "I7 hold first"},
    ),
    "quarantine": (
        "INSERT INTO quarantine (incarnation, segment, position, reason, payload)"
        " VALUES ('w0-a', 1, 9, 'why', 'x')",
        {"quarantine"},
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forgery_is_found_and_named(database, journal_dir, books, name):
    statement, invariants = FORGERIES[name]
    await (by_hand(database, statement) if name != "trigger" else database.execute(statement))
    found = await check(database, journal_dir)
    assert {v.invariant for v in found} == invariants
    assert all(re.search(r"\d|\.", v.row) for v in found)


async def test_a_flipped_byte_of_a_journal_is_found_and_named(database, journal_dir, books):
    path = journal_dir / "w0-a" / "000001.seg"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    (violation,) = await check(database, journal_dir)
    assert violation.invariant == "journal"
    assert violation.row == "w0-a/000001.seg"


async def test_a_row_that_differs_from_its_journal_is_found(database, journal_dir, books):
    await by_hand(database, "DELETE FROM usage WHERE state = 'void'")
    (violation,) = await check(database, journal_dir)
    assert (violation.invariant, violation.what) == ("I5 identity", "was drained and is not in usage")


async def test_a_call_that_never_began_is_found(database, journal_dir, books, accounts, drainer):
    await books.write([end(accounts[0])])
    await drainer.run_once()
    (violation,) = await check(database, journal_dir)
    assert violation.invariant == "I7 hold first"


async def test_a_capped_call_is_recomputed_with_its_hold(database, journal_dir, accounts, adopter):
    life = Life(journal_dir)
    call = begin(accounts[0], hold_nanos=1000)
    await life.write([PRICE_ENTRY, call, Checkpoint(NOW_MS, [Progress(call.id, 900, 4, 0, 700)])])
    await life.die()
    await adopter.run_once()
    assert await check(database, journal_dir) == []
