"""Tiers that payments earn and free quota that calls use up, in a real Postgres."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from proxy.access.keyring import KeyRecord
from proxy.routing.tiers import Earning, FreeQuota, Limits, Tier
from proxy.routing.units import period
from proxy.store.audit import audit
from proxy.store.catalog import Catalog, KeySettings
from proxy.store.payments import Movement, Payments
from proxy.store.reviews import Reviews, Rules
from tests.midday import MIDDAY
from tests.store.journals import NOW_MS, PRICE_ENTRY, YUAN, Life, end

VIP = (Earning(20 * YUAN, period("1 month")), Earning(40 * YUAN, period("6 months")))
QUOTA = FreeQuota(90_000, period("day"))


def tier(name: str, rank: int, earned_by=(), quota: FreeQuota | None = None) -> Tier:
    return Tier(name, rank, ("*",), 1_000_000, Limits(), "estimate", None, quota, earned_by)


def rules(*, quota: FreeQuota | None = None, codes_earn: bool = False, vip=VIP) -> Rules:
    station = SimpleNamespace(timezone=MIDDAY, default_tier="Free", codes_earn_tiers=codes_earn)
    tiers = (tier("Free", 0, quota=quota), tier("VIP", 1, vip), tier("Premium", 2))
    return Rules(station, {t.name: t for t in tiers})


@pytest.fixture
async def shop(database):
    catalog = Catalog(database)
    await catalog.open_station("CNY", MIDDAY)
    await catalog.create_account("acme")
    return SimpleNamespace(catalog=catalog, payments=Payments(database), database=database)


async def review(shop, table: Rules) -> int:
    return await Reviews(shop.database, lambda: table).run_once()


async def pay(shop, yuan: int, reference: str, *, kind: str = "topup") -> None:
    await shop.payments.move("acme", Movement(kind, yuan * YUAN, "cli", reference))


async def tiers(shop) -> list[tuple[str, bool]]:
    key_id, _ = await shop.catalog.create_key("acme", KeySettings())
    record = KeyRecord.from_message(await shop.catalog.key(key_id))
    return [(name, until is None) for name, until in record.tiers]


async def until(shop) -> datetime:
    return await shop.database.fetchval("SELECT max(until) FROM tier_grant WHERE revoked_at IS NULL")


async def test_a_top_up_of_20_makes_a_vip_until_a_month_later(shop):
    await review(shop, rules())
    assert await tiers(shop) == [("", True)]
    await pay(shop, 20, "R1")
    await review(shop, rules())
    assert await tiers(shop) == [("VIP", False), ("", True)]
    days = (await until(shop) - datetime.now(UTC)).days
    assert 27 <= days <= 31


async def test_the_balance_is_not_spent_on_the_tier(shop):
    await pay(shop, 20, "R1")
    await review(shop, rules())
    assert (await shop.catalog.account("acme")).balance_nanos == 20 * YUAN


async def test_looking_again_grants_nothing_more(shop):
    await pay(shop, 20, "R1")
    for _ in range(3):
        await shop.database.execute("UPDATE account SET due_at = '-infinity'")
        await review(shop, rules())
    assert await shop.database.fetchval("SELECT count(*) FROM tier_grant") == 1


async def test_a_second_top_up_prolongs_to_six_months(shop):
    for reference in ("R1", "R2"):
        await pay(shop, 20, reference)
        await review(shop, rules())
    assert (await until(shop) - datetime.now(UTC)).days > 175


async def test_a_reload_with_better_rules_recomputes_nothing(shop):
    await pay(shop, 20, "R1")
    await review(shop, rules())
    before = await until(shop)
    await review(shop, rules(vip=(Earning(YUAN, period("1 year")),), quota=QUOTA))
    assert await until(shop) == before
    await review(shop, rules(vip=()))
    assert await until(shop) == before


async def test_a_refund_revokes_what_its_payment_earned(shop):
    await pay(shop, 20, "R1")
    await pay(shop, 20, "R2")
    await review(shop, rules())
    assert (await until(shop) - datetime.now(UTC)).days > 175
    await shop.payments.take_back(("cli", "R2"), Movement("refund", 0, "cli", "back-R2"))
    await review(shop, rules())
    assert (await until(shop) - datetime.now(UTC)).days <= 31
    await shop.payments.take_back(("cli", "R1"), Movement("chargeback", YUAN, "cli", "back-R1"))
    await review(shop, rules())
    assert await until(shop) is None
    assert await tiers(shop) == [("", True)]


@pytest.mark.parametrize("codes_earn", [True, False])
async def test_whether_codes_count_is_a_setting(shop, codes_earn):
    await pay(shop, 20, "C1", kind="code")
    await review(shop, rules(codes_earn=codes_earn))
    assert (await until(shop) is not None) is codes_earn


async def test_a_higher_rank_wins_over_a_lower(shop):
    await pay(shop, 20, "R1")
    await shop.catalog.set_account("acme", tier="Premium")
    await review(shop, rules())
    assert await tiers(shop) == [("Premium", True)]
    await shop.catalog.set_account("acme", tier="Free")
    await review(shop, rules())
    assert await tiers(shop) == [("VIP", False), ("Free", True)]


# -- free quota ------------------------------------------------------------------------------------


async def test_free_quota_is_available_without_a_balance(shop):
    await review(shop, rules(quota=QUOTA))
    account = await shop.catalog.account("acme")
    assert (account.balance_nanos, account.free_nanos, account.available_nanos) == (0, 90_000, 90_000)
    assert await audit(shop.database) == []


async def test_calls_use_free_quota_first_and_each_row_says_how_much_was_free(shop, drainer, journal_dir):
    await pay(shop, 10, "R1")
    await review(shop, rules(quota=QUOTA))
    account = await shop.catalog.account("acme")
    now = {"at_ms": NOW_MS, "began_ms": await moment(shop)}
    life = Life(journal_dir)
    await life.write([PRICE_ENTRY, *(end(account.id, **now) for _ in range(3))])  # 45,000 nanos each
    await drainer.run_once()
    rows = await shop.database.fetch("SELECT cost_nanos, free_nanos FROM usage ORDER BY id")
    assert [tuple(row) for row in rows] == [(45_000, 45_000), (45_000, 45_000), (45_000, 0)]
    account = await shop.catalog.account("acme")
    assert (account.balance_nanos, account.free_nanos) == (10 * YUAN - 45_000, 0)
    assert account.available_nanos == account.balance_nanos
    assert await audit(shop.database) == []
    await life.die()


async def test_a_call_may_be_free_in_part_and_posted_once(shop, drainer, journal_dir):
    await review(shop, rules(quota=FreeQuota(50_000, period("month"))))
    account = await shop.catalog.account("acme")
    calls = [end(account.id, began_ms=await moment(shop)) for _ in range(2)]
    first, second = Life(journal_dir), Life(journal_dir)
    await first.write([PRICE_ENTRY, *calls])
    await second.write(calls)
    await drainer.run_once()
    rows = await shop.database.fetch("SELECT free_nanos FROM usage ORDER BY id")
    assert [row[0] for row in rows] == [45_000, 5_000]
    assert (await shop.catalog.account("acme")).available_nanos == -40_000
    assert await audit(shop.database) == []
    await first.die()
    await second.die()


async def test_what_is_left_at_the_end_of_a_period_is_gone(shop):
    await review(shop, rules(quota=QUOTA))
    await shop.database.execute(
        "UPDATE pocket SET period_start = period_start - interval '1 day', period_end = now(),"
        " used_nanos = 20000"
    )
    assert (await shop.catalog.account("acme")).available_nanos == 70_000
    await shop.database.execute("UPDATE account SET due_at = now()")
    await review(shop, rules(quota=QUOTA))
    account = await shop.catalog.account("acme")
    assert (account.free_nanos, account.available_nanos) == (90_000, 90_000)


async def test_a_better_tier_adds_to_the_quota_of_the_same_day(shop):
    await review(shop, rules(quota=QUOTA))
    await review(shop, rules(quota=FreeQuota(100_000, period("day"))))
    assert (await shop.catalog.account("acme")).available_nanos == 100_000
    await review(shop, rules())
    assert (await shop.catalog.account("acme")).available_nanos == 0


async def test_an_account_is_looked_at_when_its_period_ends_and_not_before(shop):
    assert await review(shop, rules(quota=QUOTA)) == 1
    assert await review(shop, rules(quota=QUOTA)) == 0
    due = await shop.database.fetchval("SELECT due_at FROM account")
    assert timedelta(0) < due - datetime.now(UTC) <= timedelta(days=1)


async def moment(shop) -> int:
    """Within the pocket's period, also when the run began before midnight."""
    begin = await shop.database.fetchval("SELECT max(period_start) FROM pocket")
    return int(begin.timestamp() * 1000) + 1
