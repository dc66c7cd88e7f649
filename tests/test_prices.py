"""What a model costs whom: the numbers of a station's FAQ, multipliers and the prices of single accounts."""

from __future__ import annotations

import pytest

from proxy.access.overrides import Override
from proxy.metering.pricing import cost_nanos
from proxy.metering.quote import quote
from proxy.metering.usage import Usage
from proxy.snapshot import Snapshot, secrets_in
from tests.routing.compiling import compile_text, mistakes

YUAN = 1_000_000_000

STATION = """
station: {currency: CNY, rates: {USD: 7}, no_credit: {status: 401}, not_permitted: {status: 401}}
upstreams:
  vendor:
    dialect: openai
    mirrors: {direct: {url: "https://vendor.example"}}
    credentials: {main: "${env:OPENAI_API_KEY}"}
    costs: {"gpt-*": 0.4, midjourney: {call: 0.1}}
models:
  gpt-4: {candidates: [{upstream: vendor}]}
  gpt-3.5-turbo: {candidates: [{upstream: vendor}]}
  midjourney: {candidates: [{upstream: vendor}]}
prices:
  gpt-4: {input: 10, output: 20, above: [{input_tokens: 1000, input: 30}], service_tiers: {flex: {input: 5}}}
  gpt-3.5-turbo: {input: 1, output: 2}
  midjourney: {call: 0.3, multiplied: false}
multipliers: {gpt-4: 0.5}
tiers:
  Free: {rank: 0, models: [gpt-3.5-turbo]}
  VIP: {rank: 1, models: ["*"], multiplier: 0.8, earned_by: [{top_up: 20, lasts: 1 month}]}
"""


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return Snapshot.from_document(compile_text(STATION).document)


def cost(snapshot: Snapshot, model: str, usage: Usage, tier: str, *overrides: Override) -> int:
    sale = snapshot.sale(model, snapshot.tier(tier), overrides)
    assert sale is not None
    return cost_nanos(sale.price, usage, sale.model_ppm, sale.tier_ppm)


def test_a_multiplier_of_one_half_makes_a_call_of_1_yuan_cost_50_fen(snapshot):
    assert cost(snapshot, "gpt-4", Usage(output=50_000), "Free") == YUAN // 2


def test_midjourney_is_not_multiplied(snapshot):
    for tier in ("Free", "VIP"):
        assert cost(snapshot, "midjourney", Usage(calls=1), tier) == 300_000_000


def test_multipliers_of_model_and_tier_are_both_taken(snapshot):
    assert cost(snapshot, "gpt-4", Usage(output=50_000), "VIP") == YUAN * 4 // 10


def test_vip_unlocks_gpt_4_and_free_does_not(snapshot):
    assert snapshot.permitted(snapshot.tier("VIP").models, "gpt-4")
    assert not snapshot.permitted(snapshot.tier("Free").models, "gpt-4")


def test_the_station_declares_401_for_no_credit_and_for_a_model_that_is_not_permitted(snapshot):
    station = snapshot.table.station
    assert (station.no_credit_status, station.not_permitted_status) == (401, 401)
    plain = Snapshot.from_document(compile_text(STATION.replace(": 401", ": 429", 1)).document)
    assert plain.table.station.no_credit_status == 429


def test_an_accounts_multiplier_stands_for_those_of_model_and_tier(snapshot):
    own = Override(7, "gpt-*", 900_000, None)
    assert cost(snapshot, "gpt-4", Usage(output=50_000), "VIP", own) == YUAN * 9 // 10
    assert snapshot.sale("gpt-4", snapshot.tier("VIP"), [own]).override == "7"


def test_an_accounts_price_is_taken_as_it_is_and_the_exact_name_comes_first(snapshot):
    overrides = (
        Override(7, "*", 900_000, None),
        Override(8, "gpt-4", None, {"output": 2 * YUAN, "input": 1}),
    )
    assert cost(snapshot, "gpt-4", Usage(output=500_000), "VIP", *overrides) == YUAN
    assert cost(snapshot, "gpt-3.5-turbo", Usage(input=1_000_000), "VIP", *overrides) == YUAN * 9 // 10


def test_what_has_no_price_is_not_sold_unless_the_account_has_one(snapshot):
    assert snapshot.sale("unheard-of", snapshot.tier("VIP")) is None
    own = Override(9, "unheard-of", None, {"call": 5})
    assert cost(snapshot, "unheard-of", Usage(calls=2), "VIP", own) == 10


def test_a_quote_is_what_a_million_tokens_are_billed(snapshot):
    sale = snapshot.sale("gpt-4", snapshot.tier("VIP"))
    lines = {(line.figure, line.above, line.service_tier): line for line in quote(sale)}
    assert lines["input", 0, ""].nanos == 4 * YUAN
    assert lines["input", 0, ""].official_nanos == 10 * YUAN
    assert lines["output", 0, ""].nanos == 8 * YUAN
    assert lines["input", 1000, ""].nanos == 12 * YUAN
    assert lines["input", 0, "flex"].nanos == 2 * YUAN
    usage = Usage(input=1_000_000)  # more than a thousand: of the higher level
    assert lines["input", 1000, ""].nanos == cost_nanos(sale.price, usage, sale.model_ppm, sale.tier_ppm)


def test_the_secret_of_a_gateway_is_long_is_there_and_is_never_shown():
    told = "gateways: {pay: {kind: hmac, secret: %s}}\n"
    table = Snapshot.from_document(compile_text(STATION + told % "0123456789abcdef").document).table
    assert "0123456789abcdef" in set(secrets_in(table)) and "0123456789abcdef" not in repr(table.gateways)
    assert any("shorter" in mistake for mistake in mistakes(STATION + told % "short"))
    assert any("is empty" in mistake for mistake in mistakes(STATION + told % "''"))
    assert any("is not set" in mistake for mistake in mistakes(STATION + told % '"${env:NOWHERE?}"'))


def test_a_quote_of_what_is_not_multiplied_is_the_price(snapshot):
    [line] = quote(snapshot.sale("midjourney", snapshot.tier("VIP")))
    assert (line.figure, line.nanos, line.per) == ("call", 300_000_000, "call")
