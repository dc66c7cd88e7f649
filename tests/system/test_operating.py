"""What key holders see of a station: pages, headers, base URLs, credit and revocation; on two workers."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson
import pytest

from tests.fakes.upstream_server import Pause, chunk, chunked_head, whole
from tests.system.operated import (
    CALL_NANOS,
    CHAT,
    MESSAGE,
    MESSAGES,
    OK,
    TOKENS,
    USAGE,
    WORD,
    Operated,
    chat,
    completion,
    words,
)
from tests.waiting import DEADLINE_S, promised, until

SOLD = [
    "m-plain",
    "m-renamed",
    "m-claude",
    "m-mirrored",
    "m-halved",
    "m-weighted",
    "m-second",
    "m-first",
    "m-pool",
]


# -- pages -------------------------------------------------------------------------------------------


async def test_the_models_of_a_key_are_those_that_it_could_call(operated: Operated) -> None:
    """Not those without an upstream, and nothing that key or tier leave out."""
    anybody = await operated.customer()
    some = await operated.customer(models=("m-plain", "m-c*"))
    tiered = await operated.customer(tier="Claude")
    for key, names in ((anybody, SOLD), (some, ["m-plain", "m-claude"]), (tiered, ["m-claude"])):
        for path in ("/v1/models", "/models", "/v1/v1/models"):
            listed = (await operated.get(path, key)).json()
            assert listed["object"] == "list"
            assert [m["id"] for m in listed["data"]] == names
            assert {m["object"] for m in listed["data"]} == {"model"}
        of_anthropic = (await operated.get("/v1/models", key, **{"anthropic-version": "2023-06-01"})).json()
        assert [m["id"] for m in of_anthropic["data"]] == names
        assert {m["type"] for m in of_anthropic["data"]} == {"model"}
        assert of_anthropic["has_more"] is False
        assert (of_anthropic["first_id"], of_anthropic["last_id"]) == (names[0], names[-1])
        of_gemini = (await operated.get(f"/v1beta/models?key={key}", "")).json()
        assert [m["name"] for m in of_gemini["models"]] == [f"models/{name}" for name in names]
        of_ollama = (await operated.get("/api/tags", key)).json()
        assert [m["model"] for m in of_ollama["models"]] == names


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v1beta/models/m-nobody:generateContent", lambda e: e["error"]["status"] == "NOT_FOUND"),
        ("/v1/models/m-nobody:countTokens", lambda e: e["error"]["code"] == 404),
        ("/v2/chat", lambda e: "model" in e["message"]),
        ("/api/generate", lambda e: "model" in e["error"]),
        ("/api/v1/services/aigc/text-generation/generation", lambda e: e["code"] == "ModelNotFound"),
        ("/v1/fim/completions", lambda e: e["object"] == "error"),
    ],
)
async def test_every_family_is_refused_in_its_own_words(
    operated: Operated, path: str, told: Callable[[dict[str, Any]], bool]
) -> None:
    """Also a model that exists, but is only sold through another path."""
    key = await operated.customer()
    for model in ("m-nobody", "m-plain"):
        refused = await operated.call(key, model, path.replace("m-nobody", model))
        assert refused.status == 404
        assert told(refused.json()), refused.body


async def test_a_mistyped_key_is_refused_without_asking_anybody(operated: Operated) -> None:
    """Its checksum tells; a key that nobody made has to be looked up, once per worker."""
    key = await operated.customer()

    async def looked_up() -> int:
        metrics = (await operated.admin("/metrics")).body.decode()
        found = re.findall(r'^headrace_key_lookups_total{.*"missing".*} (\S+)$', metrics, re.MULTILINE)
        return sum(map(int, map(float, found)))

    before = await looked_up()
    mistyped = key[:-1] + ("a" if key[-1] != "a" else "b")
    assert {a.status for a in await operated.calls(8, mistyped)} == {401}
    assert {a.status for a in await operated.calls(8, "sk-nobody-has-made-this-one")} == {401}

    async def is_counted() -> bool:
        return await looked_up() > before

    await until(is_counted, "the numbers of this second")
    assert await looked_up() <= before + 2


async def test_one_model_is_shown_only_to_those_who_may_use_it(operated: Operated) -> None:
    key = await operated.customer(models=("m-plain",))
    assert (await operated.get("/v1/models/m-plain", key)).json()["id"] == "m-plain"
    for name in ("m-claude", "m-absent", "none"):
        refused = await operated.get(f"/v1/models/{name}", key)
        assert (refused.status, refused.code) == (404, "model_not_found")
    shown = await operated.get("/v1/models/m-plain", key, **{"anthropic-version": "2023-06-01"})
    assert shown.json()["type"] == "model"


async def test_a_key_holder_sees_the_account_its_endpoints_and_the_receipt_of_a_call(
    operated: Operated,
) -> None:
    operated.script("plain", OK)
    key = await operated.customer(credit_nanos=20 * CALL_NANOS, mirror="cdn", label="mine")
    answer = await operated.call(key)
    call = answer.headers["x-request-id"]

    async def receipt() -> dict | None:
        told = await operated.get(f"/v1/receipts/{call}", key)
        return told.json() if told.status == 200 else None

    told = await until(receipt, "the receipt", promised(2.0))
    assert (told["id"], told["model"], told["status"]) == (call, "m-plain", 200)
    assert (told["cost"], told["currency"], told["provenance"]) == ("1", "USD", "final")
    assert told["usage"]["output"] == TOKENS
    assert told["mirror"] == "direct"
    assert [r["id"] for r in (await operated.get("/v1/receipts", key)).json()["data"]] == [call]
    me = (await operated.get("/v1/me", key)).json()
    assert (me["balance"], me["mirror"], me["label"]) == ("19", "cdn", "mine")
    assert me["key"].startswith(key[:6]) and key not in me["key"]
    endpoints = (await operated.get("/endpoints", key)).json()["data"]
    assert [(e["name"], e["cors"], e["proxy_read_timeout_s"]) for e in endpoints] == [
        ("direct", True, None), ("cdn", False, 100.0),
    ]  # fmt: skip
    assert [(e["slow_calls"], e["body_limit_bytes"]) for e in endpoints] == [
        (None, 32 << 20), ("hint", 32 << 20),
    ]  # fmt: skip

    async def is_measured() -> bool:
        data = (await operated.get("/endpoints", key)).json()["data"]
        return {e["status"] for e in data} == {"unreachable"}  # their names lead nowhere

    await until(is_measured, "both workers tell what was measured", promised(15.0))
    stranger = await operated.customer()
    assert (await operated.get(f"/v1/receipts/{call}", stranger)).status == 404
    for path in ("/v1/me", "/endpoints", "/v1/models", f"/v1/receipts/{call}", "/v1/models/m-plain"):
        assert (await operated.get(path, "sk-nobody")).status == 401
    # A client cannot name another key as the one that was verified.
    forged = await operated.get("/v1/me", stranger, **{"x-headrace-key": "1"})
    assert forged.json()["account"] != me["account"] and forged.json()["key"].startswith(stranger[:6])


# -- base URLs, headers, bodies ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions", "/chat/completions", "/v1/v1/chat/completions",
        "/openai/deployments/m-plain/chat/completions?api-version=2024-10-21",
        "/v1/openai/deployments/m-plain/chat/completions?api-version=2024-10-21",
    ],
)  # fmt: skip
async def test_base_urls_are_forgiving(operated: Operated, path: str) -> None:
    operated.script("plain", OK)
    answer = await operated.call(await operated.customer(), path=path)
    assert (answer.status, answer.body) == (200, completion())
    assert operated.asked("plain")[-1].target == "/plain/v1/chat/completions"


async def test_an_answer_tells_its_id_and_what_the_relay_added(operated: Operated) -> None:
    operated.script("plain", words(2, Pause(0)))
    operated.script("claude", [whole(MESSAGE, 200, "request-id: req_vendor")], path=MESSAGES)
    key = await operated.customer()
    stream = await operated.call(key, stream=True)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["x-accel-buffering"] == "no"
    assert 0 <= float(stream.headers["server-timing"].removeprefix("relay;dur=")) < 10_000
    assert USAGE not in stream.body
    answer = await operated.call(key, "m-claude", MESSAGES, max_tokens=10)
    assert answer.status == 200
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "x-accel-buffering" not in answer.headers
    assert (await operated.row(answer.headers["x-request-id"]))["upstream_id"] == "req_vendor"


async def test_a_route_can_name_a_model_and_rule_over_parameters(operated: Operated) -> None:
    operated.script("plain", OK)
    key = await operated.customer()
    assert (await operated.call(key, "", "/v1/easy")).status == 200
    sent = orjson.loads(operated.asked("plain")[-1].body)
    assert sent == chat("m-plain")
    assert (
        await operated.call(key, "m-plain", "/v1/strict", user="u", logit_bias={}, temperature=1)
    ).status == 200
    assert operated.asked("plain")[-1].body == orjson.dumps(chat("m-plain", temperature=1)).replace(
        b",", b", "
    ).replace(b":", b": ")
    asked = len(operated.asked("plain"))
    refused = await operated.call(key, "m-plain", "/v1/strict", temperature=1.5)
    assert (refused.status, refused.code) == (400, "parameter_refused")
    assert refused.json()["error"]["param"] == "temperature"
    assert len(operated.asked("plain")) == asked


async def test_a_renamed_model_is_spliced_and_the_bill_names_what_was_asked_for(operated: Operated) -> None:
    operated.script("plain", OK)
    answer = await operated.call(await operated.customer(), "m-renamed")
    sent = operated.asked("plain")[-1].body
    assert sent.replace(b'"vendor/name-there"', b'"m-renamed"') == (
        b'{"model": "m-renamed", "messages": [{"role": "user", "content": "Hi"}]}'
    )
    assert (await operated.row(answer.headers["x-request-id"]))["model"] == "m-renamed"


# -- credit ------------------------------------------------------------------------------------------


async def test_credit_for_so_many_calls_is_never_spent_on_more(operated: Operated) -> None:
    """hold: max; 40 calls at once on two workers, and again until nothing is left."""
    operated.script("plain", [Pause(0.05), *OK])
    affordable = 10
    key = await operated.customer(credit_nanos=affordable * CALL_NANOS, tier="Exact")
    seen = Counter[int]()
    account = (await operated.get("/v1/me", key)).json()["account"]

    async def is_spent() -> bool:
        answers = await operated.calls(40, key, max_tokens=TOKENS)
        seen.update(a.status for a in answers)
        assert set(seen) <= {200, 402}, seen
        assert seen[200] <= affordable
        return seen[200] == affordable

    await until(is_spent, "all of it can be spent", promised(20.0))
    refused = await operated.call(key, max_tokens=TOKENS)
    assert (refused.status, refused.code) == (402, "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"

    async def is_settled() -> bool:
        me = (await operated.get("/v1/me", key)).json()
        return (me["balance"], me["held"]) == ("0", "0")

    await until(is_settled, "balance 0")
    await operated.top_up(account, 2 * CALL_NANOS)

    async def is_served() -> bool:
        return (await operated.call(key, max_tokens=TOKENS)).status == 200

    await until(is_served, "a top-up is seen", promised(2.0))
    assert await operated.station.violations() == []


# -- limits ------------------------------------------------------------------------------------------


async def _within_a_minute(operated: Operated, count: int, **settings: int) -> list[int]:
    """Statuses of so many calls, all of which fell into one minute of the wall clock."""
    for _ in range(2):
        key = await operated.customer(**settings)
        minute = time.time() // 60
        answers = await operated.calls(count, key)
        if time.time() // 60 == minute:
            break
    else:
        raise AssertionError("two minutes ended within seconds")
    for answer in answers:
        if answer.status != 200:
            assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
    return [answer.status for answer in answers]


async def test_a_small_limit_of_requests_is_exact_over_all_workers(operated: Operated) -> None:
    operated.script("plain", OK)
    assert Counter(await _within_a_minute(operated, 30, requests_per_minute=7)) == {200: 7, 429: 23}


async def test_a_large_limit_of_requests_is_kept_within_its_slices(operated: Operated) -> None:
    """Never more; and not much less: what lies in a slice of the other worker is at most a share of it."""
    operated.script("plain", OK)
    served = Counter(await _within_a_minute(operated, 200, requests_per_minute=100))[200]
    assert 75 <= served <= 100


@pytest.mark.parametrize(("limit", "least"), [(3, 3), (40, 30)])
async def test_no_more_calls_run_at_once_than_a_key_may(operated: Operated, limit: int, least: int) -> None:
    running = Pause()
    operated.script("plain", [running, *OK])
    key = await operated.customer(concurrency=limit)
    async with operated.session(key) as session:
        calls = (operated.ask(session, CHAT, chat("m-plain")) for _ in range(limit * 3))
        ended = asyncio.as_completed([asyncio.ensure_future(call) for call in calls])
        refused = [await next(ended) for _ in range(limit * 2)]
        assert {(a.status, a.code) for a in refused} == {(429, "rate_limit_exceeded")}
        running.end()
        answers = [await call for call in ended]
    served = [a for a in answers if a.status == 200]
    assert least <= len(served) <= limit

    async def is_free() -> bool:
        return (await operated.call(key)).status == 200

    await until(is_free, "the places are free again", promised(3.0))


# -- revocation --------------------------------------------------------------------------------------


async def test_a_revoked_key_is_refused_and_its_streams_are_cut(operated: Operated) -> None:
    going_on = Pause()
    operated.script("plain", [chunked_head(), chunk(WORD), going_on])
    account = operated.new_name()
    await operated.station.customer(account)
    made = await operated.run("key", "create", "--account", account)
    key = made["key"]
    async with operated.session(key) as session, asyncio.timeout(DEADLINE_S):
        streams = [await session.post(CHAT, json=chat("m-plain", stream=True)) for _ in range(6)]
        for stream in streams:
            assert await stream.content.readany() == WORD
        assert await operated.run("key", "revoke", str(made["id"])) == {"id": made["id"], "is_new": True}
        began_s = time.monotonic()

        async def is_refused() -> bool:
            with contextlib.suppress(aiohttp.ServerDisconnectedError):  # cut before its answer began
                return {a.status for a in await operated.calls(6, key)} == {401}
            return False

        operated.script("plain", OK)
        await until(is_refused, "refused by every worker", promised(2.0))
        for stream in streams:
            with pytest.raises(aiohttp.ClientPayloadError):  # never a clean end
                await stream.read()
        assert time.monotonic() - began_s < promised(5.0)
    rows = await until(
        lambda: operated.station.rows(f"SELECT * FROM usage WHERE key = {made['id']} AND outcome = 'cut'"),
        "rows",
    )
    assert {(r["cut"], r["state"]) for r in rows} == {("revoked", "settled")}
