"""What workers ask about ids that live at vendors: whose is this, what is mine.

Owns the node's memory of bindings, and how one is found that was made a moment ago: by this node's workers
(told before they answer, or read from their journals) or by another node's (its drain takes a moment).
Knows no SQL and no file: both are given in. Only an account's own bindings are ever told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from proxy.ledger.bindings import Binding
from proxy.ledger.entry import Bind

Args = dict[str, Any]

KNOWN_MAX = 100_000  # bindings, about 500 bytes each
LATE_S = (0.1, 0.2, 0.4, 0.8)  # pauses while another node may be draining
UNKNOWN_PER_MINUTE = 120  # ids of one account that are looked for everywhere; then only in Postgres
MINUTE_MS = 60_000
DRAINED_MS = 10_000  # after this long Postgres has what the node's journals have
LIST_BYTES_MAX = 200 << 10  # of a page: it travels as one message


class Listed(Protocol):
    vendor_id: str
    content: dict[str, Any] | None


class Source(Protocol):
    """Postgres and the journals; every method may raise what means that Postgres is away."""

    async def find(self, account: int, vendor_ids: list[str]) -> list[Binding]: ...
    async def page(
        self, account: int, kind: str, limit: int, *, after: str = "", before: str = ""
    ) -> tuple[list[Any], bool]: ...
    async def journaled(self) -> Iterable[Bind]:
        """What the node's journals hold and Postgres has not."""

    async def has_other_nodes(self) -> bool: ...


class _Known(NamedTuple):
    binding: Binding
    content: dict[str, Any] | None
    is_gone: bool
    since_ms: int  # when it was told here


class BindingDesk:
    """Answers op `binding` and `bindings`, takes op `bound`."""

    def __init__(self, source: Callable[[], Source], now_ms: Callable[[], int]) -> None:
        self._source = source
        self._now_ms = now_ms
        self._known: dict[int, dict[str, list[_Known]]] = {}  # account -> id -> one per upstream
        self._count = 0
        self._reading = asyncio.Lock()
        self._readings = 0
        self._unknown: dict[int, tuple[int, int]] = {}  # account -> (minute, ids)

    # -- what workers tell --

    def bound(self, args: Args) -> None:
        """A worker has bound an id, or seen it deleted."""
        binding = Binding(**args["binding"])
        self._put(binding, args.get("content"), args.get("gone", False))

    def _put(self, binding: Binding, content: dict[str, Any] | None = None, is_gone: bool = False) -> None:
        of_account = self._known.setdefault(binding.account, {})
        others = [k for k in of_account.get(binding.vendor_id, ()) if k.binding.home != binding.home]
        if binding.vendor_id not in of_account:
            self._count += 1
        of_account[binding.vendor_id] = [_Known(binding, content, is_gone, self._now_ms()), *others]
        while self._count > KNOWN_MAX:
            eldest = next(iter(self._known))
            self._count -= len(self._known.pop(eldest))

    # -- what workers ask --

    async def find(self, args: Args) -> Args:
        """{"found": {id: [binding, ...]}}, without those that are not the account's.

        Raises what its source raises: then they are neither known nor unknown.
        """
        account, wanted = args["account"], dict.fromkeys(args["ids"])
        missing = self._missing(account, wanted)
        if missing:
            await self._ask(account, missing)
            missing = self._missing(account, missing)  # a worker may have told meanwhile
        if missing and self._may_search(account, len(missing)):
            await self._read_journals()
            missing = self._missing(account, missing)
            if missing and await self._source().has_other_nodes():
                missing = await self._wait_for_others(account, missing)
        known = self._known.get(account, {})
        return {"found": {i: [k.binding.as_dict() for k in known[i]] for i in wanted if i in known}}

    async def page(self, args: Args) -> Args:
        """{"items": [{"id", "content"}, ...], "more": bool}: the account's own of a kind, newest first."""
        account, kind, limit = args["account"], args["kind"], args["limit"]
        after, before = args.get("after", ""), args.get("before", "")
        listed, more = await self._source().page(account, kind, limit, after=after, before=before)
        for pause_s in LATE_S:
            if listed or not self._is_new(account, after or before):
                break
            await asyncio.sleep(pause_s)  # the page begins where Postgres is not yet
            listed, more = await self._source().page(account, kind, limit, after=after, before=before)
        rows = {row.vendor_id: row.content for row in listed}
        if not after and not before:
            rows = self._newest(account, kind) | rows
        items: list[Args] = []
        size = 0
        for id_, content in rows.items():
            if self._is_gone(account, id_):
                continue
            size += len(str(content))
            if len(items) == limit or size > LIST_BYTES_MAX:
                more = True
                break
            items.append({"id": id_, "content": content})
        return {"items": items, "more": more}

    def _newest(self, account: int, kind: str) -> dict[str, dict[str, Any] | None]:
        """What this node knows and Postgres may not have yet."""
        known = self._known.get(account, {})
        return {
            id_: found[0].content
            for id_, found in reversed(known.items())
            if found[0].binding.kind == kind and found[0].content and self._is_new(account, id_)
        }

    def _is_new(self, account: int, id_: str) -> bool:
        """May Postgres not have it yet?"""
        found = self._known.get(account, {}).get(id_)
        return found is not None and found[0].since_ms > self._now_ms() - DRAINED_MS

    def _is_gone(self, account: int, id_: str) -> bool:
        found = self._known.get(account, {}).get(id_)
        return found is not None and found[0].is_gone

    def _missing(self, account: int, ids: Iterable[str]) -> list[str]:
        known = self._known.get(account, {})
        return [id_ for id_ in ids if id_ not in known]

    async def _ask(self, account: int, ids: list[str]) -> None:
        for binding in reversed(await self._source().find(account, ids)):
            self._put(binding)

    def _may_search(self, account: int, count: int) -> bool:
        minute = self._now_ms() // MINUTE_MS
        since, spent = self._unknown.get(account, (minute, 0))
        spent = count + (spent if since == minute else 0)
        self._unknown[account] = (minute, spent)
        if len(self._unknown) > KNOWN_MAX:
            del self._unknown[next(iter(self._unknown))]
        return spent <= UNKNOWN_PER_MINUTE

    async def _read_journals(self) -> None:
        """Who waits for the lock shares one reading, which begins after all of them asked."""
        begun = self._readings
        async with self._reading:
            if self._readings > begun:
                return
            self._readings += 1
            for record in await self._source().journaled():
                self._put(Binding.of(record), record.content or None)

    async def _wait_for_others(self, account: int, ids: list[str]) -> list[str]:
        for pause_s in LATE_S:
            await asyncio.sleep(pause_s)
            await self._ask(account, ids)
            ids = self._missing(account, ids)
            if not ids:
                break
        return ids
