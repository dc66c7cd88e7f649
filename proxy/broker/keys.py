"""The node's cache of key records, and what it costs to ask for keys that do not exist.

Owns look-up with singleflight, the negative cache and the budget per client address. Knows no SQL: the
look-up is given in. A key's digest travels as hex; keys themselves are never seen here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv6Address, ip_address
from typing import Any

Record = dict[str, Any]
Lookup = Callable[[bytes], Awaitable[Record | None]]

RECORDS_MAX = 200_000  # about 1 KB each
UNKNOWN_MAX = 100_000
UNKNOWN_MS = 60_000  # a key that is made meanwhile is pushed by its generation
UNKNOWN_PER_MINUTE = 20  # per address (faults.md T40)
ADDRESSES_MAX = 50_000
MINUTE_MS = 60_000
STALE_MS = 15 * MINUTE_MS  # how long a record is believed that Postgres did not confirm (money.md)


class Budget:
    """How many unknown keys one address may try in a minute."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[int, int]] = {}  # address -> (minute, tries)

    def wait_s(self, address: str, now_ms: int) -> float:
        """0: it may try. Else: until its next try."""
        minute, tries = self._spent.get(_household(address), (0, 0))
        if minute != now_ms // MINUTE_MS or tries < UNKNOWN_PER_MINUTE:
            return 0.0
        return ((minute + 1) * MINUTE_MS - now_ms) / 1000

    def spend(self, address: str, now_ms: int) -> None:
        home, now = _household(address), now_ms // MINUTE_MS
        minute, tries = self._spent.pop(home, (now, 0))
        self._spent[home] = (now, tries + 1 if minute == now else 1)
        if len(self._spent) > ADDRESSES_MAX:
            del self._spent[next(iter(self._spent))]


def _household(address: str) -> str:
    """An IPv6 customer has a whole /64."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is None:
        return str(IPv6Address(int(ip) >> 64 << 64))
    return address


class KeyDesk:
    """Answers op `key`, and turns what changed in Postgres into pushes."""

    def __init__(self, lookup: Lookup, stale_ms: int = STALE_MS) -> None:
        self._lookup = lookup
        self._stale_ms = stale_ms
        self._records: dict[str, Record] = {}
        self._unknown: dict[str, int] = {}  # digest -> when to ask again
        self._asking: dict[str, asyncio.Future[Record | None]] = {}
        self._budget = Budget()
        self._confirmed_ms = 0

    async def find(self, digest: str, address: str, now_ms: int) -> dict[str, Any]:
        """{"record": ...}, {"missing": True} or {"throttled": seconds}.

        Raises what the look-up raises: then the key is neither known nor unknown.
        """
        record = self._records.get(digest)
        if record is not None and now_ms - self._confirmed_ms < self._stale_ms:
            return {"record": record}
        if self._unknown.get(digest, 0) > now_ms:
            return {"missing": True}
        if wait_s := self._budget.wait_s(address, now_ms):
            return {"throttled": wait_s}
        record = await self._ask(digest, now_ms)
        if record is not None:
            return {"record": record}
        self._budget.spend(address, now_ms)
        return {"missing": True}

    async def _ask(self, digest: str, now_ms: int) -> Record | None:
        """Once for all that ask at the same time; a failure is everybody's."""
        waiting = self._asking.get(digest)
        if waiting is not None:
            return await asyncio.shield(waiting)
        answer = self._asking[digest] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_looked_at)
        try:
            record = await self._lookup(bytes.fromhex(digest))
            answer.set_result(record)
        except Exception as e:
            answer.set_exception(e)
            raise
        finally:
            answer.cancel()  # nothing, if it is set
            del self._asking[digest]
        self._remember(digest, record, now_ms)
        return record

    def _remember(self, digest: str, record: Record | None, now_ms: int) -> None:
        if record is not None:
            self._put(digest, record)
            return
        self._unknown[digest] = now_ms + UNKNOWN_MS
        if len(self._unknown) > UNKNOWN_MAX:
            del self._unknown[next(iter(self._unknown))]

    def _put(self, digest: str, record: Record) -> None:
        known = self._records.get(digest)
        if known is not None and known["version"] > record["version"]:
            return  # a look-up that was overtaken by a push
        self._unknown.pop(digest, None)
        self._records[digest] = record
        if len(self._records) > RECORDS_MAX:
            del self._records[next(iter(self._records))]

    def confirm(self, now_ms: int) -> None:
        """Postgres was asked for changes just now: what is held is current."""
        self._confirmed_ms = now_ms

    def changed(self, records: Iterable[Record]) -> list[dict[str, Any]]:
        """Records that are new or different in Postgres -> arguments of op `keys`.

        Workers hold some of them, and remember keys as unknown that exist by now.
        """
        pushes = []
        for record in records:
            digest = record["digest"]
            if digest in self._records:
                self._put(digest, record)
            self._unknown.pop(digest, None)
            pushes.append({"digest": digest, "record": record})
        return pushes

    def __len__(self) -> int:
        return len(self._records)


def _looked_at(answer: asyncio.Future[Record | None]) -> None:
    """Nobody may have waited for it: its failure was told to who asked first."""
    if not answer.cancelled():
        answer.exception()
