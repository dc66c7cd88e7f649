"""How often somebody may try: passwords, codes, sign-ups.

Owns counts per window in memory. Pure but for that: the time comes in.
"""

from __future__ import annotations

from proxy.errors import LimitExceeded

NAMES_MAX = 50_000


class Attempts:
    """At most `most` tries of one name within `window_s`."""

    def __init__(self, most: int, window_s: int) -> None:
        self._most = most
        self._window_s = window_s
        self._tries: dict[str, tuple[int, int]] = {}  # name -> (window, tries)

    def count(self, name: str, now_s: float) -> None:
        """One more. Raises LimitExceeded with the time until the next one."""
        window = int(now_s) // self._window_s
        last, tries = self._tries.pop(name, (window, 0))
        tries = tries + 1 if last == window else 1
        self._tries[name] = (window, tries)
        if len(self._tries) > NAMES_MAX:
            del self._tries[next(iter(self._tries))]
        if tries > self._most:
            raise LimitExceeded(
                "Too many attempts. Try again later.",
                retry_after_s=(window + 1) * self._window_s - now_s,
            )
