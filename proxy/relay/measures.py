"""How fast and how surely each mirror answers, as the workers of this node have measured it.

Owns the figures by which `auto` orders mirrors. Figures age: a mirror that was not asked for a while is as
good as one that was never asked, and is tried again. Each worker tells the others what it has measured since
it last did, so that all of them order alike. Facts in, figures out: `now_ms` is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from proxy.routing.selection import Place

MEMORY = 16  # calls: a figure is mostly about the last so many
FORGET_MS = 5 * 60_000
FAILURE_S = 10.0  # what a failed try costs a caller: the wait, and another try elsewhere
# Steps of a rank: mirrors that differ by less keep the order of the file.
STEP = math.log(1.5)


@dataclass(slots=True)
class _Figures:
    at_ms: int
    calls: int = 0
    streams: int = 0
    first_byte_s: float = 0.0
    failures: float = 0.0  # share of the calls


@dataclass(slots=True)
class _Untold:
    """What the other workers do not know yet."""

    calls: int = 0
    failures: int = 0
    streams: int = 0
    first_bytes_s: float = 0.0  # of all streams together


class Measures:
    """By mirror, which outlives a reload."""

    def __init__(self) -> None:
        self._figures: dict[Place, _Figures] = {}
        self._untold: dict[Place, _Untold] = {}

    def answered(self, place: Place, first_byte_s: float | None, now_ms: int) -> None:
        """`first_byte_s` None: an answer in one piece, whose time tells of its length, not of its way."""
        untold = self._untold.setdefault(place, _Untold())
        untold.calls += 1
        figures = self._count(place, 0, 1, now_ms)
        if first_byte_s is not None:
            untold.streams += 1
            untold.first_bytes_s += first_byte_s
            _count_streams(figures, first_byte_s, 1)

    def failed(self, place: Place, now_ms: int) -> None:
        untold = self._untold.setdefault(place, _Untold())
        untold.calls += 1
        untold.failures += 1
        self._count(place, 1, 1, now_ms)

    def news(self) -> list[list[Any]]:
        """What was measured here since the last time, for `heard` of the other workers."""
        untold, self._untold = self._untold, {}
        return [
            [p.upstream, p.mirror, u.calls, u.failures, u.streams, u.first_bytes_s] for p, u in untold.items()
        ]

    def heard(self, news: Iterable[list[Any]], now_ms: int) -> None:
        """What another worker of this node has measured."""
        for upstream, mirror, calls, failures, streams, first_bytes_s in news:
            figures = self._count(Place(upstream, mirror), failures, calls, now_ms)
            if streams:
                _count_streams(figures, first_bytes_s / streams, streams)

    def forgive(self, place: Place) -> None:
        """It works again: what it was like before says nothing."""
        self._figures.pop(place, None)
        self._untold.pop(place, None)

    def rank(self, place: Place, now_ms: int) -> int | None:
        """The lower, the sooner an answer can be expected; None: not known."""
        figures = self._figures.get(place)
        if figures is None or now_ms - figures.at_ms > FORGET_MS:
            return None
        if not figures.streams and figures.failures < 1 / MEMORY:
            return None
        expected_s = figures.first_byte_s + figures.failures * FAILURE_S
        return round(math.log(max(expected_s, 0.001)) / STEP)

    def first_bytes(self, now_ms: int) -> dict[Place, float]:
        """Seconds to the first byte of a stream, of what is known."""
        return {
            place: f.first_byte_s
            for place, f in self._figures.items()
            if f.streams and now_ms - f.at_ms <= FORGET_MS
        }

    def _count(self, place: Place, failures: int, calls: int, now_ms: int) -> _Figures:
        figures = self._figures.get(place)
        if figures is None or now_ms - figures.at_ms > FORGET_MS:
            figures = self._figures[place] = _Figures(now_ms)
        figures.at_ms = now_ms
        figures.calls += calls
        figures.failures += (failures / calls - figures.failures) * _weight(calls, figures.calls)
        return figures


def _count_streams(figures: _Figures, first_byte_s: float, streams: int) -> None:
    figures.streams += streams
    figures.first_byte_s += (first_byte_s - figures.first_byte_s) * _weight(streams, figures.streams)


def _weight(new: int, all_of_them: int) -> float:
    """Of the mean of `new` values among those that are remembered."""
    if all_of_them <= MEMORY:
        return new / all_of_them
    return 1 - (1 - 1 / MEMORY) ** new
