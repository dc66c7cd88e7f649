"""A key that was sold with an amount, on a station of two workers."""

from __future__ import annotations

from collections import Counter

import orjson
import pytest

from tests.fakes.upstream_server import whole
from tests.system.operated import CALL_NANOS, TOKENS, Answer, Operated, completion
from tests.waiting import until


@pytest.mark.parametrize("kind", ["spend_per_day", "spend_per_month", "spend_total"])
async def test_a_sold_amount_is_spent_exactly_and_what_is_refunded_once_more(
    operated: Operated, kind: str
) -> None:
    operated.script("plain", [whole(completion())])
    key = await operated.customer(tier="Exact", **{kind: 5 * CALL_NANOS})
    answers = await operated.calls(20, key, max_tokens=TOKENS)
    assert Counter(answer.status for answer in answers) == {200: 5, 402: 15}
    assert {answer.code for answer in answers if answer.status == 402} == {"insufficient_quota"}
    assert [("retry-after" in answer.headers) for answer in answers if answer.status == 402] == [
        kind != "spend_total"
    ] * 15
    call = next(a for a in answers if a.status == 200).headers["x-request-id"]
    row = await operated.row(call)
    await operated.run("refund", call, "--reason", "it did not work")
    assert await operated.row(call) == row  # rows never change: the refund is a row of the ledger
    receipt = (await operated.get(f"/v1/receipts/{call}", key)).json()
    assert (receipt["cost"], receipt["refunded"]) == ("1", "1")

    async def served() -> Answer | None:
        answer = await operated.call(key, max_tokens=TOKENS)
        return answer if answer.status == 200 else None

    await until(served, "room for what was refunded")
    assert (await operated.call(key, max_tokens=TOKENS)).status == 402
    me = (await operated.get("/v1/me", key)).json()
    assert [(told["of"], told["limit"], told["left"]) for told in me["limits"] if told["kind"] == kind] == [
        ("key", "5", "0")
    ]


async def test_a_call_that_is_counted_late_spends_its_hold_until_then_and_what_it_cost_from_then_on(
    operated: Operated,
) -> None:
    """The vendor tells no usage, and the request is too long to be counted at once."""
    untold = orjson.loads(completion())
    del untold["usage"]
    operated.script("plain", [whole(orjson.dumps(untold))])
    key = await operated.customer(tier="Exact", spend_total=CALL_NANOS * 3 // 2)
    long = [{"role": "user", "content": "word " * 60_000}]
    first = await operated.call(key, max_tokens=TOKENS, messages=long)
    assert first.status == 200

    async def served() -> bool:
        return (await operated.call(key, max_tokens=TOKENS)).status == 200

    await until(served, "room for what it did not cost")
    row = await operated.row(first.headers["x-request-id"])
    assert (row["provenance"], row["hold_nanos"]) == ("counted", CALL_NANOS)
    assert 0 < row["cost_nanos"] < CALL_NANOS // 10
