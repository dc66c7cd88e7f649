"""Leased money: a worker's slices and, on control's side, the node's leases they are cut from.

Owns who may spend how much without asking; knows neither Postgres nor the channel. Amounts are
nano-units; a node counts limits in the same way, by their windows instead of accounts. What is free of a
slice is neither spent nor held. Where an account has several, their sum decides and any of them pays:
one may be below zero, because Postgres, too, looks at the sum. A settlement is never refused; when it
takes the sum below zero, new holds stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

ON_TRUST = ""  # stands for a lease where money was granted while Postgres was away
LOW_CALLS = 2  # a worker with less than this at hand asks ahead
LOW_PART = 16  # or with less than this part of what it spends in a second: the answer takes a while
CALLS_AHEAD = 4  # a worker asks for the money of this many calls beyond the one it has
AHEAD_PART = 4  # or for this part of what it spends in a second: also of a limit
SLICES_AHEAD = 4  # the node asks Postgres for this many slices beyond the one it needs


@dataclass(slots=True, eq=False, kw_only=True)
class Spending:
    """How a worker uses what it was granted."""

    granted: int = 0  # all that ever came, less what was given back
    spent: int = 0  # of money and tokens
    free: int = 0  # below zero where calls used more than they took
    pace: int = 0  # spent in the last second, as `look` saw it
    touched: bool = False  # since then
    _spent_then: int = 0

    @property
    def held(self) -> int:
        """By running calls."""
        return self.granted - self.spent - self.free

    def grow(self, amount: int) -> None:
        """What was granted came, or less than 0 goes back."""
        self.granted += amount
        self.free += amount

    def look(self) -> None:
        """Once a second."""
        self.pace = max(self.spent - self._spent_then, 0)
        self._spent_then = self.spent
        self.touched = False


@dataclass(slots=True, eq=False)
class Slice(Spending):
    """What a worker has of one lease of one account. Once there, it stays for the worker's life."""

    lease: str
    low: int = 0  # with less than this its worker asks ahead
    is_only: bool = True  # its account has no other, as nearly all

    def look(self) -> None:
        Spending.look(self)
        self.low = self.pace // LOW_PART


@dataclass(slots=True)
class _Purse:
    """The slices of one account."""

    slices: dict[str, Slice] = field(default_factory=dict)  # by lease

    def take(self, hold_nanos: int) -> tuple[str, int] | None:
        """As Slices.take, out of several slices."""
        lease, available = self.best()
        if available < hold_nanos:
            return None
        part = self.slices[lease]
        part.free -= hold_nanos
        part.touched = True
        return lease, self.best()[1]

    def best(self) -> tuple[str, int]:
        """(lease, available): how large a hold can be, and what it would count against.

        Leased money adds up. What was granted on trust is not mixed with it: Postgres would not see that
        it was spent for as long as the lease is open.
        """
        best, most, leased = ON_TRUST, 0, 0
        for lease, part in self.slices.items():
            if lease != ON_TRUST:
                leased += part.free
                if best == ON_TRUST or part.free > most:
                    best, most = lease, part.free
        trusted = self.slices.get(ON_TRUST)
        if trusted is not None and (best == ON_TRUST or trusted.free > leased):
            return ON_TRUST, trusted.free
        return best, leased

    def leased(self) -> int:
        return sum(part.free for lease, part in self.slices.items() if lease != ON_TRUST)


class Slices:
    """The money that one worker holds, by account and lease. Plain defs: no await where money changes."""

    def __init__(self) -> None:
        self._purses: dict[int, _Purse] = {}

    def take(self, account: int, hold_nanos: int) -> tuple[str, int] | None:
        """Set a hold aside: (the lease that it counts against, what is left for the next ones).

        None: more is needed, nothing was taken.
        """
        purse = self._purses.get(account)
        return None if purse is None else purse.take(hold_nanos)

    def settle(self, account: int, lease: str, hold_nanos: int, cost_nanos: int) -> None:
        """Resolve a hold that `take` set aside, at its cost; 0 voids it. Never refused."""
        part = self._slice(account, lease)
        part.free += hold_nanos - cost_nanos
        part.spent += cost_nanos
        part.touched = True

    def wants(self, account: int, hold_nanos: int) -> tuple[int, int]:
        """(need, want): what is missing for this hold, and what makes the next few calls not ask."""
        purse = self._purses.get(account)
        need = max(hold_nanos - (purse.best()[1] if purse else 0), 0)
        # What runs now, or was spent a moment ago, is the best guess at what comes next: as much again.
        parts = purse.slices.values() if purse else ()
        held, spent = sum(part.held for part in parts), sum(part.pace for part in parts) // AHEAD_PART
        return need, need + max(CALLS_AHEAD * hold_nanos, held, spent)

    def is_low(self, account: int, left_nanos: int, hold_nanos: int) -> bool:
        """Whether to ask ahead when so much is left behind a hold."""
        purse = self._purses[account]
        return left_nanos < max(LOW_CALLS * hold_nanos, sum(part.low for part in purse.slices.values()))

    def add(self, account: int, lease: str, granted_nanos: int) -> None:
        """A grant arrived from control."""
        self._slice(account, lease).grow(granted_nanos)

    def only(self, account: int) -> Slice | None:
        """The slice of an account that has but one."""
        purse = self._purses.get(account)
        return next(iter(purse.slices.values())) if purse is not None and len(purse.slices) == 1 else None

    def _slice(self, account: int, lease: str) -> Slice:
        purse = self._purses.get(account)
        if purse is None:
            purse = self._purses[account] = _Purse()
        part = purse.slices.get(lease)
        if part is None:
            part = purse.slices[lease] = Slice(lease)
            if len(purse.slices) == 1:
                part.touched = True  # a new account is not idle
            else:
                for each in purse.slices.values():
                    each.is_only = False
        return part

    def give_back(self, account: int) -> list[tuple[str, int]]:
        """Take what is free out of the slices of an account: (lease, amount) to send to control."""
        purse = self._purses.get(account)
        if purse is None:
            return []
        given = []
        for lease, part in purse.slices.items():
            amount = part.free if lease == ON_TRUST else min(part.free, purse.leased())
            if amount > 0:
                part.grow(-amount)
                given.append((lease, amount))
        return given

    def idle(self) -> list[tuple[int, str, int]]:
        """Once a second: give back what nobody used since then, (account, lease, amount)."""
        given = []
        for account, purse in self._purses.items():
            if not any(part.touched for part in purse.slices.values()):
                given += [(account, lease, amount) for lease, amount in self.give_back(account)]
            for part in purse.slices.values():
                part.look()
        return given

    def hello(self) -> list[tuple[int, str, int]]:
        """(account, lease, granted in all): what a new control must know about this worker."""
        return [
            (account, lease, part.granted)
            for account, purse in self._purses.items()
            for lease, part in purse.slices.items()
        ]

    def figures(self, account: int) -> tuple[int, int]:
        """(free, held) of an account on this worker."""
        purse = self._purses.get(account)
        if purse is None:
            return 0, 0
        parts = purse.slices.values()
        return sum(part.free for part in parts), sum(part.held for part in parts)


Owner = TypeVar("Owner", int, str)  # an account, or a window of a limit


@dataclass(slots=True)
class _Lease(Generic[Owner]):
    account: Owner
    granted: int
    given: dict[str, int] = field(default_factory=dict)  # worker incarnation -> granted to it in all
    is_old: bool = False  # from an earlier control: who holds what of it is not known yet

    @property
    def free(self) -> int:
        return self.granted - sum(self.given.values())


class NodeLeases(Generic[Owner]):
    """The open leases of one node and how much of each its workers were given.

    A worker is one incarnation. After a restart of control, leases loaded from Postgres hand out nothing
    until every worker that may hold of them was heard (`adopt_hello`) or adopted (`worker_dead`).
    """

    def __init__(self) -> None:
        self._leases: dict[str, _Lease[Owner]] = {}
        self._by_account: dict[Owner, dict[str, _Lease[Owner]]] = {}
        self._unheard: set[str] = set()

    def load(self, rows: Iterable[tuple[str, Owner, int]], workers: Iterable[str]) -> None:
        """Take over the open leases (lease, account, granted) of an earlier control of this node.

        `workers` are the lives that may hold of them: living ones and those not yet adopted.
        """
        self._unheard |= set(workers)
        for lease, account, granted in rows:
            self._put(lease, _Lease(account, granted, is_old=True))

    def open(self, lease: str, account: Owner, granted_nanos: int) -> None:
        """A new lease was granted by Postgres."""
        self._put(lease, _Lease(account, granted_nanos))

    def extend(self, lease: str, more_nanos: int) -> None:
        """Postgres granted more to an open lease, or took some back (negative)."""
        self._leases[lease].granted += more_nanos

    def close(self, lease: str) -> None:
        """The lease was closed in Postgres."""
        gone = self._leases.pop(lease, None)
        if gone is not None:
            of_account = self._by_account[gone.account]
            del of_account[lease]
            if not of_account:
                del self._by_account[gone.account]

    def free(self, lease: str) -> int:
        """What may go out of a lease: 0 while it is not known who holds what of it."""
        found = self._leases.get(lease)
        if found is None or not self._is_known(found):
            return 0
        return max(0, min(found.free, self._free_of(found.account)))

    def open_lease(self, account: Owner) -> str | None:
        """A lease of the account that can be extended: one more row is not needed."""
        return next(iter(self._known(account)), None)

    def leases_of(self, account: Owner) -> list[str]:
        return list(self._by_account.get(account, ()))

    def grant(self, worker: str, account: Owner, need: int, want: int) -> tuple[str, int] | None:
        """Cut a slice of at least `need` and at most `want` out of one lease: (lease, amount).

        As for a worker, the sum of an account's leases is what counts. None: Postgres must be asked for
        more (`asks`).
        """
        free = self._free_of(account)
        if free < max(need, 1):
            return None
        lease, found = max(self._known(account).items(), key=lambda item: item[1].free)
        amount = min(free, max(need, want))
        found.given[worker] = found.given.get(worker, 0) + amount
        return lease, amount

    def asks(self, account: Owner, need: int, want: int) -> tuple[int, int]:
        """(at least, at most) to ask Postgres for, so that `grant` succeeds with it."""
        free = self._free_of(account)  # below zero after overspending: that is made up for first
        return max(need - free, 1), max(need, want) * SLICES_AHEAD

    def give(self, worker: str, lease: str, amount: int) -> None:
        """A worker gave a part of its slice back."""
        found = self._leases.get(lease)
        if found is not None:
            found.given[worker] = found.given.get(worker, 0) - amount

    def adopt_hello(self, worker: str, slices: Iterable[tuple[Owner, str, int]]) -> None:
        """A living worker said all that it holds: (account, lease, granted in all).

        What was on its way when the connection broke never arrived, and is free again.
        """
        self._keeps(worker, {lease: granted for _, lease, granted in slices})

    def granted(self, worker: str, lease: str) -> int:
        """What a worker was given of a lease in all."""
        found = self._leases.get(lease)
        return 0 if found is None else found.given.get(worker, 0)

    def others(self, account: Owner, worker: str) -> set[str]:
        """The workers that may have some of what another one lacks."""
        leases = self._by_account.get(account, {}).values()
        return {name for found in leases for name, given in found.given.items() if given} - {worker}

    def worker_dead(self, worker: str, used: Mapping[str, int]) -> None:
        """A dead worker was adopted: of each lease it keeps what it used, the rest is free again."""
        self._keeps(worker, used)

    def surplus(self) -> Iterator[tuple[str, Owner, int]]:
        """(lease, account, free): what could go back to Postgres."""
        for lease, found in self._leases.items():
            if free := self.free(lease):
                yield lease, found.account, free

    def _keeps(self, worker: str, amounts: Mapping[str, int]) -> None:
        self._unheard.discard(worker)
        for lease, found in self._leases.items():
            if worker in found.given or lease in amounts:
                found.given[worker] = amounts.get(lease, 0)

    def _put(self, lease: str, found: _Lease[Owner]) -> None:
        self._leases[lease] = found
        self._by_account.setdefault(found.account, {})[lease] = found

    def _known(self, account: Owner) -> dict[str, _Lease[Owner]]:
        of_account = self._by_account.get(account, {})
        return {lease: found for lease, found in of_account.items() if self._is_known(found)}

    def _free_of(self, account: Owner) -> int:
        return sum(found.free for found in self._known(account).values())

    def _is_known(self, lease: _Lease[Owner]) -> bool:
        return not (lease.is_old and self._unheard)
