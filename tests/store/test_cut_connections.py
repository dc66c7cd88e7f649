"""The connection to Postgres may die after any byte: every row lands exactly once."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import parse_qs, urlsplit

import pytest

from proxy.ledger import entry
from proxy.ledger.entry import Settle
from proxy.store.database import Database, DatabaseUnavailable
from proxy.store.drainer import Drainer
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, Life, Station, begin, end

COST = 45_000
SPREAD = 48  # cut points over the whole exchange of one drain, both directions
NEAR_COMMIT = 24  # more of them in its last bytes, where it is not known whether it was committed
LAST_BYTES = 480


class CuttingProxy:
    """A unix socket in front of Postgres'. Counts the bytes that pass in both directions and cuts every
    connection once `cut_after` of them did; None lets all pass."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.passed = 0
        self.cut_after: int | None = None
        self.cuts = 0
        self._tasks: set[asyncio.Task] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, path: str) -> None:
        self.server = await asyncio.start_unix_server(self._serve, path)

    async def close(self) -> None:
        self.server.close()
        self._cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def arm(self, cut_after: int | None) -> None:
        self.passed, self.cut_after = 0, cut_after

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(self.upstream)
        pumps = [self._pump(reader, up_writer), self._pump(up_reader, writer)]
        self._writers |= {writer, up_writer}
        task = asyncio.current_task()
        self._tasks.add(task)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(*pumps)
        for w in (writer, up_writer):
            w.close()
            self._writers.discard(w)
        self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.cut_after is not None and self.passed + len(data) >= self.cut_after:
                writer.write(data[: self.cut_after - self.passed])
                self.cut_after = None
                self.cuts += 1
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                self._cut()
                return
            self.passed += len(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    def _cut(self) -> None:
        for writer in list(self._writers):
            writer.close()


@pytest.fixture
async def cutting(database_dsn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    socket_dir = parse_qs(urlsplit(database_dsn).query)["host"][0]
    proxy = CuttingProxy(f"{socket_dir}/.s.PGSQL.5432")
    await proxy.start(f"{folder}/.s.PGSQL.5432")
    proxy.dsn = database_dsn.split("?")[0] + f"?host={folder}"
    yield proxy
    await proxy.close()


def work(accounts):
    """What one drain moves: complete, void and pending calls, a late settle, a correction."""
    pending = end(accounts[0], state=entry.PENDING, cost_nanos=0)
    calls = [end(accounts[n % 3]) for n in range(12)]
    return [
        begin(accounts[0]),
        *calls,
        end(accounts[1], state=entry.VOID, cost_nanos=0, usage={}),
        pending,
        Settle(pending.id, NOW_MS, COST, "counted", {"input": 10, "output": 20}),
        Settle(end(1).id, NOW_MS, COST + 7, "final", {}, corrects=calls[0].id),
    ]


async def drain(drainer):
    """As control does: again until it works."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            report = await drainer.run_once()
            assert report.alarms == report.damage == []
            if not report.behind:
                return


async def state(database):
    row = await database.fetchrow(
        "SELECT (SELECT count(*) FROM usage) AS rows, (SELECT count(*) FROM correction) AS corrections,"
        " (SELECT sum(cost_nanos) FROM usage)::bigint AS cost,"
        " (SELECT -sum(amount_nanos) FROM ledger WHERE kind IN ('usage', 'correction'))::bigint AS charged,"
        " (SELECT sum(balance_nanos) FROM account)::bigint AS balance,"
        " (SELECT sum(available_nanos) FROM account)::bigint AS available,"
        " (SELECT sum(entries) FROM segment_cursor)::bigint AS entries"
    )
    return dict(row)


async def test_a_drain_survives_a_cut_after_any_byte(database, journal_dir, accounts, cutting):
    database_through = await Database.connect(cutting.dsn, size=1)
    drainer = Drainer(database_through, journal_dir, NODE, Station(), now_ms=lambda: NOW_MS)
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, *work(accounts)])
    await drain(drainer)  # the first one makes the partition and prepares statements
    await life.write(work(accounts))
    cutting.arm(None)
    await drain(drainer)
    exchange = cutting.passed
    before = await state(database)
    points = [1 + exchange * n // SPREAD for n in range(SPREAD)]
    points += [exchange - LAST_BYTES + LAST_BYTES * n // NEAR_COMMIT for n in range(NEAR_COMMIT)]
    for point in points:
        await life.write(work(accounts))
        cutting.arm(point)
        await drain(drainer)
    rounds = cutting.cuts
    assert rounds == len(points) == 72
    after = await state(database)
    assert after["rows"] - before["rows"] == 14 * rounds
    assert after["corrections"] - before["corrections"] == rounds
    cost = 13 * COST + 7
    assert after["charged"] - before["charged"] == cost * rounds
    assert before["balance"] - after["balance"] == before["available"] - after["available"] == cost * rounds
    assert after["entries"] - before["entries"] == 16 * rounds
    assert await database.fetchval("SELECT count(*) FROM pending_usage") == 0
    await life.die()
    await database_through.close()
