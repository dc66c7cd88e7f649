"""The journals of this node on their way into Postgres: drain what lives, adopt what died.

Owns when that happens and what the rest of control learns of it. How it happens is the store's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from proxy.broker.estimates import Estimates
from proxy.ledger.entry import DEFERRED, End
from proxy.metering.usage import Usage
from proxy.store.adoption import Adopted, Adopter
from proxy.store.database import DatabaseUnavailable
from proxy.store.drainer import Drainer, DrainReport
from proxy.store.posting import Batch
from proxy.telemetry import Stats

log = logging.getLogger("headrace.journals")

PAUSE_S = 0.1  # between passes that found all there was; lag stays well under a second
RETRY_S = 1.0  # after a failure
FINAL_S = 20.0  # what the last drain may take; what is left waits for the next start


@dataclass(frozen=True, slots=True)
class _NoStation:
    """Until routes.yaml is loaded; nothing is drained before."""

    timezone: str = "UTC"


NO_STATION = _NoStation()


class EstimatingDrainer(Drainer):
    """Looks at the entries that it posts: they say what calls usually take."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.estimates = Estimates()

    async def post(self, batch: Batch, report: DrainReport) -> None:
        ends = [i.entry for i in batch.items if isinstance(i.entry, End) and i.entry.state != DEFERRED]
        await super().post(batch, report)
        for end in ends:
            if end.usage and end.model:
                self.estimates.add(end.model, Usage.from_dict(end.usage).output_tokens_all())


class Journals:
    """`on_adopted` is called for each life that is over."""

    def __init__(
        self,
        drainer: EstimatingDrainer,
        adopter: Adopter,
        stats: Stats,
        on_adopted: Callable[[Adopted], None],
    ) -> None:
        self.drainer = drainer
        self.adopter = adopter
        self._stats = stats
        self._on_adopted = on_adopted
        self._drained_s = monotonic()
        self.alarms: list[str] = []  # the newest, for the admin page

    async def keep_draining(self) -> None:
        """For ever; Postgres may come and go."""
        while True:
            try:
                is_behind = await self.one_pass()
            except DatabaseUnavailable as e:
                self._stats.inc("drain_failures_total")
                log.warning("journals wait: %s", e.detail)
                await asyncio.sleep(RETRY_S)
                continue
            except Exception:
                self._stats.inc("drain_failures_total")
                log.exception("draining failed")
                await asyncio.sleep(RETRY_S)
                continue
            if not is_behind:
                await asyncio.sleep(PAUSE_S)

    async def one_pass(self) -> bool:
        """Whether there was more than one pass takes. Raises DatabaseUnavailable."""
        report = await self.drainer.run_once()
        self._stats.inc("drained_entries_total", by=report.entries)
        self._stats.inc("quarantined_total", by=report.quarantined)
        self._alarm(report.alarms)
        for adopted in await self.adopter.run_once():
            self._stats.inc("adopted_total")
            self._stats.inc("interrupted_calls_total", by=adopted.interrupted)
            self._alarm(adopted.alarms)
            self._on_adopted(adopted)
        if not report.behind:
            self._drained_s = monotonic()
        return report.behind

    @property
    def lag_s(self) -> float:
        """Since all there was had been drained."""
        return monotonic() - self._drained_s

    async def finish(self, own: str) -> bool:
        """Drain to zero after the workers ended; False: it could not be done now. `own` is the life of
        this process, which is still open."""
        try:
            async with asyncio.timeout(FINAL_S):
                while await self.one_pass():
                    pass
                return not set(await self.adopter.unadopted()) - {own}
        except (DatabaseUnavailable, TimeoutError) as e:
            log.warning("journals are left for the next start: %s", e)
            return False

    def _alarm(self, lines: list[str]) -> None:
        self.alarms = (self.alarms + lines)[-20:]
