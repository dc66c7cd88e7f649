"""Cooldowns on disk: a control that replaces a dead one knows which credentials rest.

Owns one small file; what is in it is broker/health.py's.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from proxy.broker.health import HealthBook

log = logging.getLogger("headrace.health")


class Rests:
    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, book: HealthBook, now_ms: int) -> None:
        """After each change; there are few."""
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps(book.current(now_ms)))
        draft.rename(self._path)

    def recall(self, book: HealthBook, now_ms: int) -> None:
        """A file that cannot be read costs a few answers of 401, no more."""
        try:
            book.restore(json.loads(self._path.read_text()), now_ms)
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as e:
            log.warning("cooldowns are forgotten: %r", e)
