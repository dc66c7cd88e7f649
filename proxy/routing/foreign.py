"""URLs that somebody outside names: what one may look like, and which addresses may be connected to.

Owns the rule that the station connects to public addresses only, wherever a stranger decides the URL. Pure:
`checked` judges what is written, `is_open` an address; who connects must ask the latter about the address
that is connected to, since a name may lead anywhere, and elsewhere a moment later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import NamedTuple

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

URL_CHARS_MAX = 2048
HOST_CHARS_MAX = 253  # RFC 1035 2.3.4, without the last dot
SCHEMES = {"http": 80, "https": 443}
PORT_MIN = 1024  # below: mail, shells, databases of old; a POST is a command to some of them

# IANA's special-purpose registries, and what RFC 1112 keeps for groups.
_CLOSED_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
        "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
# What is not given out is not public: everything outside of it is local, a group, or wraps something else.
_PUBLIC_V6 = IPv6Network("2000::/3")
_CLOSED_V6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # of protocols: Teredo, ORCHID, benchmarks
        "2001:db8::/32", "3fff::/20",  # of books
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
    )
)  # fmt: skip
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the IPv4 address is the last 32 bits

# A word between dots; underscores are in names of containers.
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_URL = re.compile(r"(?P<scheme>[a-z]+)://(?P<authority>[^/?#]*)(?P<rest>[^#]*)", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)


class Target(NamedTuple):
    """Where a URL leads, as far as it says so itself."""

    scheme: str
    host: str  # a name in small letters, or an address
    port: int


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Raises ValueError: one of them is none, or has bits behind its mask."""
    return tuple(ip_network(text) for text in texts)


def is_open(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """May a stranger make the station connect to this address? `allowed` is what its operator adds."""
    inner = _carried(address)
    if inner is not None:
        return is_open(inner, allowed)
    if any(address in network for network in allowed):
        return True
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _CLOSED_V4)
    return address in _PUBLIC_V6 and not any(address in network for network in _CLOSED_V6)


def _carried(address: Address) -> IPv4Address | None:
    """The address that a packet really goes to, of an address that is only a way to write another."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped


def checked(url: str, allowed: Iterable[Network] = ()) -> Target:
    """What a customer's URL must look like: http or https, no user, no other spelling of an address, and no
    address that is not public. Raises ValueError with what is wrong with it."""
    if len(url) > URL_CHARS_MAX:
        raise ValueError(f"longer than {URL_CHARS_MAX} characters")
    if not url.isascii() or not all("!" <= char <= "~" for char in url) or "\\" in url:
        raise ValueError("only the printable characters of ASCII may be in it")
    parts = _URL.fullmatch(url)
    if parts is None or parts["scheme"].lower() not in SCHEMES:
        raise ValueError("it must begin with http:// or https:// and have no fragment")
    if "@" in parts["authority"]:
        raise ValueError("it may name no user")
    authority = _AUTHORITY.fullmatch(parts["authority"])
    if authority is None:
        raise ValueError("it has no valid host")
    scheme = parts["scheme"].lower()
    return Target(scheme, _host(authority["host"].lower(), tuple(allowed)), _port(scheme, authority["port"]))


def _port(scheme: str, text: str | None) -> int:
    port = SCHEMES[scheme] if text is None else int(text)
    if port not in SCHEMES.values() and not PORT_MIN <= port < 1 << 16:
        raise ValueError(f"port {port} is not for callers")
    return port


def _host(text: str, allowed: tuple[Network, ...]) -> str:
    if text.startswith("["):
        return _literal(text[1:-1], allowed)
    name = text.removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):  # WHATWG URL: a host whose last word is a number is an address
        return _literal(name, allowed)
    if len(name) > HOST_CHARS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("it has no valid host")
    if labels[-1] == "localhost":  # RFC 6761 6.3
        _literal("127.0.0.1", allowed)
    return name


def _literal(text: str, allowed: tuple[Network, ...]) -> str:
    """An address in its own spelling; 2130706433 and 0177.1 are none."""
    try:
        address = ip_address(text)
    except ValueError as e:
        raise ValueError("its host is not a valid address") from e
    if not is_open(address, allowed):
        raise ValueError("its address is not a public one")
    return str(address)
