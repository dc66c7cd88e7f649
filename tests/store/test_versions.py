"""The SQL runs on every Postgres that is supported: on the embedded one in all other tests, here on those
that the machine has besides."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.embedded import EmbeddedPostgres
from proxy.ledger import entry
from proxy.ledger.entry import Checkpoint, Progress, Settle
from proxy.store.adoption import Adopter
from proxy.store.audit import audit
from proxy.store.catalog import Catalog, KeySettings
from proxy.store.database import Database
from proxy.store.drainer import Drainer
from proxy.store.journal_audit import audit_journals
from proxy.store.leases import Leases
from proxy.store.reports import Reports
from proxy.store.statements import Span
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, Life, Station, begin, end, new_id

INSTALLED = sorted(path.parent for path in Path("/usr/lib/postgresql").glob("1[5-8]/bin/postgres"))


@pytest.mark.skipif(not INSTALLED, reason="no other Postgres under /usr/lib/postgresql")
@pytest.mark.parametrize("binaries", INSTALLED, ids=lambda path: path.parent.name)
def test_a_station_lives_on_another_version(binaries, tmp_path):
    relaxed = {"fsync": "off", "jit": "off"}
    server = EmbeddedPostgres(tmp_path / "data", settings=relaxed, binaries=binaries)
    try:
        assert asyncio.run(life_of_a_station(server.start(), tmp_path / "journal")) == []
    finally:
        server.stop()


async def life_of_a_station(dsn: str, journal_dir: Path) -> list[str]:
    """Everything once; what the audit finds."""
    database = await Database.connect(dsn)
    await database.migrate()
    catalog = Catalog(database)
    await catalog.open_station("CNY", Station.timezone)
    account = (await catalog.create_account("acme")).id
    await catalog.top_up("acme", 1_000_000_000, "R1")
    await catalog.create_key("acme", KeySettings())
    lender = Leases(database, NODE, "life1")
    await lender.register()
    lease = new_id()
    assert await lender.grant(lease, account, 1, 500_000_000) == 500_000_000
    assert await lender.extend(lease, 500_000_000, 1, 100_000_000) == 600_000_000
    life = Life(journal_dir)
    calls = [begin(account, lease=lease) for _ in range(4)]
    ends = [end(account, id=calls[0].id, lease=lease), end(account, id=calls[1].id)]
    late = end(account, id=calls[2].id, state=entry.PENDING, cost_nanos=0)
    await life.write(
        [
            PRICE_ENTRY,
            *calls,
            *ends,
            late,
            Settle(late.id, NOW_MS, 45_000, "counted", {"input": 10, "output": 20}),
            Settle(new_id(), NOW_MS, 9, "final", {"input": 1}, corrects=ends[0].id),
            Checkpoint(NOW_MS, [Progress(calls[3].id, 10, 1, 0, 3)]),
        ]
    )
    drainer = Drainer(database, journal_dir, NODE, Station())
    assert (await drainer.run_once()).inserted == 3
    await life.die()
    (adopted,) = await Adopter(database, journal_dir, drainer).run_once()
    assert adopted.interrupted == 1
    await lender.close(lease)
    async with Reports(database).books() as books:
        assert len((await books.page(account, Span(), limit=9)).rows) == 5
    found = [str(v) for v in [*await audit(database), *await audit_journals(database, journal_dir)]]
    await database.close()
    return found
