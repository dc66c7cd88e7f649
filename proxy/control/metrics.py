"""The numbers of a node's processes as one Prometheus registry.

Owns the sums over workers that come and go: what a dead worker counted stays counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from proxy.telemetry import METRICS, Metric

Key = tuple[str, ...]  # name, then labels
PREFIX = "headrace_"


class _Totals:
    """What processes counted, by name and labels."""

    def __init__(self) -> None:
        self.values: dict[Key, float] = {}
        self.histograms: dict[Key, list[float]] = {}

    def add(self, snapshot: dict[str, list[Any]]) -> None:
        for key, value in snapshot["values"]:
            key = tuple(key)
            if METRICS[key[0]].kind == "counter":
                self.values[key] = self.values.get(key, 0) + value
        for key, series in snapshot["histograms"]:
            known = self.histograms.get(tuple(key))
            total = series if known is None else [a + b for a, b in zip(known, series, strict=True)]
            self.histograms[tuple(key)] = list(total)


class Numbers(Collector):
    """Newest snapshot of each living process, and the totals of the dead."""

    def __init__(self) -> None:
        self._living: dict[str, tuple[str, dict[str, list[Any]]]] = {}  # process -> incarnation, snapshot
        self._dead = _Totals()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def update(self, process: str, incarnation: str, snapshot: dict[str, list[Any]]) -> None:
        """`process`: 'w0', 'control'; a new incarnation means that the one before is dead."""
        before = self._living.get(process)
        if before is not None and before[0] != incarnation:
            self._dead.add(before[1])
        known = [e for e in snapshot["values"] if e[0][0] in METRICS]  # an older worker's names are skipped
        self._living[process] = (incarnation, {**snapshot, "values": known})

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Family]:
        totals = _Totals()
        totals.add(
            {"values": list(self._dead.values.items()), "histograms": list(self._dead.histograms.items())}
        )
        for _, snapshot in self._living.values():
            totals.add(snapshot)
        for name, metric in METRICS.items():
            if metric.kind == "counter":
                yield self._counter(name, metric, totals)
            elif metric.kind == "gauge":
                yield self._gauge(name, metric)
            else:
                yield self._histogram(name, metric, totals)

    def _counter(self, name: str, metric: Metric, totals: _Totals) -> Family:
        family = CounterMetricFamily(PREFIX + name, metric.help, labels=metric.labels)
        for key, value in totals.values.items():
            if key[0] == name:
                family.add_metric(key[1:], value)
        return family

    def _gauge(self, name: str, metric: Metric) -> Family:
        """Gauges are of one process each: a label says which."""
        family = GaugeMetricFamily(PREFIX + name, metric.help, labels=("process", *metric.labels))
        for process, (_, snapshot) in self._living.items():
            for key, value in snapshot["values"]:
                if key[0] == name:
                    family.add_metric((process, *key[1:]), value)
        return family

    def _histogram(self, name: str, metric: Metric, totals: _Totals) -> Family:
        family = HistogramMetricFamily(PREFIX + name, metric.help, labels=metric.labels)
        for key, series in totals.histograms.items():
            if key[0] == name:
                *counts, total = series
                buckets, below = [], 0.0
                for bound, count in zip((*map(str, metric.buckets), "+Inf"), counts, strict=True):
                    below += count
                    buckets.append((bound, below))
                family.add_metric(key[1:], buckets, total)
        return family
