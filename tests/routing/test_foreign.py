"""Which URLs of strangers are taken, and which addresses are public."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from proxy.routing.foreign import Target, checked, is_open, networks

LOOPBACK = networks(["127.0.0.0/8"])


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://hooks.example.com/mj?x=1", Target("https", "hooks.example.com", 443)),
        ("HTTP://Hooks.Example.com", Target("http", "hooks.example.com", 80)),
        ("http://8.8.8.8:8080/a", Target("http", "8.8.8.8", 8080)),
        ("https://[2606:4700:4700::1111]/", Target("https", "2606:4700:4700::1111", 443)),
        ("https://hooks.example.com./", Target("https", "hooks.example.com", 443)),
        ("https://xn--bcher-kva.example/a%20b", Target("https", "xn--bcher-kva.example", 443)),
        ("http://receiver:9000/", Target("http", "receiver", 9000)),
    ],
)
def test_an_ordinary_hook_is_taken(url, target):
    assert checked(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com/hook", "//example.com/", "ftp://example.com/", "file:///etc/passwd",
        "gopher://example.com/", "javascript:alert(1)", "http:///path", "http://", "http:example.com",
        "http://user:secret@example.com/", "http://user@example.com/", "http://@example.com/",
        "http://example.com@127.0.0.1/", "http://127.0.0.1\\@example.com/", "http://exa mple.com/",
        "http://example.com/\r\nHost: other", "http://example.com/\x00", "http://bücher.example/",
        "http://127。0。0。1/", "http://１２７.0.0.1/", "http://exam%70le.com/", "http://example.com/#x",
        "http://example.com:0/", "http://example.com:22/", "http://example.com:99999/",
        "http://example.com:/", "http://example..com/", "http://-example.com/", "http://example.com../",
        "http://[::1/", "http://::1/", "http://[fe80::1%25eth0]/", "http://[127.0.0.1]/",
        "https://example.com/" + "a" * 2048, "https://" + "a" * 64 + ".example/",
    ],
)  # fmt: skip
def test_what_is_no_plain_url_is_refused(url):
    with pytest.raises(ValueError):
        checked(url)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "127.0.0.1.", "0", "0x7f.1", "localhost",
     "LOCALHOST.", "a.localhost", "169.254.169.254", "10.1.2.3", "[::1]", "[::ffff:127.0.0.1]", "256.0.0.1"],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused_in_every_spelling(host):
    with pytest.raises(ValueError):
        checked(f"http://{host}/")


def test_what_the_operator_allows_is_taken_in_its_own_spelling_only():
    assert checked("http://127.0.0.1:8080/", LOOPBACK).host == "127.0.0.1"
    assert checked("http://localhost:8080/", LOOPBACK).host == "localhost"
    with pytest.raises(ValueError):
        checked("http://2130706433:8080/", LOOPBACK)
    with pytest.raises(ValueError):
        checked("http://10.0.0.1:8080/", LOOPBACK)


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254",
        "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1",
        "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1",
        "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "100::1", "2001::1", "2001:2::1", "2001:20::1",
        "2001:db8::1", "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd12::1",
        "fe80::1", "fec0::1", "ff02::1",
    ],
)  # fmt: skip
def test_these_addresses_are_not_public(text):
    assert not is_open(ip_address(text))


@pytest.mark.parametrize(
    "text",
    ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1", "2606:4700::1111",
     "2a00:1450::1", "240e::1", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)  # fmt: skip
def test_these_addresses_are_public(text):
    assert is_open(ip_address(text))


def test_an_allowed_network_counts_for_an_address_however_it_is_wrapped():
    assert is_open(ip_address("127.0.0.9"), LOOPBACK)
    assert is_open(ip_address("::ffff:127.0.0.9"), LOOPBACK)
    assert not is_open(ip_address("::1"), LOOPBACK)
    assert is_open(ip_address("fd00::5"), networks(["fd00::/8"]))
