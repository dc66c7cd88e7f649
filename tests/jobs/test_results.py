"""Files of finished tasks are fetched once, whole or not at all, and from nowhere that is not public."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from proxy.dialects.owned import FAILED
from proxy.jobs.guarded import GuardedSession
from proxy.jobs.results import GIVE_UP_MS, REFUSALS_MAX, REMOVE_MS, TIDY_MS, Keeper, content_type_of
from proxy.ledger import bindings
from proxy.routing.buckets import Bucket
from proxy.routing.foreign import networks
from proxy.routing.results import Results, path_of
from proxy.store.catalog import Catalog
from proxy.store.drainer import Drainer
from proxy.store.due import DueTasks
from proxy.store.results import Results as Rows
from proxy.telemetry import Stats
from tests.fakes.bucket_server import BucketServer
from tests.fakes.file_server import FileServer, content
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, YUAN, Life, Station
from tests.store.tasks import DAYS, seen, submitted
from tests.waiting import until

LIMIT = 1 << 20
HOUR_MS = 3_600_000
HERE = networks(["127.0.0.0/8"])
NODES = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(3)]


@pytest.fixture(scope="module")
def vendor() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


class Rig:
    """Nodes that keep files, with a clock that stands until it is moved."""

    def __init__(self, database: Any, life: Life, drainer: Any, folder: Path, bucket: Bucket | None) -> None:
        self.database, self.life, self.drainer, self.folder = database, life, drainer, folder
        self.kept = Results(str(folder / "kept") if bucket is None else "", bucket, 30, LIMIT, True, None)
        self.now_ms = NOW_MS + 10_000
        self.allowed = HERE
        self.stats = Stats()
        self.keepers: list[Keeper] = []
        self.count = 0

    def node(self, number: int = 0) -> Keeper:
        session = GuardedSession(lambda: self.allowed, total_s=60)
        keeper = Keeper(
            Rows(self.database, NODES[number]),
            session,
            lambda: self.kept,
            self.folder / f"n{number}",
            lambda: self.now_ms,
            self.stats,
        )
        self.keepers.append(keeper)
        return keeper

    @property
    def rows(self) -> Rows:
        return Rows(self.database, NODES[0])

    async def finish(self, account: int, *urls: str, state: str = "succeeded") -> list[str]:
        """A task has ended, with these files; their ids."""
        self.count += 1
        task, ids = f"t-{self.count}", [f"{self.count:02}{n:02}".ljust(32, "A") for n in range(len(urls))]
        await self.life.write([PRICE_ENTRY, *submitted(account, task)])
        await self.drainer.run_once()
        told = seen(task, state, files=dict(zip(ids, urls, strict=True)))
        await DueTasks(self.database, "c-1").settle([told], DAYS)
        return ids

    async def round(self, *keepers: Keeper, after_ms: int = 0) -> int:
        """Each looks once, and what it began is done."""
        self.now_ms += after_ms
        begun = sum([await keeper.run_once() for keeper in keepers])
        for keeper in keepers:
            await until(lambda keeper=keeper: keeper.is_idle)
        return begun

    async def found(self, id_: str) -> Any:
        row = await self.rows.find(id_)
        assert row is not None
        return row

    def path(self, id_: str) -> Path:
        return Path(self.kept.directory) / path_of(id_)

    def parts(self) -> list[Path]:
        return list((Path(self.kept.directory) / ".parts").glob("*"))


@pytest.fixture
async def accounts(database) -> list[int]:
    catalog = Catalog(database)
    account = await catalog.create_account("ada")
    await catalog.top_up("ada", 100 * YUAN, "start")
    return [account.id]


@pytest.fixture
def drainer(database, tmp_path) -> Drainer:
    (tmp_path / "journal").mkdir()
    return Drainer(database, tmp_path / "journal", NODE, Station(), now_ms=lambda: NOW_MS)


@pytest.fixture
async def rig(database, accounts, drainer, tmp_path):
    rig = Rig(database, Life(tmp_path / "journal"), drainer, tmp_path, None)
    yield rig
    for keeper in rig.keepers:
        await keeper.close()


async def test_a_file_is_kept_with_its_checksum_and_its_type(rig, accounts, vendor):
    [id_] = await rig.finish(accounts[0], f"{vendor.url}/file/300000/a.png")
    assert await rig.round(rig.node()) == 1
    row = await rig.found(id_)
    assert (row.state, row.size, row.content_type, row.shelf) == ("kept", 300_000, "image/png", "directory")
    assert row.sha256 == hashlib.sha256(content(300_000)).hexdigest()
    assert row.expires_ms == rig.now_ms + 30 * 86_400_000 and row.account == "ada"
    assert rig.path(id_).read_bytes() == content(300_000)
    assert rig.parts() == [] and rig.path(id_).parent.stat().st_mode & 0o077 == 0
    assert await rig.round(rig.keepers[0], after_ms=HOUR_MS) == 0


async def test_only_the_end_of_a_task_orders_its_files_and_only_once(rig, accounts, vendor):
    await rig.finish(accounts[0], f"{vendor.url}/file/1/never.png", state=FAILED)
    assert await rig.round(rig.node()) == 0
    [id_] = await rig.finish(accounts[0], f"{vendor.url}/file/10/once.png")
    again = seen("t-2", files={id_: f"{vendor.url}/file/10/signed-anew.png"})
    await DueTasks(rig.database, "c-2").settle([again], DAYS)
    await rig.round(*rig.keepers)
    assert (vendor.asked("/file/10/once.png"), vendor.asked("/file/10/signed-anew.png")) == (1, 0)


async def test_three_nodes_fetch_a_file_once(rig, accounts, vendor):
    urls = [f"{vendor.url}/file/5000/three-{n}.png" for n in range(12)]
    ids = await rig.finish(accounts[0], *urls)
    nodes = [rig.node(n) for n in range(3)]
    while sum(await asyncio.gather(*(node.run_once() for node in nodes))):
        for node in nodes:
            await until(lambda node=node: node.is_idle)
    assert [vendor.asked(f"/file/5000/three-{n}.png") for n in range(12)] == [1] * 12
    rows = [await rig.found(id_) for id_ in ids]
    assert {row.state for row in rows} == {"kept"} and len({row.node for row in rows}) == 3


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (f"/file/{LIMIT + 1}/big.png", "are too many"),
        ("/endless", "more than"),
        ("/huge/99999999999", "are too many"),
        ("/coded/10", "coded"),
        ("/to?http://10.0.0.1:8080/x", "no public address"),
        ("/to?http://169.254.169.254/latest", "no public address"),
        ("/to?file:///etc/passwd", "no public address"),
        ("/to?/to?/to?/to?/to?/file/1/x", "from one place to the other"),
    ],
)
async def test_what_cannot_be_kept_stays_at_its_vendor(rig, accounts, vendor, path, why):
    [id_] = await rig.finish(accounts[0], vendor.url + path)
    await rig.round(rig.node())
    row = await rig.found(id_)
    assert row.state == "left" and why in row.note, row
    assert rig.parts() == [] and not rig.path(id_).exists()


async def test_a_url_that_leads_to_us_is_not_followed(rig, accounts, vendor):
    rig.allowed = ()
    [id_] = await rig.finish(accounts[0], f"{vendor.url}/file/10/private.png")
    await rig.round(rig.node())
    assert (await rig.found(id_)).state == "left"
    assert vendor.asked("/file/10/private.png") == 0


async def test_a_redirect_is_followed(rig, accounts, vendor):
    [id_] = await rig.finish(accounts[0], f"{vendor.url}/to?{vendor.url}/file/10/there.png")
    await rig.round(rig.node())
    assert (await rig.found(id_)).state == "kept"


@pytest.mark.parametrize("path", ["/flaky/2/10/a.png", "/late/3/10/a.png"])
async def test_it_is_tried_again_until_it_is_there(rig, accounts, vendor, path):
    [id_] = await rig.finish(accounts[0], vendor.url + path)
    node = rig.node()
    tries = 0
    while (await rig.found(id_)).state == "ordered":
        tries += await rig.round(node, after_ms=HOUR_MS)
    assert (await rig.found(id_)).state == "kept" and tries == int(path.split("/")[2]) + 1


async def test_pauses_grow(rig, accounts, vendor):
    [id_] = await rig.finish(accounts[0], f"{vendor.url}/status/500")
    node, pauses = rig.node(), []
    for _ in range(4):
        assert await rig.round(node) == 1
        due = await rig.database.fetchval("SELECT next_try_ms FROM result WHERE id = $1", id_)
        pauses.append(due - rig.now_ms)
        assert await rig.round(node) == 0
        rig.now_ms = due
    assert pauses[0] < 7_000 and all(b > a * 1.9 for a, b in pairwise(pauses))


async def test_what_its_vendor_has_no_more_is_lost(rig, accounts, vendor):
    [id_] = await rig.finish(accounts[0], f"{vendor.url}/status/404")
    node = rig.node()
    for _ in range(REFUSALS_MAX + 2):
        await rig.round(node, after_ms=HOUR_MS)
    row = await rig.found(id_)
    assert (row.state, row.tries) == ("lost", REFUSALS_MAX) and "404" in row.note


async def test_a_vendor_that_lies_about_the_length_is_given_up_in_the_end(rig, accounts, vendor):
    [id_] = await rig.finish(accounts[0], f"{vendor.url}/short/5000")
    node = rig.node()
    await rig.round(node)
    assert (await rig.found(id_)).state == "ordered" and rig.parts() == []
    await rig.round(node, after_ms=GIVE_UP_MS + 1)
    assert (await rig.found(id_)).state == "left"


async def test_a_fetch_that_lost_its_claim_changes_nothing(rig, accounts, vendor):
    [id_] = await rig.finish(accounts[0], f"{vendor.url}/file/10/fence.png")
    [early] = await rig.rows.claim(1, rig.now_ms, rig.now_ms + 1000)
    rig.now_ms += 1001
    [late] = await rig.rows.claim(1, rig.now_ms, rig.now_ms + 1000)
    await rig.rows.give_up(early, "lost", "x")
    await rig.rows.put_off(early, rig.now_ms + HOUR_MS, "x", is_refusal=True)
    await rig.rows.renew([early], rig.now_ms + HOUR_MS)
    row = await rig.found(id_)
    assert (row.state, row.note, row.tries, late.tries) == ("ordered", "", 2, 2)


async def test_a_claim_lasts_as_long_as_its_file_comes(rig, accounts, vendor):
    await rig.finish(accounts[0], f"{vendor.url}/slow/5000/a.png")
    one, two = rig.node(0), rig.node(1)
    assert await one.run_once() == 1
    for _ in range(6):
        rig.now_ms += 10_000
        assert (await one.run_once(), await two.run_once()) == (0, 0)
    vendor.release("/slow/5000/a.png")
    await until(lambda: one.is_idle)
    assert vendor.asked("/slow/5000/a.png") == 1


async def test_its_days_over_a_file_is_gone(rig, accounts, vendor):
    [id_] = await rig.finish(accounts[0], f"{vendor.url}/file/10/old.png")
    node = rig.node()
    await rig.round(node)
    await rig.round(node, after_ms=rig.kept.lasts_ms - 1000)
    assert (await rig.found(id_)).state == "kept" and rig.path(id_).exists()
    await rig.round(node, after_ms=TIDY_MS)
    assert (await rig.found(id_)).state == "gone" and not rig.path(id_).exists()


async def test_an_operator_removes_what_is_kept_and_what_is_not_yet(rig, accounts, vendor):
    kept, ordered = await rig.finish(accounts[0], f"{vendor.url}/file/1/a.png", f"{vendor.url}/status/500")
    node = rig.node()
    await rig.round(node)
    assert await rig.rows.remove([kept, ordered, "none"], rig.now_ms) == 2
    await rig.round(node, after_ms=HOUR_MS)
    assert [(await rig.found(i)).state for i in (kept, ordered)] == ["gone", "gone"]
    assert not rig.path(kept).exists() and vendor.asked("/status/500") >= 1


async def test_what_an_operator_removed_while_it_came_is_not_kept(rig, accounts, vendor):
    [id_] = await rig.finish(accounts[0], f"{vendor.url}/slow/5000/removed.png")
    node = rig.node()
    await node.run_once()
    await rig.rows.remove([id_], rig.now_ms)
    vendor.release("/slow/5000/removed.png")
    await until(lambda: node.is_idle)
    assert (await rig.found(id_)).state == "gone" and not rig.path(id_).exists()


async def test_who_deletes_a_task_deletes_its_files(rig, accounts, vendor):
    [id_] = await rig.finish(accounts[0], f"{vendor.url}/file/1/deleted.png")
    node = rig.node()
    await rig.round(node)
    await DueTasks(rig.database, "c-1").settle([seen("t-1", bindings.GONE)], DAYS)
    await rig.round(node, after_ms=TIDY_MS)
    assert (await rig.found(id_)).state == "gone" and not rig.path(id_).exists()


async def test_a_directory_that_nodes_do_not_share_is_noticed(rig, accounts, vendor, caplog):
    await rig.finish(accounts[0], f"{vendor.url}/file/1/shared.png")
    one, two = rig.node(0), rig.node(1)
    await rig.round(one)
    await rig.round(two)
    gauge = ("results_not_shared",)
    assert rig.stats._values[gauge] == 0
    path = Path(rig.kept.directory)
    path.rename(path.with_name("elsewhere"))
    await rig.round(two, after_ms=TIDY_MS)
    assert rig.stats._values[gauge] == 1 and "is it shared?" in caplog.text


async def test_nothing_happens_where_nothing_is_kept(rig, accounts, vendor):
    await rig.finish(accounts[0], f"{vendor.url}/file/1/off.png")
    rig.kept = None
    assert await rig.round(rig.node()) == 0


# -- a bucket --


@pytest.fixture
async def bucket():
    server = BucketServer()
    async with TestServer(server.app) as running:
        server.url = str(running.make_url("")).rstrip("/")
        yield server


@pytest.fixture
async def stored(database, accounts, drainer, tmp_path, bucket):
    made = Bucket(bucket.url, "eu-1", "files", "made/", "AKID", "s3-canary-secret")
    rig = Rig(database, Life(tmp_path / "journal"), drainer, tmp_path, made)
    yield rig
    for keeper in rig.keepers:
        await keeper.close()


async def test_a_bucket_is_given_a_file_with_its_length_and_a_good_signature(
    stored, accounts, vendor, bucket
):
    [id_] = await stored.finish(accounts[0], f"{vendor.url}/file/700000/a.mp4")
    await stored.round(stored.node())
    assert bucket.refused == []
    assert bucket.objects == {f"made/{id_}": (content(700_000), "video/mp4")}
    row = await stored.found(id_)
    assert (row.state, row.shelf) == ("kept", "bucket")
    stored.now_ms += stored.kept.lasts_ms
    await stored.round(*stored.keepers)
    assert bucket.objects == {} and (await stored.found(id_)).state == "gone"


async def test_a_bucket_that_fails_is_tried_again(stored, accounts, vendor, bucket):
    [id_] = await stored.finish(accounts[0], f"{vendor.url}/file/10/a.png")
    bucket.fails = [503, 500]
    node = stored.node()
    for _ in range(3):
        await stored.round(node, after_ms=HOUR_MS)
    assert (await stored.found(id_)).state == "kept" and bucket.puts == [f"made/{id_}"]


async def test_a_wrong_secret_is_told_to_the_operator(stored, accounts, vendor, bucket):
    [id_] = await stored.finish(accounts[0], f"{vendor.url}/file/10/a.png")
    bucket.secret = "another"
    await stored.round(stored.node())
    row = await stored.found(id_)
    assert row.state == "ordered" and "403" in row.note and "SignatureDoesNotMatch" in row.note
    assert "canary" not in row.note


async def test_a_removal_that_fails_is_tried_again(stored, accounts, vendor, bucket):
    [id_] = await stored.finish(accounts[0], f"{vendor.url}/file/10/a.png")
    node = stored.node()
    await stored.round(node)
    right, bucket.secret = bucket.secret, "another"
    await stored.round(node, after_ms=stored.kept.lasts_ms + TIDY_MS)
    assert (await stored.found(id_)).state == "kept"
    bucket.secret = right
    await stored.round(node, after_ms=max(TIDY_MS, REMOVE_MS) + 1)
    assert (await stored.found(id_)).state == "gone" and bucket.objects == {}


@pytest.mark.parametrize(
    ("said", "beginning", "kind"),
    [
        ("image/png; charset=x", b"", "image/png"),
        ("", b"\x89PNG\r\n\x1a\n..", "image/png"),
        ("application/octet-stream", b"\0\0\0\x20ftypisom", "video/mp4"),
        ("binary/octet-stream", b"\0\0\0\x20ftypM4A ", "audio/mp4"),
        ("Text/HTML", b"\x89PNG\r\n\x1a\n", "text/html"),
        ("x\r\ny", b"ID3", "audio/mpeg"),
        ("", b"<html>", "application/octet-stream"),
    ],
)
def test_types(said, beginning, kind):
    assert content_type_of(said, beginning) == kind


async def test_a_directory_that_cannot_be_written_is_told_once_a_minute(rig, accounts, vendor, caplog):
    await rig.finish(accounts[0], f"{vendor.url}/file/1/nowhere.png")
    Path(rig.kept.directory).write_text("no directory")
    node = rig.node()
    for _ in range(3):
        assert await rig.round(node, after_ms=1000) == 0
    assert caplog.text.count("results cannot be fetched") == 1
    assert rig.stats._values[("results_disk_full",)] == 1
    Path(rig.kept.directory).unlink()
    assert await rig.round(node) == 1
    assert rig.stats._values[("results_disk_full",)] == 0
