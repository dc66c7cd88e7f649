"""The states of a hold and the only ways from one to the next."""

from __future__ import annotations

from proxy.errors import StateError
from proxy.ledger.entry import DEFERRED, PENDING, SETTLED, VOID

OPEN = "open"  # Begin is written

# (state, closing record) -> state. A missing pair is the error; corrections leave the state alone.
NEXT = {
    (OPEN, SETTLED): SETTLED,
    (OPEN, VOID): VOID,
    (OPEN, PENDING): PENDING,  # the call is over, its figures are still being counted
    (PENDING, SETTLED): SETTLED,
    (OPEN, DEFERRED): DEFERRED,  # the call is over, what it started is not
    (DEFERRED, SETTLED): SETTLED,
    (DEFERRED, VOID): VOID,
}


class AlreadyClosed(StateError):
    """A hold was resolved a second time; `was` is how it was resolved first."""

    def __init__(self, call: str, was: str) -> None:
        super().__init__(f"call {call} is already {was}")
        self.call = call
        self.was = was


def resolved(call: str, state: str, by: str) -> str:
    """The state after a closing record. Raises AlreadyClosed: each hold is resolved exactly once."""
    after = NEXT.get((state, by))
    if after is None:
        raise AlreadyClosed(call, state)
    return after
