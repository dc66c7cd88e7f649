"""The compiled routes.yaml: what the relay looks up for each call.

Owns the shapes of the table and its look-ups. Built from a plain JSON document, so that workers
need neither yaml nor pydantic; models are materialised when they are first asked for, so that
installing a table of ten thousand of them never holds up a stream. Immutable and pure. Durations
are milliseconds, amounts nano-units of the station's currency, multipliers parts per million,
header names lower-case bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from proxy.routing.callbacks import callbacks_from
from proxy.routing.globs import Globs
from proxy.routing.parameters import Parameters
from proxy.routing.paths import Match, PathIndex
from proxy.routing.results import results_from
from proxy.routing.tiers import Gateway, Limits, OnOutage, Tier, limits_from, tier_from

__all__ = [
    "Candidate", "Credential", "Egress", "Endpoint", "HeaderPolicy", "Limits", "Match", "Mirror", "Model",
    "OfferedOperation", "OnDisconnect", "OnOutage", "Parameters", "Route", "Station", "Table", "Tier",
    "Timeouts", "Upstream",
]  # fmt: skip

ONE_PPM = 1_000_000


@dataclass(frozen=True, slots=True)
class Station:
    name: str
    currency: str
    rates: dict[str, str]  # currency -> what one unit of it is worth in the station's
    timezone: str
    default_tier: str
    trusted_proxies: tuple[str, ...]  # networks whose X-Forwarded-For and Host are believed
    no_credit_status: int
    not_permitted_status: int  # of a model that the tier or the key leaves out
    codes_earn_tiers: bool
    trial_nanos: int | None  # what a new account begins with; None: nobody signs up
    on_outage: OnOutage


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A public base URL of the station."""

    name: str
    url: str
    hosts: tuple[str, ...]  # lower case, without port
    label: str
    region: str
    proxy_read_timeout_ms: int | None  # what stands in front gives up after this silence
    cors: bool
    tags: tuple[str, ...]
    body_limit: int | None = None  # bytes; what stands in front refuses more
    slow_calls: str = "hint"  # hint | trickle: answers in one piece that come later than the read timeout


@dataclass(frozen=True, slots=True)
class Egress:
    """A proxy on the way to an upstream."""

    scheme: str  # http (CONNECT) | socks5
    host: str
    port: int
    user: str = ""
    secret: str = field(default="", repr=False)  # the user's password


class Origin(NamedTuple):
    """What a connection leads to; connections of one origin are interchangeable."""

    scheme: str  # http | https
    host: str  # also the name in its certificate
    port: int
    via: Egress | None  # the way there


@dataclass(frozen=True, slots=True)
class Mirror:
    """One base URL of an upstream."""

    upstream: str
    name: str
    scheme: str  # http | https
    host: str
    port: int
    base_path: str  # "" or "/x", without a slash at the end
    proxy_read_timeout_ms: int | None
    via: Egress | None = None
    origin: Origin = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", Origin(self.scheme, self.host, self.port, self.via))


@dataclass(frozen=True, slots=True)
class Credential:
    name: str
    secret: str = field(repr=False)
    retired: bool = False  # kept for polls only


@dataclass(frozen=True, slots=True)
class Timeouts:
    connect_ms: int = 5_000
    first_byte_stream_ms: int = 120_000
    first_byte_whole_ms: int = 600_000
    idle_ms: int = 300_000
    total_ms: int = 0  # 0: none


@dataclass(frozen=True, slots=True)
class OnDisconnect:
    """What becomes of the upstream's stream when the client has left."""

    kind: str = "cancel"  # cancel | drain
    drain_ms: int = 0


@dataclass(frozen=True, slots=True)
class OfferedOperation:
    """Where an upstream serves an operation."""

    name: str
    path: str  # template: {model} and the captures of the route are still to be filled in
    query: tuple[tuple[str, str], ...] = ()
    dialect: str = ""  # in which it is served; may be another one than the upstream's own
    auth: tuple[bytes, bytes] = (b"", b"")  # header, prefix


@dataclass(frozen=True, slots=True, eq=False)
class HeaderPolicy:
    """What an upstream adds to and takes from its dialect's allow-lists."""

    request_pass: frozenset[bytes] = frozenset()
    request_set: tuple[tuple[bytes, bytes], ...] = ()
    request_drop: frozenset[bytes] = frozenset()
    response_pass: frozenset[bytes] = frozenset()
    response_set: tuple[tuple[bytes, bytes], ...] = ()
    response_drop: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Upstream:
    """An account at a vendor or at another station."""

    name: str
    dialect: str
    enabled: bool
    note: str  # why it is not enabled
    mirrors: tuple[Mirror, ...]
    credentials: tuple[Credential, ...]  # those that take new calls first
    timeouts: Timeouts
    on_disconnect: OnDisconnect
    trust: str  # full | low
    include_usage: str  # auto | never
    operations: dict[str, OfferedOperation]
    headers: HeaderPolicy
    line: int
    costs: Mapping[str, Mapping[str, Any]]  # model or glob -> {"ppm"} of its price, or {"price"}
    limits: Limits | None  # of all calls that go there


@dataclass(frozen=True, slots=True)
class Candidate:
    """Where a call may go."""

    upstream: str
    as_model: str | None = None  # the model's name there; None: the same
    weight: int = 1
    priority: int = 1  # 1 is tried first


@dataclass(frozen=True, slots=True)
class Model:
    pattern: str
    context: int | None
    max_output: int | None
    candidates: tuple[Candidate, ...]
    on_disconnect: OnDisconnect | None
    hidden_reasoning: bool
    limits: Limits | None  # of all calls for it
    line: int


@dataclass(frozen=True, slots=True)
class Route:
    id: str  # its path pattern
    path: str
    methods: tuple[str, ...]
    operation: str
    dialect: str  # the caller's
    default_model: str | None
    candidates: tuple[Candidate, ...]
    parameters: Parameters | None
    request_pass: frozenset[bytes]
    body_limit: int  # bytes
    on_break: str  # bill | free: output delivered before the upstream broke
    line: int  # 0: built in
    at: str = ""  # its path at the upstream, where that is not the operation's
    bill: str = ""  # what the {name} of a declared operation is billed as here; "": by its name


Document = Mapping[str, Any]  # JSON values; keys as the fields above


def _pairs(rows: list[list[str]]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in rows)


def _names(rows: list[str]) -> frozenset[bytes]:
    return frozenset(name.encode("latin-1") for name in rows)


def _on_disconnect(data: Document | None) -> OnDisconnect | None:
    return None if data is None else OnDisconnect(**data)


def _station(data: Document) -> Station:
    return Station(
        **{
            **data,
            "trusted_proxies": tuple(data["trusted_proxies"]),
            "on_outage": OnOutage(**data["on_outage"]),
        }
    )


def _endpoint(data: Document) -> Endpoint:
    return Endpoint(**{**data, "hosts": tuple(data["hosts"]), "tags": tuple(data["tags"])})


def _headers(data: Document) -> HeaderPolicy:
    return HeaderPolicy(
        request_pass=_names(data["request_pass"]),
        request_set=_pairs(data["request_set"]),
        request_drop=_names(data["request_drop"]),
        response_pass=_names(data["response_pass"]),
        response_set=_pairs(data["response_set"]),
        response_drop=_names(data["response_drop"]),
    )


def _operation(data: Document) -> OfferedOperation:
    header, prefix = data["auth"]
    query = tuple((k, v) for k, v in data["query"])
    auth = (header.encode("latin-1"), prefix.encode("latin-1"))
    return OfferedOperation(data["name"], data["path"], query, data["dialect"], auth)


def _mirror(upstream: str, data: Document) -> Mirror:
    via = data["via"]
    return Mirror(**{**data, "upstream": upstream, "via": None if via is None else Egress(**via)})


def _upstream(data: Document) -> Upstream:
    return Upstream(
        **{
            **data,
            "mirrors": tuple(_mirror(data["name"], m) for m in data["mirrors"]),
            "credentials": tuple(Credential(**c) for c in data["credentials"]),
            "timeouts": Timeouts(**data["timeouts"]),
            "on_disconnect": OnDisconnect(**data["on_disconnect"]),
            "operations": {o["name"]: _operation(o) for o in data["operations"]},
            "headers": _headers(data["headers"]),
            "limits": limits_from(data.get("limits")),
        }
    )


def _candidates(rows: list[Document]) -> tuple[Candidate, ...]:
    return tuple(Candidate(**row) for row in rows)


def _model(data: Document) -> Model:
    return Model(
        **{
            **data,
            "candidates": _candidates(data["candidates"]),
            "on_disconnect": _on_disconnect(data["on_disconnect"]),
            "limits": limits_from(data.get("limits")),
        }
    )


def _route(data: Document) -> Route:
    rules = data["parameters"]
    return Route(
        **{
            **data,
            "methods": tuple(data["methods"]),
            "candidates": _candidates(data["candidates"]),
            "parameters": None if rules is None else Parameters.from_document(rules),
            "request_pass": _names(data["request_pass"]),
        }
    )


class Models(Mapping[str, Model]):
    """pattern -> Model, built when it is first asked for."""

    __slots__ = ("_built", "_rows")

    def __init__(self, rows: dict[str, Document]) -> None:
        self._rows = rows
        self._built: dict[str, Model] = {}

    def __getitem__(self, pattern: str) -> Model:
        model = self._built.get(pattern)
        if model is None:
            model = self._built[pattern] = _model({"pattern": pattern, **self._rows[pattern]})
        return model

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class Table:
    """One compiled routes.yaml."""

    __slots__ = (
        "_by_host", "_default_endpoint", "_model_globs", "_multiplier_globs", "_multipliers", "_paths",
        "callbacks", "content_hash", "endpoints", "gateways", "generation", "models", "results", "routes",
        "station", "tiers", "upstreams",
    )  # fmt: skip

    def __init__(self, document: Document) -> None:
        self.generation: int = document.get("generation", 0)
        self.content_hash: str = document["content_hash"]
        self.station = _station(document["station"])
        self.endpoints = {e["name"]: _endpoint(e) for e in document["endpoints"]}
        self.upstreams = {u["name"]: _upstream(u) for u in document["upstreams"]}
        self.models = Models(document["models"])
        self.routes = tuple(_route(r) for r in document["routes"])
        self.tiers = {t["name"]: tier_from(t) for t in document["tiers"]}
        self.callbacks = callbacks_from(document.get("callbacks"))
        self.gateways = {g["name"]: Gateway(**g) for g in document.get("gateways", ())}  # not for workers
        self.results = results_from(document.get("results"))
        self._multipliers: dict[str, int] = document["multipliers"]
        self._multiplier_globs = Globs(self._multipliers)
        self._model_globs = Globs(self.models)
        self._paths = PathIndex(self.routes)
        self._default_endpoint = next(iter(self.endpoints.values()))
        self._by_host = {host: e for e in reversed(self.endpoints.values()) for host in e.hosts}

    @property
    def mirror_names(self) -> frozenset[str]:
        """All that a preference may name."""
        return frozenset(m.name for u in self.upstreams.values() for m in u.mirrors)

    @classmethod
    def from_document(cls, document: Document) -> Table:
        """`document` is what the loader compiled: plain JSON values. Keeps references into it."""
        return cls(document)

    def endpoint_for(self, host: str | None) -> Endpoint:
        """By the Host header, port or not, any case; an unknown Host gets the first endpoint."""
        if not host:
            return self._default_endpoint
        found = self._by_host.get(host)
        if found is None:
            name = host.lower()
            if not name.endswith("]"):  # [::1] has colons of its own
                name = name.rpartition(":")[0] or name
            found = self._by_host.get(name.removesuffix("."), self._default_endpoint)
        return found

    def match(self, method: str, path: str) -> Match:
        """The route for a canonical path. Raises UnknownPath, MethodNotAllowed, MalformedRequest."""
        return self._paths.find(method, path)

    def model_for(self, name: str) -> Model | None:
        """Exact first, then the most literal glob."""
        pattern = self._model_globs.find(name)
        return None if pattern is None else self.models[pattern]

    def candidates(self, route: Route, model: Model | None) -> tuple[Candidate, ...]:
        """The route's own, where it has any; else the model's."""
        return route.candidates or (model.candidates if model else ())

    def tier(self, name: str) -> Tier:
        """A tier that the file no longer knows counts as the default one."""
        return self.tiers.get(name) or self.tiers[self.station.default_tier]

    def multiplier_ppm(self, model: str) -> int:
        """The model's multiplier; 1 where the file says nothing."""
        pattern = self._multiplier_globs.find(model)
        return ONE_PPM if pattern is None else self._multipliers[pattern]
