"""Good files: what becomes of their sections, references and defaults."""

from __future__ import annotations

import pytest

from proxy.routing.table import Egress, Limits
from tests.routing.compiling import (
    ENVIRON,
    MINIMAL,
    MODELS,
    UPSTREAMS,
    compile_text,
    mistakes,
    table,
    warnings,
)

UPSTREAM = 'upstreams:\n  openai:\n    dialect: openai\n    mirrors: {direct: {url: "https://x.example"}}\n'


def price(text: str, model: str = "gpt-4o-mini") -> dict:
    document = compile_text(text).document
    return document["prices"].get(model) or document["official_prices"][model]


# -- references ----------------------------------------------------------------------------------


def test_a_secret_comes_from_a_file_without_its_newline():
    text = UPSTREAM + '    credentials: {main: "${file:keys/openai}"}\n' + MODELS
    compiled = compile_text(text, files={"keys/openai": "sk-from-file\n"})
    assert compiled.document["upstreams"][0]["credentials"][0]["secret"] == "sk-from-file"
    assert compiled.files == ["keys/openai"]


def test_a_missing_optional_credential_leaves_the_others():
    text = (
        UPSTREAM
        + '    credentials: {main: "${env:GONE?}", spare: {secret: "${env:OPENAI_API_KEY}"}}\n'
        + MODELS
    )
    upstream = table(text).upstreams["openai"]
    assert upstream.enabled
    assert [c.name for c in upstream.credentials] == ["spare"]
    assert warnings(text) == []


@pytest.mark.parametrize("environ", [{}, {"GONE": ""}])
def test_without_its_optional_credential_an_upstream_is_disabled_with_a_note(environ):
    text = UPSTREAM + '    credentials: {main: "${env:GONE?}"}\n' + MODELS
    upstream = table(text, environ).upstreams["openai"]
    assert (upstream.enabled, upstream.note) == (False, "GONE is not set")
    assert warnings(text, environ) == ["2:3: upstreams.openai: is disabled: GONE is not set"]


def test_without_its_optional_url_an_upstream_is_disabled():
    text = MINIMAL.replace("https://api.openai.com", "${env:GONE?}")
    upstream = table(text).upstreams["openai"]
    assert (upstream.enabled, upstream.note) == (False, "GONE is not set")
    assert table(text, {**ENVIRON, "GONE": "http://127.0.0.1:9"}).upstreams["openai"].enabled


def test_a_reference_may_stand_inside_of_a_text():
    text = MINIMAL.replace("https://api.openai.com", "https://${env:REGION}.example")
    assert table(text, {**ENVIRON, "REGION": "eu"}).upstreams["openai"].mirrors[0].host == "eu.example"


def test_a_secret_of_two_lines_is_refused_unseen():
    told = mistakes(MINIMAL, {"OPENAI_API_KEY": "sk-canary\nX-Evil: 1"})
    assert told == ["5:25: upstreams.openai.credentials.main: has a character that may not be in a header"]


# -- values --------------------------------------------------------------------------------------


def test_scalars_are_text_until_the_schema_types_them():
    text = (
        MINIMAL
        + 'station: {name: no}\nendpoints:\n  on: {url: "https://x.example", label: 010, region: 1_0}\n'
    )
    index = table(text)
    assert index.station.name == "no"
    assert (index.endpoints["on"].label, index.endpoints["on"].region) == ("010", "1_0")


def test_timeouts_default_and_first_byte_may_be_one_figure():
    assert table(MINIMAL).upstreams["openai"].timeouts.first_byte_whole_ms == 600_000
    text = UPSTREAMS + "    timeouts: {connect: 1s, first_byte: 30s, total: 10 min}\n" + MODELS
    timeouts = table(text).upstreams["openai"].timeouts
    assert (timeouts.connect_ms, timeouts.first_byte_stream_ms, timeouts.first_byte_whole_ms) == (
        1000,
        30_000,
        30_000,
    )
    assert (timeouts.idle_ms, timeouts.total_ms) == (300_000, 600_000)


def test_active_credentials_come_before_retired_ones():
    text = UPSTREAM + (
        "    credentials:\n"
        '      old: {secret: "${env:OPENAI_API_KEY}", retired: true}\n'
        '      new: "${env:OPENAI_API_KEY}"\n'
    )
    assert [c.name for c in table(text + MODELS).upstreams["openai"].credentials] == ["new", "old"]


def test_models_that_think_unseen_are_drained_unless_the_file_says_otherwise():
    text = UPSTREAMS + (
        "models:\n"
        "  o3: {candidates: [{upstream: openai}]}\n"
        "  o3-mini: {candidates: [{upstream: openai}], on_disconnect: cancel}\n"
        "  gpt-4o-mini: {candidates: [{upstream: openai}], on_disconnect: {drain: 5s}}\n"
        "  other: {candidates: [{upstream: openai}]}\n"
        "prices: {o3: {input: 1}, o3-mini: {input: 1}, other: {input: 1}}\n"
    )
    models = table(text).models
    assert [models["o3"].on_disconnect.kind, models["o3"].hidden_reasoning] == ["drain", True]
    assert models["o3-mini"].on_disconnect.kind == "cancel"
    assert models["gpt-4o-mini"].on_disconnect.drain_ms == 5_000
    assert models["other"].on_disconnect is None


def test_a_station_without_tiers_has_one_that_allows_everything():
    index = table(MINIMAL)
    tier = index.tier("")
    assert (tier.name, tier.models, tier.limits.concurrency, tier.hold) == ("Free", ("*",), 50, "estimate")


def test_outage_rules_are_the_stations_unless_the_tier_has_its_own():
    text = MINIMAL + (
        "station: {on_outage: {allowance: 0.50 CNY}, rates: {CNY: 0.14}}\n"
        "tiers: {A: {rank: 0, models: ['*'], on_outage: unlimited}, B: {rank: 1, models: ['*']}}\n"
    )
    index = table(text)
    assert (index.station.on_outage.kind, index.station.on_outage.allowance_nanos) == (
        "allowance",
        70_000_000,
    )
    assert index.tiers["A"].on_outage.kind == "unlimited"
    assert index.tiers["B"].on_outage is None


# -- prices --------------------------------------------------------------------------------------


def test_official_prices_count_where_the_file_says_nothing():
    assert price(MINIMAL) == {"input": 150_000_000, "output": 600_000_000}


def test_prices_are_in_the_stations_currency():
    text = (
        MINIMAL
        + "station: {currency: CNY, rates: {USD: 7.2}}\nprices: {gpt-4o: {input: 2.5 USD, call: 0.30 CNY}}\n"
    )
    assert price(text) == {"input": 1_080_000_000, "output": 4_320_000_000}
    assert price(text, "gpt-4o") == {"input": 18_000_000_000, "call": 300_000_000}


def test_a_price_of_the_file_replaces_the_official_one_whole():
    text = MINIMAL + "prices: {gpt-4o-mini: {input: 1}}\n"
    assert price(text) == {"input": 1_000_000_000}
    assert compile_text(text).document["official_prices"] == {}


def test_a_price_has_levels_tiers_tools_and_sizes():
    text = MINIMAL + (
        "prices:\n"
        "  gpt-4o-mini:\n"
        "    input: 1\n"
        "    above: [{input_tokens: 200000, input: 2}]\n"
        "    service_tiers: {flex: {input: 0.5}}\n"
        "    tools: {web_search: 0.01}\n"
        "    units: {page: 0.001}\n"
        '    sizes: {"1024x1024/hd": 0.08}\n'
        "    multiplied: false\n"
    )
    assert price(text) == {
        "input": 1_000_000_000,
        "above": [{"input_tokens": 200_000, "input": 2_000_000_000}],
        "service_tiers": {"flex": {"input": 500_000_000}},
        "tools": {"web_search": 10_000_000},
        "units": {"page": 1_000_000},
        "sizes": {"1024x1024/hd": 80_000_000},
        "multiplied": False,
    }


def test_a_model_glob_brings_the_official_prices_that_it_may_need():
    text = UPSTREAMS + 'models:\n  "claude-*": {candidates: [{upstream: openai}]}\n'
    assert list(compile_text(text).document["official_prices"]) == ["claude-sonnet-4*"]


def test_a_literal_model_may_be_priced_by_an_official_glob():
    text = UPSTREAMS + "models:\n  claude-sonnet-4-5: {candidates: [{upstream: openai}]}\n"
    assert list(compile_text(text).document["official_prices"]) == ["claude-sonnet-4*"]


# -- warnings ------------------------------------------------------------------------------------


def test_what_nothing_uses_is_told_without_being_a_mistake():
    text = MINIMAL.replace(
        "models:",
        (
            '  spare:\n    dialect: openai\n    mirrors: {d: {url: "http://spare.example"}}\n'
            "    credentials: none\nmodels:"
        ),
    ) + (
        "prices: {unsold: {input: 1}}\n"
        'multipliers: {"claude-*": 2}\n'
        "tiers: {A: {rank: 0, models: [gpt-5], earned_by: [{top_up: 20, lasts: 1 month}]}}\n"
        "tasks: {suno: {upstream: openai}}\n"
    )
    assert warnings(text) == [
        "6:3: upstreams.spare: no model and no route uses this upstream",
        "8:19: upstreams.spare.mirrors.d.url: is not https: keys and prompts go in the clear",
        "12:10: prices.unsold: matches no model",
        "13:15: multipliers.claude-*: matches no model",
        "14:31: tiers.A.models[0]: matches no model",
        "15:9: tasks.suno: no price for suno_music, suno_lyrics, suno_concat, suno_persona,"
        " suno_upsample_tags, suno_upload: such calls are refused",
    ]


def test_the_hash_names_the_content():
    assert compile_text(MINIMAL).document["content_hash"] == compile_text(MINIMAL).document["content_hash"]
    other = compile_text(MINIMAL, {"OPENAI_API_KEY": "sk-another"})
    assert compile_text(MINIMAL).document["content_hash"] != other.document["content_hash"]


def test_a_mirror_may_be_reached_through_a_proxy_whose_password_is_not_shown():
    text = MINIMAL.replace(
        'url: "https://api.openai.com"}', 'url: "https://api.openai.com", via: "${env:VIA}"}'
    )
    (mirror,) = (
        table(text, {**ENVIRON, "VIA": "socks5://ada:se%20cret@[::1]:1080"}).upstreams["openai"].mirrors
    )
    assert mirror.via == Egress("socks5", "::1", 1080, "ada", "se cret")
    assert "se cret" not in repr(mirror)


def test_an_endpoint_declares_its_limits_and_what_becomes_of_slow_calls():
    endpoints = table(
        MINIMAL + "endpoints:\n"
        "  cdn: {url: 'https://c.example', proxy_read_timeout: 9s, slow_calls: trickle, body_limit: 1 MiB}\n"
        "  direct: {url: 'https://api.example'}\n"
    ).endpoints
    assert (endpoints["cdn"].slow_calls, endpoints["cdn"].body_limit) == ("trickle", 1 << 20)
    assert (endpoints["direct"].slow_calls, endpoints["direct"].body_limit) == ("hint", None)


def test_limits_are_per_minute_and_day_and_of_tiers_also_of_money():
    found = table(
        "station: {currency: CNY, rates: {USD: 7}, default_tier: Free}\n"
        "upstreams:\n"
        "  a: {dialect: openai, mirrors: {direct: {url: 'http://h'}}, credentials: none,"
        " limits: {requests: [60/min, 500/day], concurrency: 4}}\n"
        "models:\n"
        "  m: {candidates: [{upstream: a}], limits: {tokens: 90000/min}}\n"
        "  n: {candidates: [{upstream: a}]}\n"
        "prices: {m: {free: true}, n: {free: true}}\n"
        "tiers:\n"
        "  Free: {rank: 0, models: ['*'], limits: {requests: 3/min, tokens: [5/min, 9/day],"
        " spend: [0.5 USD/day, 20/month]}}\n"
    )
    assert found.upstreams["a"].limits == Limits(requests_per_minute=60, requests_per_day=500, concurrency=4)
    assert (found.models["m"].limits, found.models["n"].limits) == (Limits(tokens_per_minute=90_000), None)
    assert found.tier("Free").limits == Limits(
        requests_per_minute=3, tokens_per_minute=5, tokens_per_day=9, concurrency=50,
        spend_per_day=3_500_000_000, spend_per_month=20_000_000_000,
    )  # fmt: skip


def test_what_is_no_models_goes_to_the_first_upstream_that_can_be_asked():
    text = (
        "upstreams:\n"
        '  away: {preset: openai, credentials: {main: "${env:NOT_SET?}"}}\n'
        '  here: {preset: openai, credentials: {main: "${env:OPENAI_API_KEY}"}}\n'
        "prices: {batches.create: {call: 1}}\n"
    )
    route = table(text).match("POST", "/v1/files").route
    assert [candidate.upstream for candidate in route.candidates] == ["here"]
    assert not any("batches.create" in warning for warning in warnings(text))
