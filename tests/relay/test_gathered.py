"""A batch whose calls stand in its request is held by what they may cost, and may be nobody's way around."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from proxy.dialects import DIALECTS
from proxy.errors import ModelMissing, ModelNotPermitted, ModelNotPriced, OptionNotPriced, ProxyError
from proxy.relay.gathered import hold_nanos
from proxy.snapshot import Snapshot
from tests.routing.compiling import compile_text

ROUTES = """
station: {currency: USD}
upstreams: {claude: {preset: anthropic, credentials: {main: "${env:OPENAI_API_KEY}"}}}
models:
  dear: {context: 200000, max_output: 1000, candidates: [{upstream: claude}]}
  cheap: {candidates: [{upstream: claude}]}
  secret: {candidates: [{upstream: claude}]}
prices:
  dear: {input: 10 USD, output: 50 USD, service_tiers: {batch: {input: 5 USD, output: 25 USD}}}
  cheap: {input: 1 USD, output: 2 USD}
  secret: {input: 1 USD, output: 2 USD}
tiers: {Test: {rank: 0, models: [dear, cheap, unpriced], multiplier: 2.0, hold: max}}
"""
MESSAGES = [{"role": "user", "content": "x" * 300}]


def hold(*calls: Any, tier_hold: str = "max") -> int:
    text = ROUTES.replace("hold: max", f"hold: {tier_hold}")
    snapshot = Snapshot.from_document(compile_text(text).document)
    key = SimpleNamespace(overrides=(), check_model=lambda *_: None)
    standing: Any = SimpleNamespace(snapshot=snapshot, key=key, tier=snapshot.tier("Test"))
    operation = DIALECTS["anthropic"].operations["message_batches.create"]
    requests = [{"custom_id": str(at), "params": call} for at, call in enumerate(calls)]
    x: Any = SimpleNamespace(operation=operation, doc={"requests": requests})
    return hold_nanos(x, standing, {"cheap": 7}, 1024)


def call(model: str, **facts: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 100, "messages": MESSAGES, **facts}


def test_each_call_is_held_by_its_own_model_at_the_price_of_batches():
    one, other = hold(call("dear")), hold(call("cheap"))
    assert one == 2 * (5000 * 125 + 25_000 * 100)  # 375 bytes of a request, 100 tokens of output
    assert hold(call("dear"), call("cheap"), call("cheap")) == one + 2 * other
    assert hold(call("dear", max_tokens=10_000)) > hold(call("dear", max_tokens=900))
    assert hold(call("dear", max_tokens=10_000)) == hold(call("dear", max_tokens=20_000)) != one


def test_a_tier_that_estimates_expects_of_each_call_what_its_model_says_of_late():
    assert hold(call("cheap"), tier_hold="estimate") == 2 * (1000 * 125 + 2000 * 7)


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (call("secret"), ModelNotPermitted),
        (call("unpriced"), ModelNotPriced),
        (call(""), ModelMissing),
        ("no object", ModelMissing),
        (call("cheap", tools=[{"type": "web_search_20250305", "name": "web_search"}]), OptionNotPriced),
    ],
)
def test_a_batch_may_hold_no_call_that_would_be_refused_alone(refused: Any, error: type[ProxyError]):
    with pytest.raises(error):
        hold(call("cheap"), refused)
