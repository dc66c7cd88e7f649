"""Changes of keys on their way from Postgres to the workers.

Owns the generation up to which this node knows them. Asks once a second: a revoked key is refused
within 2 s, and no connection has to be kept for notifications, which a pooler would not pass on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxy.broker.keys import KeyDesk
from proxy.channel import ChannelServer, Peer
from proxy.store.catalog import Catalog

log = logging.getLogger("headrace.keys")

RECORDS_PER_MESSAGE = 50  # a record with a long address list takes some kilobytes
LEFT_MAX = 1_000


class KeyFeed:
    """`memory` is a file: a control that replaces a dead one begins where that one ended."""

    def __init__(self, desk: KeyDesk, server: ChannelServer, memory: Path) -> None:
        self._desk = desk
        self._server = server
        self._memory = memory
        self._known = 0  # generation
        self._left: dict[str, int] = {}  # worker that went away -> what it knew then
        self._first = 0  # what workers know that were served by an earlier control

    async def open(self, catalog: Catalog) -> None:
        """Raises DatabaseUnavailable."""
        self._known = await catalog.generation()
        try:
            self._first = min(self._known, int(self._memory.read_text()))
        except (FileNotFoundError, ValueError):
            self._first = self._known
        self._remember()

    async def poll(self, catalog: Catalog, now_ms: int) -> None:
        """Push what changed; nothing changed says that what is cached is current.

        Raises DatabaseUnavailable.
        """
        changes = await catalog.changed_keys(self._known)
        for message in _messages(self._desk.changed(changes.records)):
            self._server.broadcast("keys", message)
        self._desk.confirm(now_ms)
        if changes.generation != self._known:
            self._known = changes.generation
            self._remember()

    async def greet(self, peer: Peer, catalog: Catalog) -> None:
        """What a worker missed while it had no control. Raises DatabaseUnavailable."""
        since = self._left.pop(peer.incarnation, self._first)
        while since < self._known:
            changes = await catalog.changed_keys(since)
            if not changes.records:
                return
            since = changes.generation
            for message in _messages(self._desk.changed(changes.records)):
                peer.send("keys", message)

    def lost(self, peer: Peer) -> None:
        self._left[peer.incarnation] = self._known
        if len(self._left) > LEFT_MAX:
            del self._left[next(iter(self._left))]

    def _remember(self) -> None:
        self._memory.write_text(str(self._known))


def _messages(pushes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """At least one: an empty one is news too."""
    for start in range(0, max(1, len(pushes)), RECORDS_PER_MESSAGE):
        yield {"changed": pushes[start : start + RECORDS_PER_MESSAGE]}
