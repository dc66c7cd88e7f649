"""Which credentials are cooling down, as control broadcasts it and as this worker has just seen.

Owns a worker's view; the state machine behind it is control's (broker). A worker acts on its own
bad answer at once and tells control, which tells the others.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.relay.answers import BUSY_STATUS
from proxy.routing.selection import Choice

LOCAL_S = 1.0  # until control's own word arrives
LOCAL_MAX_S = 60.0  # however long an upstream asks for: control may be away


class Cooldowns:
    """(upstream, credential, model) -> when it may be tried again. Model "" stands for all."""

    def __init__(self, wall_ms: Callable[[], int], tell: Callable[[str, dict[str, object]], object]) -> None:
        self._wall_ms = wall_ms
        self._tell = tell
        self._until: dict[tuple[str, str, str], int] = {}

    def is_cooling(self, choice: Choice) -> bool:
        return bool(self._until) and self.is_cooling_at(
            choice.upstream.name, choice.credential.name, choice.model
        )

    def is_cooling_at(self, upstream: str, credential: str, model: str) -> bool:
        if not self._until:
            return False
        now = self._wall_ms()
        return any(self._until.get((upstream, credential, m), 0) > now for m in (model, ""))

    def shortest_s(self) -> float:
        """Until the first of them may be tried again."""
        now = self._wall_ms()
        left = [until - now for until in self._until.values() if until > now]
        return max(1.0, min(left, default=1000) / 1000)

    def report(self, choice: Choice, status: int, retry_after_s: float | None) -> None:
        """An answer that speaks against a credential: cool it here and tell control.

        A 5xx now and then is no reason to rest, and another mirror may serve the same credential well:
        such an answer counts with control only, and only where there is no other mirror.
        """
        where = (choice.upstream.name, choice.credential.name, choice.model)
        if status < 500 or status in BUSY_STATUS or retry_after_s is not None:
            self._until[where] = self._wall_ms() + int(1000 * min(retry_after_s or LOCAL_S, LOCAL_MAX_S))
        elif len(choice.upstream.mirrors) > 1:
            return
        self._tell(
            "health",
            {
                "upstream": where[0],
                "mirror": choice.mirror.name,
                "credential": where[1],
                "model": where[2],
                "event": f"status:{status}",
                "retry_after_s": retry_after_s,
            },
        )

    def cool(self, upstream: str, credential: str, model: str, until_ms: int) -> None:
        """Control's word."""
        self._until[(upstream, credential, model)] = until_ms

    def uncool(self, upstream: str, credential: str, model: str) -> None:
        self._until.pop((upstream, credential, model), None)
