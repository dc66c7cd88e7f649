"""A key holder's receipts and what chat clients ask, through the public listener."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from typing import Any

from tests.system.operated import CALL_NANOS, OK, TOKENS, Operated
from tests.waiting import until

# So many that a page is larger than what one read of a socket gives.
CLONES = 600
CLONE = """
INSERT INTO usage SELECT (jsonb_populate_record(u, jsonb_build_object(
    'id', left(u.id::text, 24) || lpad(n::text, 12, '0'), 'cost_nanos', 0))).*
FROM usage u CROSS JOIN generate_series(1, {count}) n WHERE id = '{call}' RETURNING id
"""


async def test_a_holder_downloads_every_receipt(operated: Operated) -> None:
    operated.script("plain", OK)
    key = await operated.customer(credit_nanos=20 * CALL_NANOS)
    call = (await operated.call(key)).headers["x-request-id"]
    await operated.row(call)
    await operated.station.rows(CLONE.format(count=CLONES, call=call))
    page = await operated.get("/v1/receipts?limit=1000", key)
    assert len(page.body) > 300_000
    assert len(page.json()["data"]) == CLONES + 1 and page.json()["next"] is None
    found: list[dict[str, str]] = []
    path: str | None = "/v1/receipts?format=csv&limit=400"
    while path:
        page = await operated.get(path, key)
        assert page.headers["content-type"].startswith("text/csv")
        found += csv.DictReader(io.StringIO(page.body.decode()))
        link = page.headers.get("link", "")
        path = "/v1/receipts" + link[1 : link.index(">")] if link else None
    assert len({row["id"] for row in found}) == CLONES + 1
    assert call in {row["id"] for row in found}
    assert -sum(Decimal(row["amount"]) for row in found) == 1


async def test_chat_clients_find_what_is_left_with_and_without_v1(operated: Operated) -> None:
    """NextChat takes the month's usage, in hundredths, from the limit."""
    operated.script("plain", OK)
    key = await operated.customer(credit_nanos=20 * CALL_NANOS)
    call = (await operated.call(key)).headers["x-request-id"]

    async def used() -> Any:
        return (await operated.get("/dashboard/billing/usage", key)).json()["total_usage"]

    assert await until(used, "the usage of a call") == 100
    for prefix in ("", "/v1"):
        subscription = (await operated.get(f"{prefix}/dashboard/billing/subscription", key)).json()
        usage = (await operated.get(f"{prefix}/dashboard/billing/usage?start_date=2020-01-01", key)).json()
        assert subscription["hard_limit_usd"] - usage["total_usage"] / 100 == 19
        receipt = (await operated.get(f"{prefix}/receipts/{call}", key)).json()
        assert (receipt["completion_tokens"], receipt["items"][-1]["count"]) == (TOKENS, TOKENS)
        month = receipt["posted_day"][:7]
        sums = (await operated.get(f"{prefix}/receipts/{month}", key)).json()
        assert (sums["used"], sums["charged"], sums["closing"]) == ("1", "1", "19")
