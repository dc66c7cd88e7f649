"""All mistakes of one file, each with its place, in the order of the file.

Owns the line that an operator reads: `FILE:LINE:COL: path: what (did you mean ...)`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from proxy.errors import ConfigError

Place = tuple[int, int]  # line and column, from 1
Path = tuple[str | int, ...]  # keys and indexes from the root

MISTAKES_MAX = 200  # nobody reads on; a file of another kind would fill the terminal


def dotted(path: Path) -> str:
    """('routes', 0, 'path') -> routes[0].path"""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """' (did you mean ...)' or ''."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


class Mistakes:
    """Collects; a place that is structurally broken is reported once and for nothing else."""

    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._found: dict[tuple[Place, str], None] = {}
        self._broken: set[Place] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    def at(self, place: Place, what: str, path: Path = ()) -> None:
        line = f"{dotted(path)}: {what}" if path else what
        if not line.isprintable():  # a key may hold a newline, or what a terminal would obey
            line = line.encode("unicode_escape").decode()
        if place not in self._broken:
            self._found[place, line] = None

    def broken(self, place: Place, what: str, path: Path = ()) -> None:
        """Like `at`, and nothing more is said of this place: the rest would only follow from it."""
        self.at(place, what, path)
        self._broken.add(place)

    def lines(self) -> list[str]:
        """In the order of the file."""
        lines = [f"{self._filename}:{line}:{column}: {what}" for (line, column), what in sorted(self._found)]
        if len(lines) > MISTAKES_MAX:
            lines[MISTAKES_MAX:] = [f"{self._filename}: and {len(lines) - MISTAKES_MAX} more"]
        return lines

    def error(self) -> ConfigError:
        return ConfigError(self.lines())
