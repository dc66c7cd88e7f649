"""Where a call goes: mirrors in the key's order, weights, priorities, a pool of credentials."""

from __future__ import annotations

import asyncio
from collections import Counter

import orjson

from tests.fakes.upstream_server import whole
from tests.system.operated import CHAT, OK, SECRETS, Operated, chat, completion
from tests.waiting import promised, until


async def _places(operated: Operated, key: str, stream: bool = False) -> list[str]:
    """Which mirrors were asked by one call, in order."""
    places = ("direct", "cdn", "hk")
    before = {place: len(operated.asked(place)) for place in places}
    start = len(operated.upstream.requests)
    assert (await operated.call(key, "m-mirrored", stream=stream)).status == 200
    asked = [r.target.split("/")[1] for r in operated.upstream.requests[start:]]
    assert all(len(operated.asked(p)) - before[p] == asked.count(p) for p in places)
    return asked


async def test_a_call_goes_to_the_mirror_that_its_key_prefers(operated: Operated) -> None:
    for place in ("direct", "cdn", "hk"):
        operated.script(place, OK)
    assert await _places(operated, await operated.customer(mirror="hk")) == ["hk"]
    assert await _places(operated, await operated.customer(mirror=("cdn", "hk"))) == ["cdn"]
    assert await _places(operated, await operated.customer(mirror="nowhere")) == ["direct"]
    assert await _places(operated, await operated.customer()) == ["direct"]


async def test_a_mirror_that_fails_is_followed_by_the_next_in_the_keys_order(operated: Operated) -> None:
    operated.script("cdn", [whole(b"{}", 502)])
    operated.script("hk", OK)
    operated.script("direct", OK)
    assert await _places(operated, await operated.customer(mirror=("cdn", "hk"))) == ["cdn", "hk"]


async def test_a_pinned_mirror_fails_over_only_if_the_key_says_so(operated: Operated) -> None:
    for place in ("direct", "hk"):
        operated.script(place, OK)
    operated.script("cdn", [whole(b"{}", 502)])
    pinned = await operated.call(await operated.customer(mirror="cdn"), "m-mirrored")
    assert (pinned.status, pinned.code) == (502, "upstream_unavailable")
    assert await _places(operated, await operated.customer(mirror=("cdn", "auto"))) == ["cdn", "direct"]


async def test_a_preference_changes_with_the_next_calls(operated: Operated) -> None:
    for place in ("direct", "hk"):
        operated.script(place, OK)
    key = await operated.customer()
    assert await _places(operated, key) == ["direct"]
    key_id = (await operated.station.rows("SELECT max(id) AS id FROM api_key"))[0]["id"]
    await operated.run("key", "set", str(key_id), "--mirror", "hk")

    async def is_followed() -> bool:
        return {(await _places(operated, key))[0] for _ in range(4)} == {"hk"}

    await until(is_followed, "every worker follows the new preference", promised(3.0))


async def test_a_mirror_that_refuses_connections_costs_nobody_an_answer(operated: Operated) -> None:
    operated.script("alive", OK)
    key = await operated.customer(mirror=("direct", "auto"))
    answers = await operated.calls(10, key, "m-halved")
    assert [a.status for a in answers] == [200] * 10
    row = await operated.row(answers[0].headers["x-request-id"])
    tried = [(a["mirror"], a["outcome"]) for a in row["attempts"]]
    assert tried[0] == ("direct", "upstream_connect_failed")
    assert [mirror for mirror, _ in tried] == ["direct", "hk"]


async def test_a_mirror_that_fails_again_and_again_rests_and_comes_back(operated: Operated) -> None:
    operated.script("cdn", [whole(b"{}", 503)])
    operated.script("hk", OK)
    key = await operated.customer(mirror=("cdn", "hk"))

    async def is_resting() -> bool:
        assert {a.status for a in await operated.calls(10, key, "m-mirrored")} == {200}
        rows = (await operated.admin("/admin/status")).json()["resting"]
        return [r["why"] for r in rows if r["mirror"] == "cdn"] == ["answers with server errors"]

    await until(is_resting, "it is known to rest")
    operated.script("cdn", OK)

    async def is_back() -> bool:
        return await _places(operated, key) == ["cdn"]

    await until(is_back, "half-open, a call finds it well again", promised(10.0))
    key = await operated.customer(mirror="cdn")
    assert [a.status for a in await operated.calls(6, key, "m-mirrored")] == [200] * 6


async def test_a_call_may_name_its_mirrors_and_the_vendor_is_not_told(operated: Operated) -> None:
    for place in ("direct", "cdn", "hk"):
        operated.script(place, OK)
    key = await operated.customer(mirror="hk")
    async with operated.session(key) as session:
        for asked in ("cdn", "direct, auto"):
            start = len(operated.upstream.requests)
            answer = await operated.ask(session, CHAT, chat("m-mirrored"), headers={"x-mirror": asked})
            assert answer.status == 200
            (request,) = operated.upstream.requests[start:]
            assert request.target.split("/")[1] == asked.partition(",")[0]
            assert request.header(b"x-mirror") is None
        for slip in ("nowhere", "auto,cdn", ""):
            answer = await operated.ask(session, CHAT, chat("m-mirrored"), headers={"x-mirror": slip})
            assert (answer.status, answer.json()["error"]["param"]) == (400, "x-mirror")


async def test_a_long_prompt_stays_with_its_credential(operated: Operated) -> None:
    """What a vendor has cached of it is there and nowhere else."""
    operated.script("pool", OK)
    keys = [await operated.customer() for _ in range(6)]
    used = []
    for key in keys:
        start = len(operated.asked("pool"))
        for turn in range(4):
            messages = [{"role": "user", "content": "x" * 5000}, {"role": "user", "content": str(turn)}]
            assert (await operated.call(key, "m-pool", messages=messages)).status == 200
        used.append({r.header(b"authorization") for r in operated.asked("pool")[start:]})
    assert [len(credentials) for credentials in used] == [1] * 6


async def test_calls_are_spread_by_weight(operated: Operated) -> None:
    operated.script("heavy", OK)
    operated.script("light", OK)
    key = await operated.customer()
    for _ in range(4):
        assert {a.status for a in await operated.calls(50, key, "m-weighted")} == {200}
    heavy, light = len(operated.asked("heavy")), len(operated.asked("light"))
    assert heavy + light == 200
    assert 120 <= heavy <= 180  # 3 to 1: 150 +- 4.9 standard deviations


async def test_the_next_priority_is_tried_only_when_the_first_is_down(operated: Operated) -> None:
    operated.script("plain", OK)
    key = await operated.customer()
    for model in ("m-first", "m-second"):
        assert {a.status for a in await operated.calls(5, key, model)} == {200}
    models = Counter(orjson.loads(r.body)["model"] for r in operated.asked("plain"))
    assert (models["m-first"], models["m-second"]) == (5, 5)


async def test_one_bad_answer_of_an_upstream_rests_nothing(operated: Operated) -> None:
    key = await operated.customer()
    for _ in range(3):
        operated.script("plain", [whole(b"{}", 500)], OK)
        assert (await operated.call(key)).status == 502
        assert {a.status for a in await operated.calls(8, key)} == {200}


async def test_a_credential_that_must_rest_is_replaced_and_comes_back(operated: Operated) -> None:
    """429 with retry-after for one, 401 for another: the third serves, on both workers."""
    rests = {
        "a": whole(b"{}", 429, "retry-after: 3"),
        "b": whole(b'{"error":"no"}', 401),
        "c": whole(completion()),
    }
    names = {secret: name[-1].lower() for name, secret in SECRETS.items()}

    def name_of(request) -> str:
        return names[request.header(b"authorization").decode().removeprefix("Bearer ")]

    operated.script("pool", [lambda request: rests[name_of(request)]])
    key = await operated.customer()

    async def resting() -> bool:
        assert (await operated.call(key, "m-pool")).status == 200
        status = (await operated.admin("/admin/status")).json()
        return {r["credential"] for r in status["resting"] if r["upstream"] == "pool"} == {"a", "b"}

    await until(resting, "both are known to rest")
    await asyncio.gather(*(operated.calls(5, key, "m-pool") for _ in range(2)))  # both workers were told
    asked = len(operated.asked("pool"))
    assert {a.status for a in await operated.calls(10, key, "m-pool")} == {200}
    used = Counter(map(name_of, operated.asked("pool")[asked:]))
    assert set(used) <= {"c", "a"}  # b rests for minutes
    rests["a"] = whole(completion())

    async def is_back() -> bool:
        await operated.call(key, "m-pool")
        return name_of(operated.asked("pool")[-1]) == "a"

    await until(is_back, "the rate limited one is used again", promised(6.0))


async def test_when_every_credential_rests_the_caller_is_told_when_to_come_back(operated: Operated) -> None:
    operated.script("mirrored", [whole(b"{}", 404)])
    operated.script("light", [whole(b"{}", 429, "retry-after: 7")])
    operated.script("heavy", [whole(b"{}", 429, "retry-after: 9")])
    key = await operated.customer()
    first = await operated.call(key, "m-weighted")
    assert (first.status, first.code) == (429, "upstream_rate_limited")
    assert 1 <= int(first.headers["retry-after"]) <= 9

    async def is_cooling() -> bool:
        answers = await operated.calls(4, key, "m-weighted")
        return {a.status for a in answers} == {503} and all(
            1 <= int(a.headers["retry-after"]) <= 9 for a in answers
        )

    await until(is_cooling, "both workers know", promised(3.0))
