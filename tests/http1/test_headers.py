"""What of an answer's header reaches a client, and that nothing in it becomes a header of ours."""

from __future__ import annotations

from itertools import compress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InternalError
from proxy.http1.head import TOKEN_BYTES, Head, parse
from proxy.http1.headers import HOP_BY_HOP, REASONS, Admission, connection_nominated, serialize
from proxy.routing.table import HeaderPolicy

DIALECT = frozenset({b"content-type", b"x-request-id", b"retry-after", b"openai-processing-ms"})
PREFIXES = (b"x-ratelimit-",)
NONE = HeaderPolicy()


def names(headers):
    return [name for name, _ in headers]


def filtered(headers, passed, prefixes, policy):
    admission, head = Admission(passed, prefixes, policy), Head.of(200, headers)
    fields = admission.fields(head)
    lines = b"".join(compress(head.lines, admission[head.shape])) + admission.added
    assert lines == b"".join(b"%b: %b\r\n" % field for field in fields)
    return fields


def test_only_what_the_dialect_lists_passes_and_in_its_order():
    headers = [
        (b"x-ratelimit-limit-requests", b"10000"),
        (b"set-cookie", b"__cf_bm=secret"),
        (b"content-type", b"application/json"),
        (b"openai-organization", b"org-secret"),
        (b"server", b"cloudflare"),
        (b"x-request-id", b"req_1"),
        (b"alt-svc", b"h3"),
        (b"access-control-allow-origin", b"*"),
        (b"x-ratelimit", b"not the prefix"),
    ]
    assert names(filtered(headers, DIALECT, PREFIXES, NONE)) == [
        b"x-ratelimit-limit-requests",
        b"content-type",
        b"x-request-id",
    ]


def test_repeated_fields_pass_each():
    headers = [(b"retry-after", b"1"), (b"content-type", b"a"), (b"retry-after", b"2")]
    assert filtered(headers, DIALECT, PREFIXES, NONE) == headers


def test_a_policy_passes_drops_and_sets():
    policy = HeaderPolicy(
        response_pass=frozenset({b"x-ms-region", b"server"}),
        response_drop=frozenset({b"server", b"x-ratelimit-limit-tokens", b"openai-processing-ms"}),
        response_set=((b"x-station", b"one"), (b"retry-after", b"7")),
    )
    headers = [
        (b"x-ms-region", b"east"),
        (b"server", b"nginx"),
        (b"x-ratelimit-limit-tokens", b"5"),
        (b"x-ratelimit-limit-requests", b"6"),
        (b"openai-processing-ms", b"8"),
        (b"retry-after", b"1"),
    ]
    assert filtered(headers, DIALECT, PREFIXES, policy) == [
        (b"x-ms-region", b"east"),
        (b"x-ratelimit-limit-requests", b"6"),
        (b"x-station", b"one"),
        (b"retry-after", b"7"),
    ]


def test_fields_that_connection_names_end_here():
    headers = [
        (b"x-request-id", b"req_1"),
        (b"connection", b"keep-alive, X-Request-Id ,"),
        (b"retry-after", b"1"),
        (b"connection", b"RETRY-AFTER"),
        (b"content-type", b"a"),
    ]
    assert names(filtered(headers, DIALECT, PREFIXES, NONE)) == [b"content-type"]
    assert connection_nominated([b" Close ,, x-A"]) == {b"close", b"x-a"}


def test_what_is_hidden_is_neither_passed_nor_set():
    policy = HeaderPolicy(response_pass=frozenset({b"x-left-a"}), response_set=((b"x-left-b", b"2"),))
    head = Head.of(200, [(b"x-left-a", b"1"), (b"content-type", b"a")])
    assert names(Admission(DIALECT, PREFIXES, policy, hidden=(b"x-left-",)).fields(head)) == [b"content-type"]


def test_what_we_set_cannot_be_removed_by_connection():
    policy = HeaderPolicy(response_set=((b"x-station", b"one"),))
    assert filtered([(b"connection", b"x-station")], DIALECT, PREFIXES, policy) == [(b"x-station", b"one")]


def test_framing_is_not_passed_on_even_where_it_is_asked_for():
    hop = (*HOP_BY_HOP, b"content-length")
    policy = HeaderPolicy(response_pass=frozenset(hop), response_set=tuple((name, b"1") for name in hop))
    assert filtered([(name, b"1") for name in hop], frozenset(hop), (b"",), policy) == []


NAMES = st.one_of(
    st.sampled_from(sorted(HOP_BY_HOP | DIALECT | {b"content-length", b"x-ratelimit-a", b"set-cookie"})),
    st.binary(min_size=1, max_size=12).map(lambda raw: bytes(TOKEN_BYTES[byte % 50] for byte in raw).lower()),
)
VALUES = st.one_of(NAMES, st.lists(NAMES).map(b", ".join))
HEADERS = st.lists(st.tuples(NAMES, VALUES))


@given(HEADERS, st.frozensets(NAMES), st.frozensets(NAMES), HEADERS.map(tuple))
def test_for_any_headers_and_policy(headers, passed, dropped, replaced):
    policy = HeaderPolicy(response_pass=passed, response_drop=dropped, response_set=replaced)
    out = filtered(headers, DIALECT, PREFIXES, policy)
    assert not HOP_BY_HOP & set(names(out))
    assert b"content-length" not in names(out)
    nominated = connection_nominated(value for name, value in headers if name == b"connection")
    ours = [field for field in replaced if field[0] not in HOP_BY_HOP | {b"content-length"}]
    theirs = out[: len(out) - len(ours)]
    assert out[len(theirs) :] == ours
    assert not (nominated | dropped) & set(names(theirs))
    assert [field for field in headers if field in theirs] == theirs, "nothing new, nothing moved"
    assert filtered(out, DIALECT, PREFIXES, policy) == out, "idempotent"
    head = parse(serialize(200, b"OK", out))
    assert head is not None
    assert head.fields == out


def test_a_head_is_written():
    headers = [(b"content-type", b"text/plain"), (b"x-latin", b"caf\xe9")]
    assert serialize(200, b"OK", headers) == (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nx-latin: caf\xe9\r\n\r\n"
    )
    assert serialize(204, b"", []) == b"HTTP/1.1 204 \r\n\r\n"


@pytest.mark.parametrize("evil", [b"a\r\nx-evil: 1", b"a\nx-evil: 1", b"a\r", b"a\0b", b"\r\n", b"a\x7f"])
def test_no_byte_of_anybody_becomes_a_header_of_ours(evil):
    for reason, headers in (
        (evil, []),
        (b"OK", [(b"x-value", evil)]),
        (b"OK", [(evil, b"1")]),
        (b"OK", [(b"x-a", b"1"), (b"x-value", evil), (b"x-b", b"1")]),
    ):
        with pytest.raises(InternalError):
            serialize(200, reason, headers)


def test_reasons_are_known():
    assert (REASONS[200], REASONS[429], REASONS[529]) == (b"OK", b"Too Many Requests", b"Overloaded")
