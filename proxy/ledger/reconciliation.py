"""Hold an upstream's bill against our own calls: what is missing on either side, doubled, priced differently.

Owns the matching. Lines of single calls are matched by the upstream's request id, then by time and tokens,
then by time alone; totals of periods are held against the sum of our calls. Pure; times are milliseconds of
the Unix epoch, amounts nano-units of the station's currency.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from proxy.ledger.vendor_bills import BillLine
from proxy.metering.usage import FIELDS, Usage

PATIENCE_MS = 120_000  # between our clock at the end of a call and the upstream's when it wrote the line
EDGE_MS = 5_000  # two clocks at the edge of a period

# What is wrong with a line of the bill, or with a call of ours.
UNKNOWN = "unknown"  # billed, and we made no such call
UNBILLED = "unbilled"  # we made the call, and the bill does not have it
DOUBLED = "doubled"  # billed once more
VOID = "void"  # billed, though the attempt failed here and nobody paid for it
USAGE = "usage"  # billed with other figures
PRICE = "price"  # billed at another price than is declared for the upstream


@dataclass(frozen=True, slots=True)
class Billed:
    """A line of the bill in the station's currency; None: it tells no amount."""

    line: BillLine
    cost_nanos: int | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a call at the upstream. `cost_nanos` None: no upstream price is declared."""

    call: str
    upstream_id: str
    models: tuple[str, ...]  # as the upstream named it, as the client did
    began_ms: int
    ended_ms: int
    figures: dict[str, int]
    cost_nanos: int | None
    is_due: bool  # the upstream answered it: it has to be on the bill
    is_void: bool  # nothing came of it
    is_exact: bool  # the figures are the upstream's own last word


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. `stake_nanos`: how much more the bill takes than we expect; None: unknown."""

    kind: str
    what: str
    at_ms: int
    model: str
    line: int | None  # of the bill
    call: str | None
    stake_nanos: int | None


def figures_of(usage: Usage) -> dict[str, int]:
    """All that a bill may tell of a call, by the names that BillLine.figures has."""
    buckets = {f.name: getattr(usage, f.name) for f in FIELDS if f.default == 0}
    sides = {"input_tokens": usage.input_tokens_all(), "output_tokens": usage.output_tokens_all()}
    return {**usage.tools, **buckets, **sides, "calls": 1}


@lru_cache(maxsize=4096)
def model_key(name: str) -> str:
    """Names of one model that differ in spelling: `Claude Haiku 3.5` and `claude-3-5-haiku-20241022`."""
    plain = re.sub(r"[-@]?20[0-9]{2}-?[01][0-9]-?[0-3][0-9]$|-latest$", "", name.strip().lower())
    return "-".join(sorted(re.split(r"[-_ .:/]+", plain)))


class Calls:
    """Lines of single calls. Give it every attempt at the upstream, then read the findings."""

    def __init__(self, lines: Iterable[Billed], tolerance_nanos: int) -> None:
        self._tolerance_nanos = tolerance_nanos
        self._found: list[Finding] = []
        self._named: dict[str, Billed] = {}
        self._unnamed: list[Billed] = []
        self._seen: set[tuple[object, ...]] = set()  # what matched lines say
        self._attempts: list[Attempt] = []  # without a line so far
        self._from_ms, self._to_ms = _reach(lines := list(lines))
        self.has_lines = bool(lines)
        self.by_id = self.by_time = 0
        for billed in lines:
            if not billed.line.id:
                self._unnamed.append(billed)
            elif billed.line.id in self._named:
                self._find(DOUBLED, "billed again under the same id", billed, stake=billed.cost_nanos)
            else:
                self._named[billed.line.id] = billed

    def add(self, attempt: Attempt) -> None:
        billed = self._named.pop(attempt.upstream_id, None) if attempt.upstream_id else None
        if billed is None:
            self._attempts.append(attempt)
        else:
            self.by_id += 1
            self._match(billed, attempt)

    def findings(self) -> list[Finding]:
        left = self._by_time([*self._named.values(), *self._unnamed], _same_tokens)
        for billed in self._by_time(left, lambda figures: ()):
            if _content(billed) in self._seen:
                self._find(
                    DOUBLED, "billed again: same time, model and figures", billed, stake=billed.cost_nanos
                )
            else:
                self._find(UNKNOWN, "no call of ours", billed, stake=billed.cost_nanos)
        for attempt in self._attempts:
            if attempt.is_due and self._from_ms <= attempt.ended_ms <= self._to_ms:
                stake = None if attempt.cost_nanos is None else -attempt.cost_nanos
                self._find(UNBILLED, "not on the bill", attempt=attempt, stake=stake)
        return sorted(self._found, key=lambda finding: (finding.at_ms, finding.line or 0))

    def _by_time(self, lines: list[Billed], alike: Callable[[Mapping[str, int]], object]) -> list[Billed]:
        """Match lines with the nearest call of the same model that is `alike`; those that are left over."""
        open_: dict[object, list[Attempt]] = defaultdict(list)
        for attempt in sorted(self._attempts, key=lambda a: a.ended_ms):
            for key in {model_key(name) for name in attempt.models}:
                open_[key, alike(attempt.figures)].append(attempt)
        taken: set[int] = set()
        left: list[Billed] = []
        for billed in sorted(lines, key=lambda b: b.line.at_ms):
            candidates = open_.get((model_key(billed.line.model), alike(billed.line.figures)), [])
            nearest = _nearest(candidates, billed.line.at_ms, taken)
            if nearest is None:
                left.append(billed)
                continue
            taken.add(id(nearest))
            self.by_time += 1
            self._match(billed, nearest)
        self._attempts = [attempt for attempt in self._attempts if id(attempt) not in taken]
        return left

    def _match(self, billed: Billed, attempt: Attempt) -> None:
        self._seen.add(_content(billed))
        if attempt.is_void:
            self._find(VOID, "it failed here, nobody was charged", billed, attempt, billed.cost_nanos)
            return
        stake = None
        if billed.cost_nanos is not None and attempt.cost_nanos is not None:
            stake = billed.cost_nanos - attempt.cost_nanos
        if differs := _differences(billed.line.figures, attempt.figures):
            what = differs if attempt.is_exact else f"{differs}; ours is our own count"
            self._find(USAGE, what, billed, attempt, stake)
        elif stake is not None and abs(stake) > self._tolerance_nanos:
            self._find(PRICE, "same usage, another price", billed, attempt, stake)

    def _find(
        self,
        kind: str,
        what: str,
        billed: Billed | None = None,
        attempt: Attempt | None = None,
        stake: int | None = None,
    ) -> None:
        at_ms, model = (billed.line.at_ms, billed.line.model) if billed else (0, "")
        if attempt is not None:
            at_ms, model = attempt.ended_ms, model or attempt.models[0]
        line = None if billed is None else billed.line.number
        call = None if attempt is None else attempt.call
        self._found.append(Finding(kind, what, at_ms, model, line, call, stake))


def _same_tokens(figures: Mapping[str, int]) -> object:
    """Both sides, or as much of them as is told: a line without tokens is like no call."""
    return figures.get("input_tokens"), figures.get("output_tokens")


def _content(billed: Billed) -> tuple[object, ...]:
    line = billed.line
    return line.at_ms, line.model, tuple(sorted(line.figures.items())), line.cost


def _nearest(attempts: list[Attempt], at_ms: int, taken: set[int]) -> Attempt | None:
    """By their end, of those that nobody took; one that has to be on a bill before one that need not."""
    first = bisect_left(attempts, at_ms - PATIENCE_MS, key=_ended)
    last = bisect_right(attempts, at_ms + PATIENCE_MS, key=_ended)
    near = [a for a in attempts[first:last] if id(a) not in taken]
    return min(near, key=lambda a: (not a.is_due, abs(a.ended_ms - at_ms)), default=None)


def _ended(attempt: Attempt) -> int:
    return attempt.ended_ms


def _reach(lines: list[Billed]) -> tuple[int, int]:
    """From when to when the bill tells of calls."""
    times = [billed.line.at_ms for billed in lines]
    return min(times, default=0), max(times, default=-1)


def _differences(theirs: Mapping[str, int], ours: Mapping[str, int]) -> str:
    return ", ".join(
        f"{name} {figure}, here {ours.get(name, 0)}"
        for name, figure in theirs.items()
        if figure != ours.get(name, 0)
    )


# -- totals ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    """All lines of a model and a period, and what we know of the same: least and most, because calls at the
    edge of a period may count for it or for its neighbour."""

    model: str
    figures: dict[str, int] = field(default_factory=dict)
    cost_nanos: int | None = None
    lines: list[int] = field(default_factory=list)
    least: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    most: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    least_nanos: int = 0
    most_nanos: int = 0
    calls: int = 0
    unpriced: int = 0
    inexact: int = 0

    def bill(self, billed: Billed) -> None:
        for name, figure in billed.line.figures.items():
            self.figures[name] = self.figures.get(name, 0) + figure
        if billed.cost_nanos is not None:
            self.cost_nanos = (self.cost_nanos or 0) + billed.cost_nanos
        self.lines.append(billed.line.number)

    def add(self, attempt: Attempt, is_within: bool) -> None:
        sums = (self.least, self.most) if is_within and attempt.is_due else (self.most,)
        for figures in sums:
            for name, figure in attempt.figures.items():
                figures[name] += figure
        self.most_nanos += attempt.cost_nanos or 0
        self.least_nanos += (attempt.cost_nanos or 0) * (len(sums) - 1)
        self.calls += attempt.is_due
        self.unpriced += attempt.is_due and attempt.cost_nanos is None
        self.inexact += attempt.is_due and not attempt.is_exact


class Totals:
    """Lines of periods, and the periods of which the bill says that nothing was used. Give it every attempt
    at the upstream, then read the findings."""

    def __init__(
        self, lines: Iterable[Billed], idle: Iterable[tuple[int, int]], tolerance_nanos: int
    ) -> None:
        self._tolerance_nanos = tolerance_nanos
        self._periods: dict[tuple[int, int], dict[str, _Group]] = {period: {} for period in idle}
        for billed in lines:
            key = model_key(billed.line.model)
            groups = self._periods.setdefault((billed.line.at_ms, billed.line.until_ms), {})
            groups.setdefault(key, _Group(billed.line.model)).bill(billed)
        self._starts = sorted(self._periods)
        self.has_lines = bool(self._starts)
        self._billed_models = {key for groups in self._periods.values() for key in groups}

    def add(self, attempt: Attempt) -> None:
        """A period is looked for by both ends of the call: an upstream may count by either."""
        name, key = self._name_of(attempt)
        first = bisect_left(self._starts, attempt.began_ms - EDGE_MS, key=lambda period: period[1])
        for period in self._starts[first:]:
            begin, end = period
            if begin > attempt.ended_ms + EDGE_MS:
                break
            groups = self._periods[period]
            is_within = begin + EDGE_MS <= attempt.began_ms and attempt.ended_ms < end - EDGE_MS
            groups.setdefault(key, _Group(name)).add(attempt, is_within)

    def _name_of(self, attempt: Attempt) -> tuple[str, str]:
        """Under which of its names a call is billed: that which the bill knows."""
        keys = {model_key(name): name for name in attempt.models}
        known = next((key for key in keys if key in self._billed_models), None)
        if known is None:
            known = "" if "" in self._billed_models else next(iter(keys))
        return keys.get(known, ""), known

    def findings(self) -> list[Finding]:
        found: list[Finding] = []
        for period in self._starts:
            for group in self._periods[period].values():
                found += self._hold(period[0], group)
        return found

    def _hold(self, at_ms: int, group: _Group) -> Iterable[Finding]:
        line = group.lines[0] if group.lines else None
        stake = self._stake(group)

        def finding(kind: str, what: str) -> Finding:
            return Finding(kind, what, at_ms, group.model, line, None, stake)

        if not group.lines:
            if any(group.least.values()):
                yield finding(UNBILLED, f"{group.calls} calls are not on the bill")
        elif not group.calls:
            if any(group.figures.values()) or group.cost_nanos:
                yield finding(UNKNOWN, "no calls of ours")
        elif differs := _outside(group):
            doubt = f"; {group.inexact} of ours were counted here" if group.inexact else ""
            yield finding(USAGE, f"{differs}{doubt}")
        elif stake:
            yield finding(PRICE, f"{group.calls} calls at another price")

    def _stake(self, group: _Group) -> int | None:
        """How much the bill is beyond what is declared, or below it; 0 within what rounding explains."""
        if group.unpriced or (group.lines and group.cost_nanos is None):
            return None
        cost = group.cost_nanos or 0
        tolerance = self._tolerance_nanos * len(group.lines) + group.calls
        if cost > group.most_nanos + tolerance:
            return cost - group.most_nanos
        return min(0, cost - group.least_nanos + tolerance) and cost - group.least_nanos


def _outside(group: _Group) -> str:
    """The figures that are not what our calls can add up to."""
    return ", ".join(
        f"{name} {figure}, here {_range(group.least[name], group.most[name])}"
        for name, figure in group.figures.items()
        if not group.least[name] <= figure <= group.most[name]
    )


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"
