"""The holders' pages: a few files, nothing from elsewhere, and what they ask the portal's API for."""

from __future__ import annotations

import re
from urllib.parse import quote
from uuid import UUID

import pytest

from proxy.store.drainer import Drainer
from proxy.web import site
from tests.store.journals import NODE, NOW_MS, PRICE_ENTRY, YUAN, Life, Station, begin, end
from tests.web.test_portal import Browser, ada, catalog, snapshot, told, visit  # noqa: F401 - fixtures

SCRIPT = (site.FOLDER / "portal.js").read_text()
WORDS = (site.FOLDER / "words.js").read_text()


@pytest.fixture
async def guest(visit) -> Browser:  # noqa: F811
    return visit()


async def test_the_page_runs_nothing_but_its_own_files(guest):
    answer = await guest.get("/portal/")
    text = await answer.text()
    policy = answer.headers["content-security-policy"]
    assert answer.status == 200 and answer.content_type == "text/html"
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert (
        answer.headers["x-content-type-options"] == "nosniff"
        and answer.headers["cache-control"] == "no-cache"
    )
    assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=|https?://", text)
    for name in re.findall(r'(?:src|href)="(?!data:)([^"]+)"', text):
        file = await guest.get(f"/portal/{name}")
        assert file.status == 200 and "max-age=31536000" in file.headers["cache-control"]
        assert file.headers["x-content-type-options"] == "nosniff"


async def test_whoever_has_paid_comes_back_to_the_page(guest):
    assert (await guest.get("/portal/?trade_no=1&money=20.00")).status == 200
    answer = await guest.get("/portal?trade_no=1", allow_redirects=False)
    assert (answer.status, answer.headers["location"]) == (308, "/portal/?trade_no=1")


async def test_nothing_else_lies_below_it(guest):
    for name in ("portal.html", "none.js", "..%2fsite.py", "../site.py", quote("../../errors.py", safe="")):
        assert (await guest.get(f"/portal/{name}")).status == 404


async def test_a_stranger_learns_the_name_and_whether_accounts_are_open(guest):
    assert await told(await guest.get("/portal/api/station")) == {"name": "headrace", "sign_up": True}


async def test_a_holder_sees_the_lines_and_chooses_one_for_all_keys(ada):  # noqa: F811
    account = await told(await ada.get("/portal/api/account"))
    assert (account["mirror"], account["mirrors"]) == ("auto", ["d"])
    assert account["endpoints"] == [
        {"name": "direct", "url": "https://api.example", "label": "", "region": ""}
    ]
    changed = await told(await ada.patch("/portal/api/account", json={"mirror": "d"}))
    assert changed["mirror"] == "d"
    assert (await ada.patch("/portal/api/account", json={"mirror": "x"})).status == 400
    assert (await ada.patch("/portal/api/account", json={"balance": "9"})).status == 400


async def test_a_holder_reads_the_bill_of_this_account_only(ada, guest, catalog, tmp_path):  # noqa: F811
    accounts = [(await catalog.account("ada")).id, (await catalog.create_account("bob")).id]
    life = Life(tmp_path)
    calls = [end(account, cost_nanos=YUAN) for account in accounts]
    begun = [begin(account, id=call.id) for account, call in zip(accounts, calls, strict=True)]
    await life.write([PRICE_ENTRY, *begun, *calls])
    await Drainer(catalog.database, tmp_path, NODE, Station(), now_ms=lambda: NOW_MS).run_once()
    listed = await told(await ada.get("/portal/api/receipts"))
    assert [(UUID(line["id"]).hex, line["cost"]) for line in listed["data"]] == [(calls[0].id, "1")]
    table = await ada.get("/portal/api/receipts?format=csv")
    assert table.content_type == "text/csv" and (await table.text()).count("\n") == 2
    for path in ("receipts", "account"):
        assert (await guest.get(f"/portal/api/{path}")).status == 401
    assert (await guest.patch("/portal/api/account", json={"mirror": "d"})).status == 401


def test_every_word_of_the_page_is_said_in_chinese_too():
    said = set(re.findall(r'\bt\(\s*"([^"]+)"', SCRIPT))
    said |= set(re.findall(r'\w+: "([A-Z][\w -]+)"', SCRIPT.partition("const KINDS")[2].partition("};")[0]))
    said |= set(re.findall(r'\w+: \["([^"]+)"', SCRIPT.partition("const VIEWS")[2].partition("};")[0]))
    known = set(re.findall(r'"([^"]+)": "[^"]+"', WORDS))
    assert len(said) > 60 and said - known == set()
    assert "Pay online" in said


def test_texts_of_others_never_become_markup():
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", SCRIPT
    )
