"""What a life left open: fed with its journal in order, it knows which calls lack their end.

Owns the rule which calls adoption must close and which segments may go. Pure; memory is bounded by the
calls that are open at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.ledger import holds, settlement
from proxy.ledger.entry import PENDING, SETTLED, Begin, Checkpoint, End, Entry, PriceEntry, Progress, Settle
from proxy.metering.pricing import Price, price_from_content

KEPT_MS = 24 * 3600 * 1000  # a drained segment stays this long, for disputes and audits


@dataclass(slots=True)
class OpenCall:
    """A call whose hold is not resolved. `end` is set while it is pending."""

    segment: int  # of its Begin
    begin: Begin
    state: str = holds.OPEN
    progress: Progress | None = None
    end: End | None = None


class OpenCalls:
    """The open calls of one incarnation; feed it every entry of its segments in order."""

    def __init__(self) -> None:
        self.calls: dict[str, OpenCall] = {}
        self.prices: dict[str, Price] = {}
        self.strays = 0  # ends without a begin: a begin was damaged, or an end came twice

    def feed(self, record: Entry, segment: int) -> None:
        """The next entry. Raises holds.AlreadyClosed when a pending call ends again."""
        if isinstance(record, Begin):
            self.calls[record.id] = OpenCall(segment, record)
        elif isinstance(record, Checkpoint):
            for progress in record.live:
                if (call := self.calls.get(progress.id)) is not None:
                    call.progress = progress
        elif isinstance(record, End):
            self._resolve(record.id, record.state, record)
        elif isinstance(record, Settle):
            if not record.corrects:
                self._resolve(record.id, SETTLED, None)
        elif isinstance(record, PriceEntry):
            self.prices[record.id] = price_from_content(record.content)

    def _resolve(self, call_id: str, by: str, end: End | None) -> None:
        call = self.calls.get(call_id)
        if call is None:
            self.strays += 1
            return
        call.state = holds.resolved(call_id, call.state, by)
        call.end = end
        if call.state != PENDING:
            del self.calls[call_id]

    def closings(self, now_ms: int) -> list[End | Settle]:
        """What adoption writes for a dead life, in the order of the ids. Feeding it back leaves nothing open.

        Raises KeyError with the price's id when its entry is not in this journal: no cost is made up.
        """
        return [self._closing(call, now_ms) for _, call in sorted(self.calls.items())]

    def _closing(self, call: OpenCall, now_ms: int) -> End | Settle:
        if call.end is not None:
            return settlement.recovered(call.end, self.prices[call.end.price], now_ms)
        price = self.prices[call.begin.price]
        return settlement.interrupted(call.begin, call.progress, price, now_ms)

    def begun_in(self, segment: int) -> int:
        """How many calls that began in a segment are still open."""
        return sum(call.segment == segment for call in self.calls.values())


def may_delete(open_begins: int, drained_ms: int | None, now_ms: int) -> bool:
    """May a segment go? When all of it is in Postgres for a day and every call that began in it is over.

    `drained_ms`: when its last entry was drained; None: not yet.
    """
    return open_begins == 0 and drained_ms is not None and now_ms - drained_ms >= KEPT_MS
