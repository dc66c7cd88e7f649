"""What a process tells about itself: plain counters, owned background tasks.

Owns the list of metrics and every background task; log lines are `logs.py`'s. Knows no Prometheus:
control turns the numbers into it.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from proxy.logs import redactor  # noqa: F401 (a part of what a process tells)

T = TypeVar("T")

log = logging.getLogger("headrace")


# -- tasks ---------------------------------------------------------------------------------------

_tasks: set[asyncio.Task[Any]] = set()  # the loop itself keeps only weak references


def spawn(name: str, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run `coro` as a task that is kept until it ends and whose failure is logged.

    The only way to start background work (ruff bans the others).
    """
    task = asyncio.get_running_loop().create_task(coro, name=name)
    _tasks.add(task)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        log.error("task failed", extra={"task": task.get_name()}, exc_info=error)


def running() -> list[str]:
    """Names of the tasks that have not ended; for tests and the admin page."""
    return sorted(task.get_name() for task in _tasks)


async def cancel_all(*, keep: Iterable[asyncio.Task[Any]] = ()) -> None:
    """Cancel every owned task but the caller's own and `keep`, and wait for their ends."""
    spared = {asyncio.current_task(), *keep}
    doomed = [task for task in _tasks if task not in spared]
    for task in doomed:
        task.cancel()
    await asyncio.gather(*doomed, return_exceptions=True)


# -- numbers -------------------------------------------------------------------------------------

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
OVERHEAD = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5)


@dataclass(frozen=True, slots=True)
class Metric:
    """`kind`: counter, gauge or histogram. Labels have few values: never a key, never a raw model name."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: dict[str, Metric] = {
    "calls_total": Metric("counter", "Calls closed.", ("operation", "outcome")),
    "refusals_total": Metric("counter", "Requests refused by us.", ("code",)),
    "usage_provenance_total": Metric("counter", "Closed calls by source of usage.", ("provenance",)),
    "upstream_attempts_total": Metric("counter", "Tries at upstreams.", ("upstream", "mirror", "outcome")),
    "upstream_connects_total": Metric("counter", "New connections to upstreams."),
    "request_bytes_total": Metric("counter", "Body bytes received from clients."),
    "response_bytes_total": Metric("counter", "Body bytes sent to clients."),
    "stream_events_total": Metric("counter", "Events of streams that were metered."),
    "metering_degraded_total": Metric("counter", "Answers whose metering met a parse error."),
    "journal_entries_total": Metric("counter", "Entries appended to the journal."),
    "journal_bytes_total": Metric("counter", "Bytes appended to the journal."),
    "journal_syncs_total": Metric("counter", "fdatasync calls of the journal."),
    "client_disconnects_total": Metric("counter", "Clients that left before their answer was complete."),
    "results_served_total": Metric("counter", "Requests for files that tasks have made.", ("status",)),
    "results_served_bytes_total": Metric("counter", "Bytes of such files."),
    "connections": Metric("gauge", "Open client connections."),
    "calls_open": Metric("gauge", "Calls that have begun and are not closed."),
    "streams_open": Metric("gauge", "Open streams."),
    "upstream_connections": Metric("gauge", "Open upstream connections.", ("state",)),
    "mirror_first_byte_seconds": Metric(
        "gauge", "Until a stream's first byte, lately; where there is a choice.", ("upstream", "mirror")
    ),
    "journal_available": Metric("gauge", "1 while the journal takes entries."),
    "table_generation": Metric("gauge", "Generation of the routes in use."),
    "memory_bytes": Metric("gauge", "Resident memory."),
    # Control's own.
    "workers": Metric("gauge", "Workers that are connected."),
    "reloads_total": Metric("counter", "Tries to load routes.yaml.", ("result",)),
    "config_reload_failed": Metric("gauge", "1 while the newest routes.yaml cannot be used."),
    "postgres_away": Metric("gauge", "1 while Postgres is declared away."),
    "key_lookups_total": Metric("counter", "Keys that workers asked for.", ("result",)),
    "keys_cached": Metric("gauge", "Key records held by control."),
    "slices_total": Metric("counter", "Slices of balance that workers asked for.", ("result",)),
    "allowance_nanos_total": Metric("counter", "Credit granted while Postgres was away."),
    "limits_refused_total": Metric("counter", "Refusals because of a limit.", ("kind",)),
    "credentials_resting": Metric("gauge", "Cooldowns in force."),
    "task_polls_total": Metric("counter", "Questions to vendors about tasks.", ("upstream", "outcome")),
    "tasks_ended_total": Metric("counter", "Tasks whose end was learned by this node's polls."),
    "tasks_disputed_total": Metric("counter", "Tasks whose end nobody could tell in time."),
    "callbacks_total": Metric("counter", "Tries to tell customers of their tasks.", ("outcome",)),
    "callbacks_waiting": Metric("gauge", "Events of the station that are still to be told."),
    "callback_hints_total": Metric("counter", "Vendors' callbacks about tasks.", ("result",)),
    "result_fetches_total": Metric("counter", "Tries to fetch files that tasks have made.", ("outcome",)),
    "result_bytes_total": Metric("counter", "Bytes of such files that were kept."),
    "results_waiting": Metric("gauge", "Files of the station that are still to be fetched."),
    "results_waiting_seconds": Metric("gauge", "Since the oldest of them was ordered."),
    "results_removed_total": Metric("counter", "Files that were removed when their days were over."),
    "results_disk_full": Metric("gauge", "1 while there is no room to fetch such files to. An alarm."),
    "results_not_shared": Metric(
        "gauge", "Other nodes whose files are not in this node's directory. An alarm."
    ),
    "drained_entries_total": Metric("counter", "Journal entries copied into Postgres."),
    "drain_lag_seconds": Metric("gauge", "Age of the last complete pass over the journals."),
    "drain_failures_total": Metric("counter", "Passes over the journals that failed."),
    "quarantined_total": Metric("counter", "Journal entries that could not be applied. An alarm."),
    "adopted_total": Metric("counter", "Dead incarnations whose journal was adopted."),
    "interrupted_calls_total": Metric("counter", "Calls that adoption had to close."),
    "loop_lag_seconds": Metric("histogram", "How late the loop was, sampled.", (), OVERHEAD),
    "overhead_seconds": Metric("histogram", "Time spent in the relay before the request left.", (), OVERHEAD),
    "first_byte_seconds": Metric("histogram", "To the first byte of the answer.", ("operation",), SECONDS),
    "call_seconds": Metric("histogram", "Whole calls.", ("operation",), SECONDS),
    "hold_wait_seconds": Metric("histogram", "Waiting for a slice of balance or a limit.", (), SECONDS),
}


class Stats:
    """Counters, gauges and histograms as plain numbers; cheap enough for each request.

    Labels come in the order of METRICS. Raises KeyError on a name that METRICS does not have.
    """

    __slots__ = ("_histograms", "_values", "_waiting")

    def __init__(self) -> None:
        self._values: dict[tuple[str, ...], float] = {}
        self._histograms: dict[tuple[str, ...], list[float]] = {}  # counts per bucket, above all, sum
        self._waiting: list[Callable[[], None]] = []

    def inc(self, name: str, *labels: str, by: float = 1) -> None:
        key = (name, *labels)
        try:
            self._values[key] += by
        except KeyError:
            self._values[_declared(key)] = by

    def set(self, name: str, value: float, *labels: str) -> None:
        key = (name, *labels)
        if key not in self._values:
            _declared(key)
        self._values[key] = value

    def observe(self, name: str, value: float, *labels: str) -> None:
        series = self._series(name, labels)
        series[bisect_left(METRICS[name].buckets, value)] += 1
        series[-1] += value

    def _series(self, name: str, labels: tuple[str, ...]) -> list[float]:
        key = (name, *labels)
        series = self._histograms.get(key)
        if series is None:
            series = self._histograms[_declared(key)] = [0.0] * (len(METRICS[name].buckets) + 2)
        return series

    # For what happens too often to be counted one by one.

    def inc_all(self, name: str, labels: Iterable[tuple[str, ...]]) -> None:
        """Once for each."""
        for each, n in Counter(labels).items():
            self.inc(name, *each, by=n)

    def observe_all(self, name: str, values: Sequence[float], *labels: str) -> None:
        if values:
            series = self._series(name, labels)
            for bucket, n in Counter(map(partial(bisect_left, METRICS[name].buckets), values)).items():
                series[bucket] += n
            series[-1] += sum(values)

    def before_snapshot(self, count: Callable[[], None]) -> None:
        """`count` counts whatever waits to be counted."""
        self._waiting.append(count)

    def snapshot(self) -> dict[str, list[Any]]:
        """Totals since the process began: {"values": [[[name, label...], n]...], "histograms": ...}."""
        for count in self._waiting:
            count()
        return {
            "values": [[key, value] for key, value in self._values.items()],
            "histograms": [[key, list(series)] for key, series in self._histograms.items()],
        }


def _declared(key: tuple[str, ...]) -> tuple[str, ...]:
    metric = METRICS[key[0]]
    if len(key) - 1 != len(metric.labels):
        raise KeyError(f"{key[0]} has the labels {metric.labels}")
    return key
