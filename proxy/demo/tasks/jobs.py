"""The jobs of all families: what they are, how they move on, who is told.

Owns their states and the demo's clock; knows no vendor's words and no HTTP. Seconds are since the epoch.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxy.demo.tasks.words import prompt_of, words_in

if TYPE_CHECKING:
    from proxy.demo.tasks.family import Call, Family

QUEUED, SUBMITTED, RUNNING, WAITING = "queued", "submitted", "running", "waiting"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
STATES = frozenset({QUEUED, SUBMITTED, RUNNING, WAITING, SUCCEEDED, FAILED, CANCELLED})
ENDED = frozenset({SUCCEEDED, FAILED, CANCELLED})
JOBS_MAX = 50_000  # the oldest is forgotten, as vendors do
WHY = "The demo was asked to fail."

Step = tuple[str, int]  # state, progress in percent
PLAN: tuple[Step, ...] = ((QUEUED, 0), (RUNNING, 30), (RUNNING, 60), (SUCCEEDED, 100))
REFUSED = {  # what is not taken on
    "banned": "The prompt contains a banned word: banned",
    "full": "The queue is full, try again later",
    "broken": "The demo was asked to break down",
}
LAST = {"fail": (FAILED, 60), "cancel": (CANCELLED, 60)}  # how a job ends that says so


class Refusal(Exception):
    """A vendor's no. `kind`: invalid, banned, full, missing, broken; each family has its own words for it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


@dataclass(eq=False, slots=True)
class Job:
    """One piece of work. What it was asked for is in `call`."""

    id: str
    family: Family
    kind: str
    call: Call
    plan: list[Step]  # what is still to come; the first is next
    state: str = QUEUED
    progress: int = 0
    why: str = ""  # it failed
    parent: Job | None = None
    begun_s: float = field(default_factory=time.time)
    started_s: float = 0.0
    ended_s: float = 0.0
    polls: int = 0

    @property
    def asked(self) -> dict[str, Any]:
        return self.call.doc

    @property
    def prompt(self) -> str:
        return prompt_of(self.asked) or (self.parent.prompt if self.parent else "")

    @property
    def word(self) -> str:
        """The vendor's word for its state."""
        return self.family.words[self.state]

    @property
    def is_done(self) -> bool:
        return self.state == SUCCEEDED

    @property
    def hook(self) -> str:
        """The URL that wants to know of its changes, or ""."""
        return next((str(self.asked[name]) for name in self.family.hook if self.asked.get(name)), "")

    def file(self, extension: str, number: int = 0) -> str:
        """The URL of one of its results."""
        return f"{self.call.base}/_demo/files/{self.id}/{number}.{extension}"


class Jobs:
    """All jobs of a demo. `step_s`: between two steps of a job; 0: it moves only when it is told to.

    `tell(job)` is called at every change.
    """

    def __init__(self, step_s: float, tell: Callable[[Job], None]) -> None:
        self._step_s = step_s
        self._tell = tell
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def add(self, family: Family, kind: str, call: Call, parent: Job | None = None) -> Job:
        """A new job. Raises Refusal where the prompt is one that the vendor refuses."""
        words = words_in(call.doc)
        for word, message in REFUSED.items():
            if word in words:
                raise Refusal(word, message)
        plan = list(family.plan)
        job = Job(family.new_id(), family, kind, call, plan, *plan.pop(0), parent=parent)
        for word, end in LAST.items():
            if word in words:
                plan[-1] = end
        if "never" in words:
            plan.pop()
        if kind in family.waits:
            job.plan, job.state = [], WAITING
        self._jobs[job.id] = job
        if len(self._jobs) > JOBS_MAX:
            self._jobs.popitem(last=False)
        self._wind(job)
        return job

    def find(self, family: Family | None, id_: str, secret: str | None = None) -> Job:
        """Raises Refusal: there is none, or it is another credential's. `secret` None: whoever asks."""
        job = self._jobs.get(id_)
        is_theirs = job is not None and (secret is None or job.call.secret == secret)
        if job is None or not is_theirs or family not in (None, job.family):
            raise Refusal("missing", f"task {id_} was not found")
        return job

    def of(self, family: Family | None, secret: str | None = None) -> Iterable[Job]:
        """Newest first."""
        return [
            job
            for job in reversed(self._jobs.values())
            if family in (None, job.family) and secret in (None, job.call.secret)
        ]

    def resume(self, job: Job) -> None:
        """One that waited for its caller goes on."""
        job.plan = list(job.family.plan)
        self.step(job)

    def step(self, job: Job) -> None:
        """On to what is next, if anything is."""
        if job.plan:
            state, progress = job.plan.pop(0)
            self.move(job, state, progress, WHY if state == FAILED else "")

    def move(self, job: Job, state: str, progress: int | None = None, why: str = "") -> None:
        """To a state out of turn, also from one that was final: vendors have done it."""
        job.state, job.why = state, why
        job.progress = progress if progress is not None else 100 if state == SUCCEEDED else job.progress
        now = time.time()
        if state in (RUNNING, *ENDED) and not job.started_s:
            job.started_s = now
        job.ended_s = now if state in ENDED else 0.0
        if state in ENDED:
            job.plan = []
        self._tell(job)
        self._wind(job)

    def _wind(self, job: Job) -> None:
        if timer := self._timers.pop(job.id, None):
            timer.cancel()
        if self._step_s and job.plan:
            loop = asyncio.get_running_loop()
            self._timers[job.id] = loop.call_later(self._step_s, self.step, job)

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
