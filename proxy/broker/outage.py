"""Is Postgres away? A declared state, not one slow query (money.md, "Postgres away").

Owns the count of failed probes. Pure.
"""

from __future__ import annotations

PROBES_FAILED = 2  # in a row


class Outage:
    """Fed with the probes' results. Begins as away: nothing was reached yet."""

    def __init__(self) -> None:
        self._failed = PROBES_FAILED

    @property
    def is_away(self) -> bool:
        return self._failed >= PROBES_FAILED

    def probed(self, answered: bool) -> bool:
        """Whether the state changed."""
        before = self.is_away
        self._failed = 0 if answered else self._failed + 1
        return self.is_away != before
