"""What the closed calls of a worker add to its numbers.

Owns which metrics a call counts in. Closing one costs a list append: what it says is counted when the
numbers are asked for, together with all others since then.
"""

from __future__ import annotations

from itertools import chain
from operator import attrgetter

from proxy.ledger.entry import INTERRUPTED_CLIENT, End
from proxy.metering.usage import Provenance
from proxy.telemetry import Stats

CALLS_MAX = 50  # that wait to be counted: about 2 KB each, so that they are still in the cache

DEGRADED = "metering_degraded"  # a flag of an End

FINAL = Provenance.FINAL

_call = attrgetter("operation", "outcome")
_attempt = attrgetter("upstream", "mirror", "outcome")
_attempts, _flags = attrgetter("attempts"), attrgetter("flags")
_operation, _outcome = attrgetter("operation"), attrgetter("outcome")
_request_bytes, _response_bytes = attrgetter("request_bytes"), attrgetter("response_bytes")
_events = attrgetter("events")


class Tally:
    """The calls that were closed since the numbers were last asked for."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._ends: list[End] = []
        self._overheads_s: list[float] = []
        stats.before_snapshot(self._count)

    def add(self, end: End, overhead_s: float) -> None:
        """`overhead_s`: from the last byte of the request until it left."""
        self._ends.append(end)
        if overhead_s > 0:  # else it was an upload: the rest of it came later
            self._overheads_s.append(overhead_s)
        if len(self._ends) == CALLS_MAX:
            self._count()

    def _count(self) -> None:
        stats, ends, self._ends = self._stats, self._ends, []
        if not ends:
            return
        stats.inc_all("calls_total", map(_call, ends))
        stats.inc_all("upstream_attempts_total", map(_attempt, chain.from_iterable(map(_attempts, ends))))
        stats.inc_all("usage_provenance_total", [(e.provenance,) for e in ends if e.provenance != FINAL])
        stats.inc("request_bytes_total", by=sum(map(_request_bytes, ends)))
        stats.inc("response_bytes_total", by=sum(map(_response_bytes, ends)))
        if degraded := [*chain.from_iterable(map(_flags, ends))].count(DEGRADED):
            stats.inc("metering_degraded_total", by=degraded)
        if left := [*map(_outcome, ends)].count(INTERRUPTED_CLIENT):
            stats.inc("client_disconnects_total", by=left)
        streams = [e for e in ends if e.stream]
        if streams:
            stats.inc("stream_events_total", by=sum(map(_events, streams)))
        stats.observe_all("overhead_seconds", self._overheads_s)
        self._overheads_s = []
        for operation in set(map(_operation, ends)):
            took = [e.took_ms / 1000 for e in ends if e.operation == operation]
            stats.observe_all("call_seconds", took, operation)
            first = [e.ttft_ms / 1000 for e in streams if e.operation == operation]
            stats.observe_all("first_byte_seconds", first, operation)
