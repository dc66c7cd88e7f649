"""Plain values -> spec, with every mistake of shape at its place.

Owns the words for what the schema refuses. What is refused is left out, as little of it as can be, so
that the rest can still be held against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from proxy.routing.loader.mistakes import Mistakes, Path, did_you_mean
from proxy.routing.loader.tree import DEPTH_MAX, Node
from proxy.routing.scalars import TAGS
from proxy.routing.spec import RoutesFile

_WORDS = {
    "missing": "is missing",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "too_long": "has too many entries",
}


@dataclass(frozen=True, slots=True)
class Shaped:
    """The part of the file that has the right shape."""

    spec: RoutesFile
    cut: frozenset[Path]  # what was left out
    routes: tuple[int, ...]  # index of each route in the file

    def is_whole(self, path: Path) -> bool:
        """False if something at or below a path was left out: what is not there may have been meant."""
        return not any(cut[: len(path)] == path for cut in self.cut)

    def knows(self, section: str, name: str) -> bool:
        """True if the file has this entry, be it broken."""
        return name in getattr(self.spec, section) or bool({(section,), (section, name)} & self.cut)


def shape(plain: Any, root: Node, mistakes: Mistakes) -> Shaped | None:
    """Reports what has the wrong shape, and goes on without it. None: it is no mapping of sections."""
    if not isinstance(plain, dict):
        mistakes.at(root.place, "the file must be a mapping of sections such as upstreams: and models:")
        return None
    plain = {section: value for section, value in plain.items() if value is not None}
    if isinstance(plain.get("routes"), list):
        plain["routes"] = dict(enumerate(plain["routes"]))  # an index stays its route's while others go
    cut: set[Path] = set()
    for _ in range(DEPTH_MAX):  # each round cuts nearer to the root
        routes = plain.get("routes", {})
        indexes = tuple(routes) if isinstance(routes, dict) else ()
        listed = {**plain, "routes": list(routes.values())} if isinstance(routes, dict) else plain
        try:
            return Shaped(RoutesFile.model_validate(listed), frozenset(cut), indexes)
        except ValidationError as e:
            # Never the input: it may be a secret.
            found = [
                _Refused.of(error, indexes) for error in e.errors(include_url=False, include_input=False)
            ]
        if not cut:
            for refused in found:
                mistakes.at(refused.place(root), refused.words(root), refused.path)
        paths = {refused.to_cut() for refused in found}
        cut |= paths
        plain = _without(plain, paths)
    return None


@dataclass(frozen=True, slots=True)
class _Refused:
    """One error of the schema."""

    kind: str
    path: Path
    message: str
    context: Any
    of_key: bool

    @classmethod
    def of(cls, error: Any, routes: tuple[int, ...]) -> _Refused:
        steps = error["loc"]
        path = tuple(step for step in steps if step not in TAGS and step != "[key]")
        if path[0] == "routes" and len(path) > 1:
            path = ("routes", routes[path[1]], *path[2:])
        of_key = error["type"] == "extra_forbidden" or steps[-1] == "[key]"
        return cls(error["type"], path, error["msg"], error.get("ctx"), of_key)

    def place(self, root: Node) -> tuple[int, int]:
        return root.place_of(self.path, of_key=self.of_key)

    def to_cut(self) -> Path:
        """The least that has to go: a member, or the mapping that lacks one; of lists all but routes."""
        path = self.path[:-1] if self.kind == "missing" else self.path
        lists = [i for i, step in enumerate(path) if isinstance(step, int) and (path[0], i) != ("routes", 1)]
        return path[: lists[0]] if lists else path

    def words(self, root: Node) -> str:
        match self.kind:
            case "extra_forbidden":
                return "unknown key" + did_you_mean(str(self.path[-1]), _members_at(self.path[:-1]))
            case "value_error":
                return str(self.context["error"])
            case "literal_error":
                expected = str(self.context["expected"])
                known = [word.strip("' ") for part in expected.split(",") for word in part.split(" or ")]
                return f"must be {expected}" + did_you_mean(root.text_at(self.path), known)
            case "too_short":
                least = self.context["min_length"]
                return "must not be empty" if least == 1 else f"must have {least} entries"
            case "union_tag_invalid":
                return "must be a mapping or a single value"
        return _WORDS.get(self.kind, self.message)


def _without(plain: dict[Any, Any], paths: Iterable[Path]) -> dict[Any, Any]:
    """A copy that lacks these members; what is not on their way is shared."""
    below: dict[str | int, set[Path]] = {}
    for path in paths:
        below.setdefault(path[0], set()).add(path[1:])
    return {
        step: _without(value, below[step]) if step in below else value
        for step, value in plain.items()
        if () not in below.get(step, ())
    }


# -- which members the schema knows at a path ----------------------------------------------------


def _members_at(path: Path) -> list[str]:
    types = list(_alternatives(RoutesFile))
    for step in path:
        types = [t for outer in types for t in _below(outer, step)]
    return [field.alias or name for t in types if _is_section(t) for name, field in t.model_fields.items()]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _below(outer: Any, step: str | int) -> Iterator[Any]:
    if _is_section(outer):
        for name, field in outer.model_fields.items():
            if step == (field.alias or name):
                yield from _alternatives(field.annotation)
    elif get_origin(outer) in (dict, list):
        yield from _alternatives(get_args(outer)[-1])


def _alternatives(kind: Any) -> Iterator[Any]:
    """The types that a value may have, without annotations and None."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _alternatives(get_args(kind)[0])
    elif origin in (Union, UnionType):
        for alternative in get_args(kind):
            yield from _alternatives(alternative)
    elif kind is not NoneType:
        yield kind
