"""What the holders' portal works with: the station's database, and its routes as they are now.

Owns no path. `snapshot()` is None until routes.yaml was loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aiohttp import web

from proxy.routing.table import Endpoint
from proxy.routing.tiers import Gateway
from proxy.snapshot import Snapshot
from proxy.store.database import Database


class Shop:
    """One per process."""

    def __init__(
        self, database: Database, snapshot: Callable[[], Snapshot | None], new_id: Callable[[], str]
    ) -> None:
        self.database = database
        self.snapshot = snapshot
        self.new_id = new_id

    def gateways(self) -> Mapping[str, Gateway]:
        snapshot = self.snapshot()
        return {} if snapshot is None else snapshot.table.gateways

    def trial_nanos(self) -> int | None:
        """What a new account begins with; None: nobody signs up."""
        snapshot = self.snapshot()
        return None if snapshot is None else snapshot.table.station.trial_nanos

    def name(self) -> str:
        snapshot = self.snapshot()
        return "" if snapshot is None else snapshot.table.station.name

    def mirrors(self) -> frozenset[str]:
        """All that a preference may name."""
        snapshot = self.snapshot()
        return frozenset() if snapshot is None else snapshot.table.mirror_names

    def endpoints(self) -> Sequence[Endpoint]:
        """The base URLs that holders are given."""
        snapshot = self.snapshot()
        return () if snapshot is None else tuple(snapshot.table.endpoints.values())

    def public_url(self) -> str:
        """Of the first endpoint: where gateways send their notices."""
        snapshot = self.snapshot()
        return "" if snapshot is None else next(iter(snapshot.table.endpoints.values())).url


SHOP = web.AppKey("SHOP", Shop)
