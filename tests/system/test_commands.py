"""The commands of an operator as they are typed, on a demo station with a Postgres of its own and with
DATABASE_URL; TLS and the admin API."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.certificate import Certificate, make_certificate
from tests.fakes.upstream_server import Pause, UpstreamServer
from tests.station import ROOT, Station, free_port
from tests.system.operated import CALL_NANOS, DONE, OK, SECRETS, Operated, headrace, words
from tests.waiting import DEADLINE_S, promised, until, wait_for

ROUTES = ROOT / "routes.yaml"


# -- the demo station --------------------------------------------------------------------------------


class Demo(Station):
    """`serve --demo` with the committed routes.yaml and an embedded Postgres."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "data", ROUTES.read_text(), workers=2, arguments=("--demo",))
        self.environ = {"HEADRACE_DEMO_LISTEN": f"127.0.0.1:{free_port()}"}

    def key(self) -> str:
        """As it is printed."""
        found = wait_for(lambda: re.findall(r"^  key +(sk-\S+)$", self.log(), re.MULTILINE), "the demo key")
        return str(found[-1])

    def run(self, *command: str, status: int = 0) -> Any:
        said = headrace(
            *command, "--data", str(self.data), *(["--json"] if status == 0 else []), status=status
        )
        return json.loads(said) if status == 0 else said


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    station = Demo(tmp_path_factory.mktemp("demo"))
    station.start()
    yield station
    assert station.stop() == 0


async def ask(demo: Demo, key: str) -> int:
    """The status of a call."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session,
        session.post(demo.url + "/v1/chat/completions", json=body) as answer,
    ):
        return answer.status


async def test_from_a_new_account_to_its_bill(demo: Demo) -> None:
    """account create, topup, key create, a call, bill, audit: each tells what it did."""
    [made] = demo.run("account", "create", "acme", "--tier", "VIP", "--note", "first")
    assert (made["name"], made["tier"], made["balance_nanos"]) == ("acme", "VIP", 0)
    paid = ("--amount", "10", "--ref", "R1", "--paid", "9.20 EUR")
    assert demo.run("account", "topup", "acme", *paid)["is_new"] is True
    again = demo.run("account", "topup", "acme", *paid)
    assert (again["is_new"], again["balance_nanos"]) == (False, 10 * 10**9)
    refused = demo.run("account", "topup", "acme", "--amount", "11", "--ref", "R1", status=1)
    assert refused == "headrace account: reference 'R1' was used before, for another account or amount\n"
    key = demo.run("key", "create", "--account", "acme", "--mirror", "cdn", "--models", "gpt-*,o3")
    assert [await ask(demo, key["key"]) for _ in range(2)] == [200, 200]
    [listed] = demo.run("key", "list", "--account", "acme")
    assert (listed["mirror"], listed["models"], listed["status"]) == ("cdn", ["gpt-*", "o3"], "active")
    assert key["key"] not in json.dumps(listed)

    def billed() -> dict[str, Any] | None:
        bill = demo.run("bill", "acme")
        return bill if sum(line["calls"] for line in bill["lines"]) == 2 else None

    bill = await asyncio.to_thread(wait_for, billed, "two calls on the bill")
    assert bill["used_nanos"] == bill["charged_nanos"] == sum(line["cost_nanos"] for line in bill["lines"])
    assert bill["closing_nanos"] == 10 * 10**9 - bill["used_nanos"]
    assert len(demo.run("bill", "acme", "--calls")["rows"]) == 2
    assert demo.run("ledger", "audit") == {"clean": True, "violations": []}
    [shown] = demo.run("account", "show", "acme")
    assert shown["balance_nanos"] == bill["closing_nanos"]


def test_what_is_not_there_is_said_in_one_line(demo: Demo) -> None:
    for command in (
        ("account", "show", "nobody"), ("account", "topup", "nobody", "--amount", "1", "--ref", "X"),
        ("key", "create", "--account", "nobody"), ("key", "set", "999999", "--label", "x"),
        ("key", "revoke", "999999"), ("key", "list", "--account", "nobody"), ("bill", "nobody"),
        ("node", "retire", "00000000-0000-7000-8000-000000000000"),
    ):  # fmt: skip
        said = demo.run(*command, status=1)
        assert said.startswith(f"headrace {command[0]}: there is no ")
        assert said.count("\n") == 1


def test_a_command_needs_a_station(tmp_path: Path) -> None:
    said = headrace("account", "show", "--data", str(tmp_path / "none"), status=1)
    assert said.startswith(f"headrace account: there is no station in {tmp_path / 'none'}")
    gone = headrace("account", "show", dsn="postgresql://127.0.0.1:1/none", status=1)
    assert gone.startswith("headrace account: ") and gone.count("\n") == 1


def test_explain_knows_a_key_of_the_station(demo: Demo) -> None:
    demo.run("account", "create", "explained")
    key = demo.run("key", "create", "--account", "explained", "--models", "claude-*", "--concurrency", "3")[
        "key"
    ]
    environ = {"HEADRACE_DEMO_URL": "http://127.0.0.1:9", "HEADRACE_DEMO_KEY": "canary-demo"}
    question = ("explain", "--config", ROUTES, "--json", "--data", str(demo.data), "--key", key)
    told = json.loads(
        headrace(*question, "POST", "/v1/messages", "--model", "claude-sonnet-4-5", environ=environ)
    )
    assert [c["upstream"] for c in told["candidates"] if "url" in c] == ["demo-anthropic"]
    assert {"of": "key", "kind": "concurrency", "limit": 3, "left": 3} in told["limits"]
    chat = ("POST", "/v1/chat/completions", "--model", "gpt-4o-mini")
    refused = headrace(*question, *chat, environ=environ, status=1)
    assert [r["code"] for r in json.loads(refused)["refused"]] == ["model_not_permitted"]
    assert "canary-demo" not in json.dumps(told) + refused
    assert "no such key" in demo.run("explain", "--key", "sk-none", "POST", "/v1/messages", status=1)


async def test_the_same_demo_key_works_after_a_restart(demo: Demo) -> None:
    key = demo.key()
    path = demo.data / "demo.key"
    assert path.read_text().strip() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await ask(demo, key) == 200
    assert await asyncio.to_thread(demo.stop) == 0
    [node] = demo.run("node", "list")  # commands work on a station that is not running
    assert (node["open_leases"], node["set_aside_nanos"]) == (0, 0)
    await asyncio.to_thread(demo.start)
    assert demo.key() == key

    async def works() -> bool:
        return await ask(demo, key) == 200

    await until(works)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_serve_is_refused(demo: Demo, tmp_path: Path) -> None:
    """On the same data folder, and on the same port with a folder of its own."""
    first = ("serve", "--config", ROUTES, "--admin", f"127.0.0.1:{free_port()}")
    held = headrace(*first, "--listen", f"127.0.0.1:{free_port()}", "--data", str(demo.data), status=1)
    assert str(demo.data) in held
    taken = headrace(*first, "--listen", f"127.0.0.1:{demo.port}", "--data", str(tmp_path / "own"), status=1)
    assert str(demo.port) in taken
    assert demo.get("/readyz") == 200


# -- DATABASE_URL ------------------------------------------------------------------------------------


async def test_a_node_that_will_not_come_back_is_retired(operated: Operated) -> None:
    [node] = await operated.run("node", "list")
    assert node["retired_at"] in (None, "")
    lost = "0199aaaa-0000-7000-8000-000000000001"
    database = await operated.station.open_database()
    await database.execute("INSERT INTO node (id) VALUES ($1::uuid)", lost)
    await database.close()
    assert await operated.run("node", "retire", lost) == {"node": lost, "closed_leases": 0}
    assert "is alive" in await operated.run("node", "retire", node["id"], status=1)
    retired = {n["id"]: bool(n["retired_at"]) for n in await operated.run("node", "list")}
    assert retired == {node["id"]: False, lost: True}


# -- check, explain, diff ----------------------------------------------------------------------------


def test_the_committed_file_is_good_as_it_is() -> None:
    said = headrace("check", ROUTES)
    assert f"{ROUTES}: no mistakes; 6 upstreams, 7 models, " in said
    told = json.loads(headrace("check", ROUTES, "--json"))
    assert (told["ok"], told["mistakes"]) == (True, [])
    assert all(re.match(rf"{re.escape(str(ROUTES))}:\d+:\d+: ", w) for w in told["warnings"])


def test_every_mistake_has_its_place(tmp_path: Path) -> None:
    broken = tmp_path / "routes.yaml"
    with open(ROUTES) as f:
        broken.write_text(
            f.read().replace("dialect: openai", "dialect: opnai", 1).replace("rank: 1", "rank: one")
        )
    said = headrace("check", broken, status=1).splitlines()
    assert len(said) == 2
    assert all(re.match(rf"{re.escape(str(broken))}:\d+:\d+: ", line) for line in said)
    assert "did you mean 'openai'" in said[0]
    assert json.loads(headrace("check", broken, "--json", status=1))["mistakes"] == said


def test_diff_shows_what_a_change_costs(tmp_path: Path) -> None:
    new = tmp_path / "new.yaml"
    new.write_text(ROUTES.read_text().replace("input: 0.15 USD", "input: 0.3 USD"))
    assert "input: 0.15 USD -> 0.3 USD" in headrace("diff", ROUTES, str(new))
    [change] = json.loads(headrace("diff", ROUTES, str(new), "--json"))
    assert (change["what"], change["name"]) == ("price", "gpt-4o-mini")


def test_explain_says_what_the_station_does(operated: Operated) -> None:
    question = ("explain", "--config", str(operated.station.config_path), "POST")
    told = json.loads(
        headrace(*question, "/v1/v1/chat/completions", "--model", "m-renamed", "--json", environ=SECRETS)
    )
    [candidate] = told["candidates"]
    assert candidate["model"] == "vendor/name-there"
    assert candidate["url"] == f"{operated.upstream.url}/plain/v1/chat/completions"
    assert told["endpoint"]["name"] == "direct"
    text = headrace(*question, "/v1/chat/completions", "--model", "m-weighted", environ=SECRETS)
    assert "75% of its priority" in text and "25% of its priority" in text
    assert not any(secret in text for secret in SECRETS.values())
    assert "unknown_path" in headrace(*question, "/v1/nothing", environ=SECRETS, status=1)


# -- TLS and the admin API ---------------------------------------------------------------------------


TOKEN = "admin-token-canary-0123456789"


class TlsStation(Station):
    """Reached over HTTPS."""

    certificate: Certificate

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def get(self, path: str) -> int:
        context = ssl.create_default_context(cafile=str(self.certificate.certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=DEADLINE_S)
        connection.request("GET", path)
        answer = connection.getresponse().status
        connection.close()
        return answer


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, upstream: UpstreamServer, databases: Any
) -> Iterator[Operated]:
    """A station with a certificate of its own and an admin token."""
    folder = tmp_path_factory.mktemp("guarded")
    certificate = make_certificate(folder)
    operated = Operated.at(folder, upstream, databases.take(), environ={"HEADRACE_ADMIN_TOKEN": TOKEN})
    plain = operated.station
    arguments = ("--tls-cert", str(certificate.certificate), "--tls-key", str(certificate.key))
    station = TlsStation(plain.data, plain.config, plain.dsn, 1, plain.environ, arguments)
    station.certificate = certificate
    operated.station = station
    operated.ssl = ssl.create_default_context(cafile=str(certificate.certificate))  # type: ignore[assignment]
    station.start()
    yield operated
    assert station.stop() == 0


async def test_a_stream_over_the_stations_own_certificate(guarded: Operated) -> None:
    guarded.script("plain", words(3, Pause(0)), OK)
    key = await guarded.customer()
    stream = await guarded.call(key, stream=True)
    assert stream.status == 200
    assert stream.body.endswith(DONE)
    assert (await guarded.call(key)).status == 200
    assert (await guarded.row(stream.headers["x-request-id"]))["cost_nanos"] == CALL_NANOS
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(guarded.station.url + "/healthz")
        with pytest.raises(aiohttp.ClientError):  # no plain HTTP on the same port
            await session.get(f"http://127.0.0.1:{guarded.station.port}/healthz")


async def test_with_a_token_only_its_bearer_is_an_operator(guarded: Operated) -> None:
    right = {"authorization": f"Bearer {TOKEN}"}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN[:-1]}):
        for path in ("/admin/status", "/metrics", "/admin/accounts"):
            refused = await guarded.admin(path, headers=headers)
            assert (refused.status, refused.code) == (401, "invalid_api_key")
    assert (await guarded.admin("/admin/status", headers=right)).status == 200
    assert (await guarded.admin("/readyz")).status == 200
    made = await guarded.admin("/admin/accounts", "POST", headers=right, body={"name": "by-admin"})
    assert made.status == 201
    paid = {**right, "idempotency-key": "A1"}
    topups = "/admin/accounts/by-admin/topups"
    for status in (201, 200):  # asked twice, it is one
        assert (await guarded.admin(topups, "POST", headers=paid, body={"amount": "3000"})).status == status
    account = await guarded.admin("/admin/accounts/by-admin", headers=right)
    assert account.json()["balance_nanos"] == 3000 * 10**9
    key = (await guarded.admin("/admin/accounts/by-admin/keys", "POST", headers=right, body={})).json()
    guarded.script("plain", OK)
    assert (await guarded.call(key["key"])).status == 200
    assert (await guarded.admin(f"/admin/keys/{key['key_id']}", "DELETE", headers=right)).status == 200

    async def is_refused() -> bool:
        return (await guarded.call(key["key"])).status == 401

    await until(is_refused, "the revoked key is refused", promised(2.0))
    assert TOKEN not in guarded.station.log()


async def test_without_a_token_no_web_page_and_nobody_elsewhere_is_an_operator(operated: Operated) -> None:
    assert (await operated.admin("/admin/status")).status == 200
    own = f"http://127.0.0.1:{operated.station.admin_port}"
    assert (await operated.admin("/admin/status", headers={"origin": own})).status == 200
    for headers in (
        {"origin": "https://evil.test"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"}, {"host": "evil.test"}, {"x-forwarded-for": "10.0.0.1"},
    ):  # fmt: skip
        for path, method in (("/admin/status", "GET"), ("/admin/reload", "POST")):
            refused = await operated.admin(path, method, headers=headers)
            assert (refused.status, refused.code) == (403, "route_not_permitted"), headers
