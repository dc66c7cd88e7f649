"""Count requests, tokens, money and calls at once against slices granted by control.

Owns what kinds of limits there are and a worker's slices of them. Pure: `now_ms` comes in, what is missing
goes out as `Want`s that the caller fetches from control. A call takes what it may need and settles what it
used, as with money: a slice may fall below zero by that, and then control is asked for more. A limit too
small to slice is asked for one by one, and calls at once under such a limit go back when they end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from proxy.dialects.headers import RateHeaders
from proxy.ledger.amounts import as_text
from proxy.ledger.balances import AHEAD_PART, CALLS_AHEAD, Spending
from proxy.metering.usage import Usage

SMALL_PER_WORKER = 10  # a limit below this many per worker is counted one by one
SLICES_PER_WORKER = 4  # a slice is this part of a worker's fair share: small enough to share

CALLS, REQUESTS, TOKENS, SPEND = range(4)  # what a limit counts: places in a Demand
EVER = "ever"
SHOWN = {REQUESTS: b"requests", TOKENS: b"tokens"}  # in headers


class Kind(NamedTuple):
    unit: int
    window: str  # minute | day | month | ever; "": whatever is at once


KINDS = {
    "concurrency": Kind(CALLS, ""),
    "requests_per_minute": Kind(REQUESTS, "minute"),
    "requests_per_day": Kind(REQUESTS, "day"),
    "tokens_per_minute": Kind(TOKENS, "minute"),
    "tokens_per_day": Kind(TOKENS, "day"),
    "spend_per_day": Kind(SPEND, "day"),  # nanos, by the station's calendar
    "spend_per_month": Kind(SPEND, "month"),
    "spend_total": Kind(SPEND, EVER),
}


class Demand(NamedTuple):
    """What one call takes of each unit."""

    calls: int = 1
    requests: int = 1
    tokens: int = 0
    spend: int = 0  # nanos


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of one owner. `bucket` is its identity in the station, e.g. `k12:requests_per_minute`."""

    bucket: str
    kind: str
    amount: int
    unit: int = field(init=False)
    lines: dict[bytes, bytes] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What answers say of it, by the prefix of the headers' names."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", KINDS[self.kind].unit)


def limits_of(owner: str, amounts: Mapping[str, int | None]) -> tuple[Limit, ...]:
    """The limits of a key (`k12`), an account (`a7`, by its tier `a7:VIP`), a model (`m:gpt-*`) or an
    upstream (`u:openai`), from kind -> amount."""
    return tuple(
        Limit(f"{owner}:{kind}", kind, amount) for kind in KINDS if (amount := amounts.get(kind)) is not None
    )


@dataclass(frozen=True, slots=True)
class Want:
    """What control must be asked for before a call can start."""

    limit: Limit
    need: int
    want: int


@dataclass(slots=True, eq=False)
class Part(Spending):
    """A worker's slice of one window. Running calls keep theirs when a new window begins."""

    until_ms: int  # end of the window; 0: none
    ends_ms: float  # until then new calls take of it: the same, or never, or no more
    left: int = 0  # of the limit, for everybody, when control was asked last

    @classmethod
    def new(cls, until_ms: int) -> Part:
        return cls(until_ms, until_ms or math.inf, touched=True)


Share = tuple[Limit, Part]  # what one call takes of: a limit, and the slice that it found


class LimitBook:
    """The slices of one worker. `workers` is the number of workers of the node."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._small = SMALL_PER_WORKER * workers
        self._parts: dict[str, Part] = {}

    def find(self, limits: Iterable[Limit], demand: Demand, now_ms: int) -> tuple[list[Share], list[Want]]:
        """The slices that a call may take of, and what is not at hand. Takes nothing."""
        shares: list[Share] = []
        wants: list[Want] = []
        for limit in limits:
            part, count = self._parts.get(limit.bucket), demand[limit.unit]
            if part is None or (part.until_ms and part.until_ms <= now_ms):
                wants.append(self._want(limit, None, count, 0))
            elif part.free < count:
                wants.append(self._want(limit, part, count, part.free))
            else:
                shares.append((limit, part))
        return shares, wants

    def take(self, shares: Iterable[Share], demand: Demand) -> None:
        """Take of what `find` gave in the same breath."""
        for limit, part in shares:
            part.free -= demand[limit.unit]
            part.touched = True

    def add(self, limit: Limit, granted: int, until_ms: int, left: int = 0) -> None:
        """A slice arrived from control."""
        part = self._parts.get(limit.bucket)
        if part is None or part.until_ms != until_ms:  # a new window: what was left of the old one is void
            if part is not None:
                part.ends_ms = -math.inf
            part = self._parts[limit.bucket] = Part.new(until_ms)
        part.grow(granted)
        part.left = left

    def release(
        self, shares: Iterable[Share], demand: Demand, cost_nanos: int, usage: Mapping[str, Any]
    ) -> list[tuple[str, int]]:
        """A call ended. Returns (bucket, count) of what goes back to control at once."""
        back = []
        for limit, part in shares:
            unit = limit.unit
            if unit == REQUESTS:
                continue  # every call is one, and took one
            part.touched = True
            if unit != CALLS:
                used = _used(unit, cost_nanos, usage)
                part.spent += used
                part.free += demand[unit] - used
            elif self.is_lent_singly(limit):
                part.granted -= 1
                back.append((limit.bucket, 1))
            else:
                part.free += 1
        return back

    def is_lent_singly(self, limit: Limit) -> bool:
        """Does what a call took go back to control when it ends?"""
        return limit.unit == CALLS and limit.amount < self._small

    def correct(self, shares: Iterable[Share], more_nanos: int) -> None:
        """A call that ended spent more than it was released at. A window that is over stays as it was."""
        for limit, part in shares:
            if limit.unit == SPEND:
                part.spent += more_nanos
                part.free -= more_nanos

    def give_back(self, bucket: str) -> tuple[int, int]:
        """Take what is free out of a slice: (end of its window, amount) for control."""
        part = self._parts.get(bucket)
        if part is None or part.free <= 0:
            return 0, 0
        free = part.free
        part.grow(-free)
        return part.until_ms, free

    def keep(self, bucket: str, until_ms: int, amount: int) -> None:
        """What `give_back` gave did not get away."""
        part = self._parts.setdefault(bucket, Part.new(until_ms))
        if part.until_ms == until_ms:
            part.grow(amount)

    def idle(self, now_ms: int) -> list[tuple[str, int, int]]:
        """Once a second: forget ended windows; give back what nobody used since then: (bucket, end of the
        window, amount)."""
        back = []
        for bucket, part in list(self._parts.items()):
            is_over = part.until_ms and part.until_ms <= now_ms
            if not (is_over or part.touched) and part.free > 0:
                back.append((bucket, *self.give_back(bucket)))
            if is_over or not (part.until_ms or part.granted):
                del self._parts[bucket]
                part.ends_ms = -math.inf
            part.look()
        return back

    def held(self) -> list[tuple[str, int, int]]:
        """(bucket, end of the window, granted in all), for the hello to a new control."""
        return [(bucket, part.until_ms, part.granted) for bucket, part in self._parts.items()]

    def _want(self, limit: Limit, part: Part | None, count: int, free: int) -> Want:
        need = count - free
        if limit.unit in (TOKENS, SPEND):
            held, spent = (part.held, part.pace // AHEAD_PART) if part is not None else (0, 0)
            most = need + max(CALLS_AHEAD * count, held, spent)
        else:
            most = need if limit.amount < self._small else limit.amount
        share = limit.amount // (self._workers * SLICES_PER_WORKER)
        return Want(limit, need, max(need, min(most, share)))


def _used(unit: int, cost_nanos: int, usage: Mapping[str, Any]) -> int:
    if unit == SPEND:
        return cost_nanos
    found = Usage.from_dict(dict(usage))
    return found.input_tokens_all() + found.output_tokens_all()


# -- what the key holder is told -----------------------------------------------------------------------


def rate_lines(shares: Iterable[Share], names: RateHeaders, now_ms: int) -> bytes:
    """The header lines of an answer, of what `tightest` gives."""
    lines = b""
    for limit, part in shares:
        left, when = part.free + part.left, names.when(part.until_ms - now_ms, now_ms)
        lines += (limit.lines.get(names.prefix) or _lines(limit, names)) % (left if left > 0 else 0, when)
    return lines


def tightest(shares: Iterable[Share]) -> Sequence[Share]:
    """Per unit that answers tell of, the limit of which least is left, as far as is known here."""
    found: dict[int, Share] = {}
    for share in shares:
        unit = share[0].unit
        if unit in SHOWN and (unit not in found or _left(share) < _left(found[unit])):
            found[unit] = share
    return tuple(found.values())


def _left(share: Share) -> int:
    _, part = share
    return max(part.free + part.left, 0)


def _lines(limit: Limit, names: RateHeaders) -> bytes:
    """What `shown` shows, as it is written, with places for what is left and for when there is all again."""
    unit = SHOWN[limit.unit]
    total = b"%b: %d\r\n" % (names.limit % unit, limit.amount)
    lines = b"%b%b: %%d\r\n%b: %%b\r\n" % (total, names.remaining % unit, names.reset % unit)
    limit.lines[names.prefix] = lines
    return lines


def is_told(limit: Limit) -> bool:
    """Do answers say what is left of it?"""
    return limit.unit in SHOWN


def shown(
    limit: Limit, remaining: int, until_ms: int, names: RateHeaders, now_ms: int
) -> list[tuple[bytes, bytes]]:
    """The three headers of one limit; none for one that callers are not told of."""
    unit = SHOWN.get(limit.unit)
    if unit is None:
        return []
    return [
        (names.limit % unit, b"%d" % limit.amount),
        (names.remaining % unit, b"%d" % remaining),
        (names.reset % unit, names.when(until_ms - now_ms, now_ms)),
    ]


def told(limits: Iterable[Limit], drawn: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """Limits as documents show them: whose it is, its kind, the limit and what is left; amounts as text.

    `drawn`: what nodes have of each bucket's window, used or not: at least the rest is left. None: that is
    not known, and `left` is null.
    """
    return [
        {
            "of": _owner(limit.bucket),
            "kind": limit.kind,
            "limit": _figure(limit, limit.amount),
            "left": None
            if drawn is None
            else _figure(limit, max(limit.amount - drawn.get(limit.bucket, 0), 0)),
        }
        for limit in limits
    ]


_OWNERS = {"k": "key", "a": "account", "m": "model", "u": "upstream"}


def _owner(bucket: str) -> str:
    owner = bucket.rpartition(":")[0]
    return "tier" if owner[0] == "a" and ":" in owner else _OWNERS[owner[0]]


def _figure(limit: Limit, count: int) -> int | str:
    return as_text(count) if limit.unit == SPEND else count
