"""What is measured, and how: one function per kind of figure, for one subject at a time.

Each returns named numbers; which subjects, in which order and how often is the runner's business.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from dataclasses import dataclass

from proxy.bench import machine
from proxy.bench.load import Load, Mark
from proxy.bench.machine import BenchError
from proxy.bench.rig import Rig
from proxy.bench.subjects import Subject

CONNECTIONS = 64
STREAMS = 200
CHUNKS_PER_STREAM_S = 50
STREAM = "@chunks {chunks} @every_us {every_us} "
SHORT_STREAM = STREAM.format(chunks=1, every_us=0)
# (connections, requests a second): one call after the other, and a station moderately at work. With
# pauses between the calls, the waking of a virtual machine's idle core would be most of the figure.
FIRST_BYTE_LOADS = {"serial": (1, 0.0), "busy": (32, 1000.0)}
HELD_STREAM = STREAM.format(chunks=100, every_us=10_000_000)  # a chunk each 10 s: open, and alive
MEMORY_STREAMS = (2_000, 10_000)
OPEN_S = 90.0  # how long 10,000 streams may take to open
OPENING_S = 10.0  # and 200

QUIET_S = 20.0  # at most, for what is left over of the measurement before

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to warm up and to measure, in seconds."""

    warm_s: float
    window_s: float


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two marks, and the time that processes took for it."""

    before: Mark
    after: Mark
    waited_ns: int  # the subject was ready to run and something else had its core
    cpu_ns: dict[str, int]  # "cpu": the subject's own; "X_cpu": of what works for it

    def per_unit(self, unit: str, count: int) -> Figures:
        """Raises BenchError where answers failed: their CPU time would say nothing."""
        if count <= 0 or self.after.errors:
            raise BenchError(f"{count} units of {unit}, {self.after.complaint}")
        window_ns = self.after.ns - self.before.ns
        figures = {
            f"{unit}_per_s": count / window_ns * 1e9,
            f"{unit}_waited_pct": 100 * self.waited_ns / window_ns,
        }
        return figures | {f"{unit}_{name}_us": ns / 1000 / count for name, ns in self.cpu_ns.items()}


def measure(load: Load, subject: Subject, is_secure: bool, window_s: float) -> Window:
    """Watch a running load for `window_s`."""
    pid = subject.pid(is_secure)
    assert pid is not None, f"{subject.name} has no process to measure"
    groups = {"cpu": [pid]} | {f"{name}_cpu": pids for name, pids in subject.helpers().items()}

    def spent_ns() -> dict[str, int]:
        return {name: sum(map(machine.cpu_ns, pids)) for name, pids in groups.items()}

    before, waited, spent = load.mark(), machine.waited_ns(pid), spent_ns()
    time.sleep(window_s)
    after, waited_after, spent_after = load.mark(), machine.waited_ns(pid), spent_ns()
    spent = {name: spent_after[name] - spent[name] for name in groups}
    return Window(before, after, waited_after - waited, spent)


def requests(rig: Rig, subject: Subject, is_secure: bool, pace: Pace) -> Figures:
    """CPU per whole answer of 1 KB, over kept connections that ask as fast as they can."""
    files = rig.requests("whole", is_secure)
    with Load(rig, subject.port(is_secure), CONNECTIONS, files) as load:
        time.sleep(pace.warm_s)
        window = measure(load, subject, is_secure, pace.window_s)
    answers = window.after.responses - window.before.responses
    return window.per_unit("request", answers)


def chunks(rig: Rig, subject: Subject, is_secure: bool, pace: Pace, *, asks_usage: bool) -> Figures:
    """CPU per SSE event of streams that speak at a fixed pace, while no stream begins or ends."""
    lasts_s = 2 * pace.warm_s + pace.window_s + OPENING_S
    stream = STREAM.format(
        chunks=int(lasts_s * CHUNKS_PER_STREAM_S), every_us=1_000_000 // CHUNKS_PER_STREAM_S
    )
    unit = "chunk" if asks_usage else "injected"
    files = rig.requests(unit, is_secure, stream=stream, asks_usage=asks_usage)
    with Load(rig, subject.port(is_secure), STREAMS, files) as load:
        load.wait_until_open(STREAMS, OPENING_S)
        time.sleep(pace.warm_s)
        window = measure(load, subject, is_secure, pace.window_s)
    events = window.after.events - window.before.events
    return window.per_unit(unit, events)


def first_byte(rig: Rig, subject: Subject, is_secure: bool, pace: Pace) -> Figures:
    """Time to the first byte of a stream, in us: one call after the other, and under moderate load."""
    files = rig.requests("short", is_secure, stream=SHORT_STREAM)
    figures = {}
    for name, (connections, rate) in FIRST_BYTE_LOADS.items():
        with Load(rig, subject.port(is_secure), connections, files, rate) as load:
            time.sleep(pace.warm_s)
            load.mark()
            time.sleep(pace.window_s)
            mark = load.mark()
        if mark.errors or not mark.first_byte_us["n"]:
            raise BenchError(f"no first bytes, {mark.complaint}")
        for percentile in ("p50", "p99"):
            figures[f"first_byte_{name}_{percentile}_us"] = mark.first_byte_us[percentile]
    return figures


def memory(rig: Rig, subject: Subject, counts: tuple[int, ...]) -> Figures:
    """Growth of the process per open stream, at several numbers of streams, in KiB.

    Wants a subject that has not served many streams before: memory that it kept would not show.
    """
    pid = subject.pid(False)
    if pid is None:
        return {}
    warm = Pace(warm_s=0.5, window_s=0.5)
    requests(rig, subject, False, warm)
    machine.wait_until_quiet(QUIET_S)
    base, figures = machine.memory(pid), {}
    files = rig.requests("held", False, stream=HELD_STREAM)
    with contextlib.ExitStack() as loads:
        for already, count in itertools.pairwise((0, *counts)):
            load = loads.enter_context(Load(rig, subject.port(False), count - already, files))
            load.wait_until_open(count - already, OPEN_S)
            machine.wait_until_quiet(QUIET_S)
            now = machine.memory(pid)
            figures[f"memory_{count}_rss_kb"] = (now.rss - base.rss) / 1024 / count
            figures[f"memory_{count}_pss_kb"] = (now.pss - base.pss) / 1024 / count
    return figures
