"""A file under examination: what is in it, where it stands, what is wrong with it.

Owns the look-ups that checks and compilation share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from proxy.routing import spec
from proxy.routing.globs import Globs
from proxy.routing.loader.builtin import MOUNTS, OWN_PATHS, BuiltinRoute
from proxy.routing.loader.families import Family
from proxy.routing.loader.mistakes import Mistakes, Path, did_you_mean
from proxy.routing.loader.presets import PRESETS, filled_in, is_foreign
from proxy.routing.loader.references import References
from proxy.routing.loader.shape import Shaped
from proxy.routing.loader.tree import Node
from proxy.routing.loader.vendors import Dialect, Operation, Vendors
from proxy.routing.paths import shape


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

    @cached_property
    def upstreams(self) -> dict[str, spec.Upstream]:
        """Those of the file, with what their presets say where they say nothing."""
        return {
            name: filled_in(upstream, PRESETS[upstream.preset]) if upstream.preset in PRESETS else upstream
            for name, upstream in self.file.upstreams.items()
        }

    def dialect_of(self, upstream: str) -> Dialect | None:
        found = self.upstreams.get(upstream)
        return self.vendors.dialects.get(found.dialect) if found else None

    def dialect_for(self, upstream: str, operation: str) -> str:
        """The dialect in which an upstream serves an operation: its own, else that of the operation."""
        own = self.upstreams[upstream].dialect
        if operation in self.vendors.dialects[own].operations:
            return own
        return next(
            name for name, dialect in self.vendors.dialects.items() if operation in dialect.operations
        )

    @cached_property
    def operations(self) -> dict[str, Operation]:
        """Every operation of this build by name; the first dialect's word counts."""
        dialects = list(self.vendors.dialects.values())
        return {name: op for dialect in reversed(dialects) for name, op in dialect.operations.items()}

    def operation_names(self, operations: Mapping[str, Operation]) -> dict[str, None]:
        """What a file may call them: one by one, or an API."""
        return dict.fromkeys((*operations, *(operation.api for operation in operations.values())))

    def offered(self, upstream: str) -> set[str]:
        """The operations that an upstream offers. A file may name an API for all that it has, and an
        operation of another dialect where it says the path."""
        dialect = self.dialect_of(upstream)
        if dialect is None:
            return set()
        chosen = self.upstreams[upstream].operations
        declared = {
            name
            for one in self.families
            if upstream in one.upstreams or one.name in (chosen or ())
            for name in one.operations
        }
        if chosen is None:
            return declared | set(dialect.operations)
        own = {name for name, spec in dialect.operations.items() if name in chosen or spec.api in chosen}
        return declared | own | {name for name in self.operations if is_foreign(name, chosen)}

    def auth_for(self, upstream: str, dialect: str) -> tuple[bytes, bytes]:
        """How its credential is written for operations of a dialect. A hub that serves a declared family
        beside its own dialect knows one key only, written as there."""
        own = self.upstreams[upstream].dialect
        one = self.vendors.dialects[dialect]
        if isinstance(one, Family) and dialect != own and not one.has_own_auth:
            return self.vendors.dialects[own].auth
        return one.auth

    # -- task families --

    @cached_property
    def families(self) -> list[Family]:
        return [one for one in self.vendors.dialects.values() if isinstance(one, Family)]

    @cached_property
    def family_shapes(self) -> dict[tuple[str, str], str]:
        """Shape and method of each route of the declared families, and whose it is; the first one's."""
        shapes: dict[tuple[str, str], str] = {}
        for one in self.families:
            for served in one.served():
                shapes.setdefault((shape(served.path), served.operation.said.method), one.name)
        return shapes

    # -- routes --

    @cached_property
    def _routes(self) -> list[tuple[Path, spec.Route]]:
        indexed = zip(self.shaped.routes, self.file.routes, strict=True)
        return [(("routes", index), one) for index, route in indexed for one in self._meant(route)]

    def routes(self) -> Iterator[tuple[Path, spec.Route]]:
        """Each route of the file with its path there, once for each operation that it stands for."""
        return iter(self._routes)

    def _meant(self, route: spec.Route) -> list[spec.Route]:
        """A path has an operation for each method (list, create): a file may name the API, or nothing."""
        if route.operation in self.operations:
            return [route]
        names = self._of_api(route) if route.operation else self._of_path(route)
        if len(names) == 1:
            return [route.model_copy(update={"operation": names[0]})]
        meant = []
        for name in names:
            methods = [m for m in self.operations[name].methods if m in (route.methods or (m,))]
            if methods:
                meant.append(route.model_copy(update={"operation": name, "methods": methods}))
        return meant or [route]

    def _of_api(self, route: spec.Route) -> list[str]:
        """The operations of an API at the path that a route ends with."""
        dialect = self.vendors.dialects.get(route.dialect or "")
        specs = [
            operation
            for operation in (dialect.operations if dialect else self.operations).values()
            if operation.api == route.operation and route.path.endswith("/" + operation.path)
        ]
        longest = max((operation.path for operation in specs), key=len, default="")
        return [operation.name for operation in specs if operation.path == longest]

    def _of_path(self, route: spec.Route) -> list[str]:
        """The built-in operations at a path: where one is a model's, it is the one that is meant."""
        names = [builtin.operation for builtin in self._builtin_at.get(route.path, ())]
        if route.methods:
            return names
        return [name for name in names if self.operations[name].model_at != "none"] or names

    @cached_property
    def builtins(self) -> tuple[BuiltinRoute, ...]:
        """What every station has: the paths of the mounted dialects."""
        found: dict[tuple[str, str], BuiltinRoute] = {}
        for prefix, name in MOUNTS:
            dialect = self.vendors.dialects.get(name)
            for operation in dialect.operations.values() if dialect else ():
                path = operation.path if operation.path.startswith("/") else f"{prefix}/{operation.path}"
                if operation.path and path not in OWN_PATHS:
                    found.setdefault(
                        (shape(path), operation.methods[0]), BuiltinRoute(path, operation.name, name)
                    )
        return tuple(found.values())

    @cached_property
    def _builtin_at(self) -> dict[str, list[BuiltinRoute]]:
        at: dict[str, list[BuiltinRoute]] = {}
        for builtin in self.builtins:
            at.setdefault(builtin.path, []).append(builtin)
        return at

    @cached_property
    def replaced(self) -> set[tuple[str, str]]:
        """Shape and method of each route that the file writes out."""
        return {
            (shape(route.path), method)
            for _, route in self.routes()
            for method in route.methods or self._methods(self.operation_of(route))
        }

    @cached_property
    def builtin_routes(self) -> tuple[BuiltinRoute, ...]:
        """Those that neither the file nor its families replace."""
        replaced = self.replaced | self.family_shapes.keys()
        return tuple(
            builtin
            for builtin in self.builtins
            if replaced.isdisjoint((shape(builtin.path), m) for m in self._methods(builtin.operation))
        )

    def _methods(self, operation: str) -> tuple[str, ...]:
        return self.operations[operation].methods if operation in self.operations else ()

    def operation_of(self, route: spec.Route) -> str:
        """'' where the file does not say and the path is no built-in one."""
        return route.operation or ""

    def caller_of(self, route: spec.Route) -> str:
        """The dialect that a route's callers speak; '' where no dialect has the operation."""
        operation = self.operation_of(route)
        if route.dialect:
            return route.dialect
        for builtin in self._builtin_at.get(route.path, ()):
            if builtin.operation == operation:
                return builtin.dialect
        return next((n for n, d in self.vendors.dialects.items() if operation in d.operations), "")

    def is_enabled(self, upstream: str) -> bool:
        """It has an address, and a credential that is not retired."""
        given = self.upstreams[upstream].credentials
        has_one = isinstance(given, str) or any(
            not (isinstance(one, spec.Credential) and one.retired) for one in given.values()
        )
        return has_one and upstream not in self.references.unusable

    def first_offering(self, operation: str) -> str:
        """The upstream for what is no model's, where the file does not say: '' if none offers it."""
        offering = [name for name in self.upstreams if operation in self.offered(name)]
        enabled = [name for name in offering if self.is_enabled(name)]
        return next(iter(enabled or offering), "")
