"""Files of tasks are kept by a running station and served to whoever has the link, by any worker."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from proxy.dialects.links import Home, Linker
from proxy.store.catalog import Catalog
from tests.conftest import Databases
from tests.fakes.bucket_server import BucketServer
from tests.fakes.file_server import FileServer, content
from tests.fakes.task_vendor import TaskVendor
from tests.fakes.threaded import served
from tests.station import Station
from tests.waiting import until

CONFIG = """
station: {{currency: USD, default_tier: Test}}
endpoints:
  direct: {{url: "http://direct.test", cors: true}}
  plain: {{url: "http://plain.test"}}
upstreams:
  studio:
    dialect: openai
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:ONE_KEY}}"}}
  singer:
    dialect: suno
    mirrors: {{direct: {{url: "{singer}"}}}}
    credentials: {{main: "${{env:CLAUDE_KEY}}"}}
tasks:
  suno: {{upstream: singer}}
  film:
    upstream: studio
    task:
      id: id
      poll: {{operation: fetch, every: 1s}}
      object: data
      state: status
      states: {{done: succeeded, bad: failed}}
      files: [url, stills.*]
      callback: {{fields: [notify]}}
    operations:
      create: {{path: /film/create, submits: true, bill: film}}
      fetch: {{path: "/film/{{id}}", method: GET, names: [path.id], shows: true}}
      list: {{path: /films, method: GET, lists: {{}}}}
prices: {{film: {{call: 1 USD}}, "suno_*": {{call: 1 USD}}}}
callbacks: {{allow: [127.0.0.0/8]}}
results: {{keep: {keep}, rewrite: true, size_limit: 1 MiB}}
tiers: {{Test: {{rank: 0, models: ["*"], limits: {{concurrency: 200}}}}}}
"""
TIMES = aiohttp.ClientTimeout(total=15)
BUCKET = '{{s3: {{endpoint: "{url}", bucket: files, access_key: "${{env:AK}}", secret_key: "${{env:SK}}"}}}}'


class Studio:
    """A vendor of films that are done when a test says so. Its answers are written in its own way."""

    def __init__(self) -> None:
        self.bucket = BucketServer()
        self.films: dict[str, bytes] = {}
        self.ways: dict[str, str] = {}  # id -> how it is answered
        self.app = web.Application()
        self.app.router.add_post("/film/create", self.create)
        self.app.router.add_get("/film/{id}", self.fetch)
        self.app.router.add_post("/heard", self.hear)
        self.heard: list[dict[str, Any]] = []  # by a customer, of its callbacks
        self.app.add_subapp("/s3", self.bucket.app)

    def done(self, id_: str, *urls: str, status: str = "done") -> bytes:
        """The answer that it gives from now on."""
        told = [json.dumps(text).encode() for text in (id_, status, urls[0], urls[0])]
        stills = b",".join(json.dumps(url).encode() for url in urls[1:])
        self.films[id_] = (
            b'{"code" :0,\t"data":{"id":%b, "status":%b,"cost":1.50,"note":%b, "url" : %b,\n"stills":[%b]}}'
            % (*told, stills)
        )
        return self.films[id_]

    async def create(self, request: web.Request) -> web.Response:
        id_ = f"film-{len(self.films)}"
        self.films[id_] = json.dumps({"code": 0, "data": {"id": id_, "status": "working"}}).encode()
        return web.json_response({"code": 0, "id": id_})

    async def hear(self, request: web.Request) -> web.Response:
        self.heard.append(await request.json())
        return web.Response()

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        told, way = self.films[request.match_info["id"]], self.ways.get(request.match_info["id"])
        if way == "coded":
            fields = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
            return web.Response(body=gzip.compress(told), headers=fields)
        if way != "chunked":
            return web.Response(body=told, content_type="application/json")
        answer = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
        await answer.prepare(request)
        for at in range(0, len(told), 100):
            await answer.write(told[at : at + 100])
        return answer


class Rig:
    """A station before a studio, its file server and a key."""

    def __init__(self, station: Station, studio: Studio, files: FileServer, key: str, secret: bytes) -> None:
        self.station, self.studio, self.files, self.key = station, studio, files, key
        self.linker = Linker(secret)

    async def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
        """On a connection of its own: any worker may get it."""
        headers = {"Host": "direct.test"} | {k.replace("_", "-"): v for k, v in headers.items()}
        async with (
            aiohttp.ClientSession(auto_decompress=False, timeout=TIMES) as session,
            session.request(method, self.station.url + path, headers=headers, allow_redirects=False) as r,
        ):
            return r.status, r.headers, await r.read()

    async def create(self, **more: str) -> str:
        auth = {"Authorization": f"Bearer {self.key}"}
        async with (
            aiohttp.ClientSession(headers=auth, timeout=TIMES) as session,
            session.post(f"{self.station.url}/film/create", json={"prompt": "x", **more}) as r,
        ):
            assert r.status == 200, await r.text()
            return str((await r.json())["id"])

    async def poll(self, id_: str) -> tuple[int, Any, bytes]:
        return await self.ask(f"/film/{id_}", Authorization=f"Bearer {self.key}")

    def link(self, id_: str, place: str = "0") -> str:
        return f"/results/{self.linker.id_of(Home('studio', 'main', id_), place)}"

    async def state(self, path: str) -> str:
        rows = await self.station.rows(f"SELECT state FROM result WHERE id = '{path.rpartition('/')[2]}'")
        return str(rows[0]["state"]) if rows else ""

    async def kept(self, name: str, size: int = 100_000) -> str:
        """The link of a file that is kept."""
        id_ = await self.create()
        self.studio.done(id_, f"{self.files.url}/file/{size}/{name}")
        await self.is_(self.link(id_), "kept")
        return self.link(id_)

    async def run(self, sql: str) -> None:
        database = await self.station.open_database()
        await database.execute(sql)
        await database.close()

    async def is_(self, path: str, state: str) -> None:
        async def look() -> bool:
            return await self.state(path) == state

        await until(look, f"{path} is {state}")


@pytest.fixture(scope="module")
def files() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    studio = Studio()
    with served(studio.app) as studio.url:
        yield studio


@pytest.fixture(scope="module")
def singer() -> Iterator[TaskVendor]:
    with TaskVendor() as vendor:
        yield vendor


@pytest.fixture(scope="module")
def station(
    studio: Studio, singer: TaskVendor, tmp_path_factory: pytest.TempPathFactory, databases: Databases
) -> Iterator[Station]:
    folder = tmp_path_factory.mktemp("results")
    config = CONFIG.format(url=studio.url, singer=singer.url, keep="{directory: kept}")
    running = Station(folder / "data", config, databases.take(), workers=2)
    running.start()
    yield running
    running.stop()


_names = count(1)


async def rig_of(station: Station, studio: Studio, files: FileServer) -> Rig:
    key = await station.customer(f"holder-{next(_names)}")
    database = await station.open_database()
    secret = await Catalog(database).secret()
    await database.close()
    return Rig(station, studio, files, key, secret)


@pytest.fixture
async def rig(station, studio, files) -> AsyncIterator[Rig]:
    yield await rig_of(station, studio, files)


async def test_an_answer_shows_our_links_and_not_another_byte_changes(rig):
    id_ = await rig.create()
    urls = [f"{rig.files.url}/file/1000/{id_}-{n}.png" for n in range(3)]
    told = rig.studio.done(id_, *urls)
    status, headers, body = await rig.poll(id_)
    places = ["0", "1.0", "1.1"]
    expected = told
    for url, place in zip(urls, places, strict=True):
        ours = f"http://direct.test{rig.link(id_, place)}".encode()
        head, _, tail = expected.rpartition(json.dumps(url).encode())
        expected = head + b'"' + ours + b'"' + tail
    assert (status, body, headers["Content-Length"]) == (200, expected, str(len(body)))
    assert json.dumps(urls[0]).encode() in body  # what is no file of the grammar's: a note that quotes it
    for place, url in zip(places, urls, strict=True):
        link = rig.link(id_, place)
        status, headers, found = await rig.ask(link)  # at once: it leads to the vendor, or is kept already
        assert (status, headers.get("Location")) == (302, url) or found == content(1000)
        await rig.is_(link, "kept")
        assert (await rig.ask(link))[2] == content(1000)
        assert rig.files.asked(url.removeprefix(rig.files.url)) == 1
    rows = await rig.station.rows(
        f"SELECT cost_nanos FROM usage WHERE id = (SELECT id FROM binding WHERE vendor_id = '{id_}')"
    )
    assert [row["cost_nanos"] for row in rows] == [10**9]


async def test_what_goes_on_or_failed_shows_what_the_vendor_says(rig):
    id_ = await rig.create()
    for status in ("working", "bad"):
        told = rig.studio.done(id_, f"{rig.files.url}/file/10/never-{id_}.png", status=status)
        assert (await rig.poll(id_))[2] == told
    assert await rig.state(rig.link(id_)) == ""


async def test_links_are_in_answers_however_they_come(rig):
    id_ = await rig.create()
    url = f"{rig.files.url}/file/10/{id_}.png"
    told, ours = rig.studio.done(id_, url), f"http://direct.test{rig.link(id_)}"
    expected = told.replace(b'"url" : "%b"' % url.encode(), b'"url" : "%b"' % ours.encode())
    assert (await rig.poll(id_))[2] == expected
    rig.studio.ways[id_] = "chunked"
    _, headers, body = await rig.poll(id_)
    assert (body, headers["Transfer-Encoding"]) == (expected, "chunked")
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.station.port)
    auth = f"authorization: Bearer {rig.key}\r\nhost: direct.test"
    writer.write(f"GET /film/{id_} HTTP/1.0\r\n{auth}\r\n\r\n".encode())
    assert (await reader.read()).partition(b"\r\n\r\n")[2] == expected
    writer.close()
    rig.studio.ways[id_] = "coded"  # although it was asked not to: nothing can be put into it
    assert gzip.decompress((await rig.poll(id_))[2]) == told
    rig.studio.ways[id_] = "long"
    rig.studio.films[id_] = told.replace(b'{"code"', b'{"pad":"%b","code"' % (b"x" * (2 << 20)))
    assert (await rig.poll(id_))[2] == rig.studio.films[id_]


async def test_callbacks_and_lists_show_our_links(rig):
    id_ = await rig.create(notify=f"{rig.studio.url}/heard")
    rig.studio.done(id_, f"{rig.files.url}/file/10/{id_}.png")
    ours = f"http://direct.test{rig.link(id_)}"

    def told() -> Any:
        return [one for one in rig.studio.heard if one["id"] == id_ and one["status"] == "done"]

    [one] = await until(told)
    assert one["url"] == ours and one["cost"] == 1.5
    status, _, body = await rig.ask("/films", Authorization=f"Bearer {rig.key}")
    assert status == 200
    assert [(film["id"], film["url"]) for film in json.loads(body)] == [(id_, ours)]


async def test_songs_are_kept_and_linked_in_every_form_of_poll(rig, singer):
    auth = {"Authorization": f"Bearer {rig.key}", "Host": "direct.test"}
    async with aiohttp.ClientSession(rig.station.url, headers=auth, timeout=TIMES) as session:

        async def ask(method: str, path: str, **body: Any) -> Any:
            async with session.request(method, path, json=body or None) as r:
                assert r.status == 200, await r.text()
                return await r.json()

        made = await ask("POST", "/suno/submit/music", gpt_description_prompt="a song", mv="chirp-v4")
        id_ = made["data"]
        theirs = singer.move(id_, "succeeded")
        assert theirs.state == "succeeded"
        one = (await ask("GET", f"/suno/fetch/{id_}"))["data"]
        [same] = (await ask("POST", "/suno/fetch", ids=[id_], action="MUSIC"))["data"]
    links = [clip[name] for clip in one["data"] for name in ("audio_url", "video_url", "image_url")]
    assert links == [clip[name] for clip in same["data"] for name in ("audio_url", "video_url", "image_url")]
    assert len(set(links)) == 6
    for link in links:
        path = link.removeprefix("http://direct.test")
        assert path.startswith("/results/"), link
        await rig.is_(path, "kept")
        assert (await rig.ask(path))[0] == 200


async def test_nobody_needs_to_poll_for_a_file_to_be_kept(rig):
    link = await rig.kept("unasked.mp4")
    status, headers, body = await rig.ask(link)
    assert (status, body) == (200, content(100_000))
    assert headers["Content-Type"] == "video/mp4" and headers["Accept-Ranges"] == "bytes"
    assert headers["Content-Disposition"].startswith("inline; filename=")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert headers["ETag"] == f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    assert headers["Access-Control-Allow-Origin"] == "*"
    plain = (await rig.ask(link, Host="plain.test"))[1]
    assert "Access-Control-Allow-Origin" not in plain


async def test_parts_of_a_file(rig):
    link, whole = await rig.kept("parts.png", 600_000), content(600_000)
    etag = (await rig.ask(link, "HEAD"))[1]["ETag"]
    for asked, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=10-", 10, 599_999),
        ("bytes=-7", 599_993, 599_999),
        ("bytes=-900000", 0, 599_999),
        ("bytes=262143-262145", 262_143, 262_145),
        ("bytes=599999-700000", 599_999, 599_999),
    ):
        status, headers, body = await rig.ask(link, Range=asked)
        assert (status, headers["Content-Range"]) == (206, f"bytes {first}-{last}/600000")
        assert body == whole[first : last + 1] and int(headers["Content-Length"]) == len(body)
    for asked in ("bytes=600000-", "bytes=-0", "bytes=900000-900001"):
        status, headers, body = await rig.ask(link, Range=asked)
        assert (status, headers["Content-Range"], body) == (416, "bytes */600000", b"")
    for asked in ("bytes=0-1,5-6", "lines=0-1", "bytes=5-4", "bytes=-", "bytes=a-b"):
        status, headers, body = await rig.ask(link, Range=asked)
        assert (status, body) == (200, whole) and "Content-Range" not in headers
    assert (await rig.ask(link, Range="bytes=0-1", If_Range=etag))[0] == 206
    for other in ('"another"', f"W/{etag}", "Sun, 22 Nov 2026 08:00:00 GMT"):
        assert (await rig.ask(link, Range="bytes=0-1", If_Range=other))[0] == 200


async def test_what_a_client_has_is_not_sent_again(rig):
    link = await rig.kept("cached.png")
    status, headers, body = await rig.ask(link, "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "100000")
    for tags in (headers["ETag"], f'"x", W/{headers["ETag"]}', "*"):
        assert (await rig.ask(link, If_None_Match=tags))[0] == 304
    assert (await rig.ask(link, If_None_Match='"x"'))[0] == 200
    assert (await rig.ask(link, "POST"))[0] == 405
    assert (await rig.ask("/v1" + link))[0] == 200


async def test_curl_gets_parts_and_goes_on_where_it_stopped(rig, tmp_path):
    link, file = await rig.kept("curl.mp4", 500_000), tmp_path / "film"
    url = rig.station.url + link

    def curl(*words: str) -> None:
        subprocess.run(["curl", "-sSf", "--max-time", "60", *words, "-o", str(file), url], check=True)

    await asyncio.to_thread(curl, "-r", "0-99999")
    assert file.read_bytes() == content(500_000)[:100_000]
    await asyncio.to_thread(curl, "-C", "-")
    assert file.read_bytes() == content(500_000)


async def test_what_a_browser_would_run_is_saved_to_a_file(rig):
    kinds = ("text/html", "image/svg+xml", "application/pdf", "text/javascript", "application/octet-stream")
    ids = [await rig.create() for _ in kinds]
    for id_, kind in zip(ids, kinds, strict=True):
        rig.studio.done(id_, f"{rig.files.url}/typed/100?{kind}")
    found = []
    for id_ in ids:
        await rig.is_(rig.link(id_), "kept")
        headers = (await rig.ask(rig.link(id_)))[1]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in headers["Content-Security-Policy"]
        found.append((headers["Content-Type"], headers["Content-Disposition"].partition(";")[0]))
    # What no vendor names is known by its first bytes.
    assert found == [*((kind, "attachment") for kind in kinds[:-1]), ("image/png", "inline")]


async def test_an_id_that_nobody_was_given_leads_nowhere(rig):
    for id_ in ("A" * 32, "..%2f..%2fetc%2fpasswd", "x", "", rig.link("film-none").rpartition("/")[2]):
        status, _, body = await rig.ask(f"/results/{id_}")
        assert status in (400, 404) and b"/" not in body.replace(b"\\/", b"")


async def test_what_is_too_large_stays_at_its_vendor_and_the_link_leads_there(rig):
    id_ = await rig.create()
    url = f"{rig.files.url}/file/{(1 << 20) + 1}/large.png"
    rig.studio.done(id_, url)
    await rig.is_(rig.link(id_), "left")
    status, headers, _ = await rig.ask(rig.link(id_))
    assert (status, headers["Location"], headers["Cache-Control"]) == (302, url, "no-store")


async def test_its_days_over_a_link_says_so(rig):
    link = await rig.kept("over.png")
    path = Path(rig.station.data) / "kept" / link[9:11] / link[9:]
    assert path.read_bytes() == content(100_000)
    await rig.run(f"UPDATE result SET expires_ms = 1 WHERE id = '{link[9:]}'")
    assert (await rig.ask(link))[0] == 410


async def test_a_client_that_reads_slowly_holds_up_nobody(rig):
    link = await rig.kept("slow.mp4", 1_000_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.station.port, limit=1024)
    writer.write(f"GET {link} HTTP/1.1\r\nhost: direct.test\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    for _ in range(20):
        assert len((await rig.ask(link))[2]) == 1_000_000
    whole = await reader.readexactly(1_000_000)
    assert whole == content(1_000_000)
    writer.write(f"GET {link} HTTP/1.1\r\nhost: direct.test\r\nrange: bytes=0-4\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 206")
    assert await reader.readexactly(5) == whole[:5]  # the connection goes on
    writer.close()


async def test_a_control_that_is_killed_in_the_middle_of_a_file_fetches_it_again(rig):
    id_ = await rig.create()
    path = f"/slow/200000/{id_}.png"
    rig.studio.done(id_, rig.files.url + path)
    await until(lambda: rig.files.asked(path) == 1)
    os.kill(rig.station.children("control")["control"], signal.SIGKILL)
    rig.files.release(path)
    await rig.run("UPDATE result SET next_try_ms = 0 WHERE state = 'ordered'")  # its claim has run out
    await rig.is_(rig.link(id_), "kept")
    assert (await rig.ask(rig.link(id_)))[2] == content(200_000)
    assert rig.files.asked(path) == 2


@pytest.fixture
def stored(studio: Studio, tmp_path: Path, databases: Databases) -> Iterator[Station]:
    """A station that keeps files in a bucket."""
    config = CONFIG.format(url=studio.url, singer=studio.url, keep=BUCKET.format(url=f"{studio.url}/s3"))
    environ = {"AK": studio.bucket.key, "SK": studio.bucket.secret}
    running = Station(tmp_path / "data", config, databases.take(), environ=environ).start()
    yield running
    running.stop()


async def test_a_bucket_serves_parts_through_the_station(stored, studio, files):
    rig = await rig_of(stored, studio, files)
    link = await rig.kept("bucket.png", 300_000)
    assert studio.bucket.objects[link[9:]][0] == content(300_000)
    status, headers, body = await rig.ask(link, Range="bytes=100-299")
    assert (status, headers["Content-Range"]) == (206, "bytes 100-299/300000")
    assert body == content(300_000)[100:300]
    assert (await rig.ask(link))[2] == content(300_000)
    assert studio.bucket.refused == []
    del studio.bucket.objects[link[9:]]
    assert (await rig.ask(link))[0] == 503
    assert studio.bucket.secret not in stored.log()
