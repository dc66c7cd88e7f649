"""What must rest, and why: one state per credential and model, and one per mirror.

Owns the rules from bad answers to cooldowns. Facts in, decisions out: `now_ms` is an argument, what
workers have to be told comes back as messages. Live state, keyed by name, so that it outlives a reload.

    resting --time--> half-open: one call of each worker tries --answered--> forgotten
                         `--failed--> resting, twice as long
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from proxy.routing.selection import Place

Message = tuple[str, dict[str, Any]]  # op, args

FORGET_MS = 15 * 60_000  # a half-open place that nobody tried; its next rest is a first one


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of bad answer means."""

    why: str
    rest_s: float  # when the upstream names no time; each failed trial doubles it
    rest_max_s: float  # however long it asks for
    disables: bool = False  # it needs somebody who mends it: an operator is told so


BUSY = Rule("rate limited by the provider", 5, 300)
PAUSED = Rule("the provider asks for a pause", 5, 300)
HOUR_S = 3600.0
RULES: dict[str, Rule] = {
    "status:429": BUSY,
    "status:529": BUSY,
    "status:401": Rule("the provider refuses the credential", 600, 6 * HOUR_S, disables=True),
    "status:402": Rule("the provider's account has no credit", 600, 6 * HOUR_S, disables=True),
    "status:403": Rule("the credential may not use this model", 600, 6 * HOUR_S, disables=True),
    # Of mirrors: workers tell of them only after several in a row, or after a failed trial.
    "upstream_connect_failed": Rule("cannot be reached", 2, 60),
    "upstream_closed": Rule("closes connections without an answer", 2, 60),
    "upstream_protocol_error": Rule("its answers are not valid", 2, 60),
    "upstream_timeout": Rule("does not answer in time", 2, 60),
}
FAILING = Rule("answers with server errors", 2, 60)
OF_THE_WHOLE_CREDENTIAL = frozenset({"status:401", "status:402"})


def rule_for(event: str, *, is_mirror: bool) -> Rule | None:
    """`event` is an attempt's outcome: `status:NNN` or the code of an error."""
    rule = RULES.get(event)
    if rule is None and event.startswith("status:5"):
        rule = FAILING if is_mirror else PAUSED
    return rule


@dataclass(slots=True)
class Resting:
    """One cooldown as the admin page shows it."""

    until_ms: int
    why: str
    since_ms: int
    rest_s: float
    disabled: bool = False


@dataclass(slots=True)
class HealthBook:
    """The node's view; workers hold a copy of what rests."""

    places: dict[Place, Resting] = field(default_factory=dict)

    def report(self, event: dict[str, Any], now_ms: int) -> Message | None:
        """A worker's op `health` -> what all workers are told, or None: go on."""
        place, what = Place.of(event), event["event"]
        if what == "ok":
            return self._free(place)
        rule = rule_for(what, is_mirror=bool(place.mirror))
        if rule is None:
            return None
        if what in OF_THE_WHOLE_CREDENTIAL:
            place = place._replace(model="")
        known = self.places.get(place)
        if known is not None and now_ms - known.until_ms > FORGET_MS:
            known = None
        is_on = known is not None and known.until_ms > now_ms
        rest_s = event.get("retry_after_s")
        if rest_s is None:
            if is_on:
                return None  # the same news from another worker
            rest_s = rule.rest_s if known is None else known.rest_s * 2
        rest_s = min(rest_s, rule.rest_max_s)
        until_ms = now_ms + int(rest_s * 1000)
        if known is not None and known.until_ms >= until_ms:
            return None
        since_ms = now_ms if known is None else known.since_ms
        self.places[place] = resting = Resting(until_ms, rule.why, since_ms, rest_s, rule.disables)
        return "cool", _cool(place, resting)

    def _free(self, place: Place) -> Message | None:
        if self.places.pop(place, None) is None:
            return None
        return "uncool", place._asdict()

    def enable(self, upstream: str, *, credential: str = "", mirror: str = "") -> list[Message]:
        """An operator says it is good again."""
        freed = [
            p for p in self.places if (p.upstream, p.credential, p.mirror) == (upstream, credential, mirror)
        ]
        return [message for place in freed if (message := self._free(place)) is not None]

    def current(self, now_ms: int) -> list[dict[str, Any]]:
        """`cool` messages for a worker that is new; forgets what nobody has tried for long."""
        self.places = {p: r for p, r in self.places.items() if now_ms - r.until_ms <= FORGET_MS}
        return [_cool(place, r) for place, r in self.places.items() if r.until_ms > now_ms]

    def restore(self, messages: Iterable[dict[str, Any]], now_ms: int) -> None:
        """What an earlier control knew (`current` of it)."""
        for m in messages:
            if m["until_ms"] > now_ms:
                self.places[Place.of(m)] = Resting(
                    m["until_ms"], m["why"], m["since_ms"], m["rest_s"], m["disabled"]
                )

    def rows(self, now_ms: int) -> list[dict[str, Any]]:
        """For operators: what rests, what is disabled, what is to be tried again."""
        return [{**_cool(place, r), "state": _state(r, now_ms)} for place, r in sorted(self.places.items())]


def _state(resting: Resting, now_ms: int) -> str:
    if resting.until_ms <= now_ms:
        return "half-open"
    return "disabled" if resting.disabled else "resting"


def _cool(place: Place, resting: Resting) -> dict[str, Any]:
    return {
        **place._asdict(),
        "until_ms": resting.until_ms,
        "why": resting.why,
        "since_ms": resting.since_ms,
        "rest_s": resting.rest_s,
        "disabled": resting.disabled,
    }
