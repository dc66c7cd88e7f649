"""Which route a canonical path belongs to.

Owns path patterns (`{name}` is one segment, `{name}:verb` one that ends in a verb as Google's do) and
the forgiving spellings of base URLs. Pure; a literal path costs one dictionary lookup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from proxy.errors import MalformedRequest, MethodNotAllowed, UnknownPath

if TYPE_CHECKING:
    from proxy.routing.table import Route

MODEL = "model"  # the one capture that may hold an encoded slash: vendor/name


@dataclass(frozen=True, slots=True)
class Match:
    """A route and what its pattern captured, percent-decoded. Shared between requests: read only."""

    route: Route
    captures: dict[str, str]


# Base URLs end in a version or do not, and some write it twice.
_VERSIONS = re.compile(r"(?:/v[0-9](?:(?:alpha|beta)[0-9]?)?(?=/))*")
# What vendors put in front of OpenAI's paths, and what key holders leave there who exchange only the host.
_BASE = re.compile(
    r"(?:/(?:v[0-9](?:beta)?|openai|anthropic|api|paas|coding|compatible-mode|compatibility|inference)(?=/))+"
)


def capture_name(segment: str) -> str | None:
    """`{name}` and `{name}:verb` -> name; anything else -> None."""
    name, end, verb = segment.partition("}")
    return name[1:] if end and name.startswith("{") and verb[:1] in ("", ":") else None


def shape(path: str) -> str:
    """The pattern without the names of its captures: two of one shape match the same paths."""
    segments = path.split("/")
    return "/".join(s if capture_name(s) is None else "{}" + s.partition("}")[2] for s in segments)


def spellings(path: str) -> Iterator[str]:
    """The path itself, then what it may have been meant for: a base URL with, without or with a doubled
    version, with what some vendor has in front of its paths, or with a slash at its end.
    """
    yield path
    path = path.rstrip("/")
    versions = _VERSIONS.match(path)
    base = _BASE.match(path)
    if versions is not None and (end := versions.end()):
        yield path[path.rindex("/", 0, end) :]
        path = path[end:]
    yield path
    yield "/v1" + path
    if base is not None:
        yield "/v1" + base.string[base.end() :]


class PathIndex:
    """method and path -> Match. What the file says literally beats what is forgiven."""

    __slots__ = ("_literal", "_patterns")

    def __init__(self, routes: Iterable[Route]) -> None:
        self._literal: dict[str, dict[str, Match]] = {}
        self._patterns: dict[int, list[tuple[tuple[str, ...], Route]]] = {}
        for route in routes:
            if "{" in route.path:
                segments = tuple(route.path.split("/"))
                self._patterns.setdefault(len(segments), []).append((segments, route))
            else:
                methods = self._literal.setdefault(route.path, {})
                methods.update(dict.fromkeys(route.methods, Match(route, {})))
        for same_length in self._patterns.values():
            # A literal segment is more specific than a capture, from the left; a verb is than none.
            same_length.sort(key=lambda entry: [_vagueness(segment) for segment in entry[0]])

    def find(self, method: str, path: str) -> Match:
        """Raises UnknownPath, MethodNotAllowed, or MalformedRequest for a slash that hides in an escape."""
        for spelling in spellings(path):
            methods = self._literal.get(spelling)
            match = self._find_pattern(method, spelling) if methods is None else methods.get(method)
            if match is not None:
                return match
            if methods is not None:
                raise MethodNotAllowed
        if "%2F" in path:
            raise MalformedRequest
        raise UnknownPath

    def _find_pattern(self, method: str, path: str) -> Match | None:
        given = path.split("/")
        is_known = False
        for segments, route in self._patterns.get(len(given), ()):
            captures = _captures(segments, given)
            if captures is None:
                continue
            if method in route.methods:
                return Match(route, captures)
            is_known = True
        if is_known:
            raise MethodNotAllowed
        return None


def _vagueness(segment: str) -> int:
    return 0 if capture_name(segment) is None else 2 - (":" in segment)


def _captures(segments: tuple[str, ...], given: list[str]) -> dict[str, str] | None:
    captures: dict[str, str] = {}
    for segment, value in zip(segments, given, strict=True):
        name = capture_name(segment)
        if name is None:
            if segment != value:
                return None
            continue
        verb = segment.partition("}")[2]
        if not value.endswith(verb):
            return None
        value = value[: len(value) - len(verb)]
        if not value or ("%2F" in value and name != MODEL):
            return None
        captures[name] = unquote(value)
    return captures
