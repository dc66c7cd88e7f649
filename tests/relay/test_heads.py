"""What a head decides is decided once, for all requests with the same head and for no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.access.keyformat import make_key
from proxy.errors import (
    ExpectationFailed,
    InvalidKey,
    MalformedRequest,
    MethodNotAllowed,
    MissingKey,
    UnknownPath,
)
from proxy.relay import heads as memo
from proxy.relay.exchange import Exchange
from proxy.relay.heads import HeadFacts, Heads, codings
from proxy.relay.plan import Way
from proxy.routing.selection import Choice
from proxy.snapshot import Snapshot
from tests.fakes.calls import call
from tests.routing.compiling import compile_text

FILE = """
station: {trusted_proxies: [10.0.0.0/8]}
endpoints:
  first: {url: "https://a.test"}
  second: {url: "https://b.test", cors: true}
upstreams:
  vendor:
    dialect: openai
    mirrors: {direct: {url: "https://api.vendor.test/base"}, six: {url: "http://[2001:db8::1]:81"}}
    credentials: {main: "${env:OPENAI_API_KEY}"}
models:
  gpt-4o-mini: {candidates: [{upstream: vendor, as: theirs}]}
"""


@pytest.fixture
def heads() -> Heads:
    return Heads(Snapshot.from_document(compile_text(FILE).document))


def accepted(heads: Heads, x: Exchange) -> HeadFacts:
    facts = heads.accept(x)
    heads.match(x, facts)
    return facts


HEAD = (("Host", "b.test"), ("Authorization", "Bearer sk-1"))


def test_the_same_head_is_worked_out_once(heads: Heads) -> None:
    x = call("/v1/chat/completions", *HEAD)
    first = heads.accept(x)
    assert heads.accept(x) is first
    assert (first.path, first.endpoint.name) == ("/v1/chat/completions", "second")


def test_a_head_that_the_front_forgets_is_not_remembered(heads: Heads) -> None:
    """Else a few thousand long ones, before any key is looked at, would fill the memory."""
    x = call("/v1/models", *HEAD)
    x.head = replace(x.head, is_remembered=False)
    assert heads.accept(x) is not heads.accept(x)


def test_the_memo_has_an_end(heads: Heads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "MEMO_MAX", 10)
    for n in range(35):
        heads.accept(call(f"/v1/{n}"))
    assert len(heads._memo) <= 10


# -- refusing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "status"),
    [
        (call(version=(2, 0)), 505),
        (call(version=(1, 2)), 505),
        (call(method="CONNECT"), 405),
        (call(method="TRACE"), 405),
        (call("/", ("Transfer-Encoding", "chunked"), version=(1, 0)), 400),
        (call("http://a.test/"), 400),
        (call("*"), 400),
        (call("a.test:443"), 400),
        (call("/", ("Host", "a/?x")), 400),
        (call("/", ("Host", "u@a.test")), 400),
        (call("/", ("Host", "")), 400),
        (call("/", ("Host", "a.test:99999999")), 400),
        (call("/", ("Host", "a b")), 400),
        (call("/v1/../x"), 400),
    ],
)
def test_what_the_parser_lets_pass_is_refused(heads: Heads, x: Exchange, status: int) -> None:
    with pytest.raises(MalformedRequest) as refused:
        heads.accept(x)
    assert refused.value.status == status


@pytest.mark.parametrize("host", ["a.test", "a.test:8080", "127.0.0.1:80", "[::1]:80", "xn--bcher-kva.test"])
def test_an_ordinary_host_is_none_of_it(heads: Heads, host: str) -> None:
    assert heads.accept(call("/v1/models", ("Host", host))).endpoint.name == "first"


def test_only_one_expectation_is_understood(heads: Heads) -> None:
    heads.accept(call("/v1/models", ("Expect", "100-Continue")))
    with pytest.raises(ExpectationFailed):
        heads.accept(call("/v1/models", ("Expect", "202-later")))


def test_a_path_and_a_method_are_the_routes(heads: Heads) -> None:
    with pytest.raises(UnknownPath):
        accepted(heads, call("/v1/none"))
    with pytest.raises(MethodNotAllowed):
        accepted(heads, call(method="PUT"))


# -- the key ---------------------------------------------------------------------------------------


def test_the_digest_is_of_the_whole_key(heads: Heads) -> None:
    def digest(key: str) -> bytes:
        x = call("/v1/models", ("Authorization", f"Bearer {key}"))
        return heads.digest(x, heads.accept(x))

    key = make_key(bytes(32))
    assert digest(key) == digest(key)
    assert len({digest(key), digest("x" + key), digest("x" * 499), digest("x" * 500)}) == 4
    mistyped = key[:-1] + ("0" if key[-1] != "0" else "1")
    for refused in ("x" * 513, mistyped):
        with pytest.raises(InvalidKey):
            digest(refused)


def test_no_key_is_another_refusal(heads: Heads) -> None:
    x = call("/v1/models")
    with pytest.raises(MissingKey):
        heads.digest(x, heads.accept(x))


# -- behind proxies --------------------------------------------------------------------------------


def test_every_x_forwarded_for_counts_in_its_order(heads: Heads) -> None:
    """A proxy may add a field of its own behind the one that the client wrote."""
    facts = heads.accept(call("/", ("X-Forwarded-For", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2, 10.0.0.1")))
    assert facts.forwarded_for == "1.1.1.1, 2.2.2.2, 10.0.0.1"
    assert heads.accept(call("/")).forwarded_for is None


# -- what goes upstream ----------------------------------------------------------------------------


def choice(heads: Heads, mirror: int) -> Choice:
    upstream = heads.snapshot.upstream("vendor")
    return Choice(upstream, upstream.mirrors[mirror], upstream.credentials[0], "theirs")


def way(heads: Heads, x: Exchange, mirror: int, *, identity: bool = False) -> Way:
    return heads.way(x, accepted(heads, x), choice(heads, mirror), hides_usage=False, identity=identity)


def test_a_way_has_the_head_for_one_upstream(heads: Heads) -> None:
    x = call("/v1/chat/completions?key=sk-1", ("User-Agent", "sdk"), ("Cookie", "c"), ("api-key", "sk-1"))
    assert way(heads, x, 0).head == (
        b"POST /base/v1/chat/completions HTTP/1.1\r\n"
        b"host: api.vendor.test\r\n"
        b"accept-encoding: identity\r\n"
        b"User-Agent: sdk\r\n"
        b"authorization: Bearer sk-canary-1\r\n"
    )


def test_an_ipv6_host_stands_in_brackets_and_an_odd_port_behind_it(heads: Heads) -> None:
    x = call()
    assert b"\r\nhost: [2001:db8::1]:81\r\n" in way(heads, x, 1).head


def test_ways_differ_by_where_they_go_and_how_the_answer_must_come(heads: Heads) -> None:
    x = call("/v1/chat/completions", ("Accept-Encoding", "gzip"))
    plain = way(heads, x, 0)
    assert plain is way(heads, x, 0)
    assert b"accept-encoding: gzip\r\n" in plain.head
    assert b"accept-encoding: identity\r\n" in way(heads, x, 0, identity=True).head
    assert way(heads, x, 1).head != plain.head


@pytest.mark.parametrize(
    ("accepted", "asked"),
    [(None, b"identity"), ("", b"identity"), ("gzip", b"gzip"), ("GZIP, br", b"gzip, br"),
     ("*", b"gzip, deflate, br, zstd"), ("zstd, br, compress", b"br, zstd"), ("gzip;q=0", b"identity"),
     ("gzip; q=0.0, deflate", b"deflate"), ("gzip;q=0.5", b"gzip"), ("identity;q=0", b"identity")],
)  # fmt: skip
def test_codings_are_those_that_can_be_metered(accepted: str | None, asked: bytes) -> None:
    assert codings(accepted) == asked
