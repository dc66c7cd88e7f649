"""Whose call it is: the key in any spelling, the address behind trusted proxies."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from proxy.relay.identity import client_address, key_of

KEYS: list[tuple[dict[str, str], str, str]] = [
    ({"authorization": "Bearer sk-1"}, "", "sk-1"),
    ({"authorization": "bearer  sk-1 "}, "", "sk-1"),
    ({"AUTHORIZATION": "BEARER sk-1"}, "", "sk-1"),
    ({"authorization": "sk-1"}, "", "sk-1"),
    ({"api-key": "sk-1"}, "", "sk-1"),
    ({"x-api-key": " sk-1 "}, "", "sk-1"),
    ({"x-goog-api-key": "sk-1"}, "", "sk-1"),
    ({"mj-api-secret": "sk-1"}, "", "sk-1"),
    ({"x-api-key": "Bearer sk-1"}, "", "sk-1"),
    ({}, "key=sk-1", "sk-1"),
    ({}, "alt=sse&key=sk-1&x=1", "sk-1"),
    # An SDK without a key, beside one that is given otherwise.
    ({"authorization": "Bearer "}, "", ""),
    ({"authorization": "Bearer"}, "", ""),
    ({"authorization": "Bearer", "api-key": "sk-2"}, "", "sk-2"),
    ({"authorization": "Basic dTpw", "x-api-key": "sk-2"}, "", "sk-2"),
    ({"authorization": "midjourney-proxy", "mj-api-secret": "sk-2"}, "", "sk-2"),
    ({"authorization": "", "api-key": "", "x-api-key": "sk-2"}, "", "sk-2"),
    # Authorization is what is meant where there are several.
    ({"authorization": "Bearer sk-1", "api-key": "sk-2"}, "key=sk-3", "sk-1"),
    # Not a key.
    ({}, "", ""),
    ({}, "monkey=sk-1", ""),
    ({"api_key": "sk-1"}, "", ""),
    ({"cookie": "key=sk-1"}, "", ""),
    ({"authorization": "Basic dTpw"}, "", ""),
]


@pytest.mark.parametrize(("headers", "query", "key"), KEYS)
def test_a_key_is_found_in_its_spelling(headers: dict[str, str], query: str, key: str) -> None:
    assert key_of(CIMultiDict(headers), query) == key


PROXIES = ("10.0.0.0/8", "127.0.0.1")

ADDRESSES: list[tuple[str, str, str]] = [
    # (peer, X-Forwarded-For, the caller)
    ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # nobody we trust
    ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
    ("10.1.2.3", "198.51.100.1, 10.9.9.9", "198.51.100.1"),  # two proxies of ours
    ("10.1.2.3", "1.1.1.1, 198.51.100.1", "198.51.100.1"),  # the client wrote the first
    ("10.1.2.3", "10.0.0.1, 10.0.0.2", "10.1.2.3"),  # nobody but us
    ("10.1.2.3", "", "10.1.2.3"),
    ("10.1.2.3", "unknown", "10.1.2.3"),
    ("10.1.2.3", "198.51.100.1, evil", "10.1.2.3"),
    ("10.1.2.3", "2001:db8::1", "2001:db8::1"),
    ("::1", "198.51.100.1", "::1"),
    ("", "198.51.100.1", ""),  # a unix socket
]


@pytest.mark.parametrize(("peer", "forwarded_for", "caller"), ADDRESSES)
def test_only_what_a_trusted_proxy_wrote_is_believed(peer: str, forwarded_for: str, caller: str) -> None:
    assert client_address(peer, forwarded_for, PROXIES) == caller


def test_without_trusted_proxies_the_peer_is_the_caller() -> None:
    assert client_address("127.0.0.1", "198.51.100.1", ()) == "127.0.0.1"
