"""How fast and how surely each mirror answers, as this worker has measured it.

Owns the figures by which `auto` orders mirrors. Figures age: a mirror that was not asked for a while is as
good as one that was never asked, and is tried again. Facts in, figures out: `now_ms` is an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


class Measures:
    """By mirror, which outlives a reload."""

    def __init__(self) -> None:
        self._figures: dict[Place, _Figures] = {}

    def answered(self, place: Place, first_byte_s: float | None, now_ms: int) -> None:
        """`first_byte_s` None: an answer in one piece, whose time tells of its length, not of its way."""
        figures = self._count(place, 0.0, now_ms)
        if first_byte_s is not None:
            figures.streams += 1
            figures.first_byte_s += (first_byte_s - figures.first_byte_s) / min(figures.streams, MEMORY)

    def failed(self, place: Place, now_ms: int) -> None:
        self._count(place, 1.0, now_ms)

    def forgive(self, place: Place) -> None:
        """It works again: what it was like before says nothing."""
        self._figures.pop(place, None)

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

    def _count(self, place: Place, failure: float, now_ms: int) -> _Figures:
        figures = self._figures.get(place)
        if figures is None or now_ms - figures.at_ms > FORGET_MS:
            figures = self._figures[place] = _Figures(now_ms)
        figures.at_ms = now_ms
        figures.calls += 1
        figures.failures += (failure - figures.failures) / min(figures.calls, MEMORY)
        return figures
