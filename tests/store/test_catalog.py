"""Accounts, keys and top-ups in a real Postgres."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from proxy.access.keyformat import digest_of
from proxy.access.keyring import KeyRecord
from proxy.errors import StateError
from proxy.store.catalog import Catalog, KeySettings
from tests.store.journals import YUAN


@pytest.fixture
async def catalog(database):
    catalog = Catalog(database)
    await catalog.create_account("acme")
    return catalog


async def test_an_account_name_is_taken_once(catalog):
    with pytest.raises(StateError, match="acme"):
        await catalog.create_account("acme")
    assert [a.name for a in await catalog.accounts()] == ["acme"]


async def test_a_top_up_moves_balance_and_available_once_per_reference(catalog):
    first = await catalog.top_up("acme", 10 * YUAN, "R1", paid=(Decimal("1.40"), "USD"))
    again = await catalog.top_up("acme", 10 * YUAN, "R1")
    account = await catalog.account("acme")
    assert (first.is_new, again.is_new, again.id) == (True, False, first.id)
    assert (account.balance_nanos, account.available_nanos) == (10 * YUAN, 10 * YUAN)


async def test_a_reference_cannot_mean_two_things(catalog):
    await catalog.create_account("other")
    await catalog.top_up("acme", 10 * YUAN, "R1")
    for name, amount in (("acme", 11 * YUAN), ("other", 10 * YUAN)):
        with pytest.raises(StateError, match="R1"):
            await catalog.top_up(name, amount, "R1")
    assert (await catalog.account("acme")).balance_nanos == 10 * YUAN


async def test_top_ups_at_once_with_one_reference_count_once(catalog):
    postings = await asyncio.gather(*(catalog.top_up("acme", YUAN, "R1") for _ in range(8)))
    assert sum(p.is_new for p in postings) == 1
    assert (await catalog.account("acme")).balance_nanos == YUAN


async def test_a_key_is_found_by_its_digest_and_stored_nowhere(catalog, database):
    _, key = await catalog.create_key("acme", KeySettings(models=("gpt-*",), mirror=("cdn", "direct")))
    record = await catalog.key_record(digest_of(key))
    assert record is not None
    assert (record["account"], record["models"], record["mirror"]) == ("acme", ["gpt-*"], ["cdn", "direct"])
    assert KeyRecord.from_message(record).models == ("gpt-*",)
    stored = await database.fetchval("SELECT string_agg(k::text, ' ') FROM api_key k")
    assert key not in stored and key[10:-4] not in stored
    assert await catalog.key_record(digest_of(key + "x")) is None


async def test_an_imported_key_may_look_like_anything(catalog):
    key_id, key = await catalog.create_key("acme", KeySettings(), key="old-station-7")
    assert key == "old-station-7"
    assert (await catalog.key_record(digest_of(key)))["key_id"] == key_id
    with pytest.raises(StateError):
        await catalog.create_key("acme", KeySettings(), key="old-station-7")


async def test_changes_are_told_since_a_generation(catalog):
    first, _ = await catalog.create_key("acme", KeySettings(label="a"))
    second, _ = await catalog.create_key("acme", KeySettings(label="b"))
    seen = await catalog.changed_keys(0)
    assert [r["key_id"] for r in seen.records] == [first, second]
    assert seen.generation == await catalog.generation()
    assert await catalog.revoke_key(first)
    changed = await catalog.changed_keys(seen.generation)
    assert [(r["key_id"], r["status"]) for r in changed.records] == [(first, "revoked")]
    assert not await catalog.revoke_key(first)


async def test_a_frozen_account_changes_all_its_keys_and_a_top_up_none(catalog):
    for label in "ab":
        await catalog.create_key("acme", KeySettings(label=label))
    seen = (await catalog.changed_keys(0)).generation
    await catalog.top_up("acme", YUAN, "R1")
    assert (await catalog.changed_keys(seen)).records == []
    await catalog.set_account("acme", status="frozen")
    assert {r["account_status"] for r in (await catalog.changed_keys(seen)).records} == {"frozen"}


async def test_a_key_is_set_as_a_whole(catalog):
    key_id, key = await catalog.create_key("acme", KeySettings(label="a", concurrency=3))
    settings = await catalog.key_settings(key_id)
    assert settings == KeySettings(label="a", concurrency=3)
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    await catalog.set_key(key_id, KeySettings(label="a", requests_per_minute=9, expires_at=until))
    record = await catalog.key_record(digest_of(key))
    assert record["limits"] == {"requests_per_minute": 9}
    assert record["expires_ms"] == int(until.timestamp() * 1000)


async def test_the_highest_grant_wins_and_says_what_comes_after_it(catalog, database):
    _, key = await catalog.create_key("acme", KeySettings())
    grants = (("VIP", 1, 9), ("Premium", 2, 5), ("Old", 3, -1))
    for number, (tier, rank, days) in enumerate(grants):
        await database.execute(
            "INSERT INTO tier_grant (account, tier, rank, starts_at, until, source, reference)"
            " SELECT id, $1, $2, now() - interval '9 days', now() + $3 * interval '1 day', 'test', $4"
            " FROM account",
            tier, rank, days, str(number),
        )  # fmt: skip
    record = await catalog.key_record(digest_of(key))
    tiers = KeyRecord.from_message(record).tiers
    assert [tier for tier, _ in tiers] == ["Premium", "VIP", ""]
    assert tiers[0].until_ms > datetime.now(UTC).timestamp() * 1000


async def test_a_station_keeps_its_currency(catalog):
    await catalog.open_station("CNY", "Asia/Shanghai")
    await catalog.open_station("CNY", "UTC")
    with pytest.raises(StateError, match="CNY"):
        await catalog.open_station("USD", "UTC")
    assert await catalog.currency() == "CNY"


async def test_limits_of_an_account_are_in_the_record_of_each_of_its_keys(catalog):
    await catalog.create_account("ada")
    _, secret = await catalog.create_key("ada", KeySettings(concurrency=2))
    before = await catalog.generation()
    await catalog.set_account_limits("ada", {"tokens_per_day": 9_000, "spend_total": 5, "concurrency": 7})
    await catalog.set_account_limits("ada", {"spend_total": None})
    assert await catalog.generation() > before
    record = await catalog.key_record(digest_of(secret))
    assert record["account_limits"] == {"tokens_per_day": 9_000, "concurrency": 7}
    limits = KeyRecord.from_message(record).limits("", {})
    assert [(limit.kind, limit.amount) for limit in limits] == [
        ("concurrency", 2), ("concurrency", 7), ("tokens_per_day", 9_000)
    ]  # fmt: skip
    with pytest.raises(LookupError):
        await catalog.set_account_limits("ben", {"concurrency": 1})
