"""A hold is resolved exactly once."""

from __future__ import annotations

from itertools import product

import pytest

from proxy.ledger.entry import DEFERRED, PENDING, SETTLED, VOID
from proxy.ledger.holds import NEXT, OPEN, AlreadyClosed, resolved


@pytest.mark.parametrize(
    ("state", "by"),
    sorted(product((OPEN, PENDING, DEFERRED, SETTLED, VOID), (PENDING, DEFERRED, SETTLED, VOID))),
)
def test_only_the_ways_of_the_table_are_open(state, by):
    if (state, by) in NEXT:
        assert resolved("c1", state, by) == by
    else:
        with pytest.raises(AlreadyClosed) as refused:
            resolved("c1", state, by)
        assert refused.value.was == state


def test_what_is_settled_or_void_stays_so():
    assert not {state for state, _ in NEXT} & {SETTLED, VOID}
