"""Which credentials must rest, and why: one state per (upstream, credential, model).

Owns the rules from bad answers to cooldowns. Facts in, decisions out: `now_ms` is an argument, what
workers have to be told comes back as messages. Live state, keyed by name, so that it outlives a reload.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Place = tuple[str, str, str]  # upstream, credential, model there; model "": all of the credential's


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of bad answer means. `after` of them within `within_s` start a cooldown."""

    why: str
    rest_s: float  # when the upstream names no time
    rest_max_s: float  # however long it asks for
    whole_credential: bool = False
    after: int = 1
    within_s: float = 10.0


# An upstream that answers 5xx now and then serves most calls well: only a burst is a reason to rest.
BUSY = Rule("rate limited by the provider", rest_s=5, rest_max_s=300)
FAILING = Rule("the provider fails", rest_s=2, rest_max_s=60, after=10)
REST_OF_A_BAD_CREDENTIAL_S = 600.0
RULES: dict[str, Rule] = {
    "status:429": BUSY,
    "status:529": BUSY,
    "status:401": Rule("the provider refuses the credential", REST_OF_A_BAD_CREDENTIAL_S, 3600, True),
    "status:402": Rule("the provider's account has no credit", REST_OF_A_BAD_CREDENTIAL_S, 3600, True),
    "status:403": Rule("the credential may not use this model", REST_OF_A_BAD_CREDENTIAL_S, 3600),
}


def rule_for(event: str) -> Rule | None:
    """`event` is an attempt's outcome: `status:NNN` or the code of an error."""
    if event.startswith("status:5"):
        return RULES.get(event, FAILING)
    return RULES.get(event)


@dataclass(slots=True)
class Resting:
    """One cooldown as the admin page shows it."""

    until_ms: int
    why: str
    since_ms: int


@dataclass(slots=True)
class _Burst:
    began_ms: int
    count: int = 0


@dataclass(slots=True)
class HealthBook:
    """The node's view; workers hold a copy of what rests."""

    resting: dict[Place, Resting] = field(default_factory=dict)
    _bursts: dict[tuple[Place, str], _Burst] = field(default_factory=dict)

    def report(self, event: dict[str, Any], now_ms: int) -> dict[str, Any] | None:
        """A worker's op `health` -> the `cool` message for all workers, or None: go on."""
        rule = rule_for(event["event"])
        if rule is None:
            return None
        model = "" if rule.whole_credential else event["model"]
        place = (event["upstream"], event["credential"], model)
        asked_s = event.get("retry_after_s")
        if asked_s is None and not self._is_burst(place, rule, now_ms):
            return None
        rest_s = min(asked_s or rule.rest_s, rule.rest_max_s)
        until_ms = now_ms + int(rest_s * 1000)
        known = self.resting.get(place)
        if known is not None and known.until_ms >= until_ms:
            return None  # the same news from another worker
        since_ms = known.since_ms if known is not None and known.until_ms > now_ms else now_ms
        self.resting[place] = Resting(until_ms, rule.why, since_ms)
        return _cool(place, self.resting[place])

    def _is_burst(self, place: Place, rule: Rule, now_ms: int) -> bool:
        if rule.after == 1:
            return True
        burst = self._bursts.get((place, rule.why))
        if burst is None or now_ms - burst.began_ms > rule.within_s * 1000:
            burst = self._bursts[place, rule.why] = _Burst(now_ms)
        burst.count += 1
        return burst.count >= rule.after

    def enable(self, upstream: str, credential: str) -> list[dict[str, Any]]:
        """An operator says it is good again -> `uncool` messages."""
        freed = [place for place in self.resting if place[:2] == (upstream, credential)]
        for place in freed:
            del self.resting[place]
        return [dict(zip(("upstream", "credential", "model"), place, strict=True)) for place in freed]

    def current(self, now_ms: int) -> list[dict[str, Any]]:
        """`cool` messages for a worker that is new; forgets what is over."""
        self.resting = {place: r for place, r in self.resting.items() if r.until_ms > now_ms}
        return [_cool(place, resting) for place, resting in self.resting.items()]

    def restore(self, messages: Iterable[dict[str, Any]], now_ms: int) -> None:
        """What an earlier control knew (`current` of it)."""
        for m in messages:
            if m["until_ms"] > now_ms:
                place = (m["upstream"], m["credential"], m["model"])
                self.resting[place] = Resting(m["until_ms"], m["why"], m["since_ms"])


def _cool(place: Place, resting: Resting) -> dict[str, Any]:
    upstream, credential, model = place
    return {
        "upstream": upstream,
        "credential": credential,
        "model": model,
        "until_ms": resting.until_ms,
        "why": resting.why,
        "since_ms": resting.since_ms,
    }
