"""What the station sells, compiled: tiers, what upstreams take, payment gateways.

Owns the rows of the document that are about money and are no rate card. The members of each row are the
fields of the dataclasses in routing.table.
"""

from __future__ import annotations

from typing import Any

from proxy.routing import spec
from proxy.routing.globs import ties
from proxy.routing.loader.draft import Draft
from proxy.routing.loader.mistakes import Path
from proxy.routing.loader.rates import nanos, price_content

Row = dict[str, Any]

SECRET_CHARACTERS_MIN = 16  # whoever guesses it prints money


def on_outage(draft: Draft, path: Path, given: str | spec.OutageAllowance) -> Row:
    if isinstance(given, str):
        return {"kind": given}
    allowance = nanos(draft, (*path, "allowance"), given.allowance)
    return {"kind": "allowance", "allowance_nanos": allowance}


def tier(draft: Draft, name: str, given: spec.Tier) -> Row:
    path = ("tiers", name)
    quota = given.free_quota
    return {
        "name": name,
        "rank": given.rank,
        "models": given.models,
        "multiplier_ppm": given.multiplier,
        "limits": limits(draft, (*path, "limits"), given.limits),
        "hold": given.hold,
        "on_outage": None
        if given.on_outage is None
        else on_outage(draft, (*path, "on_outage"), given.on_outage),
        "free_quota": quota
        and {
            "amount_nanos": nanos(draft, (*path, "free_quota", "amount"), quota.amount),
            "every": [quota.every.count, quota.every.unit],
        },
        "earned_by": [
            (
                nanos(draft, (*path, "earned_by", i, "top_up"), rule.top_up),
                [rule.lasts.count, rule.lasts.unit],
            )
            for i, rule in enumerate(given.earned_by)
        ],
    }


def limits(draft: Draft, path: Path, given: spec.Limits) -> Row:
    """Those that are given."""
    row: Row = {} if given.concurrency is None else {"concurrency": given.concurrency}
    for unit, rates in (("requests", given.requests), ("tokens", given.tokens)):
        for rate in rates if isinstance(rates, list) else [rates]:
            _limit(draft, (*path, unit), row, f"{unit}_per_{rate.per}", rate.count)
    if isinstance(given, spec.TierLimits):
        for most in given.spend if isinstance(given.spend, list) else [given.spend]:
            _limit(draft, (*path, "spend"), row, f"spend_per_{most.per}", nanos(draft, path, most.amount))
    return row


def _limit(draft: Draft, path: Path, row: Row, kind: str, amount: int) -> None:
    if kind in row:
        draft.wrong(path, f"says {kind.replace('_', ' ')} twice")
    row[kind] = amount


def costs(draft: Draft, name: str, upstream: spec.Upstream) -> Row:
    """By model name or glob: {"ppm"} of the model's price, or {"price"}, the content of one."""
    path = ("upstreams", name, "costs")
    for first, second in ties(upstream.costs):
        draft.wrong((*path, second), f"is as specific as '{first}', and some names match both", of_key=True)
    return {
        model: {"ppm": cost}
        if isinstance(cost, int)
        else {"price": price_content(draft, (*path, model), cost)}
        for model, cost in upstream.costs.items()
    }


def trial_nanos(draft: Draft) -> int | None:
    """What a new account begins with; None: nobody signs up."""
    sign_up = draft.file.station.sign_up
    return None if sign_up is None else nanos(draft, ("station", "sign_up", "trial"), sign_up.trial)


def gateways(draft: Draft) -> list[Row]:
    """A secret that is missing or short is a mistake: it is never replaced by something."""
    rows = []
    for name, gateway in draft.file.gateways.items():
        path: Path = ("gateways", name)
        if len(gateway.secret) < SECRET_CHARACTERS_MIN:
            draft.wrong((*path, "secret"), f"is shorter than {SECRET_CHARACTERS_MIN} characters")
        if gateway.kind == "epay" and (not gateway.pid or not gateway.url):
            draft.wrong(path, "epay needs 'pid' and 'url'", of_key=True)
        rows.append(_gateway(draft, name, gateway))
    return rows


def _gateway(draft: Draft, name: str, gateway: spec.Gateway) -> Row:
    station = draft.file.station
    currency = gateway.currency or station.currency
    rate = "1" if currency == station.currency else str(station.rates.get(currency, ""))
    if not rate:
        draft.wrong(("gateways", name, "currency"), f"no rate from {currency}: station.rates lacks it")
    return {
        "name": name,
        "kind": gateway.kind,
        "secret": gateway.secret,
        "url": gateway.url or "",
        "pid": gateway.pid or "",
        "currency": currency,
        "rate": rate or "1",
        "window_ms": gateway.window,
    }
