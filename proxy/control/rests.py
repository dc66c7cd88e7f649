"""Cooldowns as operators and a next life of control know them.

Owns one small file, so that a control that replaces a dead one knows what rests, and the two ways in which
a rest ends without a trial: an operator says so, or the credential's secret was changed. The rules are
broker/health.py's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy.broker.health import HealthBook, Message
from proxy.routing.table import Table

log = logging.getLogger("headrace.health")

Tell = Callable[[str, dict[str, Any]], None]  # (op, args) to every worker


class Rests:
    def __init__(self, path: Path, book: HealthBook, tell: Tell, now_ms: Callable[[], int]) -> None:
        self._path = path
        self._book = book
        self._tell = tell
        self._now_ms = now_ms

    def save(self) -> None:
        """After each change; there are few."""
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps(self._book.current(self._now_ms())))
        draft.rename(self._path)

    def recall(self) -> None:
        """A file that cannot be read costs a few answers of 401, no more."""
        try:
            self._book.restore(json.loads(self._path.read_text()), self._now_ms())
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as e:
            log.warning("cooldowns are forgotten: %r", e)

    def rows(self) -> list[dict[str, Any]]:
        """What rests, is disabled, or waits for a trial."""
        return self._book.rows(self._now_ms())

    def enable(self, upstream: str, *, credential: str = "", mirror: str = "") -> int:
        """An operator says that a credential or a mirror is good again; how many cooldowns end."""
        return self._end(self._book.enable(upstream, credential=credential, mirror=mirror))

    def renewed(self, old: Table | None, new: Table) -> None:
        """A new table: what was held against a secret says nothing about another one."""
        before = _secrets(old) if old is not None else {}
        for (upstream, credential), secret in _secrets(new).items():
            if before.get((upstream, credential), secret) != secret:
                self.enable(upstream, credential=credential)

    def _end(self, freed: list[Message]) -> int:
        for op, args in freed:
            self._tell(op, args)
        return len(freed)


def _secrets(table: Table) -> dict[tuple[str, str], str]:
    return {(u.name, c.name): c.secret for u in table.upstreams.values() for c in u.credentials}
