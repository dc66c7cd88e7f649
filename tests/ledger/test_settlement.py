"""The table of calls that do not end well, row by row, and what is believed of an upstream's claims."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.ledger import entry
from proxy.ledger.entry import Begin, End, Progress
from proxy.ledger.holds import AlreadyClosed
from proxy.ledger.settlement import (
    ABSURD,
    BILLED,
    CAPPED,
    COUNT_MAX,
    DISTRUSTED,
    OVER_INPUT,
    OVER_OUTPUT,
    RECONCILE,
    SINGLE_MAX,
    SINGLES,
    WAIVED,
    Bill,
    Course,
    Figures,
    Terms,
    Waiver,
    bill,
    ended,
    interrupted,
    late,
    owed,
    pending,
    plain_bill,
    recovered,
)
from proxy.metering.pricing import cost_nanos, price_from_content, text_rate
from proxy.metering.usage import FIELDS, Usage

PRICE = price_from_content({"input": 1_000_000, "output": 4_000_000})  # 1 and 4 nanos a token
HOLD = 1000

BEGIN = Begin(
    id="0" * 32, at_ms=1_000, account=1, key=2, lease="L", hold_nanos=HOLD, model="m", operation="chat",
    dialect="openai", price=PRICE.id, model_ppm=1_000_000, tier_ppm=500_000, tier="VIP", endpoint="direct",
    generation=3, stream=True, input_bound=100, request_bytes=300,
)  # fmt: skip

FINAL = Figures(reported=Usage(input=40, output=30), is_final=True)
EARLY = Figures(reported=Usage(input=40, output=1), counted=Usage(input=44, output=20))
COUNTED = Figures(counted=Usage(input=44, output=20))
NOTHING = Figures()
PLAIN = Terms()


def close(outcome: str, figures: Figures, terms: Terms = PLAIN) -> End:
    found = bill(BEGIN, outcome, figures, PRICE, terms)
    return ended(BEGIN, found, PRICE.id, outcome, 2_000, Course([]))


def counting() -> End:
    return ended(BEGIN, pending(entry.COMPLETE, COUNTED), PRICE.id, entry.COMPLETE, 2_000, Course([]))


def price_of(tokens_in: int, tokens_out: int) -> int:
    return (tokens_in + 4 * tokens_out) // 2  # the tier pays half


# -- the table -----------------------------------------------------------------------------------


def test_every_way_of_ending_has_a_row():
    outcomes = {
        entry.COMPLETE, entry.FAILED, entry.UPSTREAM_ERROR, entry.INTERRUPTED_CLIENT,
        entry.INTERRUPTED_UPSTREAM, entry.INTERRUPTED_RELAY, entry.CUT,
    }  # fmt: skip
    assert set(BILLED) == outcomes


def test_a_complete_call_is_billed_as_the_vendor_says():
    end = close(entry.COMPLETE, FINAL)
    assert (end.state, end.cost_nanos, end.provenance) == (entry.SETTLED, price_of(40, 30), "final")
    assert end.usage == {"input": 40, "output": 30}


def test_a_complete_call_without_usage_is_counted():
    end = close(entry.COMPLETE, COUNTED)
    assert (end.state, end.cost_nanos, end.provenance) == (entry.SETTLED, price_of(44, 20), "counted")


@pytest.mark.parametrize("figures", [FINAL, EARLY, COUNTED, NOTHING])
def test_a_call_that_failed_before_the_upstream_accepted_is_void(figures):
    end = close(entry.FAILED, figures)
    assert (end.state, end.cost_nanos, end.provenance, end.usage) == (entry.VOID, 0, "none", {})


@pytest.mark.parametrize("figures", [NOTHING, COUNTED, Figures(Usage(input=40), is_final=True)])
def test_an_upstream_error_without_output_costs_nothing(figures):
    end = close(entry.UPSTREAM_ERROR, figures)
    assert (end.state, end.cost_nanos, end.provenance) == (entry.VOID, 0, "none")


def test_usage_that_is_sent_beside_an_error_after_output_is_billed():
    end = close(entry.UPSTREAM_ERROR, FINAL)
    assert (end.state, end.cost_nanos, end.provenance) == (entry.SETTLED, price_of(40, 30), "final")


def test_a_key_holder_who_left_after_the_finish_reason_pays_the_final_figures():
    end = close(entry.INTERRUPTED_CLIENT, FINAL)
    assert (end.cost_nanos, end.provenance) == (price_of(40, 30), "final")


def test_a_key_holder_who_left_earlier_pays_the_vendors_input_and_the_output_so_far():
    end = close(entry.INTERRUPTED_CLIENT, EARLY)
    assert (end.cost_nanos, end.provenance) == (price_of(40, 20), "early")


def test_a_key_holder_who_left_before_any_usage_pays_what_we_counted():
    end = close(entry.INTERRUPTED_CLIENT, COUNTED)
    assert (end.cost_nanos, end.provenance) == (price_of(44, 20), "counted")


def test_what_is_read_on_without_the_key_holder_costs_no_more_than_the_hold():
    long = Figures(Usage(input=40, output=9000), is_final=True)
    end = close(entry.INTERRUPTED_CLIENT, long, Terms(within_hold=True))
    assert (end.cost_nanos, end.flags) == (HOLD, [CAPPED])
    assert close(entry.INTERRUPTED_CLIENT, FINAL, Terms(within_hold=True)).flags == []


@pytest.mark.parametrize(
    ("outcome", "waiver"), [(entry.CUT, Waiver.ON_CUT), (entry.INTERRUPTED_UPSTREAM, Waiver.ON_BREAK)]
)
def test_a_call_that_was_cut_or_broke_pays_its_output_so_far_unless_an_option_makes_it_free(outcome, waiver):
    assert close(outcome, EARLY).cost_nanos == price_of(40, 20)
    free = close(outcome, EARLY, Terms(waivers=frozenset({waiver})))
    assert (free.state, free.cost_nanos, free.flags) == (entry.SETTLED, 0, [WAIVED])
    assert free.usage == {"input": 40, "output": 20}


@pytest.mark.parametrize("outcome", sorted(BILLED))
def test_an_option_makes_free_what_it_is_for_and_nothing_else(outcome):
    for waiver in (Waiver.ON_BREAK, Waiver.ON_CUT):
        end = close(outcome, FINAL, Terms(waivers=frozenset({waiver})))
        assert (WAIVED in end.flags) == (BILLED[outcome][1] is waiver)


def test_a_call_whose_relay_died_pays_its_last_checkpoint():
    end = interrupted(BEGIN, Progress(BEGIN.id, 900, 12, 40, 25), PRICE, 9_000)
    assert (end.state, end.outcome, end.cut) == (entry.SETTLED, entry.INTERRUPTED_RELAY, "relay_died")
    assert (end.cost_nanos, end.provenance) == (price_of(40, 25), "estimated")
    assert (end.response_bytes, end.events, end.took_ms) == (900, 12, 8_000)
    assert end.flags == [RECONCILE]


def test_a_checkpoint_that_knows_no_input_bills_the_bound():
    end = interrupted(BEGIN, Progress(BEGIN.id, 900, 12, 0, 25), PRICE, 9_000)
    assert end.cost_nanos == price_of(BEGIN.input_bound, 25)


def test_a_call_whose_relay_died_never_costs_more_than_its_hold():
    end = interrupted(BEGIN, Progress(BEGIN.id, 10**6, 10**4, 40, 9_000), PRICE, 9_000)
    assert (end.cost_nanos, end.flags) == (HOLD, [RECONCILE, CAPPED])


def test_a_call_whose_relay_died_before_any_checkpoint_is_void_and_to_be_reconciled():
    end = interrupted(BEGIN, None, PRICE, 9_000)
    assert (end.state, end.cost_nanos, end.provenance) == (entry.VOID, 0, "none")
    assert (end.outcome, end.flags) == (entry.INTERRUPTED_RELAY, [RECONCILE])


# -- pending calls -------------------------------------------------------------------------------


def test_a_pending_end_costs_nothing_until_it_is_settled_late():
    end = counting()
    assert (end.state, end.cost_nanos, end.usage) == (entry.PENDING, 0, {"input": 44, "output": 20})
    settle = late(end, Figures(counted=Usage(input=46, output=22)), PRICE, PLAIN, 3_000)
    assert (settle.id, settle.at_ms, settle.corrects) == (end.id, 3_000, "")
    assert (settle.cost_nanos, settle.provenance) == (price_of(46, 22), "counted")


def test_a_pending_end_whose_relay_died_is_settled_by_what_it_knew_within_the_hold():
    end = counting()
    assert recovered(end, PRICE, 3_000).cost_nanos == price_of(44, 20)
    assert recovered(end, PRICE, 3_000).provenance == "estimated"
    huge = replace(end, usage={"input": 10, "output": 10**6})
    settle = recovered(huge, PRICE, 3_000)
    assert (settle.cost_nanos, settle.flags) == (HOLD, [CAPPED])


def test_only_a_pending_end_can_be_settled_late():
    with pytest.raises(AlreadyClosed, match="already settled"):
        late(close(entry.COMPLETE, FINAL), FINAL, PRICE, PLAIN, 3_000)
    with pytest.raises(AlreadyClosed, match="already void"):
        late(close(entry.FAILED, NOTHING), FINAL, PRICE, PLAIN, 3_000)


# -- what is believed ----------------------------------------------------------------------------


def test_claims_of_a_low_trust_upstream_are_cut_to_what_is_possible():
    claim = Figures(Usage(input=50, cache_read=90, output=70, output_audio=9, reasoning=60), is_final=True)
    end = close(entry.COMPLETE, claim, Terms(trusted=False, input_max=100, output_max=64))
    assert end.usage == {"input": 50, "cache_read": 50, "output": 64, "reasoning": 60}
    assert end.flags == [DISTRUSTED]


def test_possible_claims_of_a_low_trust_upstream_stand():
    assert close(entry.COMPLETE, FINAL, Terms(trusted=False, input_max=40, output_max=30)).flags == []


def test_a_trusted_upstream_is_billed_as_it_reports_and_flagged():
    end = close(entry.COMPLETE, FINAL, Terms(input_max=39, output_max=29))
    assert (end.cost_nanos, end.flags) == (price_of(40, 30), [OVER_INPUT, OVER_OUTPUT])


@pytest.mark.parametrize("name", [f.name for f in FIELDS if f.default == 0])
@pytest.mark.parametrize("lie", [-5, 10**12, 10**30])
def test_absurd_figures_are_cut_in_every_bucket(name, lie):
    end = close(entry.COMPLETE, Figures(Usage(**{name: lie}), is_final=True))
    assert end.flags == [ABSURD]
    assert end.usage.get(name, 0) == (0 if lie < 0 else SINGLE_MAX if name in SINGLES else COUNT_MAX)
    assert 0 <= end.cost_nanos < 2**63


def test_absurd_tools_and_units_are_cut():
    lies = Usage(tools={"web_search": -1}, units={"pages": 10**15})
    end = close(entry.COMPLETE, Figures(lies, is_final=True))
    assert end.usage == {"tools": {"web_search": 0}, "units": {"pages": SINGLE_MAX}}


def test_more_waived_than_there_was_makes_nothing_cheaper_than_free():
    lies = Usage(input=10, output=5, waived={"input": 10**15})
    assert close(entry.COMPLETE, Figures(lies, is_final=True)).cost_nanos == price_of(0, 5)


def test_the_figures_of_the_meter_are_not_changed_by_billing():
    claim = Usage(input=50, output=70)
    close(entry.COMPLETE, Figures(claim, is_final=True), Terms(trusted=False, output_max=1))
    assert claim == Usage(input=50, output=70)


# -- what a row says -----------------------------------------------------------------------------


def told(kind: type) -> dict[str, object]:
    """Another value for each field that has a plain one."""
    plain = {name: of for name, of in kind.__annotations__.items() if of in ("str", "int")}
    return {name: name if of == "str" else i for i, (name, of) in enumerate(plain.items(), 1)}


def test_each_field_of_an_end_is_that_of_the_begin_or_the_bill():
    begin = replace(BEGIN, **told(Begin), stream=True, multiplied=False)
    found = Bill(entry.SETTLED, 77, {"input": 40, "output": 30}, "final", ["odd"])
    tried = [entry.Attempt("u", "m", "c", "status:500"), entry.Attempt("v", "n", "d", "ok", upstream_id="r")]
    expected = {
        **{name: getattr(begin, name) for name in Begin.__struct_fields__ if name in End.__struct_fields__},
        "state": entry.SETTLED, "cost_nanos": 77, "usage": {"input": 40, "output": 30}, "provenance": "final",
        "flags": ["odd"], "began_ms": begin.at_ms, "at_ms": 9, "price": "narrowed", "outcome": entry.COMPLETE,
        "attempts": tried, "upstream": "v", "mirror": "n", "credential": "d", "upstream_id": "r",
    }  # fmt: skip
    went = Course(tried, **told(Course) | {"vendor_id": "another"})
    expected |= {name: getattr(went, name) for name in Course.__struct_fields__ if name != "vendor_id"}
    assert ended(begin, found, "narrowed", entry.COMPLETE, 9, went) == End(**expected)
    tried.pop()
    assert ended(begin, found, "narrowed", entry.COMPLETE, 9, went).upstream_id == "another"


# -- for all -------------------------------------------------------------------------------------

TOKENS = st.integers(-10, 10**10)
SOME = st.integers(0, 10**5)
USAGE = st.builds(Usage, input=TOKENS, cache_read=TOKENS, output=TOKENS, reasoning=TOKENS)
PLAIN_USAGE = st.builds(Usage, input=SOME, cache_read=SOME, output=SOME, output_audio=SOME, calls=SOME)
TEXT_USAGE = st.builds(
    Usage, input=TOKENS, cache_read=TOKENS, output=TOKENS, reasoning=TOKENS, calls=st.just(1)
)
PLAIN_WAIVERS = (frozenset(), frozenset({Waiver.ON_BREAK}), frozenset({Waiver.ON_BREAK, Waiver.ON_CUT}))
FIGURES = st.builds(Figures, st.none() | USAGE, st.booleans(), st.none() | USAGE, st.booleans())
BOUND = st.none() | st.integers(0, 10**6)
TERMS = st.builds(
    Terms, st.booleans(), BOUND, BOUND, st.frozensets(st.sampled_from(Waiver)), st.booleans()
)  # fmt: skip


@given(st.sampled_from(sorted(BILLED)), FIGURES, TERMS)
def test_every_row_can_be_recomputed_from_what_it_stores(outcome, figures, terms):
    end = close(outcome, figures, terms)
    price = cost_nanos(PRICE, Usage.from_dict(end.usage), end.model_ppm, end.tier_ppm)
    assert end.cost_nanos == owed(price, end.hold_nanos, end.flags)
    assert end.cost_nanos >= 0
    if terms.within_hold:
        assert end.cost_nanos <= HOLD
    if end.state == entry.VOID:
        assert (end.cost_nanos, end.usage, end.provenance) == (0, {}, "none")


@given(
    st.sampled_from((None, text_rate(PRICE, BEGIN.model_ppm, BEGIN.tier_ppm))),
    USAGE | PLAIN_USAGE | TEXT_USAGE,
    BOUND,
    BOUND,
    st.booleans(),
    st.sampled_from(list(PLAIN_WAIVERS)),
)
def test_a_plain_bill_is_what_the_bill_comes_to(rate, usage, input_max, output_max, trusted, waivers):
    plain = plain_bill(BEGIN, usage, PRICE, rate, input_max, output_max)
    if plain is not None:
        terms = Terms(trusted, input_max, output_max, waivers)
        assert plain == bill(BEGIN, entry.COMPLETE, Figures(usage, True), PRICE, terms)


@given(st.sampled_from(sorted(BILLED)), FIGURES, TERMS)
def test_an_end_survives_the_journal(outcome, figures, terms):
    end = close(outcome, figures, terms)
    assert entry.decode(entry.encode(end)) == end
