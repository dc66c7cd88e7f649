"""Tasks as workers submit them, and what is seen of them later."""

from __future__ import annotations

from proxy.dialects.owned import SUCCEEDED
from proxy.ledger.entry import DEFERRED, Bind, Observed
from proxy.metering.pricing import cost_nanos
from proxy.metering.usage import Usage
from proxy.store.drainer import days_of
from tests.store.journals import NOW_MS, PRICE, Station, begin, end, new_id

HOLD = 5_000_000
USAGE = {"input": 100, "output": 50}
COST = cost_nanos(PRICE, Usage.from_dict(USAGE), 1_000_000, 500_000)
DAYS = days_of(Station.timezone, NOW_MS)


def submitted(account: int, vendor_id: str, lease: str = "", kind: str = "response"):
    """What a worker writes when a task was accepted."""
    call = end(account, lease=lease, hold_nanos=HOLD)
    bind = Bind(
        call.id, NOW_MS, account, 1, kind, vendor_id, "openai", "direct", "main", HOLD, lease,
        {"id": vendor_id},
    )  # fmt: skip
    deferred = end(
        account, id=call.id, lease=lease, hold_nanos=HOLD, state=DEFERRED, cost_nanos=0,
        usage={"input": 40, "calls": 1}, provenance="estimated",
    )  # fmt: skip
    return [begin(account, id=call.id, lease=lease, hold_nanos=HOLD), bind, deferred]


def seen(vendor_id: str, state: str = SUCCEEDED, **more) -> Observed:
    more = {"usage": USAGE if state == SUCCEEDED else {}, "credential": "main", **more}
    return Observed(new_id(), NOW_MS + 5000, vendor_id, "openai", state, **more)
