"""The node finds every binding that was made, however short ago, and tells only its owner."""

from __future__ import annotations

import asyncio

import pytest

from proxy.broker import bindings as desk_module
from proxy.broker.bindings import UNKNOWN_PER_MINUTE, BindingDesk
from proxy.ledger.bindings import Binding
from proxy.ledger.entry import Bind
from proxy.store.bindings import Listed


def binding(vendor_id="file-1", account=7, upstream="openai", kind="file", made=0):
    return Binding(vendor_id, kind, account, upstream, "direct", "main", made=f"{made:032x}" if made else "")


def told(made: Binding, **more):
    return {"binding": made.as_dict(), **more}


class Source:
    """What Postgres and the journals hold."""

    def __init__(self):
        self.rows: list[Binding] = []
        self.journal: list[Bind] = []
        self.nodes = False
        self.asked = self.scans = 0
        self.on_find = lambda: None

    async def find(self, account, vendor_ids):
        self.asked += 1
        await asyncio.sleep(0)
        self.on_find()
        return [row for row in self.rows if row.account == account and row.vendor_id in vendor_ids]

    async def page(self, account, kind, limit, *, after="", before="", only_open=False):
        rows = await self.listed(account, kind, [r.vendor_id for r in self.rows])
        if before:
            return sorted((r for r in rows if r.made > before), key=lambda r: r.made)[:limit][::-1]
        newest = sorted((r for r in rows if not after or r.made < after), key=lambda r: r.made, reverse=True)
        return newest[:limit]

    async def listed(self, account, kind, vendor_ids):
        mine = [r for r in self.rows if r.account == account and r.vendor_id in vendor_ids]
        return [Listed(r.vendor_id, {"id": r.vendor_id}, r.made) for r in mine]

    async def count(self, account, kind):
        return len([r for r in self.rows if r.account == account])

    async def journaled(self):
        self.scans += 1
        await asyncio.sleep(0)
        return list(self.journal)

    async def has_other_nodes(self):
        return self.nodes


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def desk(source, monkeypatch):
    monkeypatch.setattr(desk_module, "LATE_S", (0.0, 0.0, 0.0))
    return BindingDesk(lambda: source, lambda: 1_000_000)


async def find(desk, *ids, account=7):
    return (await desk.find({"account": account, "ids": list(ids)}))["found"]


async def test_what_a_worker_told_is_known_without_asking_anybody(desk, source):
    desk.bound(told(binding()))
    assert await find(desk, "file-1") == {"file-1": [binding().as_dict()]}
    assert source.asked == source.scans == 0


async def test_a_foreign_id_is_as_unknown_as_one_that_is_nobodys(desk, source):
    desk.bound(told(binding()))
    source.rows = [binding("file-2")]
    assert await find(desk, "file-1", "file-2", "file-3", account=8) == {}


async def test_a_row_is_asked_for_once(desk, source):
    source.rows = [binding()]
    for _ in range(3):
        assert list(await find(desk, "file-1")) == ["file-1"]
    assert (source.asked, source.scans) == (1, 0)


async def test_what_is_told_while_postgres_is_asked_is_found(desk, source):
    source.on_find = lambda: desk.bound(told(binding()))
    assert list(await find(desk, "file-1")) == ["file-1"]
    assert source.scans == 0


async def test_what_only_a_journal_holds_is_found_after_a_restart_of_control(desk, source):
    source.journal = [Bind("0" * 32, 5, 7, 1, "file", "file-1", "openai", "direct", "main")]
    found = await asyncio.gather(*(find(desk, "file-1") for _ in range(20)))
    assert all(list(f) == ["file-1"] for f in found)
    assert source.scans <= 2


async def test_what_another_node_has_not_drained_yet_is_waited_for(desk, source):
    source.nodes = True

    def drained():
        if source.asked == 3:
            source.rows = [binding()]

    source.on_find = drained
    assert list(await find(desk, "file-1")) == ["file-1"]


async def test_guessing_ids_costs_one_question_each_and_no_readings(desk, source):
    for n in range(UNKNOWN_PER_MINUTE + 50):
        await find(desk, f"file-{n}")
    assert source.scans == UNKNOWN_PER_MINUTE
    source.rows = [binding("file-x")]
    assert list(await find(desk, "file-x")) == ["file-x"]


async def test_one_id_at_two_upstreams_is_two_bindings(desk):
    desk.bound(told(binding("1714")))
    desk.bound(told(binding("1714", upstream="mj")))
    desk.bound(told(binding("1714", upstream="mj")))
    [both] = (await find(desk, "1714")).values()
    assert [b["upstream"] for b in both] == ["mj", "openai"]


def new(n, **more):
    """What a worker tells of the n-th thing that was made."""
    return told(binding(f"file-{n}", made=n), content={"id": f"file-{n}"}, **more)


def ids(page):
    return [item["id"] for item in page["items"]]


LIST = {"account": 7, "kind": "file", "limit": 20}


async def test_a_list_shows_what_was_made_a_moment_ago_and_not_what_is_gone(desk, source):
    source.rows = [binding("file-2", made=2), binding("file-1", made=1)]
    desk.bound(new(3))
    desk.bound(told(binding("file-1", made=1), gone=True))
    page = await desk.page(LIST)
    assert (ids(page), page["more"]) == (["file-3", "file-2"], False)
    assert (await desk.page({**LIST, "limit": 1}))["more"]
    assert ids(await desk.page({**LIST, "account": 8})) == []


@pytest.mark.parametrize("drained", range(16))
async def test_pages_go_on_through_what_is_drained_and_what_is_not(desk, source, drained):
    """Journals of several workers are drained each in its own time: any of the rows may be missing still."""
    for n in range(1, 5):
        desk.bound(new(n))
    source.rows = [binding(f"file-{n}", made=n) for n in range(1, 5) if drained >> (n - 1) & 1]
    assert ids(await desk.page({**LIST, "after": "file-3"})) == ["file-2", "file-1"]
    assert ids(await desk.page({**LIST, "before": "file-2"})) == ["file-4", "file-3"]
    first = await desk.page({**LIST, "limit": 2})
    assert (ids(first), first["more"]) == (["file-4", "file-3"], True)
    second = await desk.page({**LIST, "limit": 2, "after": "file-3"})
    assert (ids(second), second["more"]) == (["file-2", "file-1"], False)
    numbered = await desk.page({**LIST, "limit": 3, "offset": 3, "total": True})
    assert (ids(numbered), numbered["total"]) == (["file-1"], 4)
    assert ids(await desk.page({**LIST, "ids": ["file-2", "file-9", "file-4"]})) == ["file-2", "file-4"]


async def test_a_list_has_what_a_worker_made_while_its_line_was_down(desk, source):
    desk.connected()
    desk.bound(told(binding("file-1", made=1), content={"id": "file-1"}))
    source.journal = [Bind("2".zfill(32), 0, 7, 1, "file", "file-2", "openai", "direct", "main")]
    for _ in range(3):
        page = await desk.page({"account": 7, "kind": "file", "limit": 9})
        assert [item["id"] for item in page["items"]] == ["file-2", "file-1"]
    assert source.scans == 1, "once for each new line"
    desk.bound(told(binding("file-2", made=2), gone=True))
    desk.connected()
    page = await desk.page({"account": 7, "kind": "file", "limit": 9})
    assert [item["id"] for item in page["items"]] == ["file-1"], "a journal does not bring back what is gone"


async def test_a_page_behind_what_nobody_made_is_empty(desk, source):
    source.rows = [binding("file-1", made=1)]
    assert ids(await desk.page({**LIST, "after": "file-7"})) == []


async def test_a_page_behind_what_another_node_made_waits_for_its_drain(desk, source):
    source.nodes = True
    source.rows = [binding("file-1", made=1)]

    def drained():
        if source.asked == 3:
            source.rows = [binding("file-2", made=2), *source.rows]

    source.on_find = drained
    assert ids(await desk.page({**LIST, "after": "file-2"})) == ["file-1"]


async def test_memory_is_bounded(desk, monkeypatch):
    monkeypatch.setattr(desk_module, "KNOWN_MAX", 100)
    for n in range(1000):
        desk.bound(told(binding(f"file-{n}", account=n // 10)))
    assert sum(map(len, desk._known.values())) <= 100
