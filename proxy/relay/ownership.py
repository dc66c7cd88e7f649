"""Whose is what a request names, and what of an answer is the caller's from now on.

Owns a worker's memory of bindings, the question to control for what it does not hold, the lists that are
answered from bindings, and the Bind and Observed entries of an answer. Whether an id may be used is
ledger.bindings'; where ids are is the dialects' tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from proxy.channel import Channel, ChannelError
from proxy.dialects.news import News, news_of
from proxy.dialects.owned import (
    ENDED,
    ID_CHARS_MAX,
    IDS_MAX,
    RUNNING,
    SUCCEEDED,
    Listing,
    Places,
)
from proxy.errors import BindingLookupUnavailable, CredentialsCooling, IdsApart, MalformedRequest, UnknownId
from proxy.journal.segments import Journal
from proxy.ledger import bindings, entry
from proxy.ledger.bindings import Binding
from proxy.ledger.entry import Bind, Observed
from proxy.metering.usage import Usage
from proxy.relay.exchange import Exchange
from proxy.relay.ids import IdSource
from proxy.relay.pages import respond_json
from proxy.relay.sighting import Sighting, sighting_of
from proxy.routing.selection import Choice, Wish, by_preference

LOOKUP_S = 3.0  # control may wait for another node's drain
KNOWN_MAX = 50_000
LIST_DEFAULT, LIST_MAX = 20, 100
NOTHING: dict[str, str] = {}
LOOKS = frozenset({"GET", "HEAD"})  # methods that change nothing of what they name
ONE_CALL = Usage(calls=1).as_dict()

# What is over, whoever asked: these answers started nothing.
_NOTHING_STARTED = frozenset({entry.FAILED, entry.UPSTREAM_ERROR})


class Ownership:
    """The bindings of one worker."""

    def __init__(self, channel: Channel, journal: Journal, wall_ms: Callable[[], int]) -> None:
        self._channel = channel
        self._journal = journal
        self._wall_ms = wall_ms
        self._ids = IdSource()
        self._known: dict[tuple[int, str], tuple[Binding, ...]] = {}
        self._told: dict[tuple[str, str, str], str] = {}  # identity -> the look that was journaled last

    # -- requests --

    def names(self, x: Exchange) -> dict[str, str]:
        """id -> where it stands, of everything that a request names. Raises MalformedRequest."""
        assert x.operation is not None
        ids_in = x.operation.ids_in
        places = _PLACES.get(id(ids_in))
        if places is None:
            places = _PLACES[id(ids_in)] = Places(ids_in)
        if x.content and x.upload is None and places.are_free_of(x.content):
            return {}
        named = places.ids_named(x.doc, x.captures, dict(parse_qsl(x.query)) if x.query else NOTHING)
        sold = x.standing.model if x.standing is not None else None
        if sold is not None and sold.pattern == x.model:
            named.pop(x.model, None)  # a trained model that the file names is everybody's
        if len(named) > IDS_MAX:
            raise MalformedRequest("The request names more objects than one request may.")
        return named

    async def claim(self, x: Exchange, named: dict[str, str]) -> None:
        """Everything that a request names is its account's; fills in `x.bound`.

        Raises UnknownId for what is unbound or foreign, IdsApart, BindingLookupUnavailable.
        """
        assert x.key is not None
        x.bound = _common(await self._find(x.key.account_id, named), self._candidates(x))
        x.ownership = self

    async def _find(self, account: int, named: dict[str, str]) -> list[tuple[Binding, ...]]:
        missing = [id_ for id_ in named if (account, id_) not in self._known and len(id_) <= ID_CHARS_MAX]
        if missing:
            try:
                reply = await self._channel.call_again(
                    "binding", {"account": account, "ids": missing}, LOOKUP_S
                )
            except ChannelError as e:
                raise BindingLookupUnavailable(retry_after_s=2.0, detail=str(e)) from e
            for id_, records in reply["found"].items():
                self._remember(account, id_, tuple(Binding(**record) for record in records))
        found = []
        for id_, place in named.items():
            usable = tuple(b for b in self._known.get((account, id_), ()) if bindings.usable(b, account))
            if not usable:
                raise UnknownId(param=place)
            found.append(usable)
        return found

    def _remember(self, account: int, id_: str, found: tuple[Binding, ...]) -> None:
        self._known.pop((account, id_), None)
        self._known[account, id_] = found
        if len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]

    @staticmethod
    def _candidates(x: Exchange) -> list[str]:
        assert x.snapshot is not None and x.route is not None
        model = x.standing.model if x.standing is not None else None
        return [candidate.upstream for candidate in x.snapshot.candidates(x.route, model)]

    def choices(self, x: Exchange) -> list[Choice]:
        """Where a call that names something bound may go: its upstream and its credential, which may be
        retired. Raises IdsApart where that upstream cannot run the model, CredentialsCooling where the
        file knows it no more."""
        bound = x.bound
        assert bound is not None and x.snapshot is not None and x.route is not None and x.key is not None
        standing_model = x.standing.model if x.standing is not None else None
        upstream = x.snapshot.table.upstreams.get(bound.upstream)
        if upstream is None or not upstream.enabled or x.route.operation not in upstream.operations:
            raise CredentialsCooling(detail=f"bound to upstream {bound.upstream}")
        credential = next((c for c in upstream.credentials if c.name == bound.credential), None)
        if credential is None:
            raise CredentialsCooling(detail=f"bound to credential {bound.credential} of {bound.upstream}")
        model = x.model
        if standing_model is not None:
            there = [
                c for c in x.snapshot.candidates(x.route, standing_model) if c.upstream == bound.upstream
            ]
            if not there:
                raise IdsApart
            model = there[0].as_model or model
        wish = Wish(x.model, x.is_stream, x.key.mirror)
        return [
            Choice(upstream, mirror, credential, model) for mirror in by_preference(upstream.mirrors, wish)
        ]

    # -- lists --

    async def list(self, x: Exchange) -> None:
        """Answer a list from bindings: the account's own and nothing else."""
        assert x.operation is not None and x.operation.lists is not None and x.key is not None
        listing = x.operation.lists
        query = dict(parse_qsl(x.query))
        ask = {
            "account": x.key.account_id,
            "kind": listing.kind,
            "limit": _limit(query.get(listing.limit, "")),
            "after": query.get(listing.after, ""),
            "before": query.get(listing.before, ""),
        }
        try:
            reply = await self._channel.call_again("bindings", ask, LOOKUP_S)
        except ChannelError as e:
            raise BindingLookupUnavailable(retry_after_s=2.0, detail=str(e)) from e
        respond_json(x, _listed(listing, reply["items"], reply["more"]))

    # -- answers --

    def watch(self, x: Exchange) -> None:
        """Before dispatch: what the answer is to be read for; fills in `x.sighting`."""
        operation = x.operation
        assert operation is not None
        if operation.task is None and not any(
            not place.asked or x.doc.get(place.asked, place.by_default) for place in operation.ids_out
        ):
            return

        def on_id(kind: str, id_: str) -> None:
            self._bind(x, kind, id_, {})

        x.sighting = sighting_of(operation, x.doc, on_id)
        x.ownership = self

    def conclude(self, x: Exchange, outcome: str) -> bool:
        """The answer is over: bind what it made, note what it showed. True: the call started a task that
        goes on, and its hold goes with the binding; its End is to be appended in the same tick."""
        sighting, attempt = x.sighting, x.attempts[-1] if x.attempts else None
        if attempt is None or not 200 <= attempt.status < 300 or outcome in _NOTHING_STARTED:
            return False
        if x.bound is not None and x.method == "DELETE" and _ends_with(x.path, x.bound.vendor_id):
            self._observe(x.bound, bindings.GONE)
        if sighting is None:
            return False
        held = self._held(x, sighting)
        for id_, kind in sighting.ids.items():
            self._bind(x, kind, id_, sighting.content, with_hold=id_ == held)
        if x.bound is not None:
            self._note(x, x.bound, sighting)
        return bool(held)

    @staticmethod
    def _held(x: Exchange, sighting: Sighting) -> str:
        """The id of the task that waits for its end with the hold of this call, or ""."""
        task = sighting.task
        if task is None or x.begin is None or not (x.begin.hold_nanos or x.hook) or sighting.state in ENDED:
            return ""
        return next((id_ for id_, kind in sighting.ids.items() if kind == task.kind), "")

    def _bind(
        self, x: Exchange, kind: str, id_: str, content: dict[str, Any], *, with_hold: bool = False
    ) -> None:
        """Once per id, and once more when a hold goes with it."""
        assert x.key is not None
        at = x.attempts[-1]
        hook = x.hook if with_hold else ""
        binding = Binding(id_, kind, x.key.account_id, at.upstream, at.mirror, at.credential, bool(hook))
        known = self._known.get((binding.account, id_), ())
        if any(b.home == binding.home for b in known) and not with_hold:
            return
        now = self._wall_ms()
        record = Bind(
            self._ids.next(now), now, binding.account, x.key.key_id, kind, id_, binding.upstream,
            binding.mirror, binding.credential, content=content, hook=hook,
        )  # fmt: skip
        if with_hold and x.begin is not None:
            record.id, record.hold_nanos, record.lease = x.begin.id, x.begin.hold_nanos, x.begin.lease
        self._journal.append(entry.encode(record), None, settle=True)
        self._remember(binding.account, id_, (binding, *(b for b in known if b.home != binding.home)))
        self._channel.notify("bound", {"binding": binding.as_dict(), "content": content})

    def _note(self, x: Exchange, bound: Binding, sighting: Sighting) -> None:
        """A client looked at something of its own, or changed it."""
        task, state = sighting.task, sighting.state
        if task is None or task.kind != bound.kind or state is None:
            if x.method not in LOOKS and bound.vendor_id in (sighting.content.get("id"), *sighting.ids):
                self._observe(bound, RUNNING, content=sighting.content)
            return
        if state in ENDED and (task.model or task.results is not None):
            state = bindings.DUE  # what it costs is more than this answer tells
        news = news_of(task, sighting.whole) if bound.is_told and state != bindings.DUE else None
        if self._told.get(bound.identity) == _mark(state, news):
            return
        usage = sighting.usage.as_dict() or ONE_CALL if sighting.usage is not None else {}
        if state == SUCCEEDED and task.usage is None:
            usage = ONE_CALL
        self._observe(bound, state, usage, sighting.content, news)

    def _observe(
        self,
        bound: Binding,
        state: str,
        usage: dict[str, Any] | None = None,
        content: dict[str, Any] | None = None,
        news: News | None = None,
    ) -> None:
        now = self._wall_ms()
        seen = Observed(
            self._ids.next(now), now, bound.vendor_id, bound.upstream, state, usage or {}, bound.credential,
            content or {},
        )  # fmt: skip
        if news is not None:
            seen.mark, seen.body = news
        self._journal.append(entry.encode(seen), None, settle=True)
        self._told[bound.identity] = _mark(state, news)
        if len(self._told) > KNOWN_MAX:
            del self._told[next(iter(self._told))]
        if state == bindings.GONE:
            self._channel.notify("bound", {"binding": bound.as_dict(), "gone": True})


def _mark(state: str, news: News | None) -> str:
    """Looks with the same one need no second entry."""
    return state if news is None else f"{state} {news.mark}"


def _ends_with(path: str, id_: str) -> bool:
    """Is the last thing that a path names this one?"""
    return path.rstrip("/").endswith("/" + id_)


def _common(found: list[tuple[Binding, ...]], candidates: list[str]) -> Binding:
    """One place that has all that a request names; the binding of the first. Raises IdsApart."""
    homes = set.intersection(*({binding.home for binding in each} for each in found))
    there = [binding for binding in found[0] if binding.home in homes]
    if not there:
        raise IdsApart
    return min(
        there, key=lambda b: candidates.index(b.upstream) if b.upstream in candidates else len(candidates)
    )


# By the identity of a table's tuple: hashing one costs more than its use.
_PLACES: dict[int, Places] = {}


def _limit(text: str) -> int:
    return min(max(int(text), 1), LIST_MAX) if text.isascii() and text.isdigit() else LIST_DEFAULT


def _listed(listing: Listing, items: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """A page in the vendor's shape; an object that was never seen whole is told by its id."""
    ids = [item["id"] for item in items]
    bare = {"object": listing.kind} if listing.named == "id" else {}
    data = [item["content"] or {listing.named: item["id"], **bare} for item in items]
    page = {**listing.fixed, listing.member: data}
    if listing.token:
        return {**page, listing.token: ids[-1]} if more else page
    return {
        **page,
        "has_more": more,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }
