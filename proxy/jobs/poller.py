"""Ask vendors what has become of tasks, and bring the end of each into the books.

Owns when a task is asked about and what an answer means for it; the due-time table (store.due) decides who
may ask, and that an end counts once. Runs in control. What the polls of a round learned is written together,
by the next one. A control that dies in between loses nothing: its claims run out, and the vendor still knows.

A round claims what can be asked about until the next one: a few tasks at first, then twice as many as were
asked about in the round before, so that a vendor that answers quickly is kept busy and one that hangs holds
few claims.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from proxy import telemetry
from proxy.dialects.links import Home, Linker, Shown
from proxy.dialects.news import UNTOLD, news_of
from proxy.dialects.owned import ENDED, FAILED, SUCCEEDED, Task, first, found, ids_told, state_told
from proxy.jobs.asking import Answer, Asker, Place
from proxy.ledger.bindings import Part
from proxy.ledger.entry import Bind, Observed
from proxy.metering.usage import Usage
from proxy.snapshot import Snapshot
from proxy.store.deadlines import Deadline, Sort
from proxy.store.due import FORGET_ROWS, Due, DueTasks, Later, Learned, decided
from proxy.store.outbox import Change
from proxy.store.posting import DayOf
from proxy.telemetry import Stats

log = logging.getLogger("headrace.tasks")

CLAIM_MS = 120_000  # longer than a poll may take, with its results
ASK_MS = 20_000  # a claim that has waited longer is left to run out: another node may take it meanwhile
TOO_MUCH = frozenset({429, 503, 529})  # asked by a vendor to ask less: so it is, about all tasks of the sort
UNKNOWN_POLLS = 3  # in a row that the vendor does not know it
AGE_PER_PAUSE = 10  # a task is asked about again after a tenth of its age
CONTENT_BYTES_MAX = 8 << 10  # of an object that lists show
FORGET_MS = 3_600_000
SWEEP_MS = 60_000
LAST_ASK_MS = 120_000  # behind its deadline: the poll that is due there had its time
OVERDUE_MS = 48 * 3_600_000  # without a poll: the file has its upstream no more
ONE_CALL = Usage(calls=1).as_dict()
DISPUTE_MS = 7 * 86_400_000  # of a task whose kind the file has no more


@dataclass(frozen=True, slots=True)
class Clock:
    """Where moments, ids and days come from."""

    now_ms: Callable[[], int]
    new_id: Callable[[], str]
    day_of: Callable[[], DayOf]


@dataclass(slots=True)
class _Line:
    """Requests about tasks of one sort."""

    waiting: deque[tuple[int, list[Due]]] = field(default_factory=deque)  # (when they were claimed, tasks)
    under_way: int = 0
    asked: int = 0  # since the last claim
    rests_ms: int = 0  # until then the vendor is left in peace

    def room(self, task: Task, now_ms: int) -> int:
        """How many more requests are worth a claim now."""
        most = max(task.requests, 2 * self.asked) - self.under_way - len(self.waiting)
        self.asked = 0
        return most if now_ms >= self.rests_ms else 0


class Poller:
    """One node's. `snapshot()` is the table in force, or None before there is one."""

    def __init__(
        self,
        due: DueTasks,
        asker: Asker,
        snapshot: Callable[[], Snapshot | None],
        clock: Clock,
        stats: Stats,
        linker: Linker | None = None,
    ) -> None:
        self._due = due
        self._linker = linker
        self._asker = asker
        self._snapshot = snapshot
        self._clock = clock
        self._stats = stats
        self._lines: dict[Sort, _Line] = {}
        self._learned = Learned()
        self._forget_ms = 0  # when to look next
        self._sweep_ms = clock.now_ms() + SWEEP_MS  # what is due since a stop is asked about first

    @property
    def is_idle(self) -> bool:
        """No poll is under way, and nothing waits to be written."""
        return self._learned.is_empty and not any(
            line.under_way or line.waiting for line in self._lines.values()
        )

    async def run_once(self) -> int:
        """Write what was learned, begin to ask about what is due; how many tasks that are.

        Raises DatabaseUnavailable; what was learned is kept for the next round.
        """
        await self._write()
        await self._end_disputes()
        snapshot = self._snapshot()
        if snapshot is None:
            return 0
        now = self._clock.now_ms()
        slots = dict(self._slots(snapshot, now))
        await self._sweep(snapshot, now)
        await self._forget(snapshot, now)
        claimed = await self._due.claim(slots, now, now + CLAIM_MS)
        for group in _groups(snapshot, claimed):
            self._line(group[0].sort).waiting.append((now, group))
        for sort in self._lines:
            self._advance(snapshot, sort)
        return len(claimed)

    def _line(self, sort: Sort) -> _Line:
        return self._lines.setdefault(sort, _Line())

    def _slots(self, snapshot: Snapshot, now_ms: int) -> Iterator[tuple[Sort, int]]:
        """How many tasks of each sort may be claimed now."""
        for upstream in snapshot.table.upstreams:
            for kind, task in snapshot.tasks(upstream).items():
                requests = self._line((upstream, kind)).room(task, now_ms)
                if requests > 0:
                    yield (upstream, kind), requests * (task.many.at_once if task.many else 1)

    def _advance(self, snapshot: Snapshot, sort: Sort) -> None:
        """Begin what may be under way."""
        upstream, kind = sort
        line, now = self._line(sort), self._clock.now_ms()
        task = snapshot.tasks(upstream).get(kind) if line.waiting else None
        most = task.requests if task is not None else 1
        while line.waiting and line.under_way < most and now >= line.rests_ms:
            claimed_ms, group = line.waiting.popleft()
            if now - claimed_ms < ASK_MS:
                line.under_way += 1
                telemetry.spawn("poll", self._poll(snapshot, group))

    async def _write(self) -> None:
        if self._learned.is_empty:
            return
        learned, self._learned = self._learned, Learned()
        try:
            ended, disputed = await self._due.write(learned, self._clock.day_of())
        except BaseException:
            self._learned = learned.plus(self._learned)  # all of it is harmless twice
            raise
        self._stats.inc("tasks_ended_total", by=ended)
        self._stats.inc("tasks_disputed_total", by=disputed)

    async def _forget(self, snapshot: Snapshot, now_ms: int) -> None:
        """Now and then, what vendors have forgotten by themselves."""
        if now_ms >= self._forget_ms:
            count = await self._due.forget(snapshot.forgotten_after(), now_ms)
            self._forget_ms = now_ms + (FORGET_MS if count < FORGET_ROWS else 0)

    async def _end_disputes(self) -> None:
        """Time decides what no operator has decided: the station's loss."""
        now = self._clock.now_ms()
        for dispute in await self._due.disputes(now):
            self._learned.seen.append(decided(dispute, self._clock.new_id(), False, now))

    async def _sweep(self, snapshot: Snapshot, now_ms: int) -> None:
        """Deadlines hold also where polls come late: a vendor that hangs holds up thousands of tasks."""
        if now_ms < self._sweep_ms:
            return
        deadlines = [
            Deadline(
                (upstream, kind),
                now_ms - int(task.deadline_s * 1000) - LAST_ASK_MS,
                now_ms + int(task.dispute_s * 1000),
            )
            for upstream in snapshot.table.upstreams
            for kind, task in snapshot.tasks(upstream).items()
        ]
        disputed = await self._due.sweep(deadlines, now_ms - OVERDUE_MS, now_ms + DISPUTE_MS)
        self._sweep_ms = now_ms + SWEEP_MS
        self._stats.inc("tasks_disputed_total", by=disputed)

    # -- a poll --

    async def _poll(self, snapshot: Snapshot, group: list[Due]) -> None:
        upstream, kind = sort = group[0].sort
        try:
            task = snapshot.tasks(upstream).get(kind)
            place = self._asker.place(snapshot, upstream, group[0].mirror, group[0].credential)
            if task is None or place is None:
                for due in group:
                    self._put_off(due, task or Task(kind, "", (), {}), Answer(error="nobody can be asked"))
            elif task.many is None:
                [due] = group
                answer = await self._asker.ask(place, task.poll, due.vendor_id, task)
                await self._learn(task, place, due, answer)
            else:
                answers = await self._asker.ask_many(place, task, [due.vendor_id for due in group])
                for due in group:
                    await self._learn(task, place, due, answers[due.vendor_id])
        except Exception:
            log.exception("a poll failed")  # its claim runs out
        finally:
            line = self._line(sort)
            line.under_way -= 1
            line.asked += 1
            self._advance(snapshot, sort)

    async def _learn(self, task: Task, place: Place, due: Due, answer: Answer) -> None:
        self._stats.inc("task_polls_total", due.upstream, answer.outcome)
        if answer.status in TOO_MUCH:
            rest_s = min(answer.retry_after_s or task.shortest_s, task.longest_s)
            self._line(due.sort).rests_ms = self._clock.now_ms() + int(rest_s * 1000)
        state = state_told(task, answer.document) if answer.is_good else None
        if state not in ENDED:
            self._put_off(due, task, answer)
            return
        assert state is not None
        shares = await self._shares(task, place, due, answer, state)
        if shares is None:
            self._put_off(due, task, Answer(error="its results could not be read"))
            return
        if not shares and task.results is not None:
            state = FAILED  # its lines say that nothing was done
        elif not shares and task.model and state == SUCCEEDED:
            self._dispute(due, task, "its end tells no usage")
            return
        seen = Observed(
            self._clock.new_id(), self._clock.now_ms(), due.vendor_id, due.upstream, state,
            credential=due.credential, content=_small(answer),
        )  # fmt: skip
        document = answer.document
        if task.files and state == SUCCEEDED:
            seen.files, document = self._hosted(place, due, task, document)
            seen.content = document if seen.content else {}
        if due.told_mark is not None:
            seen.mark, seen.body = news_of(task, document) or UNTOLD
        for model, usage in shares.items():
            if not model:
                seen.usage = usage.as_dict() or ONE_CALL
            elif not self._price(place.snapshot, (task, due), seen, model, usage):
                self._dispute(due, task, f"model {model!r} has no price")
                return
        self._learned.seen.append(seen)
        self._learned.made += self._made(task, place, due, answer)

    def _hosted(self, place: Place, due: Due, task: Task, document: Any) -> tuple[dict[str, str], Any]:
        """The files that are to be kept, and the answer as its owner is shown it."""
        snapshot, spec = place.snapshot, place.snapshot.operation(due.upstream, task.poll)
        url = snapshot.endpoint_for(None).url
        hosting = snapshot.hosting(self._linker, spec.api, url) if spec is not None else None
        if hosting is None:
            return {}, document
        home = Home(due.upstream, due.credential, due.vendor_id)
        return hosting.files(task, home, document), hosting.document(document, Shown(task), home)

    async def _shares(
        self, task: Task, place: Place, due: Due, answer: Answer, state: str
    ) -> dict[str, Usage] | None:
        """model -> usage; "" is what the submit's price counts for. None: it cannot be learned now."""
        if task.results is not None:
            at = task.results.id_at
            ids = [str(id_) for id_ in found(answer.document, at)] if at else [due.vendor_id]
            return await self._asker.results(place, task, ids)
        if task.usage is None:
            return {"": Usage(calls=1)} if state in task.charged else {}
        told = first(answer.document, task.usage.places)
        usage = task.usage.read(told) if isinstance(told, dict) else None
        model = first(answer.document, (task.model,)) if task.model else None
        return {str(model or ""): usage} if usage is not None else {}

    def _price(
        self, snapshot: Snapshot, submitted: tuple[Task, Due], seen: Observed, model: str, usage: Usage
    ) -> bool:
        """A part at what the model costs whoever submitted the task; False: it cannot be sold."""
        task, due = submitted
        sale = snapshot.sale(model, snapshot.tier(due.tier), due.overrides)
        if sale is None:
            return False
        price = sale.price.narrowed(service_tier=task.service_tier)
        self._learned.prices[price.id] = price
        part = Part(
            id=self._clock.new_id(), model=model, price=price.id, model_ppm=sale.model_ppm,
            tier_ppm=sale.tier_ppm, override=sale.override, usage=usage.as_dict(),
        )  # fmt: skip
        seen.parts.append(dict(part))
        return True

    def _made(self, task: Task, place: Place, due: Due, answer: Answer) -> Iterator[Bind]:
        """Files that a task has made are its owner's."""
        spec = place.snapshot.operation(due.upstream, task.poll)
        for kind, id_ in ids_told(spec.ids_out, answer.document, {}) if spec is not None else ():
            if id_ != due.vendor_id:
                yield Bind(
                    self._clock.new_id(), self._clock.now_ms(), due.account, due.key, kind, id_, due.upstream,
                    due.mirror, due.credential,
                )  # fmt: skip

    def _put_off(self, due: Due, task: Task, answer: Answer) -> None:
        """It goes on, or nobody could tell: ask again later, until its deadline."""
        now, deadline_ms = self._clock.now_ms(), due.at_ms + int(task.deadline_s * 1000)
        failures = 0 if answer.is_good else due.failures + 1
        if now >= deadline_ms:
            self._dispute(due, task, f"its end was not told in time; last: {answer.outcome}")
        elif answer.status in (404, 410) and failures >= UNKNOWN_POLLS:
            self._dispute(due, task, "the vendor does not know it")
        else:
            pause_s = pause(task, (now - due.at_ms) / 1000, failures, answer.retry_after_s)
            at_ms = now + int(pause_s * 1000 * random.uniform(0.9, 1.1))  # noqa: S311 - spreads polls
            change = self._change(due, task, answer, now)
            self._learned.later.append(Later(due, min(at_ms, deadline_ms), failures, _small(answer), change))

    def _change(self, due: Due, task: Task, answer: Answer, now_ms: int) -> Change | None:
        """What its owner is told of a task that goes on."""
        if due.told_mark is None or not answer.is_good:
            return None
        news = news_of(task, answer.document)
        if news is None or news.mark == due.told_mark:
            return None
        return Change(self._clock.new_id(), due.id, now_ms, news.mark, news.body, is_end=False)

    def _dispute(self, due: Due, task: Task, note: str) -> None:
        log.warning("task disputed", extra={"task": due.id, "kind": due.kind, "why": note})
        self._learned.disputes.append((due, note, self._clock.now_ms() + int(task.dispute_s * 1000)))


def _groups(snapshot: Snapshot, claimed: Iterable[Due]) -> Iterator[list[Due]]:
    """Tasks that one request asks about."""
    groups: dict[tuple[str, ...], list[Due]] = {}
    for due in claimed:
        task = snapshot.tasks(due.upstream).get(due.kind)
        if task is None or task.many is None:
            yield [due]
            continue
        group = groups.setdefault((due.upstream, due.credential, due.kind), [])
        group.append(due)
        if len(group) == task.many.at_once:
            yield group
            del groups[due.upstream, due.credential, due.kind]
    yield from groups.values()


def pause(task: Task, age_s: float, failures: int, retry_after_s: float | None) -> float:
    """Until a task is asked about again: a young one soon, an old one rarely, after failures more rarely."""
    pause_s = max(age_s / AGE_PER_PAUSE, task.shortest_s) * 2 ** min(failures, 10)
    return min(max(pause_s, retry_after_s or 0.0), task.longest_s)


def _small(answer: Answer) -> dict[str, Any]:
    """The vendor's object for lists, where it is small enough."""
    document = answer.document if answer.is_good else None
    return document if isinstance(document, dict) and answer.size <= CONTENT_BYTES_MAX else {}
