"""Payments, refunds, chargebacks, codes and adjustments: one ledger row each, however often they are told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from uuid import uuid4

import pytest

from proxy.errors import NoticeRefused, StateError
from proxy.ledger.entry import Settle
from proxy.ledger.notices import CHARGEBACK, PAID, REFUND, WON, Notice
from proxy.routing.tiers import Gateway
from proxy.store.audit import audit
from proxy.store.catalog import Catalog
from proxy.store.codes import Codes
from proxy.store.orders import Orders
from proxy.store.payments import Movement, Payments
from tests.midday import MIDDAY
from tests.store.journals import NOW_MS, PRICE_ENTRY, YUAN, Life, end, new_id

GATEWAY = Gateway("epay", "epay", "0123456789abcdef", "https://pay.example", "1", "USD", "7", 300_000)


@pytest.fixture
async def shop(database):
    catalog = Catalog(database)
    await catalog.open_station("CNY", MIDDAY)
    account = await catalog.create_account("acme")
    return SimpleNamespace(
        database=database, catalog=catalog, id=account.id,
        payments=Payments(database), orders=Orders(database), codes=Codes(database),
    )  # fmt: skip


async def balance(shop) -> int:
    assert await audit(shop.database) == []
    return (await shop.catalog.account("acme")).balance_nanos


async def rows(shop) -> int:
    return await shop.database.fetchval("SELECT count(*) FROM ledger")


def paid(number: str, **changes) -> Notice:
    said = {"kind": PAID, "transaction": "T1", "reference": "T1", "order": number, "amount": Decimal("1.43"),
            "currency": "USD"}  # fmt: skip
    return Notice(**said | changes)


async def test_a_payment_brings_what_was_ordered_once(shop):
    order = await shop.orders.create(new_id(), shop.id, GATEWAY, 10 * YUAN)
    assert (order.price, order.currency) == (Decimal("1.43"), "USD")  # 10 / 7, rounded up
    notice = paid(order.id)
    told = await asyncio.gather(*(shop.orders.accept(GATEWAY, notice) for _ in range(6)))
    assert sum(posting.is_new for posting in told) == 1
    assert (await balance(shop), await rows(shop)) == (10 * YUAN, 1)
    assert [o.is_paid for o in await shop.orders.of(shop.id, 10)] == [True]


@pytest.mark.parametrize(
    "change",
    [{"amount": Decimal("1.42")}, {"amount": Decimal(100)}, {"currency": "CNY"}, {"order": uuid4().hex},
     {"order": "x"}],
    ids=["less", "more", "other currency", "no order", "no id"],
)  # fmt: skip
async def test_a_payment_of_something_else_brings_nothing(shop, change):
    order = await shop.orders.create(new_id(), shop.id, GATEWAY, 10 * YUAN)
    with pytest.raises(NoticeRefused):
        await shop.orders.accept(GATEWAY, paid(order.id, **change))
    assert await balance(shop) == 0


async def test_an_order_of_one_gateway_is_not_paid_at_another(shop):
    order = await shop.orders.create(new_id(), shop.id, GATEWAY, 10 * YUAN)
    other = Gateway("other", "hmac", "0123456789abcdef", "", "", "USD", "7", 300_000)
    with pytest.raises(NoticeRefused):
        await shop.orders.accept(other, paid(order.id))


async def test_refunds_take_back_their_part_and_never_more_than_all(shop):
    order = await shop.orders.create(new_id(), shop.id, GATEWAY, 10 * YUAN)
    await shop.orders.accept(GATEWAY, paid(order.id))
    half = Notice(REFUND, "T1", "re_1", "", Decimal("0.715"), "USD")
    for _ in range(3):
        await shop.orders.accept(GATEWAY, half)
    assert await balance(shop) == 5 * YUAN
    await shop.orders.accept(GATEWAY, Notice(REFUND, "T1", "re_2", "", Decimal("1.43"), "USD"))
    assert await balance(shop) == 0
    with pytest.raises(StateError):
        await shop.orders.accept(GATEWAY, Notice(REFUND, "T1", "re_3", "", Decimal("0.10"), "USD"))


async def test_a_chargeback_may_leave_less_than_nothing_and_may_be_won(shop):
    order = await shop.orders.create(new_id(), shop.id, GATEWAY, 10 * YUAN)
    await shop.orders.accept(GATEWAY, paid(order.id))
    await shop.payments.move("acme", Movement("adjustment", -4 * YUAN, "cli", "A1", note="spent elsewhere"))
    taken = Notice(CHARGEBACK, "T1", "dp_1", "", Decimal("1.43"), "USD")
    await shop.orders.accept(GATEWAY, taken)
    assert await balance(shop) == -4 * YUAN
    for _ in range(2):
        await shop.orders.accept(GATEWAY, Notice(WON, "T1", "dp_1", "", Decimal("1.43"), "USD"))
    assert await balance(shop) == 6 * YUAN


async def test_a_refund_of_nobodys_payment_is_refused(shop):
    with pytest.raises(NoticeRefused):
        await shop.orders.accept(GATEWAY, Notice(REFUND, "T9", "re_1", "", Decimal(1), "USD"))


async def test_an_adjustment_needs_a_reason(shop):
    with pytest.raises(StateError, match="reason"):
        await shop.payments.move("acme", Movement("adjustment", -YUAN, "cli", "A1"))
    await shop.payments.move("acme", Movement("adjustment", -YUAN, "cli", "A1", note="goodwill taken back"))
    assert await balance(shop) == -YUAN


# -- refunded calls --------------------------------------------------------------------------------


async def test_a_call_is_refunded_once_and_a_correction_gives_nothing_twice(shop, drainer, journal_dir):
    await shop.payments.move("acme", Movement("topup", YUAN, "cli", "R1"))
    call = end(shop.id)
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, call])
    await drainer.run_once()
    assert await balance(shop) == YUAN - 45_000
    told = [await shop.payments.refund_call(call.id, "stalled") for _ in range(2)]
    assert [(p.is_new, p.amount_nanos) for p in told] == [(True, 45_000), (False, 45_000)]
    assert await balance(shop) == YUAN
    # The vendor's late word: it was less, then it was more.
    for cost, left in ((5_000, YUAN), (60_000, YUAN - 15_000)):
        usage = {"input": cost // 500}
        await life.write([Settle(new_id(), NOW_MS, cost, "final", usage, corrects=call.id)])
        await drainer.run_once()
        assert (await shop.catalog.account("acme")).balance_nanos == left
    await life.die()


async def test_what_cost_nothing_or_is_unknown_is_not_refunded(shop):
    for call in (uuid4().hex, "x"):
        with pytest.raises(LookupError):
            await shop.payments.refund_call(call, "")


# -- codes -----------------------------------------------------------------------------------------


async def test_a_code_is_used_once_however_it_is_typed(shop):
    [code] = await shop.codes.create(5 * YUAN, 1)
    typed = code.lower().replace("-", " ").replace("0", "o").replace("1", "l")
    told = await asyncio.gather(*(shop.codes.redeem(shop.id, typed) for _ in range(5)))
    assert sum(posting.is_new for posting in told) == 1
    assert await balance(shop) == 5 * YUAN
    other = await shop.catalog.create_account("other")
    with pytest.raises(StateError, match="used"):
        await shop.codes.redeem(other.id, code)


async def test_codes_expire_and_unknown_ones_are_told_apart_from_nothing(shop):
    [code] = await shop.codes.create(YUAN, 1, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(StateError, match="expired"):
        await shop.codes.redeem(shop.id, code)
    with pytest.raises(LookupError):
        await shop.codes.redeem(shop.id, "00000-00000-00000-00000")


async def test_codes_are_stored_nowhere(shop):
    codes = await shop.codes.create(YUAN, 50, note="spring")
    stored = await shop.database.fetchval("SELECT string_agg(c::text, ' ') FROM code c")
    assert not any(code in stored or code[6:] in stored for code in codes)
    assert len(await shop.codes.all("spring", 100)) == len(set(codes)) == 50
