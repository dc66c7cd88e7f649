"""Medians, spans and ratios of a run, as a table for people and as a document for machines."""

from __future__ import annotations

import os
import platform
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.bench import tasks
from proxy.bench.runner import DIRECT, HTTPS, Results

REFERENCE = "nginx"
COLUMNS = (REFERENCE, "relay", "textbook")


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: something measured for several subjects."""

    name: str
    label: str
    unit: str
    is_added: bool = False  # what counts is the difference to the bare upstream

    @property
    def decimals(self) -> int:
        return 0 if self.is_added else 1


FIGURES = (
    Figure("request_cpu_us", "CPU per request (1 KB, whole answer)", "us"),
    Figure("chunk_cpu_us", "CPU per SSE chunk at 10,000/s", "us"),
    Figure("injected_cpu_us", "CPU per SSE chunk, usage injected", "us"),
    Figure("first_byte_serial_p50_us", "added to first byte, serial, p50", "us", is_added=True),
    Figure("first_byte_serial_p99_us", "added to first byte, serial, p99", "us", is_added=True),
    Figure("first_byte_busy_p50_us", "added to first byte at 1,000/s, p50", "us", is_added=True),
    Figure("first_byte_busy_p99_us", "added to first byte at 1,000/s, p99", "us", is_added=True),
)
OVER_HTTPS = tuple(
    Figure(figure.name + HTTPS, f"{figure.label}, HTTPS", figure.unit, figure.is_added) for figure in FIGURES
)
TASKS = tuple(
    Figure(f"tasks_{name}_{what}", f"{label}: {told}", unit)
    for name, label in (
        ("none", "no task open"),
        ("one", f"{tasks.OPEN:,} tasks, asked about one by one"),
        ("one_finished", f"the same, {tasks.FINISHED:,} finished"),
        ("many", f"{tasks.OPEN:,} tasks, asked about by the hundred"),
        ("many_finished", f"the same, {tasks.FINISHED:,} finished"),
    )
    for what, told, unit in (
        ("control_pct", "control", "% of a core"),
        ("postgres_pct", "Postgres", "% of a core"),
        ("control_us", "control, per task asked about", "us"),
        ("postgres_us", "Postgres, per task asked about", "us"),
        ("requests_per_s", "requests to the vendor", "/s"),
        ("tasks_per_s", "tasks asked about", "/s"),
    )
)
MEMORY = re.compile(r"memory_(\d+)_(rss|pss)_kb")
# What stands below the table: it explains the figures and is not one to compare.
CONTEXT = re.compile(r"(request|chunk|injected)_(per_s|waited_pct|control_cpu_us|postgres_cpu_us)(?:-https)?")
WAITED_PCT_MAX = 5.0  # beyond it, other programs took the proxy's core and its caches


def figures_of(results: Results) -> list[Figure]:
    """What the table shows, in reading order."""
    memory = []
    for name in results.samples:
        if found := MEMORY.fullmatch(name):
            label = f"memory per open stream, {int(found[1]):,} open ({found[2].upper()})"
            memory.append(Figure(name, label, "KiB"))
    shown = (*FIGURES, *memory, *OVER_HTTPS, *TASKS)
    return [figure for figure in shown if figure.name in results.samples]


def summary(results: Results, figure: Figure) -> dict[str, dict[str, Any]]:
    """Median, min and max per subject; for an added figure, over the bare upstream's median."""
    samples = dict(results.samples[figure.name])
    direct = samples.pop(DIRECT, None)
    base = statistics.median(direct) if figure.is_added and direct else 0.0
    return {
        subject: {
            "median": statistics.median(values) - base,
            "min": min(values) - base,
            "max": max(values) - base,
            "rounds": len(values),
        }
        for subject, values in samples.items()
    }


def ratios(subjects: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Each subject's median over nginx's; empty where nginx is missing or has nothing to compare with."""
    reference = subjects.get(REFERENCE, {}).get("median", 0.0)
    if reference <= 0:
        return {}
    return {name: found["median"] / reference for name, found in subjects.items() if name != REFERENCE}


def document(results: Results) -> dict[str, Any]:
    """Everything, for machines."""
    shown = []
    for figure in figures_of(results):
        subjects = summary(results, figure)
        entry: dict[str, Any] = {"figure": figure.name, "label": figure.label, "unit": figure.unit}
        shown.append(entry | {"subjects": subjects, "ratio_to_nginx": ratios(subjects)})
    return {
        "machine": machine(),
        "subjects": results.subjects,
        "figures": shown,
        "samples": results.samples,
        "notes": notes(results),
    }


def machine() -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def notes(results: Results) -> list[str]:
    """What went wrong in the run, and whether the machine had something else to do."""
    shares = [
        statistics.median(values)
        for name, samples in results.samples.items()
        if name.removesuffix(HTTPS).endswith("_waited_pct")
        for values in samples.values()
    ]
    if max(shares, default=0.0) <= WAITED_PCT_MAX:
        return results.notes
    busy = f"for up to {max(shares):.0f} % of the time other programs kept a proxy from its core"
    return [*results.notes, f"{busy}: compare nothing"]


def table(results: Results) -> str:
    """A markdown table, then what explains it, then what went wrong."""
    where = machine()
    parts = [
        "\n".join(_rows(results)),
        "Medians (min to max over the rounds); x: times nginx. What else was seen, medians:",
        "\n".join(_context(results)),
        "\n".join(f"NOTE {note}" for note in notes(results)),
        f"{where['cpu']}, {where['cores']} cores, Linux {where['kernel']}, Python {where['python']}",
    ]
    return "\n\n".join(part for part in parts if part)


def _rows(results: Results) -> list[str]:
    titles = [REFERENCE, *(title for name in COLUMNS[1:] for title in (name, "x"))]
    rows = [f"| figure | unit | {' | '.join(titles)} |", "| --- | --- |" + " ---: |" * len(titles)]
    for figure in figures_of(results):
        subjects = summary(results, figure)
        times = ratios(subjects)
        cells = []
        for name in COLUMNS:
            cells.append(_span(subjects[name], figure.decimals) if name in subjects else "-")
            if name != REFERENCE:
                cells.append(f"{times[name]:.2f}" if name in times else "-")
        rows.append(f"| {figure.label} | {figure.unit} | {' | '.join(cells)} |")
    return rows


def _span(found: dict[str, Any], decimals: int) -> str:
    middle, low, high = (f"{found[name]:,.{decimals}f}" for name in ("median", "min", "max"))
    return f"{middle} ({low} to {high})" if found["rounds"] > 1 else middle


def _context(results: Results) -> list[str]:
    """Throughput, the bare upstream's own times, and what works beside the relay's worker."""
    lines = []
    for name, samples in results.samples.items():
        shown = samples if CONTEXT.fullmatch(name) else {DIRECT: samples[DIRECT]} if DIRECT in samples else {}
        said = ", ".join(f"{who} {statistics.median(values):,.1f}" for who, values in shown.items())
        if said:
            lines.append(f"- {name}: {said}")
    return lines
