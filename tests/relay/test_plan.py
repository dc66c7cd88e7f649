"""A call that is like the last one with its head goes where any other would go, and is sent as any other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from proxy.errors import CredentialsCooling
from proxy.relay.cooldown import Cooldowns
from proxy.relay.exchange import Exchange
from proxy.relay.handler import Relay
from proxy.relay.heads import HeadFacts, Heads
from proxy.relay.request_head import RequestHead
from proxy.routing.selection import Choice, Place
from proxy.snapshot import Snapshot
from tests.fakes.calls import call
from tests.routing.compiling import compile_text

FILE = """
endpoints:
  plain: {url: "https://a.test"}
  cutting: {url: "https://b.test", proxy_read_timeout: 60s}
upstreams:
  vendor:
    dialect: openai
    mirrors: {direct: {url: "https://api.vendor.test"}}
    credentials: {main: "${env:OPENAI_API_KEY}"}
models:
  gpt-4o-mini: {candidates: [{upstream: vendor}]}
  ours: {candidates: [{upstream: vendor, as: theirs}]}
prices:
  ours: {free: true}
"""
CHAT, BATCHES = "/v1/chat/completions", "/v1/batches"


@pytest.fixture
def heads() -> Heads:
    return Heads(Snapshot.from_document(compile_text(FILE).document))


@pytest.fixture
def relay() -> Relay:
    """Nothing of it is asked for a plan."""
    return Relay(*[None] * 12)  # type: ignore[arg-type]


@cache
def head(path: str, *fields: tuple[str, str]) -> RequestHead:
    """The same for all calls."""
    return call(path, *fields).head


def with_body(heads: Heads, path: str, *fields: tuple[str, str], **doc: Any) -> tuple[Exchange, HeadFacts]:
    x = call(path, *fields)
    x.head = head(path, *fields)
    facts = heads.accept(x)
    if facts.route is None:
        heads.match(x, facts)
    x.content, x.doc = orjson.dumps(doc), doc
    x.model, x.is_stream = doc.get("model", "gpt-4o-mini"), doc.get("stream", False)
    if facts.body_coding:
        x.coded = b"coded"
    return x, facts


def choice(heads: Heads, model: str) -> Choice:
    upstream = heads.snapshot.upstream("vendor")
    return Choice(upstream, upstream.mirrors[0], upstream.credentials[0], model)


PLAIN = [
    {"model": "gpt-4o-mini", "n": 2}, {"n": 2}, {"model": "ours"}, {"model": "", "x": "y"},
    {"model": "gpt-4o-mini", "stream": False},
]  # fmt: skip
OTHER = [
    {"model": "gpt-4o-mini", "stream": True},
    {"model": "gpt-4o-mini", "stream": True, "stream_options": {"include_usage": True}},
]  # fmt: skip


@pytest.mark.parametrize("before", PLAIN + OTHER)
@pytest.mark.parametrize("doc", PLAIN + OTHER)
@pytest.mark.parametrize("theirs", ["gpt-4o-mini", "theirs"])
def test_what_came_before_changes_nothing(
    heads: Heads, relay: Relay, before: dict[str, Any], doc: dict[str, Any], theirs: str
) -> None:
    x, _ = with_body(heads, CHAT, **before)
    relay.plan(x, choice(heads, "gpt-4o-mini"), False)
    x, facts = with_body(heads, CHAT, **doc)
    found = relay.plan(x, choice(heads, theirs), True)
    any_other = relay._plan(x, facts, choice(heads, theirs), True)
    for name in ("way", "head", "body", "is_watched", "sending"):
        assert getattr(found, name) == getattr(any_other, name)


@pytest.mark.parametrize(
    ("path", "fields", "doc", "is_plain"),
    [(CHAT, {}, PLAIN[0], True), ("/v1/embeddings", {}, PLAIN[0], True), (CHAT, {}, OTHER[0], False),
     (CHAT, {"Host": "b.test"}, PLAIN[0], False), (CHAT, {"Content-Encoding": "gzip"}, PLAIN[0], False),
     (BATCHES, {}, {"input_file_id": "file-1"}, False), ("/v1/images/edits", {}, PLAIN[0], False)],
    ids=["chat", "embeddings", "usage put in", "cut silence", "coded", "a task", "may be a form"],
)  # fmt: skip
def test_what_has_more_to_it_is_looked_at_each_time(
    heads: Heads, relay: Relay, path: str, fields: dict[str, str], doc: dict[str, Any], is_plain: bool
) -> None:
    x, facts = with_body(heads, path, *fields.items(), **doc)
    way = relay.plan(x, choice(heads, "theirs"), False).way
    assert (facts.way is way) is way.is_plain is is_plain


def test_the_only_choice_is_found_again_while_nothing_rests(heads: Heads, relay: Relay) -> None:
    relay.cooldowns = Cooldowns(lambda: 0, lambda op, args: None)
    model_for = heads.snapshot.model_for

    def chosen(model: str) -> Sequence[Choice]:
        x, _ = with_body(heads, CHAT, model=model)
        x.standing = SimpleNamespace(model=model_for(model))  # type: ignore[assignment]
        return relay.choose(x)

    mine, ours = chosen("gpt-4o-mini"), chosen("ours")
    assert ([c.model for c in mine], [c.model for c in ours]) == (["gpt-4o-mini"], ["theirs"])
    assert chosen("ours") is ours and chosen("ours") is ours
    assert chosen("gpt-4o-mini") == mine
    for place in (Place("vendor", "", "main"), Place("vendor", "", "main", "gpt-4o-mini")):
        relay.cooldowns.cool(place, 1000)
        with pytest.raises(CredentialsCooling):
            chosen("gpt-4o-mini")
        relay.cooldowns.uncool(place)
        assert chosen("gpt-4o-mini") == mine
