"""What is journaled comes back, and what another build wrote is not misread."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.ledger import entry
from proxy.ledger.entry import Attempt, Begin, Bind, Checkpoint, End, Entry, Observed, Progress, Settle

TEXT = st.text(max_size=12)
NANOS = st.integers(-(2**62), 2**62)
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXT,
    "int": NANOS,
    "bool": st.booleans(),
    "list[str]": st.lists(TEXT, max_size=3),
    "dict[str, Any]": st.dictionaries(TEXT, NANOS | TEXT, max_size=3),
    "dict[str, str]": st.dictionaries(TEXT, TEXT, max_size=3),
}


def any_of(kind: type) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{name: BY_TYPE[kind.__annotations__[name]] for name in kind.__struct_fields__})


BY_TYPE["list[dict[str, Any]]"] = st.lists(BY_TYPE["dict[str, Any]"], max_size=2)
BY_TYPE["list[Attempt]"] = st.lists(any_of(Attempt), max_size=2)
BY_TYPE["list[Progress]"] = st.lists(any_of(Progress), max_size=3)
KINDS = (Begin, Checkpoint, End, Settle, Bind, Observed, entry.PriceEntry, entry.Allowance)


@given(st.one_of([any_of(kind) for kind in KINDS]))
def test_every_entry_comes_back(record: Entry):
    assert entry.decode(entry.encode(record)) == record


def test_an_end_with_half_of_a_surrogate_pair_is_still_an_end():
    end = End("1", 2, 1, "settled", "complete", 1, 2, "L", 9, 5, "m", "chat", "openai", "p", 1, 1, "VIP", "d",
              1, False, 200, "final", {"input": 1}, [Attempt("u", "m", "c", "ok", upstream_id="\udce9")],
              upstream_model="caf\ud800", client="caf\udce9 é")  # fmt: skip
    back = entry.decode(entry.encode(end))
    assert (back.cost_nanos, back.usage, back.attempts[0].upstream_id) == (5, {"input": 1}, "?")
    assert (back.upstream_model, back.client) == ("caf?", "caf? é")


def test_every_kind_has_a_tag_of_its_own():
    assert len({kind.TAG for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("payload", [b"", b"X{}", b"E{", b"E[]", b"E{}", b"C{}", b"Bnull"])
def test_what_is_no_entry_is_refused(payload):
    with pytest.raises(ValueError):
        entry.decode(payload)


def test_a_field_of_a_newer_build_is_refused_instead_of_dropped():
    settle = orjson.loads(entry.encode(Settle("1", 2, 3, "final"))[1:]) | {"surcharge_nanos": 5}
    with pytest.raises(ValueError, match="another build"):
        entry.decode(b"S" + orjson.dumps(settle))


def test_what_is_as_by_default_is_not_written():
    settle = Settle("1", 2, 3, "final")
    assert entry.encode(settle) == b'S{"id":"1","at_ms":2,"cost_nanos":3,"provenance":"final"}'
    assert entry.decode(entry.encode(settle)) == settle


def test_an_end_says_that_nobody_was_asked():
    end = End("1", 2, 1, "void", "failed", 1, 2, "L", 9, 0, "m", "chat", "openai", "p", 1, 1, "VIP", "d", 1,
              False, 0, "none")  # fmt: skip
    assert orjson.loads(entry.encode(end)[1:])["attempts"] == []
    assert entry.decode(entry.encode(end)) == end


def test_an_entry_of_an_older_build_gets_the_defaults():
    old = {"id": "1", "at_ms": 2, "cost_nanos": 3, "provenance": "final"}
    assert entry.decode(b"S" + orjson.dumps(old)) == Settle("1", 2, 3, "final")
