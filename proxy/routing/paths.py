"""Which route a canonical path belongs to.

Owns path patterns (`{name}` is one segment) and the forgiving spellings of base URLs. Pure; a
literal path costs one dictionary lookup.
"""

from __future__ import annotations

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


def capture_name(segment: str) -> str | None:
    """`{name}` -> name; anything else -> None."""
    if segment.startswith("{") and segment.endswith("}"):
        return segment[1:-1]
    return None


def spellings(path: str) -> Iterator[str]:
    """The path itself, then what a base URL with, without or with a doubled /v1 makes of it."""
    bare = path
    while bare.startswith("/v1/"):
        bare = bare[3:]
    yield path
    yield "/v1" + bare
    yield bare
    yield "/v1/v1" + bare


class PathIndex:
    """method and path -> Match. What the file says literally beats what is forgiven."""

    __slots__ = ("_literal", "_patterns")

    def __init__(self, routes: Iterable[Route]) -> None:
        self._literal: dict[str, dict[str, Match]] = {}
        self._patterns: dict[int, list[tuple[tuple[str, ...], Route]]] = {}
        forgiven: list[Route] = []
        for route in routes:
            if "{" in route.path:
                self._add_pattern(route)
            else:
                methods = self._literal.setdefault(route.path, {})
                methods.update(dict.fromkeys(route.methods, Match(route, {})))
                forgiven.append(route)
        declared = set(self._literal)
        for route in forgiven:
            for path in spellings(route.path):
                if path not in declared:
                    methods = self._literal.setdefault(path, {})
                    for method in route.methods:
                        methods.setdefault(method, self._literal[route.path][method])

    def _add_pattern(self, route: Route) -> None:
        segments = tuple(route.path.split("/"))
        same_length = self._patterns.setdefault(len(segments), [])
        same_length.append((segments, route))
        # A literal segment is more specific than a capture, from the left.
        same_length.sort(key=lambda entry: [capture_name(s) is not None for s in entry[0]])

    def find(self, method: str, path: str) -> Match:
        """Raises UnknownPath, MethodNotAllowed, or MalformedRequest for a slash that hides in an escape."""
        methods = self._literal.get(path)
        if methods is not None:
            match = methods.get(method)
            if match is None:
                raise MethodNotAllowed
            return match
        for spelling in spellings(path):
            match = self._find_pattern(method, spelling)
            if match is not None:
                return match
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


def _captures(segments: tuple[str, ...], given: list[str]) -> dict[str, str] | None:
    captures: dict[str, str] = {}
    for segment, value in zip(segments, given, strict=True):
        name = capture_name(segment)
        if name is None:
            if segment != value:
                return None
        elif not value or ("%2F" in value and name != MODEL):
            return None
        else:
            captures[name] = unquote(value)
    return captures
