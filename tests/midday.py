"""A time zone in which it is noon: no day and no month of a station ends while its tests run."""

from __future__ import annotations

from datetime import UTC, datetime

_AHEAD = 12 - datetime.now(UTC).hour  # hours of its clocks before those of UTC, -11 to 12
MIDDAY = f"Etc/GMT{-_AHEAD:+d}" if _AHEAD else "UTC"  # POSIX counts them the other way round
