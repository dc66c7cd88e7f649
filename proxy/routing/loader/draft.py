"""A file under examination: what is in it, where it stands, what is wrong with it.

Owns the look-ups that checks and compilation share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from proxy.routing import spec
from proxy.routing.globs import Globs
from proxy.routing.loader.builtin import ROUTES, BuiltinRoute
from proxy.routing.loader.mistakes import Mistakes, Path, did_you_mean
from proxy.routing.loader.references import References
from proxy.routing.loader.shape import Shaped
from proxy.routing.loader.tree import Node
from proxy.routing.loader.vendors import Dialect, Operation, Vendors

BUILTIN_BY_PATH = {route.path: route for route in ROUTES}


@dataclass
class Draft:
    shaped: Shaped
    root: Node
    references: References
    vendors: Vendors
    mistakes: Mistakes
    warnings: Mistakes

    @property
    def file(self) -> spec.RoutesFile:
        return self.shaped.spec

    def wrong(self, path: Path, what: str, *, of_key: bool = False) -> None:
        self.mistakes.at(self.root.place_of(path, of_key=of_key), what, path)

    def warn(self, path: Path, what: str, *, of_key: bool = True) -> None:
        self.warnings.at(self.root.place_of(path, of_key=of_key), what, path)

    def line(self, path: Path) -> int:
        return self.root.place_of(path, of_key=True)[0]

    def unknown(self, path: Path, what: str, known: Mapping[str, object]) -> None:
        """A name that nothing has."""
        given = self.root.text_at(path)
        self.wrong(path, f"{what} '{given}' is not known" + did_you_mean(given, known))

    # -- models --

    @cached_property
    def model_globs(self) -> Globs:
        return Globs(self.file.models)

    # -- operations --

    def dialect_of(self, upstream: str) -> Dialect | None:
        found = self.file.upstreams.get(upstream)
        return self.vendors.dialects.get(found.dialect) if found else None

    @cached_property
    def operations(self) -> dict[str, Operation]:
        """Every operation of this build by name; the first dialect's word counts."""
        dialects = list(self.vendors.dialects.values())
        return {name: op for dialect in reversed(dialects) for name, op in dialect.operations.items()}

    def offered(self, upstream: str) -> set[str]:
        """The operations that an upstream offers."""
        dialect = self.dialect_of(upstream)
        if dialect is None:
            return set()
        chosen = self.file.upstreams[upstream].operations
        return set(dialect.operations) & set(dialect.operations if chosen is None else chosen)

    # -- routes --

    def routes(self) -> Iterator[tuple[Path, spec.Route]]:
        """Each route of the file with its path there."""
        for index, route in zip(self.shaped.routes, self.file.routes, strict=True):
            yield ("routes", index), route

    @cached_property
    def builtin_routes(self) -> tuple[BuiltinRoute, ...]:
        """Those that the file does not replace."""
        replaced = {route.path for route in self.file.routes}
        return tuple(route for route in ROUTES if route.path not in replaced)

    def operation_of(self, route: spec.Route) -> str:
        """'' where the file does not say and the path is no built-in one."""
        builtin = BUILTIN_BY_PATH.get(route.path)
        return route.operation or (builtin.operation if builtin else "")

    def caller_of(self, route: spec.Route) -> str:
        """The dialect that a route's callers speak; '' where no dialect has the operation."""
        builtin, operation = BUILTIN_BY_PATH.get(route.path), self.operation_of(route)
        if route.dialect:
            return route.dialect
        if builtin and builtin.operation == operation:
            return builtin.dialect
        return next((n for n, d in self.vendors.dialects.items() if operation in d.operations), "")
