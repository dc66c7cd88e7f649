"""What the sections of a file have to do with each other: names, operations, ties, leftovers.

Owns the mistakes that no schema can see, and the warnings.
"""

from __future__ import annotations

from zoneinfo import ZoneInfo

from proxy.routing import spec
from proxy.routing.globs import is_glob, matches, overlap, ties
from proxy.routing.loader import parameters, task_checks
from proxy.routing.loader.builtin import OWN_PATHS, OWN_PREFIXES
from proxy.routing.loader.draft import Draft
from proxy.routing.loader.mistakes import Path, did_you_mean
from proxy.routing.loader.presets import PRESETS, is_foreign
from proxy.routing.loader.references import ABSENT, has_reference
from proxy.routing.paths import capture_name, shape, spellings
from proxy.routing.rewrite import OWN_HEADERS, never_passes
from proxy.routing.texts import placeholders

_LOOPBACK = ("http://127.", "http://localhost", "http://[::1]")


def check(draft: Draft) -> None:
    """Adds every mistake and warning to the draft."""
    _check_station(draft)
    _check_endpoints(draft)
    for name, upstream in draft.upstreams.items():
        _check_upstream(draft, ("upstreams", name), upstream)
    if not draft.file.upstreams and draft.shaped.is_whole(("upstreams",)):
        draft.wrong(("upstreams",), "there is no upstream: nothing could be served")
    _check_models(draft)
    _check_routes(draft)
    _check_tiers(draft)
    for section in ("models", "prices", "multipliers"):
        _check_ties(draft, section)
    task_checks.check(draft)
    _find_leftovers(draft)


# -- station, endpoints, tiers -------------------------------------------------------------------


def _check_station(draft: Draft) -> None:
    station = draft.file.station
    try:
        ZoneInfo(station.timezone)
    except (ValueError, OSError, LookupError):
        draft.wrong(("station", "timezone"), "is not a time zone such as UTC or Asia/Shanghai")
    if station.rates.get(station.currency, 1) != 1:
        draft.wrong(("station", "rates", station.currency), "is the station's own currency: its rate is 1")
    if station.default_tier is not None and not _is_tier(draft, station.default_tier):
        draft.unknown(("station", "default_tier"), "tier", draft.file.tiers)


def _is_tier(draft: Draft, name: str) -> bool:
    return draft.shaped.knows("tiers", name) or ("tiers" not in (draft.root.members or {}))


def _check_endpoints(draft: Draft) -> None:
    owner: dict[str, str] = {}
    for name, endpoint in draft.file.endpoints.items():
        for i, host in enumerate(endpoint.hosts):
            if owner.setdefault(host, name) != name:
                draft.wrong(("endpoints", name, "hosts", i), f"endpoint {owner[host]} has this host already")


def _check_tiers(draft: Draft) -> None:
    of_rank: dict[int, str] = {}
    for name, tier in draft.file.tiers.items():
        if of_rank.setdefault(tier.rank, name) != name:
            draft.wrong(("tiers", name, "rank"), f"tier {of_rank[tier.rank]} has this rank already")


def _check_ties(draft: Draft, section: str) -> None:
    for first, second in ties(getattr(draft.file, section)):
        what = f"is as specific as '{first}', and some names match both: make one of them longer"
        draft.wrong((section, second), what, of_key=True)


# -- upstreams -----------------------------------------------------------------------------------


def _check_upstream(draft: Draft, path: Path, upstream: spec.Upstream) -> None:
    dialect = draft.vendors.dialects.get(upstream.dialect)
    for member in ("dialect", "mirrors"):
        if (
            not getattr(upstream, member)
            and upstream.preset is None
            and draft.shaped.is_whole((*path, member))
        ):
            draft.wrong((*path, member), "is missing: there is no preset that could say it")
    if upstream.preset is not None and upstream.preset not in PRESETS:
        draft.unknown((*path, "preset"), "preset", PRESETS)
    elif dialect is None and upstream.dialect in draft.vendors.families:
        draft.wrong(
            (*path, "dialect"),
            f"is a family of task APIs: 'tasks: {{{upstream.dialect}: {{upstream: {path[1]}}}}}'",
        )
    elif dialect is None and upstream.dialect:
        draft.unknown((*path, "dialect"), "dialect", draft.vendors.dialects)
    elif dialect is not None:
        chosen = upstream.operations or []
        known = draft.operation_names(dialect.operations) | {one.name: None for one in draft.families}
        for i, name in enumerate(chosen):
            if name not in known and not (name in draft.operations and is_foreign(name, chosen)):
                what = f"the {upstream.dialect} dialect has no operation '{name}'"
                step = i if isinstance(chosen, list) else name
                draft.wrong((*path, "operations", step), what + did_you_mean(name, known), of_key=True)
    _check_credentials(draft, path, upstream)
    for name, mirror in upstream.mirrors.items():
        if mirror.url.startswith("http:") and not mirror.url.startswith((*_LOOPBACK, ABSENT)):
            draft.warn((*path, "mirrors", name, "url"), "is not https: keys and prompts go in the clear")
    for side in ("request", "response"):
        _check_headers(draft, (*path, "headers", side), getattr(upstream.headers, side))
    _check_templates(draft, path, upstream)


def _check_credentials(draft: Draft, path: Path, upstream: spec.Upstream) -> None:
    if isinstance(upstream.credentials, str):
        return
    path = (*path, "credentials")
    active = 0
    for name, credential in upstream.credentials.items():
        at: Path = (*path, name)
        if isinstance(credential, spec.Credential):
            active += not credential.retired
            at = (*at, "secret")
        else:
            active += 1
        if not has_reference(draft.root.text_at(at)):
            draft.wrong(at, "a secret is not written into the file: use ${env:NAME} or ${file:PATH}")
    if not active and draft.shaped.is_whole(path) and str(path[1]) not in draft.references.missing:
        draft.wrong(path, "no credential that takes new calls ('credentials: none' if it needs no key)")


def _check_headers(draft: Draft, path: Path, changes: spec.HeaderChanges) -> None:
    is_request = path[-1] == "request"
    for i, name in enumerate(changes.pass_):
        _check_passing(draft, (*path, "pass", i), name, is_request=is_request)
    for name in changes.set_:
        if name.lower().encode() in OWN_HEADERS:
            draft.wrong((*path, "set", name), "is written by the relay itself", of_key=True)


def _check_passing(draft: Draft, path: Path, name: str, *, is_request: bool = True) -> None:
    lower = name.lower().encode()
    refused = never_passes(lower) if is_request else lower in OWN_HEADERS
    if refused:
        draft.wrong(path, f"{name} never passes: it belongs to one connection or carries a credential")


def _check_templates(draft: Draft, path: Path, upstream: spec.Upstream) -> None:
    """Names in braces must be something that a call can fill in."""
    captures = {name for _, r in draft.routes() for s in r.path.split("/") if (name := capture_name(s))}
    known = {"model", "operation_path"} | captures
    templates = {(*path, "rewrite", "path"): upstream.rewrite.path}
    if isinstance(upstream.operations, dict):
        for name, operation in upstream.operations.items():
            templates[*path, "operations", name, "path"] = operation.path
    for at, template in templates.items():
        for name in sorted(placeholders(template or "") - known):
            draft.wrong(at, f"nothing fills in {{{name}}}" + did_you_mean(name, known))


def _check_upstream_name(draft: Draft, path: Path, name: str) -> bool:
    if not draft.shaped.knows("upstreams", name):
        draft.unknown(path, "upstream", draft.file.upstreams)
    return name in draft.file.upstreams


# -- models and routes ---------------------------------------------------------------------------


def _check_models(draft: Draft) -> None:
    routed = {route.operation for route in draft.builtin_routes}
    routed.update(draft.operation_of(route) for route in draft.file.routes)
    routed.update(name for one in draft.families for name in one.operations)
    for name, model in draft.file.models.items():
        for i, candidate in enumerate(model.candidates):
            path = ("models", name, "candidates", i, "upstream")
            if not _check_upstream_name(draft, path, candidate.upstream):
                continue
            if draft.dialect_of(candidate.upstream) and not draft.offered(candidate.upstream) & routed:
                draft.wrong(path, f"no route leads to an operation that '{candidate.upstream}' offers")


def _check_routes(draft: Draft) -> None:
    taken: dict[tuple[str, str], int] = {}
    for path, route in draft.routes():
        _check_route_path(draft, path, route)
        name = draft.operation_of(route)
        operation = draft.operations.get(name)
        if not name:
            draft.wrong(path, "operation is missing: the path is none of the built-in ones")
            continue
        if operation is None:
            draft.unknown((*path, "operation"), "operation", draft.operation_names(draft.operations))
            continue
        for method in route.methods or operation.methods:
            first = taken.setdefault((shape(route.path), method), draft.line(path))
            if first != draft.line(path):
                draft.wrong((*path, "path"), f"the route in line {first} has {method} of this path already")
        caller = draft.caller_of(route)
        if caller not in draft.vendors.dialects:
            draft.unknown((*path, "dialect"), "dialect", draft.vendors.dialects)
        elif name not in draft.vendors.dialects[caller].operations:
            draft.wrong((*path, "operation"), f"the {caller} dialect has no operation '{name}'")
        _check_destination(draft, path, route)
        for i, header in enumerate(route.pass_):
            _check_passing(draft, (*path, "pass", i), header)
        parameters.check(draft, path, route)


def _check_route_path(draft: Draft, path: Path, route: spec.Route) -> None:
    if any(p in OWN_PATHS or p.startswith(OWN_PREFIXES) for p in spellings(route.path)):
        draft.wrong((*path, "path"), "is answered by the relay itself")


def _check_destination(draft: Draft, path: Path, route: spec.Route) -> None:
    """Candidates come from the model, or from the route where there is no model."""
    name = draft.operation_of(route)
    has_model = draft.operations[name].model_at != "none"
    if route.candidates and has_model:
        draft.wrong(
            (*path, "candidates"), f"{name} names a model: its candidates are the model's", of_key=True
        )
    elif not route.candidates and not has_model:
        draft.wrong(path, f"candidates is missing: {name} names no model that could have them")
    for i, candidate in enumerate(route.candidates):
        at = (*path, "candidates", i, "upstream")
        if _check_upstream_name(draft, at, candidate.upstream) and name not in draft.offered(
            candidate.upstream
        ):
            draft.wrong(at, f"upstream '{candidate.upstream}' does not offer {name}")
    if route.default_model is not None:
        _check_default_model(draft, (*path, "default_model"), route)


def _check_default_model(draft: Draft, path: Path, route: spec.Route) -> None:
    assert route.default_model is not None
    name = draft.operation_of(route)
    pattern = draft.model_globs.find(route.default_model)
    if draft.operations[name].model_at == "none":
        draft.wrong(path, f"{name} names no model", of_key=True)
    elif "{model}" in route.path:
        draft.wrong(path, "the path names the model already", of_key=True)
    elif pattern is not None:
        offering = [c for c in draft.file.models[pattern].candidates if name in draft.offered(c.upstream)]
        if not offering:
            draft.wrong(path, f"no candidate of '{route.default_model}' offers {name}")
    elif not draft.shaped.knows("models", route.default_model):
        draft.unknown(path, "model", draft.file.models)


# -- leftovers -----------------------------------------------------------------------------------


def _find_leftovers(draft: Draft) -> None:
    """Names that nothing uses: no mistake, but mostly a slip."""
    file = draft.file
    used = {c.upstream for m in file.models.values() for c in m.candidates}
    used.update(c.upstream for r in file.routes for c in r.candidates)
    used.update(name for one in draft.families for name in one.upstreams)
    for name in file.upstreams:
        if name not in used:
            draft.warn(("upstreams", name), "no model and no route uses this upstream")
    billed = frozenset(name for one in draft.families for name in task_checks.billed(one))
    billed |= draft.operations.keys()  # what is no model's is sold under its own name
    for section in ("prices", "multipliers"):
        for name in getattr(file, section):
            if name != "*" and not _meets(draft, name, billed):
                draft.warn((section, name), "matches no model")
    for tier_name, tier in file.tiers.items():
        for i, glob in enumerate(tier.models):
            if glob != "*" and not _meets(draft, glob, billed):
                draft.warn(("tiers", tier_name, "models", i), "matches no model")


def _meets(draft: Draft, pattern: str, billed: frozenset[str]) -> bool:
    """True if a model of the file, or what a task is billed as, may be meant by a name or glob."""
    if is_glob(pattern):
        return any(_meet(pattern, name) for name in (*draft.file.models, *billed))
    return draft.model_globs.find(pattern) is not None or any(matches(name, pattern) for name in billed)


def _meet(glob: str, name: str) -> bool:
    return overlap(glob, name) if is_glob(name) else matches(glob, name)
