"""A checked file -> the plain JSON document that tables are built from.

Owns the defaults that are not the schema's: those that depend on other members, on the dialect or on
what is built in. The members of each row are the fields of the dataclasses in routing.table.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from urllib.parse import unquote, urlsplit

from proxy.routing import spec
from proxy.routing.globs import Globs
from proxy.routing.loader import business, declaring, hosting, parameters
from proxy.routing.loader.builtin import DEFAULT_MODELS, HIDDEN_REASONING, HIDDEN_REASONING_DRAIN_MS
from proxy.routing.loader.draft import Draft
from proxy.routing.loader.families import SECTION
from proxy.routing.loader.rates import official_prices, own_prices
from proxy.routing.paths import shape
from proxy.routing.section import Candidate
from proxy.routing.table import Timeouts

Row = dict[str, Any]

PORTS = {"http": 80, "https": 443}
DEFAULT_ENDPOINT = spec.Endpoint(url="http://127.0.0.1:8080")
DEFAULT_TIER = "Free"
EVERYTHING = spec.Tier.model_validate({"rank": "0", "models": ["*"]})
_HIDDEN = Globs(HIDDEN_REASONING)


def document(draft: Draft) -> Row:
    """The document without its hash and generation. Adds mistakes about amounts and prices."""
    file = draft.file
    tiers = file.tiers or {file.station.default_tier or DEFAULT_TIER: EVERYTHING}
    return {
        "station": _station(draft, file.station, next(iter(tiers))),
        "endpoints": [_endpoint(n, e) for n, e in (file.endpoints or {"direct": DEFAULT_ENDPOINT}).items()],
        "upstreams": [_upstream(draft, name, u) for name, u in draft.upstreams.items()],
        "models": {name: _model(draft, name, model) for name, model in file.models.items()},
        "routes": [*_file_routes(draft), *_family_routes(draft), *_builtin_routes(draft)],
        "families": declaring.families(draft.families),
        "tiers": [business.tier(draft, name, tier) for name, tier in tiers.items()],
        "multipliers": dict(file.multipliers),
        "gateways": business.gateways(draft),
        "callbacks": _callbacks(draft),
        "results": hosting.results(draft),
        "prices": own_prices(draft),
        "official_prices": official_prices(draft),
    }


def _station(draft: Draft, station: spec.Station, first_tier: str) -> Row:
    return {
        "name": station.name,
        "currency": station.currency,
        "rates": {currency: str(rate) for currency, rate in station.rates.items()},
        "timezone": station.timezone,
        "default_tier": station.default_tier or first_tier,
        "trusted_proxies": station.trusted_proxies,
        "no_credit_status": station.no_credit.status,
        "not_permitted_status": station.not_permitted.status,
        "codes_earn_tiers": station.codes_earn_tiers,
        "trial_nanos": business.trial_nanos(draft),
        "on_outage": business.on_outage(draft, ("station", "on_outage"), station.on_outage),
    }


def _endpoint(name: str, endpoint: spec.Endpoint) -> Row:
    return {
        "name": name,
        "url": endpoint.url,
        "hosts": endpoint.hosts or [urlsplit(endpoint.url).hostname],
        "label": endpoint.label,
        "region": endpoint.region,
        "proxy_read_timeout_ms": endpoint.proxy_read_timeout,
        "cors": endpoint.cors,
        "tags": endpoint.tags,
        "body_limit": endpoint.body_limit,
        "slow_calls": endpoint.slow_calls,
    }


def _callbacks(draft: Draft) -> Row:
    said, endpoints = draft.file.callbacks, draft.file.endpoints or {"direct": DEFAULT_ENDPOINT}
    if said.through is not None and said.through not in endpoints:
        draft.unknown(("callbacks", "through"), "endpoint", endpoints)
        return {"url": "", "allow": said.allow}
    return {"url": endpoints[said.through].url if said.through else "", "allow": said.allow}


# -- upstreams -----------------------------------------------------------------------------------


def _upstream(draft: Draft, name: str, upstream: spec.Upstream) -> Row:
    path = ("upstreams", name)
    dialect = draft.vendors.dialects.get(upstream.dialect)
    operations = _operations(draft, name, upstream) if dialect else []
    credentials = _credentials(upstream)
    enabled = draft.is_enabled(name)
    note = "" if enabled else ", ".join(dict.fromkeys(draft.references.missing.get(name, ())))
    if note:
        draft.warn(path, f"is disabled: {note}")
    return {
        "name": name,
        "dialect": upstream.dialect,
        "enabled": enabled,
        "note": note,
        "mirrors": [_mirror(n, mirror, operations) for n, mirror in upstream.mirrors.items()],
        "credentials": credentials,
        "timeouts": _timeouts(upstream.timeouts),
        "on_disconnect": _on_disconnect(upstream.on_disconnect),
        "trust": upstream.trust,
        "include_usage": upstream.include_usage,
        "operations": operations,
        "headers": _headers(upstream.headers),
        "line": draft.line(path),
        "costs": business.costs(draft, name, upstream),
        "limits": business.limits(draft, (*path, "limits"), upstream.limits),
    }


def _operations(draft: Draft, name: str, upstream: spec.Upstream) -> list[Row]:
    """Each operation with its path: its own, else the upstream's rewrite, else the dialect's."""
    own = upstream.operations if isinstance(upstream.operations, dict) else {}
    rows = []
    for operation in sorted(draft.offered(name)):
        its = draft.dialect_for(name, operation)
        dialect = draft.vendors.dialects[its]
        said = own.get(operation) or own.get(dialect.operations[operation].api) or spec.Operation()
        template = said.path or upstream.rewrite.path
        # What the dialect's own paths need (Azure's api-version) is not for other paths.
        query = dict(() if template else dialect.query) | upstream.rewrite.query
        if said.query is not None:
            query = said.query
        path = (template or dialect.paths[operation]).replace(
            "{operation_path}", dialect.operations[operation].path
        )
        auth = [part.decode("latin-1") for part in draft.auth_for(name, its)]
        row = {"name": operation, "path": path, "query": list(query.items()), "dialect": its, "auth": auth}
        rows.append(row)
    return rows


def _base_path(base: str, operations: list[Row]) -> str:
    """Forgiving: vendors give base URLs with /v1 and more, which is in the paths of operations too."""
    for at, character in enumerate(base):
        if character == "/" and any(o["path"].startswith(base[at:] + "/") for o in operations):
            return base[:at]
    return base


def _mirror(name: str, mirror: spec.Mirror, operations: list[Row]) -> Row:
    url = urlsplit(mirror.url)
    return {
        "name": name,
        "scheme": url.scheme,
        "host": url.hostname,
        "port": url.port or PORTS[url.scheme],
        "base_path": _base_path(url.path, operations),
        "proxy_read_timeout_ms": mirror.proxy_read_timeout,
        "via": mirror.via and _egress(mirror.via),
    }


def _egress(text: str) -> Row:
    url = urlsplit(text)
    return {
        "scheme": url.scheme,
        "host": url.hostname,
        "port": url.port,
        "user": unquote(url.username or ""),
        "secret": unquote(url.password or ""),
    }


def _credentials(upstream: spec.Upstream) -> list[Row]:
    if isinstance(upstream.credentials, str):
        return [{"name": "none", "secret": "", "retired": False}]
    rows = [
        {"name": name, "secret": given.secret, "retired": given.retired}
        if isinstance(given, spec.Credential)
        else {"name": name, "secret": given, "retired": False}
        for name, given in upstream.credentials.items()
    ]
    return sorted(rows, key=lambda row: row["retired"])


def _timeouts(given: spec.Timeouts) -> Row:
    first = given.first_byte
    if isinstance(first, int):
        first = spec.FirstByte.model_construct(stream=first, whole=first)
    said = {
        "connect_ms": given.connect,
        "first_byte_stream_ms": first and first.stream,
        "first_byte_whole_ms": first and first.whole,
        "idle_ms": given.idle,
        "total_ms": given.total,
    }
    return asdict(Timeouts()) | {name: ms for name, ms in said.items() if ms is not None}


def _on_disconnect(given: str | spec.Drain) -> Row:
    return {"kind": "cancel"} if isinstance(given, str) else {"kind": "drain", "drain_ms": given.drain}


def _headers(headers: spec.Headers) -> Row:
    row: Row = {}
    for side, changes in (("request", headers.request), ("response", headers.response)):
        row[f"{side}_pass"] = [name.lower() for name in changes.pass_]
        row[f"{side}_set"] = [(name.lower(), value) for name, value in changes.set_.items()]
        row[f"{side}_drop"] = [name.lower() for name in changes.drop]
    return row


# -- models and routes ---------------------------------------------------------------------------


def _model(draft: Draft, name: str, model: spec.Model) -> Row:
    hidden = model.hidden_reasoning
    if hidden is None:
        hidden = _HIDDEN.find(name) is not None
    if model.on_disconnect is not None:
        on_disconnect: Row | None = _on_disconnect(model.on_disconnect)
    else:
        on_disconnect = {"kind": "drain", "drain_ms": HIDDEN_REASONING_DRAIN_MS} if hidden else None
    return {
        "context": model.context,
        "max_output": model.max_output,
        "candidates": _candidates(model.candidates),
        "on_disconnect": on_disconnect,
        "hidden_reasoning": hidden,
        "limits": business.limits(draft, ("models", name, "limits"), model.limits),
        "line": draft.line(("models", name)),
    }


def _candidates(candidates: list[Candidate]) -> list[Row]:
    return [declaring.candidate_row(candidate) for candidate in candidates]


def _file_routes(draft: Draft) -> list[Row]:
    return [_route(draft, route, draft.line(path)) for path, route in draft.routes()]


def _family_routes(draft: Draft) -> list[Row]:
    """Those of the declared families that the file does not replace."""
    return [
        row
        for one in draft.families
        for row in declaring.routes(one, draft.line((SECTION, one.name)))
        if draft.replaced.isdisjoint((shape(row["path"]), method) for method in row["methods"])
    ]


def _builtin_routes(draft: Draft) -> list[Row]:
    return [
        _route(draft, route, line=0)
        for builtin in draft.builtin_routes
        if (route := _builtin_route(draft, *builtin)) is not None
    ]


def _builtin_route(draft: Draft, path: str, name: str, dialect: str) -> spec.Route | None:
    """None: it is no model's, and no upstream offers it."""
    route = spec.Route(path=path, operation=name, dialect=dialect)
    if draft.vendors.dialects[dialect].operations[name].model_at == "none":
        upstream = draft.first_offering(name)
        return route.model_copy(update={"candidates": [Candidate(upstream=upstream)]}) if upstream else None
    default = DEFAULT_MODELS.get(name, "")
    if "{model}" not in path and default and draft.model_globs.find(default) is not None:
        return route.model_copy(update={"default_model": default})
    return route


def _route(draft: Draft, route: spec.Route, line: int) -> Row:
    name = draft.operation_of(route)
    caller = draft.vendors.dialects.get(draft.caller_of(route))
    methods = route.methods or list(
        caller.operations[name].methods if caller and name in caller.operations else ()
    )
    return {
        "id": route.path,
        "path": route.path,
        "methods": methods,
        "operation": name,
        "dialect": draft.caller_of(route),
        "default_model": route.default_model,
        "candidates": _candidates(route.candidates),
        "parameters": parameters.compiled(route.parameters),
        "request_pass": [name.lower() for name in route.pass_],
        "body_limit": route.body_limit,
        "on_break": route.on_break,
        "line": line,
    }
