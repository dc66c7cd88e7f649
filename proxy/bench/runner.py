"""Run the benchmark: start everything, measure in alternation, gather what was measured.

Subjects take turns within each round and rounds repeat, so that a slow minute of the machine meets
all of them; medians are compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from proxy.bench import figures, machine, tasks
from proxy.bench.figures import Figures, Pace
from proxy.bench.machine import BenchError
from proxy.bench.relay import Relay
from proxy.bench.rig import Rig
from proxy.bench.subjects import Direct, Nginx, Subject, Textbook

FIRST_BYTE = "first-byte"
DIRECT = Direct.name
Job = Callable[[Rig, Subject, bool, Pace], Figures]
JOBS: dict[str, Job] = {
    "requests": figures.requests,
    "chunks": partial(figures.chunks, asks_usage=True),
    "injected": partial(figures.chunks, asks_usage=False),
    FIRST_BYTE: figures.first_byte,
}
HTTPS = "-https"
MEMORY = "memory"
USUAL = (MEMORY, *JOBS, *(name + HTTPS for name in JOBS))
TASKS = "tasks"  # of a station of its own, beside nobody: only when it is asked for
NAMES = (*USUAL, TASKS)
SOCKETS_PER_STREAM = 2  # of a proxy
SPARE_FILES = 200  # of a proxy, for everything else


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    names: tuple[str, ...]  # of NAMES
    rounds: int
    pace: Pace
    memory_streams: tuple[int, ...]


FULL = Plan(USUAL, rounds=3, pace=Pace(warm_s=1.0, window_s=4.0), memory_streams=figures.MEMORY_STREAMS)
QUICK = Plan(USUAL, rounds=1, pace=Pace(warm_s=0.5, window_s=1.5), memory_streams=(500,))


@dataclass(slots=True)
class Results:
    """Every sample, by figure and subject, and what could not be measured."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)

    def add(self, subject: str, measured: Figures, suffix: str = "") -> None:
        for figure, value in measured.items():
            self.samples.setdefault(figure + suffix, {}).setdefault(subject, []).append(value)


def run(plan: Plan, say: Callable[[str], None]) -> Results:
    """Measure everything in `plan`; `say` hears of the progress. Raises BenchError where nothing can be
    measured; a subject that cannot take part is left out with a note.
    """
    cores = machine.claim_cores()
    if TASKS in plan.names:
        return run_tasks(plan, cores, say)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        rig = Rig(Path(folder), cores)
        rig.build()
        run = Run(plan, rig, say)
        if not cores.are_apart:
            run.results.notes.append("one core only: the proxy shares it with the upstream and the load")
        # The relay first: its keys are in everybody's requests.
        subjects: list[Subject] = [Relay(rig), Nginx(rig), Textbook(rig), Direct(rig)]
        try:
            rig.start()
            run.start(subjects)
            run.measure_memory()
            for number in range(plan.rounds):
                run.measure_round(number)
        finally:
            for subject in subjects:
                subject.stop()
            rig.stop()
    return run.results


def run_tasks(plan: Plan, cores: machine.Cores, say: Callable[[str], None]) -> Results:
    """What open tasks cost a station that has nothing else to do. Raises BenchError."""
    results = Results(subjects=[Relay.name])
    for _ in range(plan.rounds):
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            results.add(Relay.name, tasks.measure(Path(folder), cores, plan.pace.window_s * 2, say))
    return results


class Run:
    """One run of a plan, with what it gathers."""

    def __init__(self, plan: Plan, rig: Rig, say: Callable[[str], None]) -> None:
        self.results = Results()
        self._plan, self._rig, self._say = plan, rig, say
        self._subjects: list[Subject] = []

    def start(self, subjects: list[Subject]) -> None:
        if self._rig.certificate is None:
            self.results.notes.append("no `openssl` command: nothing was measured over HTTPS")
        for subject in subjects:
            self._say(f"starting {subject.name}")
            try:
                subject.start()
            except BenchError as error:
                self.results.notes.append(f"{subject.name} is left out: {error}")
                subject.stop()
            else:
                self._subjects.append(subject)
        self.results.subjects = [subject.name for subject in self._subjects]

    def measure_memory(self) -> None:
        """Before everything else: a process that has served many streams keeps some of their memory."""
        if MEMORY not in self._plan.names:
            return
        most = (machine.open_files_limit() - SPARE_FILES) // SOCKETS_PER_STREAM
        counts = tuple(sorted({min(count, most) for count in self._plan.memory_streams}))
        if counts != self._plan.memory_streams:
            self.results.notes.append(f"memory: open files are limited here, {most} streams are the most")
        for subject in self._subjects:
            self._attempt(MEMORY, subject, partial(figures.memory, self._rig, subject, counts))

    def measure_round(self, number: int) -> None:
        """Every job once, with all subjects in turn; each round begins with another one."""
        turn = number % len(self._subjects)
        subjects = self._subjects[turn:] + self._subjects[:turn]
        for name in self._plan.names:
            is_secure = name.endswith(HTTPS)
            if name == MEMORY or (is_secure and self._rig.certificate is None):
                continue
            job = JOBS[name.removesuffix(HTTPS)]
            for subject in subjects:
                if subject.pid(is_secure) is None and name != FIRST_BYTE:
                    continue  # the bare upstream only says what a first byte takes without a proxy
                label = f"round {number + 1} of {self._plan.rounds}: {name}"
                self._attempt(label, subject, partial(job, self._rig, subject, is_secure, self._plan.pace))

    def _attempt(self, label: str, subject: Subject, measure: Callable[[], Figures]) -> None:
        self._say(f"{label}: {subject.name}")
        if not machine.wait_until_quiet(figures.QUIET_S):
            self.results.notes.append(f"{label}: the machine was not quiet before {subject.name}")
        try:
            self.results.add(subject.name, measure(), HTTPS if HTTPS in label else "")
        except BenchError as error:
            self.results.notes.append(f"{label}: {subject.name}: {error}")
