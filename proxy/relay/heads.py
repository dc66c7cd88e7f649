"""What a request's head decides, worked out once for all requests with the same head.

Owns the phases that need nothing but the head: canonical path, endpoint, route, the key's digest, and
the header block that goes upstream. SDKs send byte-identical heads on every call, so that most calls
find all of it in the memo. A memo belongs to one snapshot and goes with it; what may change without a
reload (key records, cooldowns, the caller's address) is never in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from proxy.access.keyformat import is_well_formed
from proxy.dialects.base import Dialect, OperationSpec
from proxy.errors import (
    ClientFault,
    ExpectationFailed,
    InvalidKey,
    MalformedRequest,
    MissingKey,
    ParameterRefused,
)
from proxy.metering.decode import CODINGS, is_plain
from proxy.relay.exchange import Exchange, Standing
from proxy.relay.heading import moulds_for
from proxy.relay.identity import client_address, key_of
from proxy.relay.plan import Way
from proxy.relay.request_head import RequestHead
from proxy.routing.canonical import canonical
from proxy.routing.rewrite import request_headers, same_path, upstream_target
from proxy.routing.selection import AUTO, Choice, Preference, preference
from proxy.routing.table import Endpoint, Route

if TYPE_CHECKING:
    from proxy.snapshot import Snapshot

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# RFC 9110 7.2: uri-host [":" port]; anything else has been used to confuse routing.
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

CLIENT_CHARS_MAX = 120  # of a user agent
MEMO_MAX = 4096  # heads of one table generation; about 4 KB each
WAYS_MAX = 64  # for one head: it meets few upstreams
KEY_CHARS_MAX = 512
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(slots=True, eq=False)
class HeadFacts:
    """Shared between requests: nothing of it may be changed from `standing` on."""

    path: str
    query: str
    endpoint: Endpoint
    forwarded_for: str | None
    coding: bytes  # Accept-Encoding for the upstream
    body_coding: str  # Content-Encoding of the request; "": none
    user_agent: str  # as much of it as is kept
    mirror: Preference | None = None  # of this call; None: the key's
    route: Route | None = None
    captures: dict[str, str] = field(default_factory=dict)
    dialect: Dialect | None = None
    operation: OperationSpec | None = None
    is_session: bool = False  # a WebSocket
    is_model_in_body: bool = False  # a member `model` is the model, whatever else there is
    plain_bytes: int = -1  # a body that is no longer is plain JSON (relay/body.py)
    digest: bytes = b""
    standing: Standing | None = None  # of the last call with this head; the next one looks if it is still so
    only: tuple[str | None, Sequence[Choice]] = (None, ())  # the last model that had but one choice, and that
    way: Way | None = None  # of the last call that is sent as it came, and answered so
    ways: dict[tuple[str | bool, ...], Way] = field(default_factory=dict)


class Heads:
    """The memo of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._memo: dict[RequestHead, HeadFacts] = {}
        self._choices: dict[tuple[str, str], Choice | None] = {}

    def accept(self, x: Exchange) -> HeadFacts:
        """Fill in what the head decides, as far as that is known: its route only where `match` was there
        before. And the caller's address. Raises MalformedRequest, ExpectationFailed, ClientFault."""
        x.heads, x.snapshot = self, self.snapshot
        facts = x.facts = self._memo.get(x.head) or self._read(x.head)
        x.endpoint, x.route = facts.endpoint, facts.route
        x.dialect, x.operation = facts.dialect, facts.operation
        if facts.forwarded_for is not None:
            trusted = self.snapshot.table.station.trusted_proxies
            x.address = client_address(x.address, facts.forwarded_for, trusted)
        return facts

    def _read(self, head: RequestHead) -> HeadFacts:
        """Canonical path, endpoint, mirrors."""
        check_head(head)
        headers = head.headers
        path, query = canonical(head.target)
        facts = HeadFacts(
            path,
            query,
            self.snapshot.endpoint_for(headers.get("Host")),
            forwarded_for(head.fields),
            codings(headers.get("Accept-Encoding")),
            "" if is_plain(sent := headers.get("Content-Encoding", "")) else sent.strip().lower(),
            headers.get("User-Agent", "")[:CLIENT_CHARS_MAX],
            self._mirror(headers.get("X-Mirror")),
        )
        if head.is_remembered:
            if len(self._memo) >= MEMO_MAX:
                self._memo.clear()
            self._memo[head] = facts
        return facts

    def _mirror(self, asked: str | None) -> Preference | None:
        """Raises ClientFault for what no mirror is called: a slip would go somewhere else unnoticed."""
        if asked is None:
            return None
        names = [name.strip() for name in asked.split(",")]
        try:
            chosen = preference(names)
        except ValueError as e:
            raise ClientFault("The header 'x-mirror' is not a list of mirrors.", param="x-mirror") from e
        if not {AUTO, *self.snapshot.table.mirror_names}.issuperset(names):
            raise ClientFault("The header 'x-mirror' names no mirror of this station.", param="x-mirror")
        return chosen

    def match(self, x: Exchange, facts: HeadFacts) -> None:
        """The route. Raises UnknownPath, MethodNotAllowed, MalformedRequest, ParameterRefused."""
        found = self.snapshot.match(x.method, facts.path)
        route, captures = found.route, found.captures
        dialect = self.snapshot.dialects[route.dialect]
        operation = dialect.operations[route.operation]
        if operation.forms:
            check_forms(operation.forms, x.head, facts.query)
        facts.captures = captures
        facts.is_session = operation.request == "socket"
        facts.is_model_in_body = operation.model_at == "body" and captures.get("model") is None
        x.dialect = facts.dialect = dialect
        x.operation = facts.operation = operation
        x.route = facts.route = route

    def digest(self, x: Exchange, facts: HeadFacts) -> bytes:
        """SHA-256 of the whole key. Raises MissingKey, InvalidKey."""
        if not facts.digest:
            secret = key_of(x.headers, facts.query)
            if not secret:
                raise MissingKey
            if len(secret) > KEY_CHARS_MAX or not is_well_formed(secret):
                raise InvalidKey  # a mistyped key of ours: nobody needs to be asked
            facts.digest = sha256(secret.encode("utf-8", "surrogateescape")).digest()
        return facts.digest

    def only_choice(self, route: Route, x: Exchange) -> Choice | None:
        """The choice of a call that has but one: one candidate, one mirror, one credential."""
        key = (route.id, x.model)
        try:
            return self._choices[key]
        except KeyError:
            choice = self._work_out(route, x)
            if len(self._choices) >= MEMO_MAX:
                self._choices.clear()
            self._choices[key] = choice
            return choice

    def _work_out(self, route: Route, x: Exchange) -> Choice | None:
        assert x.standing is not None
        candidates = self.snapshot.candidates(route, x.standing.model)
        if len(candidates) != 1:
            return None
        upstream = self.snapshot.upstream(candidates[0].upstream)
        credentials = [c for c in upstream.credentials if not c.retired]
        if len(upstream.mirrors) != 1 or len(credentials) != 1:
            return None
        return Choice(upstream, upstream.mirrors[0], credentials[0], candidates[0].as_model or x.model)

    def way(self, x: Exchange, facts: HeadFacts, choice: Choice, *, hides_usage: bool, identity: bool) -> Way:
        """To one upstream. `identity`: the answer must come uncompressed, because it may be changed."""
        upstream, mirror, credential, model = choice
        key = (
            upstream.name, mirror.name, credential.name, model, x.model, x.is_stream, hides_usage, identity
        )  # fmt: skip
        way = facts.ways.get(key)
        if way is None:
            if len(facts.ways) >= WAYS_MAX:
                facts.ways.clear()
            way = facts.ways[key] = self._way(x, facts, choice, hides_usage, identity)
        if way.is_plain:
            facts.way = way
        return way

    def _way(self, x: Exchange, facts: HeadFacts, choice: Choice, hides_usage: bool, identity: bool) -> Way:
        operation = facts.operation
        assert operation is not None
        upstream, times = choice.upstream, choice.upstream.timeouts
        dialect = self.snapshot.dialects[upstream.operations[operation.name].dialect]
        leave = self.snapshot.on_disconnect(x.standing.model if x.standing else None, upstream)
        may_inject = x.is_stream and operation.include_usage and upstream.include_usage == "auto"
        return Way(
            choice,
            (choice, x.model, x.is_stream),
            dialect,
            self._block(x, facts, choice, identity),
            is_plain=operation.request == "json"
            and not (identity or may_inject or facts.body_coding or operation.task or operation.links)
            and dialect.sign is None
            and facts.endpoint.proxy_read_timeout_ms is None,
            model=choice.model if dialect.operations[operation.name].model_at == "body" else None,
            hides_usage=hides_usage,
            may_change=identity,
            make_meter=dialect.meter_of(operation),
            moulds=moulds_for(x, upstream, dialect, hides_usage),
            goes_once=not operation.replayable,
            reuses=upstream.trust == "full",
            connect_s=times.connect_ms / 1000,
            first_byte_s=(times.first_byte_stream_ms if x.is_stream else times.first_byte_whole_ms) / 1000,
            idle_s=times.idle_ms / 1000,
            total_s=times.total_ms / 1000 if times.total_ms else math.inf,
            drain_s=leave.drain_ms / 1000 if leave.kind == "drain" else 0.0,
        )

    def _block(self, x: Exchange, facts: HeadFacts, choice: Choice, identity: bool) -> bytes:
        """Request line and header fields, without the length and the empty line."""
        assert facts.route is not None and facts.operation is not None
        upstream, mirror = choice.upstream, choice.mirror
        offered = same_path(upstream.operations[facts.operation.name], facts.route)
        dialect = self.snapshot.dialects[offered.dialect]
        target = upstream_target(offered, mirror, choice.model, facts.captures, facts.query, dialect)
        host = f"[{mirror.host}]" if ":" in mirror.host else mirror.host
        if mirror.port != DEFAULT_PORTS[mirror.scheme]:
            host += f":{mirror.port}"
        fields = request_headers(x.head.fields, dialect, upstream, offered, facts.route, choice.credential)
        lines = [
            f"{x.method} {target} HTTP/1.1\r\nhost: {host}".encode(),
            b"accept-encoding: " + (b"identity" if identity else facts.coding),
        ]
        lines += [name + b": " + value for name, value in fields]
        return b"\r\n".join(lines) + b"\r\n"


def forwarded_for(fields: Iterable[tuple[bytes, bytes]]) -> str | None:
    """X-Forwarded-For as one list: a proxy may add a field of its own behind what the client wrote."""
    values = [value.decode("latin-1") for name, value in fields if name.lower() == b"x-forwarded-for"]
    return ", ".join(values) if values else None


def codings(accepted: str | None) -> bytes:
    """A client's Accept-Encoding, narrowed to what the meter can decode (RFC 9110 12.5.3)."""
    offered: set[str] = set()
    for part in (accepted or "").split(","):
        name, _, parameters = part.partition(";")
        if parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            offered.add(name.strip().lower())
    known = [coding for coding in CODINGS if coding in offered or "*" in offered]
    return ", ".join(known).encode() or b"identity"


def check_forms(forms: Mapping[str, frozenset[str]], head: RequestHead, query: str) -> None:
    """Refuse a request for what only the vendor's own address would serve."""
    asked = dict(parse_qsl(query))
    for name, words in forms.items():
        said = head.headers.get(name, asked.get(name))
        if said is not None and said not in words:
            other = f"only: {', '.join(sorted(words))}" if words else "not used here"
            raise ParameterRefused(f"'{name}' is {other}. Send what is uploaded in one request.", param=name)


def check_head(head: RequestHead) -> None:
    """Refuse what aiohttp's parser lets pass (faults: version, TE on 1.0, Host, CONNECT, absolute-form)."""
    if head.version not in ((1, 0), (1, 1)):
        raise MalformedRequest(status=505)
    if head.method not in METHODS:
        raise MalformedRequest(status=405)
    headers = head.headers
    if head.is_http10 and "Transfer-Encoding" in headers:
        raise MalformedRequest
    if not head.target.startswith("/"):
        raise MalformedRequest
    host = headers.get("Host")
    if host is not None and not _HOST.fullmatch(host):
        raise MalformedRequest
    expect = headers.get("Expect")
    if expect is not None and expect.lower() != "100-continue":
        raise ExpectationFailed
