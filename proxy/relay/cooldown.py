"""What must rest and what is measured, as one worker sees it: credentials, and mirrors apart from them.

Owns a worker's view and who may try whether a rest is over; the rules from bad answers to cooldowns are
control's (broker/health.py). A worker acts on its own bad answer at once and tells control, which tells
the others. A rest that has run out is half-open: one call tries, and its answer decides for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proxy.errors import UpstreamClosed, UpstreamConnectFailed, UpstreamGarbage, UpstreamTimeout
from proxy.relay.answers import BUSY_STATUS
from proxy.relay.measures import Measures
from proxy.routing.selection import RESTING, TRIAL, UNTRIED, Choice, Place
from proxy.routing.table import Mirror

LOCAL_S = 1.0  # until control's own word arrives
LOCAL_MAX_S = 60.0  # however long an upstream asks for: control may be away
TRIAL_MS = 10_000  # for the call that tries; when it has said nothing by then, another one may
FAILURES_IN_A_ROW = 5  # an upstream that fails now and then serves most calls well

MIRROR_FAULTS = frozenset(
    error.code for error in (UpstreamConnectFailed, UpstreamClosed, UpstreamGarbage, UpstreamTimeout)
)


@dataclass(slots=True)
class _Rest:
    until_ms: int
    trial_ms: int = 0  # until then a call tries whether it is over

    def is_on(self, now_ms: int) -> bool:
        return self.until_ms > now_ms or self.trial_ms > now_ms


class Cooldowns:
    """`tell` carries (op, args) to control."""

    def __init__(self, wall_ms: Callable[[], int], tell: Callable[[str, dict[str, Any]], object]) -> None:
        self._wall_ms = wall_ms
        self._tell = tell
        self._rests: dict[Place, _Rest] = {}
        self._failures: dict[Place, int] = {}  # of mirrors, since their last answer
        self._trials: dict[Place, int] = {}  # mirrors that were never measured: until when one call tries
        self.is_calm = True  # nothing rests, and no mirror failed since its last answer
        self.measures = Measures()

    # -- questions --

    def is_cooling(self, choice: Choice) -> bool:
        return self.is_cooling_at(choice.upstream.name, choice.credential.name, choice.model)

    def is_cooling_at(self, upstream: str, credential: str, model: str) -> bool:
        """Must this credential rest, for this model or for all?"""
        if not self._rests:
            return False
        now = self._wall_ms()
        return any(
            (rest := self._rests.get(Place(upstream, "", credential, m))) is not None and rest.is_on(now)
            for m in (model, "")
        )

    def rank(self, mirror: Mirror, is_stream: bool) -> int | None:
        """For `selection.order`: rests, a trial that is due, then what was measured."""
        place = Place(mirror.upstream, mirror.name)
        now = self._wall_ms()
        rest = self._rests.get(place)
        if rest is not None:
            return RESTING if rest.is_on(now) else TRIAL
        rank = self.measures.rank(place, now)
        if rank is None and is_stream:  # only a stream's first byte can be measured
            return TRIAL if self._trials.get(place, 0) <= now else UNTRIED
        return rank

    def shortest_s(self) -> float:
        """Until the first of them may be tried again."""
        now = self._wall_ms()
        left = [r.until_ms - now for p, r in self._rests.items() if p.credential and r.until_ms > now]
        return max(1.0, min(left, default=1000) / 1000)

    # -- what happens to a call --
    # While all is calm, the only mirror of an upstream needs no word of a call that begins or is answered.

    def begin(self, choice: Choice, *, is_stream: bool) -> bool:
        """A call is about to try it; False: its credential began to rest. Half-open, this call is the one
        that tries."""
        now = self._wall_ms()
        for place in choice.places:
            rest = self._rests.get(place)
            if rest is None:
                continue
            if not rest.is_on(now):
                rest.trial_ms = now + TRIAL_MS
            elif place.credential:
                return False
        mirror = choice.mirror_place
        if is_stream and len(choice.upstream.mirrors) > 1 and self.measures.rank(mirror, now) is None:
            self._trials[mirror] = now + TRIAL_MS
        return True

    def answered(self, choice: Choice, began_ms: int | None) -> None:
        """The upstream took the call. `began_ms`: when the attempt began; None: not a stream."""
        now = self._wall_ms()
        for place in choice.places:
            rest = self._rests.get(place)
            # An answer to a call that was sent before the credential had to rest proves nothing.
            if rest is not None and (place.mirror or rest.until_ms <= now):
                del self._rests[place]
                self._tell("health", {**place._asdict(), "event": "ok"})
                self.measures.forgive(place)
        mirror = choice.mirror_place
        self._failures.pop(mirror, None)
        self._look_round()
        if len(choice.upstream.mirrors) > 1:
            first_byte_s = None if began_ms is None else (now - began_ms) / 1000
            self.measures.answered(mirror, first_byte_s, now)
            self._trials.pop(mirror, None)

    def report(self, choice: Choice, status: int, retry_after_s: float | None) -> None:
        """A bad answer. What speaks against the credential cools it here and is told to control; another
        5xx counts against the mirror."""
        if status >= 500 and status not in BUSY_STATUS and retry_after_s is None:
            self._count_failure(choice, f"status:{status}")
            return
        place = Place(choice.upstream.name, "", choice.credential.name, choice.model)
        self._rest(place, min(retry_after_s or LOCAL_S, LOCAL_MAX_S))
        self._tell("health", {**place._asdict(), "event": f"status:{status}", "retry_after_s": retry_after_s})

    def failed(self, choice: Choice, outcome: str) -> None:
        """A try that brought no answer, or not all of one; what says nothing about the mirror is ignored."""
        if outcome in MIRROR_FAULTS:
            self._count_failure(choice, outcome)

    def _count_failure(self, choice: Choice, event: str) -> None:
        place = choice.mirror_place
        if len(choice.upstream.mirrors) > 1:
            self.measures.failed(place, self._wall_ms())
        count = self._failures[place] = self._failures.get(place, 0) + 1
        self._look_round()
        if count >= FAILURES_IN_A_ROW or place in self._rests:  # a trial fails at once
            self._rest(place, LOCAL_S)
            self._tell("health", {**place._asdict(), "event": event})

    def _rest(self, place: Place, rest_s: float) -> None:
        known = self._rests.get(place)
        until_ms = self._wall_ms() + int(1000 * rest_s)
        self._rests[place] = _Rest(max(until_ms, known.until_ms) if known is not None else until_ms)
        self._look_round()

    def _look_round(self) -> None:
        self.is_calm = not (self._rests or self._failures)

    # -- control's word --

    def cool(self, place: Place, until_ms: int) -> None:
        self._rests[place] = _Rest(until_ms)
        self._look_round()

    def uncool(self, place: Place) -> None:
        if self._rests.pop(place, None) is not None:
            self.measures.forgive(place)
        self._failures.pop(place, None)
        self._look_round()
