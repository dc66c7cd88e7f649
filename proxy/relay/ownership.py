"""Whose is what a request names, and what of an answer is the caller's from now on.

Owns a worker's memory of bindings, the question to control for what it does not hold, the lists that are
answered from bindings, and the Bind and Observed entries of an answer. Whether an id may be used is
ledger.bindings'; where ids are is the dialects' tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum, auto
from typing import Any
from urllib.parse import parse_qsl

from proxy.channel import Channel, ChannelError
from proxy.dialects.links import Home, Shown
from proxy.dialects.news import News, news_of
from proxy.dialects.owned import (
    ENDED,
    ID_CHARS_MAX,
    IDS_MAX,
    RUNNING,
    SUCCEEDED,
    Task,
)
from proxy.errors import BindingLookupUnavailable, CredentialsCooling, IdsApart, MalformedRequest, UnknownId
from proxy.journal.segments import Journal
from proxy.ledger import bindings, entry
from proxy.ledger.bindings import Binding
from proxy.ledger.entry import Bind, Observed
from proxy.metering.usage import Usage
from proxy.relay import listing as listing_
from proxy.relay.exchange import Exchange
from proxy.relay.ids import IdSource
from proxy.relay.linking import Links
from proxy.relay.pages import respond_json
from proxy.relay.sighting import Seen, Sighting, sighting_of
from proxy.routing.selection import Choice, Wish, by_preference

LOOKUP_S = 6.0  # control may wait for another node's drain
KNOWN_MAX = 50_000
LOOKED_AT_BYTES = 64 << 10  # of a request at once; a longer one is searched where it holds up nobody
NOTHING: dict[str, str] = {}
LOOKS = frozenset({"GET", "HEAD"})  # methods that change nothing of what they name
ONE_CALL = Usage(calls=1).as_dict()

# What is over, whoever asked: these answers started nothing.
NOTHING_STARTED = frozenset({entry.FAILED, entry.UPSTREAM_ERROR})


class Fate(Enum):
    """What an answer leaves of its call."""

    OVER = auto()
    GOES_ON = auto()  # as a task
    EXISTS = auto()  # the task was there before, and is not this call's


OVER, GOES_ON, EXISTS = Fate  # as globals: a look-up in the class takes 75 ns


def is_untouched(x: Exchange) -> bool:
    """Nothing that lives at a vendor is in a call: one look, which a plain conversation needs no more
    than. False: `Ownership.names` and `watch` know."""
    operation = x.operation
    assert operation is not None
    kept_if, content, doc = operation.kept_if, x.content, x.doc
    if kept_if is None or not 0 < len(content) <= LOOKED_AT_BYTES:  # an upload's is not held
        return False
    for member, by_default in kept_if:
        if doc.get(member, by_default):
            return False
    return operation.places.are_free_of(content, doc)


class Ownership:
    """The bindings of one worker."""

    def __init__(self, channel: Channel, journal: Journal, wall_ms: Callable[[], int], links: Links) -> None:
        self._links = links
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
        places = x.operation.places
        if x.content and x.upload is None and places.are_free_of(x.content, x.doc):
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
        found = await self._bound(account, named)
        for id_, place in named.items():
            if not found[id_]:
                raise UnknownId(param=place)
        return list(found.values())

    async def _bound(self, account: int, ids: Iterable[str]) -> dict[str, tuple[Binding, ...]]:
        """id -> where it is bound to the account; () for what is not."""
        missing = [id_ for id_ in ids if (account, id_) not in self._known and len(id_) <= ID_CHARS_MAX]
        if missing:
            reply = await self._ask("binding", {"account": account, "ids": missing})
            for id_, records in reply["found"].items():
                self._remember(account, id_, tuple(Binding(**record) for record in records))
        return {
            id_: tuple(b for b in self._known.get((account, id_), ()) if bindings.usable(b, account))
            for id_ in ids
        }

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

    async def answer_list(self, x: Exchange) -> bool:
        """Answer a list from bindings: the account's own and nothing else. False: it is one by ids, and its
        vendor can tell more of those that are left of them."""
        assert x.operation is not None and x.operation.lists is not None and x.key is not None
        listing = x.operation.lists
        if not listing.ids:
            ask = listing_.asked(x, listing)
        else:
            named = listing_.ids_asked(x, listing)
            found = {id_: own for id_, own in (await self._bound(x.key.account_id, named)).items() if own}
            if self._is_for_one(x, list(found.values())):
                if len(found) < len(named):
                    listing_.narrow(x, listing, [named[id_] for id_ in found])
                return False
            ask = {"account": x.key.account_id, "kind": listing.kind, "ids": list(found)}
        reply = await self._ask("bindings", ask) if ask.get("ids", True) else {"items": [], "more": False}
        respond_json(x, listing_.page(x, listing, reply))
        return True

    def _is_for_one(self, x: Exchange, found: list[tuple[Binding, ...]]) -> bool:
        """Do all of them live at one place? Then the call goes there."""
        if not found:
            return False
        try:
            x.bound = _common(found, self._candidates(x))
        except IdsApart:
            return False
        x.ownership = self
        return True

    async def _ask(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._channel.call_again(op, args, LOOKUP_S)
        except ChannelError as e:
            raise BindingLookupUnavailable(retry_after_s=2.0, detail=str(e)) from e

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
        x.hosting = self._links.hosting(x)
        x.ownership = self

    def conclude(self, x: Exchange, outcome: str) -> Fate:
        """The answer is over: bind what it made, note what it showed. Where the call goes on, its hold goes
        with the binding; its End is to be appended in the same tick."""
        sighting, attempt = x.sighting, x.attempts[-1] if x.attempts else None
        if attempt is None or not 200 <= attempt.status < 300 or outcome in NOTHING_STARTED:
            return Fate.OVER
        if x.bound is not None and x.method == "DELETE" and _ends_with(x.path, x.bound.vendor_id):
            self._observe(x.bound, bindings.GONE)
        if x.bound is not None and x.operation is not None and x.operation.hurries:
            self._observe(x.bound, bindings.DUE)
        if sighting is None:
            return Fate.OVER
        if sighting.exists and not self._may_claim(x, sighting):
            return Fate.EXISTS
        held = self._held(x, sighting)
        is_shown = sighting.task is None or not held or sighting.state is not None
        for id_, kind in sighting.ids.items():
            self._bind(x, kind, id_, sighting.content if is_shown else {}, with_hold=id_ == held)
        if x.bound is not None:
            self._look(x, x.bound, sighting)
        return Fate.GOES_ON if held and x.begin is not None and x.begin.hold_nanos else Fate.OVER

    def _may_claim(self, x: Exchange, sighting: Sighting) -> bool:
        """Is a task that was there before the caller's? It is if it comes of one that is, or is known to be:
        then Postgres finds the call that paid for it. Any other may be another account's."""
        assert x.key is not None
        if x.bound is not None:
            return True
        return all((x.key.account_id, id_) in self._known for id_ in sighting.ids)

    @staticmethod
    def _held(x: Exchange, sighting: Sighting) -> str:
        """The id of the task that waits for its end, with the hold of this call or to be told of, or ""."""
        task = sighting.task
        if task is None or x.begin is None or not (x.begin.hold_nanos or x.hook) or sighting.state in ENDED:
            return ""
        return next((id_ for id_, kind in sighting.ids.items() if kind == task.kind), "")

    def _bind(
        self, x: Exchange, kind: str, id_: str, content: dict[str, Any], *, with_hold: bool = False
    ) -> None:
        """Once per id, and once more when a hold goes with it."""
        assert x.key is not None
        at, account = x.attempts[-1], x.key.account_id
        known = self._known.get((account, id_), ())
        if any(b.home == (at.upstream, at.credential) for b in known) and not with_hold:
            return
        now = self._wall_ms()
        record = Bind(
            self._ids.next(now), now, account, x.key.key_id, kind, id_, at.upstream, at.mirror, at.credential,
            content=content, hook=x.hook if with_hold else "",
        )  # fmt: skip
        if with_hold and x.begin is not None:
            record.id, record.hold_nanos, record.lease = x.begin.id, x.begin.hold_nanos, x.begin.lease
        self._journal.append(entry.encode(record), None, settle=True)
        binding = Binding.of(record)
        if not binding.is_told and any(b.is_told for b in known if b.home == binding.home):
            binding = replace(binding, is_told=True)  # by the call that it was another's before
        self._remember(account, id_, (binding, *(b for b in known if b.home != binding.home)))
        self._channel.notify("bound", {"binding": binding.as_dict(), "content": content})

    def _look(self, x: Exchange, bound: Binding, sighting: Sighting) -> None:
        """A client looked at something of its own, or changed it."""
        task = sighting.task
        for id_, seen in sighting.many.items():
            for binding in self._known.get((bound.account, id_), ()):
                if task is not None and binding.home == bound.home and binding.kind == task.kind:
                    self._note(x, binding, task, seen)
        if task is not None and task.kind == bound.kind and sighting.state is not None:
            self._note(x, bound, task, sighting.one)
        elif x.method not in LOOKS and bound.vendor_id in (sighting.content.get("id"), *sighting.ids):
            self._observe(bound, RUNNING, content=sighting.content)

    def _note(self, x: Exchange, bound: Binding, task: Task, seen: Seen) -> None:
        state, told, content, files = seen.state, seen.told, seen.content, {}
        if state is None:
            return
        if state in ENDED and (task.model or task.results is not None):
            state = bindings.DUE  # what it costs is more than this answer tells
        if x.hosting is not None and state == SUCCEEDED:
            if not seen.is_whole:
                state = bindings.DUE  # where its files are is told in a longer answer than we keep
            home = Home(bound.upstream, bound.credential, bound.vendor_id)
            files = x.hosting.files(task, home, told)
            told, content = (x.hosting.document(shown, Shown(task), home) for shown in (told, content))
        news = news_of(task, told) if bound.is_told and seen.is_whole and state != bindings.DUE else None
        if bound.is_told and news is None and state in ENDED:
            state = bindings.DUE  # its owner is to be told more than this answer shows
        if self._told.get(bound.identity) == _mark(state, news, files):
            return
        usage = seen.usage.as_dict() or ONE_CALL if seen.usage is not None else {}
        if state in task.charged and task.usage is None:
            usage = ONE_CALL
        self._observe(bound, state, usage, content, news, files)

    def _observe(
        self,
        bound: Binding,
        state: str,
        usage: dict[str, Any] | None = None,
        content: dict[str, Any] | None = None,
        news: News | None = None,
        files: dict[str, str] | None = None,
    ) -> None:
        now = self._wall_ms()
        seen = Observed(
            self._ids.next(now), now, bound.vendor_id, bound.upstream, state, usage or {}, bound.credential,
            content or {}, files=files or {},
        )  # fmt: skip
        if news is not None:
            seen.mark, seen.body = news
        self._journal.append(entry.encode(seen), None, settle=True)
        self._told[bound.identity] = _mark(state, news, files)
        if len(self._told) > KNOWN_MAX:
            del self._told[next(iter(self._told))]
        if state == bindings.GONE:
            self._channel.notify("bound", {"binding": bound.as_dict(), "gone": True})


def _mark(state: str, news: News | None, files: dict[str, str] | None) -> str:
    """Looks with the same one need no second entry."""
    return f"{state} {news.mark if news is not None else ''} {len(files or ())}"


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
