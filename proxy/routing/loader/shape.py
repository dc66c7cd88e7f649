"""Plain values -> spec, with every mistake of shape at its place.

Owns the words for what the schema refuses. A broken entry of a section (an upstream, a model, a route) is
reported and left out, so that the rest can still be held against each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from proxy.routing.loader.mistakes import Mistakes, Path, did_you_mean
from proxy.routing.loader.tree import Node
from proxy.routing.spec import TAGS, RoutesFile

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
    broken: frozenset[Path]  # entries and sections that were left out
    routes: tuple[int, ...]  # index of each route in the file

    def knows(self, section: str, name: str) -> bool:
        """True if the file has this entry, be it broken."""
        return name in getattr(self.spec, section) or bool({(section,), (section, name)} & self.broken)


def shape(plain: Any, root: Node, mistakes: Mistakes) -> Shaped | None:
    """None: so broken that nothing can be said about the rest."""
    if not isinstance(plain, dict):
        mistakes.at(root.place, "the file must be a mapping of sections such as upstreams: and models:")
        return None
    plain = {section: value for section, value in plain.items() if value is not None}
    try:
        return Shaped(
            RoutesFile.model_validate(plain), frozenset(), tuple(range(len(plain.get("routes", ()))))
        )
    except ValidationError as e:
        broken = frozenset(_entry(_report(error, root, mistakes)) for error in _errors(e))
    try:
        return _without(plain, broken)
    except ValidationError:
        return None


def _errors(error: ValidationError) -> list[Any]:
    # Never the input: it may be a secret.
    return list(error.errors(include_url=False, include_input=False))


def _without(plain: dict[str, Any], broken: frozenset[Path]) -> Shaped:
    kept: dict[str, Any] = {}
    routes: tuple[int, ...] = ()
    for section, value in plain.items():
        if (section,) in broken or section not in RoutesFile.model_fields:
            continue
        if isinstance(value, list):
            routes = tuple(i for i in range(len(value)) if (section, i) not in broken)
            kept[section] = [value[i] for i in routes]
        else:
            kept[section] = {name: v for name, v in value.items() if (section, name) not in broken}
    return Shaped(RoutesFile.model_validate(kept), broken, routes)


def _entry(path: Path) -> Path:
    """The entry that a path is in; the station is one."""
    return path[:1] if path[:1] == ("station",) else path[:2]


def _report(error: Any, root: Node, mistakes: Mistakes) -> Path:
    """Adds one mistake; returns the path that it is about."""
    kind, location = error["type"], error["loc"]
    of_key = kind == "extra_forbidden" or location[-1] == "[key]"
    path = tuple(step for step in location if step not in TAGS and step != "[key]")
    what = _WORDS.get(kind)
    if kind == "extra_forbidden":
        what = "unknown key" + did_you_mean(str(path[-1]), _members_at(path[:-1]))
    elif kind == "value_error":
        what = str(error["ctx"]["error"])
    elif kind == "literal_error":
        what = _literal(error["ctx"]["expected"], path, root)
    elif kind == "too_short":
        least = error["ctx"]["min_length"]
        what = "must not be empty" if least == 1 else f"must have {least} entries"
    elif kind == "union_tag_invalid":
        what = "must be a mapping or a single value" if "list" in error["ctx"]["tag"] else "must be a mapping"
    mistakes.at(root.place_of(path, of_key=of_key), what or error["msg"], path)
    return path


def _literal(expected: str, path: Path, root: Node) -> str:
    words = [word.strip("' ") for part in expected.split(",") for word in part.split(" or ")]
    return f"must be {expected}" + did_you_mean(root.text_at(path), words)


def _members_at(path: Path) -> list[str]:
    """The keys that the schema knows at a path."""
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
