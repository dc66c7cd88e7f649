"""Who a request says it is from: the key in any spelling, the address behind trusted proxies. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from urllib.parse import parse_qsl

_KEY_HEADERS = ("api-key", "x-api-key", "x-goog-api-key", "mj-api-secret", "x-key")
_SCHEMES = frozenset({"bearer", "key", "token"})  # fal writes the second, Replicate once wrote the third
_KEY_PROTOCOL = "openai-insecure-api-key."


def key_of(headers: Mapping[str, str], query: str) -> str:
    """The caller's key in any spelling; "" where there is none."""
    authorization = headers.get("Authorization")
    if authorization:
        scheme, _, rest = authorization.partition(" ")
        if scheme.lower() in _SCHEMES:
            if rest.strip():
                return rest.strip()
        elif not rest and scheme != "midjourney-proxy":
            return scheme
    for name in _KEY_HEADERS:
        value = headers.get(name)
        if value:
            return value.strip().removeprefix("Bearer ").lstrip()
    for protocol in headers.get("Sec-WebSocket-Protocol", "").split(","):
        if protocol.strip().startswith(_KEY_PROTOCOL):  # browsers cannot set a header
            return protocol.strip().removeprefix(_KEY_PROTOCOL)
    if "key=" in query:
        return dict(parse_qsl(query)).get("key", "")
    return ""


def client_address(peer: str, forwarded_for: str, trusted: tuple[str, ...]) -> str:
    """The caller's address: the last of X-Forwarded-For that no trusted proxy added."""
    if not _is_within(peer, trusted):
        return peer
    for hop in reversed([part.strip() for part in forwarded_for.split(",")]):
        if not _is_within(hop, trusted):
            return hop if _is_address(hop) else peer
    return peer


def _is_within(address: str, networks: tuple[str, ...]) -> bool:
    return _is_address(address) and any(
        ip_address(address) in ip_network(network, strict=False) for network in networks
    )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
