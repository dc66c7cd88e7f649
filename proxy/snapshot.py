"""One immutable bundle of all that a call is decided by: routes, prices, dialects, one generation.

Owns what needs more than one of them, and the pieces in which a bundle travels to the workers. Pure.
A call keeps the snapshot that it began under; a reload swaps the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from proxy.access.overrides import Override, override_for
from proxy.dialects import DIALECTS
from proxy.dialects.base import Dialect, OperationSpec
from proxy.dialects.declared import dialect as declared_dialect
from proxy.dialects.links import Hosting, Linker
from proxy.dialects.owned import Task, tasks_of
from proxy.metering.pricing import PPM, Price, price_from_content
from proxy.metering.quote import Sale
from proxy.routing.addresses import Addresses
from proxy.routing.globs import MEMO_ENTRIES_MAX, NAME_CHARACTERS_MAX, Globs, matches
from proxy.routing.table import (
    Candidate,
    Endpoint,
    Match,
    Model,
    OfferedOperation,
    OnDisconnect,
    Route,
    Table,
    Tier,
    Upstream,
)

PIECE_BYTES = 128 * 1024  # parsed in about a millisecond, and far below a channel message's limit


class Rates:
    """The rate card. The file's prices come before the official ones; in each the exact name comes first,
    then the most literal glob. A price is built when it is first asked for: there may be thousands.
    """

    __slots__ = ("_built", "_official", "_own")

    def __init__(self, own: Mapping[str, Any], official: Mapping[str, Any]) -> None:
        """Both map names and globs to contents (metering.pricing); official names are in lower case."""
        self._own = (Globs(own), own)
        self._official = (Globs(official), official)
        self._built: dict[int, Price] = {}

    def price_for(self, model: str) -> Price | None:
        """None: the model has no price and must be refused."""
        for (globs, contents), name in ((self._own, model), (self._official, model.lower())):
            pattern = globs.find(name)
            if pattern is not None:
                return self._price(contents[pattern])
        return None

    def _price(self, content: Mapping[str, Any]) -> Price:
        price = self._built.get(id(content))  # the document keeps it alive
        if price is None:
            price = self._built[id(content)] = price_from_content(content)
        return price


class Snapshot:
    """The table with its rate card and the dialects that it names."""

    __slots__ = ("_addresses", "_permissions", "_tasks", "dialects", "generation", "rates", "table")

    def __init__(self, table: Table, rates: Rates, dialects: Mapping[str, Dialect], generation: int) -> None:
        self.table = table
        self.rates = rates
        self.dialects = dialects
        self.generation = generation
        self._permissions: dict[tuple[tuple[str, ...], str], bool] = {}
        self._tasks: dict[str, Mapping[str, Task]] = {}
        self._addresses: dict[str, Addresses] = {}
        unknown = {u.dialect for u in table.upstreams.values()} - set(dialects)
        if unknown:
            raise ValueError(f"compiled by another build: dialects {sorted(unknown)}")

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Snapshot:
        """`document` is what the loader compiled; keeps references into it.

        Raises KeyError, TypeError or ValueError on a document of another build.
        """
        table = Table.from_document(document)
        rates = Rates(document["prices"], document["official_prices"])
        declared = {row["name"]: declared_dialect(row) for row in document["families"]}
        return cls(table, rates, {**DIALECTS, **declared}, table.generation)

    def endpoint_for(self, host: str | None) -> Endpoint:
        return self.table.endpoint_for(host)

    def match(self, method: str, path: str) -> Match:
        return self.table.match(method, path)

    def model_for(self, name: str) -> Model | None:
        return self.table.model_for(name)

    def tier(self, name: str) -> Tier:
        return self.table.tier(name)

    def multiplier_ppm(self, model: str) -> int:
        return self.table.multiplier_ppm(model)

    def price_for(self, model: str) -> Price | None:
        """The official price in the station's currency; None: the model cannot be sold."""
        return self.rates.price_for(model)

    def sale(self, model: str, tier: Tier, overrides: Sequence[Override] = ()) -> Sale | None:
        """What a model costs an account: an override comes before the multipliers of tier and model.

        The one way from a name to a price: of holds, bills, `explain`, price lists. None: it cannot be sold.
        """
        override = override_for(overrides, model)
        if override is not None and override.content is not None:
            return Sale(price_from_content(override.content), PPM, PPM, str(override.id))
        price = self.price_for(model)
        if price is None:
            return None
        if override is not None and override.ppm is not None:
            return Sale(price, override.ppm, PPM, str(override.id))
        return Sale(price, self.multiplier_ppm(model), tier.multiplier_ppm)

    def upstream(self, name: str) -> Upstream:
        """Raises KeyError: a binding may name an upstream that the file no longer has."""
        return self.table.upstreams[name]

    def offered(self, upstream: str, operation: str) -> OfferedOperation | None:
        """Where an upstream serves an operation; None: it does not."""
        return self.table.upstreams[upstream].operations.get(operation)

    def operation(self, upstream: str, name: str) -> OperationSpec | None:
        """What an operation is at an upstream that offers it."""
        offered = self.offered(upstream, name)
        if offered is None:
            return None
        dialect = offered.dialect or self.table.upstreams[upstream].dialect
        return self.dialects[dialect].operations.get(name)

    def tasks(self, upstream: str) -> Mapping[str, Task]:
        """kind -> what is known of the tasks that may run at an upstream."""
        known = self._tasks.get(upstream)
        if known is None:
            there = self.table.upstreams[upstream]
            specs = {name: spec for name in there.operations if (spec := self.operation(upstream, name))}
            known = self._tasks[upstream] = tasks_of(specs)
        return known

    def hosting(self, linker: Linker | None, family: str, url: str) -> Hosting | None:
        """What becomes of the files of a family's tasks, at the endpoint with that URL; None: nothing."""
        results = self.table.results
        if linker is None or results is None or not results.keeps(family):
            return None
        return Hosting(linker, url if results.rewrite else "")

    def here(self, family: str, upstream: str, endpoint: str) -> Callable[[str], str | None]:
        """URL of the vendor's API -> the one at an endpoint of ours that leads there; None: none does."""
        known = self._addresses.get(family)
        if known is None:
            routes = (route for route in self.table.routes if route.dialect == family)
            operations = self.table.upstreams[upstream].operations
            paths = [
                (route.at or operations[route.operation].path, route.path)
                for route in routes
                if route.operation in operations
            ]
            known = self._addresses[family] = Addresses(paths)
        mirrors = self.table.upstreams[upstream].mirrors
        bases = sorted({"", *(mirror.base_path for mirror in mirrors)}, key=len, reverse=True)
        return partial(known.here, base_paths=bases, endpoint=endpoint)

    def forgotten_after(self) -> dict[str, int]:
        """kind -> days, of what vendors forget by themselves."""
        return {
            place.kind: place.days
            for upstream in self.table.upstreams.values()
            for name in upstream.operations
            if (spec := self.operation(upstream.name, name))
            for place in spec.ids_out
            if place.days
        }

    def candidates(self, route: Route, model: Model | None) -> tuple[Candidate, ...]:
        """Where a call may go: those whose upstream is enabled and offers the route's operation."""
        return tuple(
            candidate
            for candidate in self.table.candidates(route, model)
            if (upstream := self.table.upstreams[candidate.upstream]).enabled
            and route.operation in upstream.operations
        )

    def serves(self, route: Route, model: Model | None) -> bool:
        """Does any candidate offer the route's operation, be it disabled?"""
        upstreams = self.table.upstreams
        candidates = self.table.candidates(route, model)
        return any(route.operation in upstreams[c.upstream].operations for c in candidates)

    @staticmethod
    def on_disconnect(model: Model | None, upstream: Upstream) -> OnDisconnect:
        """The model's word beats the upstream's: reasoning that nobody sees is paid for all the same."""
        return (model and model.on_disconnect) or upstream.on_disconnect

    def permitted(self, models: Sequence[str] | None, name: str) -> bool:
        """True if one of the globs covers the model; None permits all."""
        if models is None:
            return True
        asked = (tuple(models), name)
        known = self._permissions.get(asked)
        if known is None:
            known = len(name) <= NAME_CHARACTERS_MAX and any(matches(glob, name) for glob in models)
            if len(self._permissions) >= MEMO_ENTRIES_MAX:
                self._permissions.clear()
            if len(name) <= NAME_CHARACTERS_MAX:
                self._permissions[asked] = known
        return known


def secrets_in(table: Table) -> Iterator[str]:
    """What must never be in a log: of credentials, of proxies on the way to a mirror, of gateways
    and buckets."""
    yield from (gateway.secret for gateway in table.gateways.values())
    if table.results is not None and table.results.bucket is not None:
        yield table.results.bucket.secret
    for upstream in table.upstreams.values():
        yield from (credential.secret for credential in upstream.credentials)
        yield from (mirror.via.secret for mirror in upstream.mirrors if mirror.via and mirror.via.secret)


def pieces(document: Mapping[str, Any]) -> Iterator[bytes]:
    """A document as smaller ones of about PIECE_BYTES of JSON, to be put together by an Assembly.

    Sections that are mappings or lists are cut between their rows; a single row is never cut.
    """
    for section, value in document.items():
        rows: list[Any] = list(value.items()) if isinstance(value, dict) else value
        if not isinstance(rows, list):
            yield orjson.dumps({section: value})
            continue
        make = dict if isinstance(value, dict) else list
        batch, size = [], 0
        for row in rows:
            batch.append(row)
            size += len(orjson.dumps(row))
            if size >= PIECE_BYTES:
                yield orjson.dumps({section: make(batch)})
                batch, size = [], 0
        yield orjson.dumps({section: make(batch)})


class Assembly:
    """Puts a document together from its pieces, one short step at a time."""

    __slots__ = ("document",)

    def __init__(self) -> None:
        self.document: dict[str, Any] = {}

    def add(self, piece: bytes | str) -> None:
        """The next piece, in the order of `pieces`. Raises orjson.JSONDecodeError (a ValueError)."""
        for section, value in orjson.loads(piece).items():
            known = self.document.setdefault(section, value)
            if known is value:
                continue
            if isinstance(value, dict):
                known.update(value)
            else:
                known.extend(value)

    def snapshot(self) -> Snapshot:
        """Raises what Snapshot.from_document raises, KeyError above all when a piece is missing."""
        return Snapshot.from_document(self.document)
