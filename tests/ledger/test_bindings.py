"""Who may use an id that lives at a vendor."""

from __future__ import annotations

from proxy.ledger.bindings import Binding, usable
from proxy.ledger.entry import Bind

BOUND = Binding.of(Bind("0" * 32, 5, 7, 8, "file", "file-abc", "openai", "direct", "main"))


def test_only_the_account_that_made_an_id_may_use_it():
    assert usable(BOUND, 7) is BOUND
    assert usable(BOUND, 8) is None


def test_an_unbound_id_looks_like_a_foreign_one():
    assert usable(None, 7) is usable(BOUND, 8) is None


def test_the_same_id_at_another_credential_is_another_thing():
    other = Binding.of(Bind("1" * 32, 5, 7, 8, "file", "file-abc", "openai", "direct", "spare"))
    assert other.identity != BOUND.identity
