"""What a key may do, and what a worker remembers of keys."""

from __future__ import annotations

import math
from typing import Any

import pytest

from proxy.access import keyring
from proxy.access.keyring import NEGATIVE_MS, STALE_MS, KeyCache, KeyRecord
from proxy.errors import (
    AccountFrozen,
    AddressNotAllowed,
    InvalidKey,
    KeyExpired,
    ModelNotPermitted,
    ProxyError,
    RouteNotPermitted,
)

NOW = 1_800_000_000_000
D1, D2 = b"1" * 32, b"2" * 32


def record(**changes: Any) -> KeyRecord:
    """As control sends it."""
    message: dict[str, Any] = {
        "digest": D1.hex(), "key_id": 7, "account_id": 3, "account": "a", "status": "active",
        "account_status": "active", "tiers": [["VIP", None]],
        "models": None, "routes": None, "endpoints": None, "mirror": "auto", "expires_ms": None,
        "ip_allow": None, "limits": {}, "masked": "sk-abc…wxyz", "version": 1,
    }  # fmt: skip
    return KeyRecord.from_message(message | changes)


def is_named(globs: tuple[str, ...], name: str) -> bool:
    return name in globs


# -- a record --------------------------------------------------------------------------------------


def test_a_plain_key_may_be_used_from_anywhere() -> None:
    record().check(NOW, "203.0.113.1")
    record().check(NOW, "")


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"status": "revoked"}, InvalidKey),
        ({"status": "something new"}, InvalidKey),
        ({"expires_ms": NOW}, KeyExpired),
        ({"expires_ms": NOW - 1}, KeyExpired),
        ({"account_status": "frozen"}, AccountFrozen),
        ({"account_status": "closed"}, AccountFrozen),
        ({"ip_allow": ["198.51.100.0/24"]}, AddressNotAllowed),
        ({"ip_allow": []}, AddressNotAllowed),
        # What a thief is told first is that the key is gone, not what it could do.
        ({"status": "revoked", "account_status": "frozen", "ip_allow": []}, InvalidKey),
    ],
)
def test_a_key_is_refused(changes: dict[str, Any], refusal: type[ProxyError]) -> None:
    with pytest.raises(refusal):
        record(**changes).check(NOW, "203.0.113.1")


def test_a_key_is_good_until_its_last_millisecond() -> None:
    record(expires_ms=NOW + 1).check(NOW, "203.0.113.1")


@pytest.mark.parametrize(
    ("allowed", "address"),
    [
        (["203.0.113.1"], "203.0.113.1"),
        (["203.0.113.9/24"], "203.0.113.1"),  # as people write it
        (["198.51.100.0/24", "203.0.113.0/24"], "203.0.113.1"),
        (["2001:db8::/32"], "2001:db8::1"),
    ],
)
def test_an_allowed_address_is_in_one_of_the_networks(allowed: list[str], address: str) -> None:
    record(ip_allow=allowed).check(NOW, address)


@pytest.mark.parametrize("address", ["", "unknown", "203.0.113.1:80", "::ffff:203.0.113.1", "2001:db8::1"])
def test_what_is_no_address_of_the_network_is_not_allowed(address: str) -> None:
    with pytest.raises(AddressNotAllowed):
        record(ip_allow=["203.0.113.0/24"]).check(NOW, address)


def test_models_routes_and_endpoints_are_all_where_nothing_is_said() -> None:
    record().check_model("gpt-4o", is_named)
    record().check_route("/v1/embeddings", "direct", is_named)


def test_a_key_is_held_to_its_models() -> None:
    key = record(models=["gpt-4o"])
    key.check_model("gpt-4o", is_named)
    with pytest.raises(ModelNotPermitted) as refused:
        key.check_model("gpt-4", is_named)
    assert refused.value.param == "model"
    with pytest.raises(ModelNotPermitted):
        record(models=[]).check_model("gpt-4o", is_named)


@pytest.mark.parametrize(
    ("path", "endpoint", "may"),
    [("/v1/embeddings", "cdn", True), ("/v1/embeddings", "direct", False), ("/v1/messages", "cdn", False)],
)
def test_a_key_is_held_to_its_routes_and_endpoints(path: str, endpoint: str, may: bool) -> None:
    key = record(routes=["/v1/embeddings"], endpoints=["cdn"])
    if may:
        key.check_route(path, endpoint, is_named)
    else:
        with pytest.raises(RouteNotPermitted):
            key.check_route(path, endpoint, is_named)


def test_an_earned_tier_ends_by_the_clock() -> None:
    key = record(tiers=[["VIP", NOW], ["Basic", NOW + 9], ["", None]])
    assert [key.tier_at(NOW + n) for n in (-1, 0, 8, 9)] == ["VIP", "Basic", "Basic", ""]
    assert key.tier_span(NOW - 1) == ("VIP", -math.inf, NOW)
    assert key.tier_span(NOW) == ("Basic", NOW, NOW + 9)
    assert key.tier_span(NOW * 2) == ("", NOW + 9, math.inf)
    assert record().tier_at(NOW * 2) == "VIP"


def test_a_key_that_nothing_refuses_is_known_as_such() -> None:
    assert record().open_until_ms == math.inf
    assert record(expires_ms=NOW).open_until_ms == NOW
    for held in (
        {"status": "revoked"},
        {"account_status": "frozen"},
        {"ip_allow": ["203.0.113.0/24"]},
        {"routes": ["*"]},
        {"endpoints": ["*"]},
    ):
        assert record(**held).open_until_ms == -math.inf


def test_a_preference_of_mirrors_is_a_name_or_an_order() -> None:
    assert record(mirror=None).mirror == "auto"
    assert record(mirror="cdn").mirror == "cdn"
    assert record(mirror=["hk", "cdn"]).mirror == ("hk", "cdn")


def test_a_call_counts_against_its_key_and_against_its_account() -> None:
    key = record(limits={"requests_per_minute": 5, "concurrency": 2})
    assert [
        (limit.bucket, limit.kind, limit.amount)
        for limit in key.limits("VIP", {"requests_per_minute": 60, "concurrency": 50})
    ] == [
        ("k7:concurrency", "concurrency", 2),
        ("k7:requests_per_minute", "requests_per_minute", 5),
        ("a3:VIP:concurrency", "concurrency", 50),
        ("a3:VIP:requests_per_minute", "requests_per_minute", 60),
    ]
    assert record(limits=None).limits("VIP", {"concurrency": None}) == ()


# -- the cache -------------------------------------------------------------------------------------


def test_what_is_not_held_is_asked_for() -> None:
    assert KeyCache().get(D1, NOW) is None


def test_a_record_is_believed_for_15_minutes_without_a_word_from_control() -> None:
    cache, key = KeyCache(), record()
    cache.put(D1, key, NOW)
    assert cache.get(D1, NOW + STALE_MS - 1) is key
    assert cache.get(D1, NOW + STALE_MS) is None
    cache.confirm(NOW + STALE_MS)
    assert cache.get(D1, NOW + STALE_MS) is key


def test_the_news_of_one_key_do_not_make_older_ones_believed_for_longer_than_that() -> None:
    """A looked-up record shows that control answers: what it would have pushed has come as well."""
    cache = KeyCache()
    cache.put(D1, record(), NOW)
    cache.put(D2, record(), NOW + 1000)
    assert cache.get(D1, NOW + STALE_MS) is not None
    assert cache.get(D1, NOW + STALE_MS + 1000) is None


def test_an_unknown_key_is_refused_for_a_while_and_then_asked_for_again() -> None:
    cache = KeyCache()
    cache.put_unknown(D1, NOW)
    with pytest.raises(InvalidKey):
        cache.get(D1, NOW + NEGATIVE_MS - 1)
    assert cache.get(D1, NOW + NEGATIVE_MS) is None


def test_a_key_that_is_gone_is_gone_at_once() -> None:
    cache = KeyCache()
    cache.put(D1, record(), NOW)
    cache.put_unknown(D1, NOW)
    with pytest.raises(InvalidKey):
        cache.get(D1, NOW)


def test_a_pushed_change_replaces_what_is_held() -> None:
    cache = KeyCache()
    cache.put(D1, record(), NOW)
    revoked = record(status="revoked")
    cache.change(D1, revoked, NOW)
    assert cache.get(D1, NOW) is revoked
    cache.change(D1, None, NOW)
    assert cache.get(D1, NOW) is None


def test_a_pushed_change_of_a_key_that_nobody_used_is_not_held() -> None:
    cache = KeyCache()
    cache.change(D1, record(), NOW)
    assert cache.get(D1, NOW) is None


def test_a_key_made_just_now_is_no_longer_unknown() -> None:
    cache = KeyCache()
    cache.put_unknown(D1, NOW)
    cache.change(D1, record(), NOW)
    assert cache.get(D1, NOW) is None  # ask, and it is there


def test_the_cache_has_an_end_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "CACHE_MAX", 3)
    monkeypatch.setattr(keyring, "NEGATIVE_MAX", 3)
    cache = KeyCache()
    for n in range(5):
        cache.put(bytes([n]) * 32, record(), NOW)
        cache.put_unknown(bytes([n + 100]) * 32, NOW)
    assert [cache.get(bytes([n]) * 32, NOW) is not None for n in range(5)] == [False, False, True, True, True]
    assert cache.get(bytes([100]) * 32, NOW) is None
    with pytest.raises(InvalidKey):
        cache.get(bytes([104]) * 32, NOW)
