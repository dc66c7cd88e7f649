"""Keys as workers ask for them: once per key in Postgres, few times for what does not exist."""

from __future__ import annotations

import asyncio

import pytest

from proxy.broker.keys import STALE_MS, UNKNOWN_MS, UNKNOWN_PER_MINUTE, KeyDesk


class Postgres:
    """A key table that counts how often it is asked."""

    def __init__(self, *digests: str) -> None:
        self.records = {d: {"digest": d, "version": 1} for d in digests}
        self.asked: list[str] = []
        self.is_away = False

    async def lookup(self, digest: bytes) -> dict | None:
        self.asked.append(digest.hex())
        await asyncio.sleep(0)
        if self.is_away:
            raise ConnectionError
        return self.records.get(digest.hex())


def digest(n: int) -> str:
    return f"{n:064x}"


@pytest.fixture
def postgres() -> Postgres:
    return Postgres(digest(1), digest(2))


@pytest.fixture
def desk(postgres: Postgres) -> KeyDesk:
    desk = KeyDesk(postgres.lookup)
    desk.confirm(0)
    return desk


async def test_many_workers_that_ask_at_once_cost_one_question(desk: KeyDesk, postgres: Postgres) -> None:
    replies = await asyncio.gather(*(desk.find(digest(1), "10.0.0.1", 0) for _ in range(50)))
    assert all(reply["record"]["digest"] == digest(1) for reply in replies)
    await desk.find(digest(1), "10.0.0.1", 0)
    assert postgres.asked == [digest(1)]


async def test_an_unknown_key_is_asked_for_once_a_minute(desk: KeyDesk, postgres: Postgres) -> None:
    for _ in range(5):
        assert await desk.find(digest(9), "10.0.0.1", 0) == {"missing": True}
    assert postgres.asked == [digest(9)]
    assert await desk.find(digest(9), "10.0.0.1", UNKNOWN_MS) == {"missing": True}
    assert len(postgres.asked) == 2


async def test_an_address_may_guess_twenty_keys_a_minute(desk: KeyDesk, postgres: Postgres) -> None:
    for n in range(100, 100 + UNKNOWN_PER_MINUTE):
        assert await desk.find(digest(n), "10.0.0.1", 30_000) == {"missing": True}
    assert await desk.find(digest(999), "10.0.0.1", 30_000) == {"throttled": 30.0}
    assert len(postgres.asked) == UNKNOWN_PER_MINUTE
    assert "record" in await desk.find(digest(1), "10.0.0.2", 30_000)  # others are not concerned
    assert "record" in await desk.find(digest(1), "10.0.0.1", 30_000)  # nor are cached keys
    assert await desk.find(digest(999), "10.0.0.1", 60_000) == {"missing": True}


async def test_a_whole_ipv6_network_is_one_guesser(desk: KeyDesk) -> None:
    for n in range(100, 100 + UNKNOWN_PER_MINUTE):
        await desk.find(digest(n), f"2001:db8:1:2::{n:x}", 0)
    assert "throttled" in await desk.find(digest(999), "2001:db8:1:2:ffff::1", 0)
    assert await desk.find(digest(998), "2001:db8:1:3::1", 0) == {"missing": True}


async def test_a_failed_look_up_is_neither_an_answer_nor_remembered(
    desk: KeyDesk, postgres: Postgres
) -> None:
    postgres.is_away = True
    with pytest.raises(ConnectionError):
        await desk.find(digest(1), "10.0.0.1", 0)
    postgres.is_away = False
    assert "record" in await desk.find(digest(1), "10.0.0.1", 0)


async def test_a_key_made_just_now_works_although_it_was_unknown(desk: KeyDesk, postgres: Postgres) -> None:
    assert await desk.find(digest(3), "10.0.0.1", 0) == {"missing": True}
    postgres.records[digest(3)] = made = {"digest": digest(3), "version": 2}
    assert desk.changed([made]) == [{"digest": digest(3), "record": made}]
    assert await desk.find(digest(3), "10.0.0.1", 0) == {"record": made}


async def test_a_change_replaces_what_is_cached_and_an_older_look_up_never_does(desk: KeyDesk) -> None:
    await desk.find(digest(1), "10.0.0.1", 0)
    revoked = {"digest": digest(1), "version": 5, "status": "revoked"}
    desk.changed([revoked])
    desk.changed([{"digest": digest(1), "version": 4, "status": "active"}])
    assert await desk.find(digest(1), "10.0.0.1", 0) == {"record": revoked}


async def test_without_postgres_a_known_key_works_for_fifteen_minutes(
    desk: KeyDesk, postgres: Postgres
) -> None:
    await desk.find(digest(1), "10.0.0.1", 0)
    postgres.is_away = True
    assert "record" in await desk.find(digest(1), "10.0.0.1", STALE_MS - 1)
    with pytest.raises(ConnectionError):
        await desk.find(digest(1), "10.0.0.1", STALE_MS)
