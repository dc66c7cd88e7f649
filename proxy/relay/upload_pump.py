"""One attempt whose request is still coming in, while the upstream may answer already.

Owns what differs from a request that is in memory: the upload runs beside the answer, and until the upstream
has all of it nothing was consumed.
"""

from __future__ import annotations

from time import monotonic

from proxy.errors import ProxyError
from proxy.ledger import entry
from proxy.relay.exchange import Exchange
from proxy.relay.plan import Plan, Tools
from proxy.relay.pump import JUDGING, RELAYING, WAITING, Pump


class UploadPump(Pump):
    """A Pump that sends an upload."""

    __slots__ = ("_sending",)

    def __init__(self, x: Exchange, plan: Plan, tools: Tools) -> None:
        super().__init__(x, plan, tools)
        assert plan.sending is not None
        self._sending = plan.sending

    @property
    def _is_working(self) -> bool:
        return super()._is_working and self._sending.is_done

    def send(self, refused: BaseException | None) -> None:
        super().send(refused)
        if self.is_sent and self._conn is not None:
            self._sending.start(self._conn, self._uploaded)

    def upload_resume(self) -> None:
        self._sending.resume()

    def _uploaded(self, error: ProxyError | None) -> None:
        """The upstream has all of it, or will never have it."""
        if error is None:
            self._last = self._x.uploaded = monotonic()
        elif self._state in (WAITING, JUDGING):
            self._fail(error)
        elif self._state is RELAYING:
            self._cut(entry.INTERRUPTED_CLIENT, error.code)

    def check(self, now: float) -> None:
        if self._state is WAITING:
            self._last = max(self._last, self._sending.last_activity)
        super().check(now)

    def _close(self, result: ProxyError | None) -> None:
        self._sending.stop()
        super()._close(result)
