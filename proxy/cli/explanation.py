"""What would happen to a request: facts for `headrace explain`, as plain JSON values.

Owns no decision: everything is asked of the snapshot and of the functions that the relay itself calls.
Secrets are named, never shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from proxy.access.keyring import KeyRecord
from proxy.access.limits import Limit, limits_of
from proxy.access.limits import told as told_limits
from proxy.dialects.base import OperationSpec
from proxy.errors import ModelNotPermitted, ModelNotPriced, ProxyError, UnknownModel
from proxy.ledger import amounts
from proxy.metering.bounds import Bound, hold_bound
from proxy.metering.pricing import cost_nanos
from proxy.metering.quote import Sale
from proxy.relay.admission import ESTIMATE_FLOOR_TOKENS
from proxy.routing.canonical import canonical
from proxy.routing.parameters import in_words
from proxy.routing.rewrite import request_headers, same_path, upstream_target
from proxy.routing.selection import Choice, Wish, order
from proxy.routing.table import Candidate, Match, Model, Tier
from proxy.snapshot import Snapshot

# What SDKs, browsers and proxies in front send; values matter to nobody here.
SAMPLE_HEADERS = tuple(
    (name.encode(), b"...")
    for name in (
        "accept", "anthropic-beta", "anthropic-version", "api-key", "authorization", "content-type", "cookie",
        "forwarded", "idempotency-key", "openai-beta", "openai-organization", "origin", "user-agent", "via",
        "x-api-key", "x-forwarded-for", "x-real-ip", "x-request-id", "x-stainless-lang",
        "x-stainless-retry-count",
    )
)  # fmt: skip
SAMPLE_BODY_BYTES = 3_000  # the hold that is shown is that of a text of about a thousand tokens


@dataclass(frozen=True, slots=True)
class Question:
    """A request as the command line describes it."""

    method: str
    target: str
    model: str = ""
    host: str = ""
    is_stream: bool = False
    key: KeyRecord | None = None
    now_ms: int = 0
    drawn: Mapping[str, int] | None = None  # of limits: access.limits.told


def explain(snapshot: Snapshot, question: Question) -> dict[str, Any]:
    """Everything that is decided before a byte leaves. Raises the refusal of a path that nothing serves.

    Later refusals (model, permission, price) are told under `refused`, beside what is known already.
    """
    path, query = canonical(question.target)
    match = snapshot.match(question.method, path)
    operation = snapshot.dialects[match.route.dialect].operations[match.route.operation]
    tier = snapshot.tier(question.key.tier_at(question.now_ms) if question.key else "")
    billed_as = _billed_as(snapshot, match, operation)
    only = billed_as[0]["name"] if len(billed_as) == 1 and "{" not in billed_as[0]["name"] else ""
    name = match.captures.get("model") or question.model or match.route.default_model or only
    model = snapshot.model_for(name) if name else None
    overrides = question.key.overrides if question.key else ()
    sale = snapshot.sale(name or operation.name, tier, overrides) if operation.billed else None
    endpoint = snapshot.endpoint_for(question.host or None)
    told = {
        "request": {"method": question.method, "path": path, "stream": question.is_stream},
        "endpoint": {"name": endpoint.name, "url": endpoint.url},
        "route": _route(match, operation),
        "tier": {"name": tier.name, "rank": tier.rank, "models": list(tier.models)},
        "model": _model(name, model),
        "candidates": _candidates(snapshot, match, model, _wish(question, name), query),
        "refused": _refusals(snapshot, question, operation, tier, name),
        "limits": told_limits(limits_on(question.key, tier, model), question.drawn),
        "billed_as": billed_as,
        "files": _files(snapshot, operation),
        "price": _price(sale, snapshot.table.station.currency) if sale else None,
        "hold": _hold(operation.kind, model, sale, tier) if sale and (model or only) else None,
    }
    if question.key:
        told["key"] = {"masked": question.key.masked, "account": question.key.account_id}
    return told


def _files(snapshot: Snapshot, operation: OperationSpec) -> dict[str, Any] | None:
    """What becomes of the files of tasks that an answer shows; None: they stay where they are."""
    results, task = snapshot.table.results, operation.task
    if results is None or task is None or not task.files or not results.keeps(operation.api):
        return None
    bucket = results.bucket
    return {
        "kept_in": f"directory {results.directory}" if bucket is None else f"bucket {bucket.name}",
        "days": results.days,
        "size_limit": results.size_limit,
        "rewrite": results.rewrite,
    }


def _wish(question: Question, name: str) -> Wish:
    return Wish(name, question.is_stream, question.key.mirror if question.key else "auto")


def _route(match: Match, operation: OperationSpec) -> dict[str, Any]:
    route = match.route
    return {
        "path": route.path,
        "line": route.line,
        "operation": route.operation,
        "dialect": route.dialect,
        "captures": match.captures,
        "default_model": route.default_model,
        "body_limit": route.body_limit,
        "billed": operation.billed,
        "drop": list(route.parameters.drop) if route.parameters else [],
        "rules": [in_words(rule) for rule in route.parameters.rules] if route.parameters else [],
        "within_context": bool(route.parameters and route.parameters.within_context),
    }


def _billed_as(snapshot: Snapshot, match: Match, operation: OperationSpec) -> list[dict[str, Any]]:
    """Of a declared task: the models that it may be billed as, by what the request says."""
    naming = operation.naming
    if naming is None:
        return []
    at = ".".join(str(step) for step in naming.at)
    told = []
    for said, name in naming.alternatives(match.route.bill):
        price = snapshot.price_for(name) if "{" not in name else None
        content = dict(price.content) if price is not None else None
        currency = snapshot.table.station.currency
        told.append({"name": name, "at": at, "said": said, "price": content, "currency": currency})
    return told


def _model(name: str, model: Model | None) -> dict[str, Any] | None:
    if model is None:
        return None
    return {
        "name": name,
        "pattern": model.pattern,
        "line": model.line,
        "context": model.context,
        "max_output": model.max_output,
        "hidden_reasoning": model.hidden_reasoning,
    }


def _refusals(
    snapshot: Snapshot, question: Question, operation: OperationSpec, tier: Tier, name: str
) -> list[dict[str, Any]]:
    """What the relay would answer instead of asking an upstream, in its order."""
    if (operation.model_at == "none" and operation.naming is None) or not name:
        return []
    found: list[ProxyError] = []
    if operation.naming is None and snapshot.model_for(name) is None:
        found.append(UnknownModel())
    allowed = [tier.models] + ([question.key.models] if question.key and question.key.models else [])
    if not all(snapshot.permitted(globs, name) for globs in allowed):
        found.append(ModelNotPermitted(status=snapshot.table.station.not_permitted_status))
    overrides = question.key.overrides if question.key else ()
    if operation.billed and snapshot.sale(name, tier, overrides) is None:
        found.append(ModelNotPriced())
    return [{"status": e.status, "code": e.code, "message": e.message} for e in found]


# -- candidates ----------------------------------------------------------------------------------


def _candidates(
    snapshot: Snapshot, match: Match, model: Model | None, wish: Wish, query: str
) -> list[dict[str, Any]]:
    """Every place where the call may be tried, in order; then those that are out, with the reason."""
    upstreams = snapshot.table.upstreams
    declared = snapshot.table.candidates(match.route, model)
    usable = snapshot.candidates(match.route, model)
    told = []
    for candidate in sorted(usable, key=lambda c: c.priority):
        alike = sum(c.weight for c in usable if c.priority == candidate.priority)
        about = {**_about(snapshot, candidate), "share": round(candidate.weight / alike, 4)}
        choices = order([candidate], upstreams, wish, lambda *_: False, 0.0)
        told += [{**about, **_choice(snapshot, match, choice, query)} for choice in choices]
    for candidate in declared:
        if candidate not in usable:
            upstream = upstreams[candidate.upstream]
            out = upstream.note or f"does not offer {match.route.operation}"
            told.append({**_about(snapshot, candidate), "out": out})
    return told


def _about(snapshot: Snapshot, candidate: Candidate) -> dict[str, Any]:
    return {
        "upstream": candidate.upstream,
        "line": snapshot.upstream(candidate.upstream).line,
        "priority": candidate.priority,
        "weight": candidate.weight,
    }


def _choice(snapshot: Snapshot, match: Match, choice: Choice, query: str) -> dict[str, Any]:
    upstream, mirror = choice.upstream, choice.mirror
    offered = same_path(upstream.operations[match.route.operation], match.route)
    dialect = snapshot.dialects[offered.dialect]
    target = upstream_target(offered, mirror, choice.model or "{model}", match.captures, query, dialect)
    secret = f"<{upstream.name}.{choice.credential.name}>" if choice.credential.secret else ""
    named = replace(choice.credential, secret=secret)
    sent = request_headers(SAMPLE_HEADERS, dialect, upstream, offered, match.route, named)
    passed = {name for name, value in sent if (name, value) in SAMPLE_HEADERS}
    return {
        "mirror": mirror.name,
        "credential": choice.credential.name,
        "model": choice.model,
        "url": f"{mirror.scheme}://{mirror.host}:{mirror.port}{target}",
        "headers": {
            "passed": _texts(name for name, _ in SAMPLE_HEADERS if name in passed),
            "dropped": _texts(name for name, _ in SAMPLE_HEADERS if name not in passed),
            "set": {n.decode(): v.decode("latin-1") for n, v in sent if (n, v) not in SAMPLE_HEADERS},
        },
    }


def _texts(names: Iterable[bytes]) -> list[str]:
    return [name.decode() for name in names]


# -- money and limits ----------------------------------------------------------------------------


def money(nanos: int, currency: str) -> str:
    """Exact, without needless digits: 150000000 -> 0.15 USD."""
    return f"{amounts.as_text(nanos)} {currency}"


def _price(sale: Sale, currency: str) -> dict[str, Any]:
    return {
        "id": sale.price.id,
        "content": sale.price.content,
        "model_multiplier_ppm": sale.model_ppm,
        "tier_multiplier_ppm": sale.tier_ppm,
        "multiplied": sale.price.multiplied,
        "override": sale.override or None,
        "currency": currency,
    }


def limits_on(key: KeyRecord | None, tier: Tier, model: Model | None) -> tuple[Limit, ...]:
    """All that a call counts against; without a key those of its tier."""
    amounts = tier.limits.amounts()
    limits = key.limits(tier.name, amounts) if key else limits_of(f"a0:{tier.name}", amounts)
    if model is not None and model.limits is not None:
        limits += limits_of(f"m:{model.pattern}", model.limits.amounts())
    return limits


def _hold(kind: str, model: Model | None, sale: Sale, tier: Tier) -> dict[str, Any]:
    """Of a text of SAMPLE_BODY_BYTES without a limit of its own, before estimates are known."""

    def cost(output_tokens_max: int | None) -> tuple[int, Bound]:
        context, most = (model.context, model.max_output) if model else (None, None)
        bound = hold_bound(kind, {}, SAMPLE_BODY_BYTES, context, most)
        if output_tokens_max is not None:
            bound.usage.output = min(bound.usage.output, output_tokens_max)
        return cost_nanos(sale.price, bound.usage, sale.model_ppm, sale.tier_ppm), bound

    most, _ = cost(None)
    held, bound = cost(ESTIMATE_FLOOR_TOKENS if tier.hold == "estimate" else None)
    return {
        "policy": tier.hold,
        "input_tokens": bound.usage.input_tokens_all(),
        "output_tokens": bound.usage.output_tokens_all(),
        "nanos": held,
        "max_nanos": most,
        "overspend_bound_nanos": (tier.limits.concurrency or 0) * (most - held),
    }
