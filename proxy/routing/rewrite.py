"""What goes upstream instead of what came: target and request headers.

Owns the allow-listing of headers and query parameters. Pure. A header passes only if the upstream's
dialect, the route or the upstream names it; what belongs to one connection, to the relay's own framing
or to a caller's identity never passes, whoever names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Protocol
from urllib.parse import parse_qsl, quote, urlencode

from proxy.errors import MalformedRequest
from proxy.routing.canonical import SEGMENT_SAFE, canonical
from proxy.routing.paths import MODEL
from proxy.routing.table import Credential, Mirror, OfferedOperation, Route, Upstream

Header = tuple[bytes, bytes]

# RFC 9110 7.6.1 and what the relay writes itself: framing, Host, and the codings that it can meter.
OWN_HEADERS = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade content-length host expect "
    b"accept-encoding".split()
)  # fmt: skip

CREDENTIAL_HEADERS = frozenset(
    b"authorization proxy-authorization api-key x-api-key apikey x-apikey x-goog-api-key mj-api-secret x-key "
    b"x-auth-token x-access-token x-authorization ocp-apim-subscription-key cookie cookie2 "
    b"sec-websocket-protocol x-amz-security-token".split()
)  # fmt: skip

_PLACEHOLDER = re.compile(r"\{([a-z0-9_]+)\}")


class Vendor(Protocol):
    """What rewriting needs to know of a dialect."""

    @property
    def query_pass(self) -> Mapping[str, frozenset[str]]: ...
    @property
    def request_pass(self) -> frozenset[bytes]: ...


def never_passes(name: bytes) -> bool:
    """True for a lower-case header name that no list may let through."""
    return name in OWN_HEADERS or name == b"x-mirror" or name in CREDENTIAL_HEADERS or b"_" in name


def same_path(operation: OfferedOperation, route: Route) -> OfferedOperation:
    """The operation with the path that a route has for it, where it is served at what routes declare."""
    path = route.at or (route.path if operation.path == "{path}" else operation.path)
    return operation if path == operation.path else replace(operation, path=path)


def upstream_target(
    operation: OfferedOperation,
    mirror: Mirror,
    model: str,
    captures: Mapping[str, str],
    query: str,
    dialect: Vendor,
) -> str:
    """The request target at the mirror; `model` is the model's name there, `query` the client's.

    Raises MalformedRequest if a model's name would change the path that it stands in.
    """
    path = operation.path
    if "{" in path:
        path, _ = canonical(_PLACEHOLDER.sub(lambda found: _segment(found[1], model, captures), path))
    parameters = list(operation.query)
    if query:
        passing, own = dialect.query_pass, {name for name, _ in parameters}
        parameters += [
            (name, value)
            for name, value in parse_qsl(query, keep_blank_values=True)
            if name in passing and name not in own and value in (passing[name] or (value,))
        ]
    target = mirror.base_path + path
    return f"{target}?{urlencode(parameters)}" if parameters else target


def _segment(name: str, model: str, captures: Mapping[str, str]) -> str:
    """What stands for a placeholder; an empty segment would be another path."""
    value = model if name == MODEL else captures.get(name)
    if not value:
        raise MalformedRequest(detail=f"nothing for {{{name}}} in the upstream's path")
    return quote(value, safe=SEGMENT_SAFE, errors="surrogatepass")


@lru_cache(maxsize=1024)  # one entry per (dialect, route, upstream); a frozenset remembers its hash
def _allowed(
    passing: tuple[frozenset[bytes], ...],
    drop: frozenset[bytes],
    ours: tuple[Header, ...],
    auth: Header,
) -> frozenset[bytes]:
    """The names that pass: what is in `passing` but not dropped, not written by us, and no secret."""
    written = {name for name, _ in (*ours, auth)}
    names = frozenset[bytes]().union(*passing) - drop - written
    return frozenset(name for name in names if not never_passes(name))


def request_headers(
    client_headers: Iterable[Header],
    dialect: Vendor,
    upstream: Upstream,
    operation: OfferedOperation,
    route: Route,
    credential: Credential,
) -> list[Header]:
    """The header fields for the upstream, in the client's order, then `set:` and our credential.

    Host, framing and Accept-Encoding are not among them: the relay writes those itself.
    """
    policy = upstream.headers
    passing = (dialect.request_pass, route.request_pass, policy.request_pass)
    allowed = _allowed(passing, policy.request_drop, policy.request_set, operation.auth)
    fields = []
    nominated: list[bytes] = []
    for field in client_headers:
        name = field[0].lower()
        if name in allowed:
            fields.append(field)
        elif name == b"connection":
            nominated += field[1].lower().split(b",")
    if nominated and nominated != [b"keep-alive"]:
        # RFC 9110 7.6.1: fields named by Connection end here; ours are not the client's to name.
        ended = {name.strip() for name in nominated}
        fields = [field for field in fields if field[0].lower() not in ended]
    fields += policy.request_set
    if credential.secret and operation.auth[0]:
        name, prefix = operation.auth
        fields.append((name, prefix + credential.secret.encode("latin-1")))
    return fields
