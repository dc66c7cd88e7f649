"""What Google keeps under a name, as Gemini and as Vertex AI: one account's own, paid for by the hour."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.conftest import Databases
from tests.station import Station
from tests.waiting import until

CONFIG = """
station: {{currency: USD, default_tier: Test}}
upstreams:
  gemini:
    dialect: gemini
    mirrors: {{direct: {{url: "{url}"}}}}
    credentials: {{main: "${{env:ONE_KEY}}", spare: "${{env:CLAUDE_KEY}}"}}
  vertex:
    dialect: vertex
    mirrors: {{direct: {{url: "{url}/v1/projects/ours/locations/here"}}}}
    credentials: {{main: "${{env:ONE_KEY}}"}}
models:
  gemini-2.5-flash: {{context: 1000000, max_output: 1000, candidates: [{{upstream: gemini}}]}}
prices:
  gemini-2.5-flash: {{input: 1 USD, output: 10 USD}}
  "cached_contents.*": {{input: 1 USD, units: {{token_hour: 0.000001 USD}}}}
tiers:
  Test: {{rank: 0, models: ["*"], multiplier: 1.0}}
"""
BEGAN, TWO_HOURS, DAY = "2026-01-01T00:00:00.123456789Z", "2026-01-01T02:00:00Z", "2026-01-02T00:00:00.5Z"
CACHED_TOKENS = 30_000


class Google:
    """Keeps what it is given; tells which credential asked for it."""

    def __init__(self) -> None:
        self.things: dict[str, dict[str, Any]] = {}
        self.credentials: dict[str, set[str]] = {}
        self.asked: Counter[str] = Counter()
        self.app = web.Application(middlewares=[self.note])
        routes, project = self.app.router, "/v1/projects/{project}/locations/here"
        routes.add_post("/upload/v1beta/files", self.upload)
        for kind, base in (("files", "/v1beta"), ("cachedContents", "/v1beta"), ("cachedContents", project)):
            for method in ("GET", "PATCH", "DELETE"):
                routes.add_route(method, f"{base}/{{kind:{kind}}}/{{id}}", self.one)
        routes.add_post("/v1beta/cachedContents", self.cache)
        routes.add_post(f"{project}/cachedContents", self.cache)
        routes.add_post("/v1beta/models/{model}:generateContent", self.generate)

    @web.middleware
    async def note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked[f"{request.method} {request.rel_url}"] += 1
        self.key = request.headers.get("x-goog-api-key") or request.headers["Authorization"]
        return await handler(request)

    def make(self, name: str, **facts: Any) -> dict[str, Any]:
        self.things[name] = {"name": name, **facts}
        self.credentials[name] = {self.key}
        return self.things[name]

    async def upload(self, request: web.Request) -> web.Response:
        sent, name = await request.read(), f"files/f{len(self.things)}"
        uri = f"https://generativelanguage.googleapis.com/v1beta/{name}"
        return web.json_response({"file": self.make(name, uri=uri, sizeBytes=str(len(sent)))})

    async def cache(self, request: web.Request) -> web.Response:
        project = request.match_info.get("project")
        base = f"projects/{project}/locations/here/" if project else ""
        made = self.make(
            f"{base}cachedContents/{len(self.things)}", createTime=BEGAN, updateTime=BEGAN,
            expireTime=TWO_HOURS, usageMetadata={"totalTokenCount": CACHED_TOKENS},
        )  # fmt: skip
        return web.json_response(made)

    async def one(self, request: web.Request) -> web.Response:
        info = request.match_info
        base = f"projects/{info['project']}/locations/here/" if "project" in info else ""
        name = f"{base}{info['kind']}/{info['id']}"
        self.credentials[name].add(self.key)
        if request.method == "PATCH":
            self.things[name] |= {"expireTime": DAY}
        thing = self.things.pop(name) if request.method == "DELETE" else self.things[name]
        return web.json_response({} if request.method == "DELETE" else thing)

    async def generate(self, request: web.Request) -> web.Response:
        for name in (await request.json()).get("cachedContent"), request.query.get("file"):
            if name:
                self.credentials[name].add(self.key)
        candidate = {"content": {"parts": [{"text": "hi"}]}, "finishReason": "STOP"}
        usage = {"promptTokenCount": 10, "candidatesTokenCount": 1, "totalTokenCount": 11}
        return web.json_response({"candidates": [candidate], "usageMetadata": usage})


class Holder:
    def __init__(self, station: Station, name: str, key: str) -> None:
        self.station, self.name, self.key = station, name, key

    async def ask(self, method: str, path: str, headers: dict[str, str] | None = None, **sent: Any) -> Any:
        async with (
            aiohttp.ClientSession(headers={"x-goog-api-key": self.key}) as session,
            session.request(method, self.station.url + path, headers=headers, **sent) as r,
        ):
            text = await r.text()
            return r.status, json.loads(text) if text else None

    async def upload(self) -> dict[str, Any]:
        status, body = await self.ask(
            "POST", "/upload/v1beta/files?uploadType=media", {"Content-Type": "text/plain"}, data=b"long text"
        )
        assert status == 200, body
        return body["file"]

    async def cache(self, base: str = "/v1beta", **facts: Any) -> dict[str, Any]:
        asked = {"model": "models/gemini-2.5-flash", "ttl": "7200s", "contents": [{"parts": [{"text": "x"}]}]}
        status, body = await self.ask("POST", f"{base}/cachedContents", json=asked | facts)
        assert status == 200, body
        return body

    async def generate(self, **facts: Any) -> Any:
        asked = {"contents": [{"parts": [{"text": "hi"}]}], **facts}
        return await self.ask("POST", "/v1beta/models/gemini-2.5-flash:generateContent", json=asked)


@pytest.fixture
async def google() -> AsyncIterator[Google]:
    google = Google()
    server = TestServer(google.app)
    await server.start_server(shutdown_timeout=0.1)
    google.url = str(server.make_url("")).rstrip("/")
    yield google
    await server.close()


_names = count(1)


@pytest.fixture
def database(databases: Databases) -> str:
    return databases.take()


@pytest.fixture
async def two(google: Google, tmp_path: Path, database: str) -> AsyncIterator[list[Holder]]:
    """Two accounts of one station."""
    station = Station(tmp_path / "data", CONFIG.format(url=google.url), database)
    station.start()
    names = [f"google-{next(_names)}" for _ in range(2)]
    yield [Holder(station, name, await station.customer(name)) for name in names]
    station.stop()


async def test_what_google_keeps_under_a_name_is_its_accounts_in_every_place_of_a_request(google, two):
    ada, ben = two
    file, cached = await ada.upload(), await ada.cache()
    shared = await ada.cache("/v1/projects/any/locations/here")
    part = {"parts": [{"fileData": {"fileUri": file["uri"]}}]}
    assert (await ada.ask("GET", f"/v1beta/{file['name']}"))[1] == file
    assert (await ada.ask("GET", f"/v1/{cached['name']}"))[1] == cached
    assert (await ada.ask("GET", f"/v1/{shared['name'].replace('ours', 'any')}"))[1] == shared
    assert (await ada.generate(contents=[part]))[0] == 200
    assert (await ada.generate(cachedContent=cached["name"]))[0] == 200
    link = {"parts": [{"fileData": {"fileUri": "https://www.youtube.com/watch?v=1"}}]}
    assert (await ben.generate(contents=[link]))[0] == 200
    before = google.asked.total()
    loud = {"parts": [{"file_data": {"file_uri": file["uri"].replace("https://g", "HTTPS://G")}}]}
    for status, body in (
        await ben.ask("GET", f"/v1beta/{file['name']}"),
        await ben.ask("DELETE", f"/v1beta/{file['name']}"),
        await ben.ask("PATCH", f"/v1beta/{cached['name']}", json={"ttl": "60s"}),
        await ben.ask("GET", f"/v1/{shared['name']}"),
        await ben.generate(contents=[part]),
        await ben.generate(contents=[loud]),
        await ben.generate(cachedContent=cached["name"]),
        await ada.generate(cachedContent="cachedContents/nobodys"),
        await ben.ask("POST", "/v1beta/cachedContents", json={"contents": [part]}),
    ):
        assert (status, body["error"]["status"]) == (404, "NOT_FOUND"), body
    assert google.asked.total() == before
    assert all(len(keys) == 1 for keys in google.credentials.values())


async def test_lists_and_changes_of_what_google_keeps_are_its_accounts_own(google, two):
    ada, ben = two
    files, cached = [await ada.upload() for _ in range(3)], await ada.cache()
    await ben.upload()
    assert (await ada.ask("GET", "/v1beta/files?pageSize=2"))[1] == {
        "files": files[:0:-1], "nextPageToken": files[1]["name"],
    }  # fmt: skip

    async def rest() -> bool:  # Postgres may not have the page's end yet
        return (await ada.ask("GET", f"/v1beta/files?pageToken={files[1]['name']}"))[1] == {
            "files": files[:1]
        }

    await until(rest, "the second page")
    assert (await ada.ask("DELETE", f"/v1beta/{files[0]['name']}")) == (200, {})

    async def is_gone() -> bool:
        return (await ada.ask("GET", "/v1beta/files"))[1] == {"files": files[:0:-1]}

    await until(is_gone, "a deleted file is not listed")
    status, patched = await ada.ask(
        "PATCH", f"/v1beta/{cached['name']}?updateMask=ttl", json={"ttl": "86400s"}
    )
    assert (status, patched["expireTime"]) == (200, DAY)
    assert google.asked[f"PATCH /v1beta/{cached['name']}?updateMask=ttl"] == 1

    async def shows_it() -> bool:
        return (await ada.ask("GET", "/v1beta/cachedContents"))[1] == {"cachedContents": [patched]}

    await until(shows_it, "a list shows what was changed")


async def test_a_cache_is_paid_by_token_and_hour(google, two):
    ada = two[0]
    cached = await ada.cache()
    await ada.ask("PATCH", f"/v1beta/{cached['name']}", json={"ttl": "86400s"})
    sql = (
        "SELECT cost_nanos FROM usage u JOIN account a ON a.id = u.account"
        f" WHERE cost_nanos > 0 AND a.name = '{ada.name}' ORDER BY u.id"
    )

    async def billed() -> bool:
        costs = [row["cost_nanos"] for row in await ada.station.rows(sql)]
        return costs == [CACHED_TOKENS * 1000 + CACHED_TOKENS * 2 * 1000, CACHED_TOKENS * 24 * 1000]

    await until(billed, "the bill of a cache")


async def test_a_resumable_upload_does_not_get_the_vendors_own_address(google, two):
    for path, headers in (
        ("", {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}),
        ("?uploadType=resumable", {}),
        ("?upload_id=x&upload_protocol=resumable", {}),
    ):
        status, body = await two[0].ask("POST", f"/upload/v1beta/files{path}", headers, json={"file": {}})
        assert status == 400 and "in one request" in body["error"]["message"]
    assert not google.asked
