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
LATE_S = (0.1, 0.2, 0.4, 0.8, 1.0, 1.0)  # pauses while another node may be draining: less than a worker waits
UNKNOWN_PER_MINUTE = 120  # ids of one account that are looked for everywhere; then only in Postgres
MINUTE_MS = 60_000
DRAINED_MS = 60_000  # after this long Postgres has what the journals of the node have, on any machine
LIST_BYTES_MAX = 200 << 10  # of a page: it travels as one message


class Listed(Protocol):
    vendor_id: str
    content: dict[str, Any] | None
    made: str


class Source(Protocol):
    """Postgres and the journals; every method may raise what means that Postgres is away."""

    async def find(self, account: int, vendor_ids: list[str]) -> list[Binding]: ...
    async def page(
        self,
        account: int,
        kind: str,
        limit: int,
        *,
        after: str = "",
        before: str = "",
        only_open: bool = False,
    ) -> list[Any]:
        """Listed, the newest first; the marks are what `made` says of another."""

    async def listed(self, account: int, kind: str, vendor_ids: list[str]) -> list[Any]: ...
    async def count(self, account: int, kind: str) -> int: ...
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
        self._may_lack = False  # what a worker said while its line was down
        self._unknown: dict[int, tuple[int, int]] = {}  # account -> (minute, ids)

    # -- what workers tell --

    def connected(self) -> None:
        """A worker has a new line: what it bound before is in its journal, and may never have been told."""
        self._may_lack = True

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
        """{"items": [{"id", "content"}, ...], "more": bool, "total": int}: the account's own of a kind, the
        newest first; or those that `ids` names, in its order."""
        if "ids" in args:
            return {"items": await self._named(args["account"], args["kind"], args["ids"]), "more": False}
        account, kind, limit, offset = args["account"], args["kind"], args["limit"], args.get("offset", 0)
        after, before = args.get("after", ""), args.get("before", "")
        if self._may_lack:
            await self._read_journals()
        made = await self._made(account, after or before) if after or before else ""
        if not made and (after or before):
            return {"items": [], "more": False, "total": 0}
        is_back = bool(before) and not after
        span = {"before": made} if is_back else {"after": made}
        only_open = args.get("open", False)
        rows = await self._source().page(account, kind, offset + limit + 1, **span, only_open=only_open)
        # What is new is known here before it is there: a page has both, in one order.
        listed = {} if only_open else self._newest(account, kind, **span)
        listed.update({row.vendor_id: (row.made, row.content) for row in rows})
        found = [(m, id_, c) for id_, (m, c) in listed.items() if not self._is_gone(account, id_)]
        found.sort(key=lambda item: item[0], reverse=not is_back)
        items, more = _within_message(found[offset : offset + limit])
        more |= len(found) > offset + limit
        total = await self._total(account, kind) if args.get("total") else 0
        return {"items": items[::-1] if is_back else items, "more": more, "total": total}

    async def _named(self, account: int, kind: str, ids: list[str]) -> list[Args]:
        rows = await self._source().listed(account, kind, ids)
        there = {row.vendor_id: row.content for row in rows}
        new = {id_: content for id_, (_, content) in self._newest(account, kind).items()} | there
        known = self._known.get(account, {})
        items = [("", id_, new.get(id_)) for id_ in ids if id_ in new or id_ in known]
        return _within_message([item for item in items if not self._is_gone(account, item[1])])[0]

    async def _total(self, account: int, kind: str) -> int:
        new = list(self._newest(account, kind))
        drained = await self._source().listed(account, kind, new) if new else []
        return await self._source().count(account, kind) + len(new) - len(drained)

    async def _made(self, account: int, id_: str) -> str:
        """Where in lists a thing stands; "" if nobody knows it, however short ago it was made."""
        await self.find({"account": account, "ids": [id_]})
        return max((k.binding.made for k in self._known.get(account, {}).get(id_, ())), default="")

    def _newest(
        self, account: int, kind: str, *, after: str = "", before: str = ""
    ) -> dict[str, tuple[str, dict[str, Any] | None]]:
        """What this node knows and Postgres may not have yet."""
        return {
            id_: (made, found[0].content)
            for id_, found in self._known.get(account, {}).items()
            if found[0].binding.kind == kind
            and found[0].content is not None
            and self._is_new(account, id_)
            and (made := found[0].binding.made)
            and (not after or made < after)
            and (not before or made > before)
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
            lacked, self._may_lack = self._may_lack, False
            try:
                records = await self._source().journaled()
            except BaseException:
                self._may_lack = lacked
                raise
            for record in records:
                binding = Binding.of(record)
                known = self._known.get(binding.account, {}).get(binding.vendor_id, ())
                if all(
                    k.binding.home != binding.home for k in known
                ):  # what was told is newer: it may be gone
                    self._put(binding, record.content)

    async def _wait_for_others(self, account: int, ids: list[str]) -> list[str]:
        for pause_s in LATE_S:
            await asyncio.sleep(pause_s)
            await self._ask(account, ids)
            ids = self._missing(account, ids)
            if not ids:
                break
        return ids


def _within_message(found: list[tuple[str, str, dict[str, Any] | None]]) -> tuple[list[Args], bool]:
    """As many as one message holds, and whether there were more."""
    items: list[Args] = []
    size = 0
    for _, id_, content in found:
        size += len(str(content))
        if size > LIST_BYTES_MAX and items:
            return items, True
        items.append({"id": id_, "content": content})
    return items, False
