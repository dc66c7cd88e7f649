"""`headrace price`: what a model costs, whom it costs that, and what the upstreams take of it.

Owns the arguments and the layout. The figures are those that calls are billed by.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from proxy.access.overrides import Override
from proxy.cli import station
from proxy.cli.config import config_path
from proxy.cli.explanation import money
from proxy.compiler import compile_file
from proxy.errors import ModelNotPriced
from proxy.ledger.amounts import as_text
from proxy.metering.pricing import PPM, price_from_content
from proxy.metering.quote import Sale, quote
from proxy.routing.globs import Globs
from proxy.snapshot import Snapshot
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.overrides import Overrides


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--account", metavar="NAME", help="with its tier and its own prices; asks the station"
    )
    parser.add_argument("--tier", help="instead of the station's default one, or the account's")
    parser.add_argument("--config", metavar="FILE", help="default: routes.yaml in this folder")
    parser.set_defaults(run=run)
    station.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    snapshot = Snapshot.from_document(compile_file(config_path(args.config), os.environ).document)
    tier_name = ""
    overrides: list[Override] = []
    if args.account:
        tier_name, overrides = station.ask(args, lambda database: _account(database, args.account))
    tier = snapshot.tier(args.tier or tier_name)
    sale = snapshot.sale(args.model, tier, overrides)
    if sale is None:
        raise ModelNotPriced
    currency = snapshot.table.station.currency
    document = {
        "model": args.model,
        "account": args.account,
        "tier": tier.name,
        "override": sale.override or None,
        "price_id": sale.price.id,
        "model_multiplier_ppm": sale.model_ppm,
        "tier_multiplier_ppm": sale.tier_ppm,
        "multiplied": sale.price.multiplied,
        "free": sale.price.free,
        "currency": currency,
        "figures": [line._asdict() for line in quote(sale)],
        "upstreams": _upstreams(snapshot, args.model, sale),
    }
    station.show(args, document, _lines(document, currency))
    return 0


async def _account(database: Database, name: str) -> tuple[str, list[Override]]:
    """Its tier of this moment, and its own prices. Raises LookupError."""
    catalog = Catalog(database)
    account = await catalog.account(name)
    line = await catalog.tiers_of(account.id)
    return line[0].tier, await Overrides(database).of(name)


def _upstreams(snapshot: Snapshot, model: str, sale: Sale) -> list[dict[str, Any]]:
    """What each candidate takes, as far as it is declared, and what is left of the sale price then."""
    found = snapshot.model_for(model)
    told: list[dict[str, Any]] = []
    for candidate in found.candidates if found else ():
        costs = snapshot.upstream(candidate.upstream).costs
        pattern = Globs(costs).find(model)
        if pattern is None:
            told.append({"upstream": candidate.upstream, "figures": None})
            continue
        cost = costs[pattern]
        taken = (
            Sale(price_from_content(cost["price"]), PPM, PPM)
            if "price" in cost
            else Sale(price_from_content({**sale.price.content, "multiplied": True}), cost["ppm"], PPM)
        )
        told.append({"upstream": candidate.upstream, "figures": [line._asdict() for line in quote(taken)]})
    return told


def _lines(told: dict[str, Any], currency: str) -> list[str]:
    whose = f"{told['account']} ({told['tier']})" if told["account"] else f"tier {told['tier']}"
    multipliers = " x ".join(_factor(told[n]) for n in ("model_multiplier_ppm", "tier_multiplier_ppm"))
    how = "an override of the account" if told["override"] else "model x tier"
    head = f"{told['model']} for {whose}: multipliers {multipliers} ({how})"
    if not told["multiplied"]:
        head = f"{told['model']} for {whose}: not multiplied"
    if told["free"]:
        return [f"{told['model']} for {whose}: free"]
    takes = {u["upstream"]: _by_name(u["figures"]) for u in told["upstreams"] if u["figures"]}
    rows = []
    for line in told["figures"]:
        name = _name(line)
        costs = [takes[u].get(name) for u in takes]
        rows.append(
            [name, line["per"], money(line["official_nanos"], currency), money(line["nanos"], currency)]
            + ["-" if nanos is None else money(nanos, currency) for nanos in costs]
        )
    return [head, *station.table(["figure", "per", "official", "price", *takes], rows)]


def _by_name(figures: list[dict[str, Any]]) -> dict[str, int]:
    return {_name(line): line["nanos"] for line in figures}


def _name(line: dict[str, Any]) -> str:
    above = f" above {line['above']} input tokens" if line["above"] else ""
    tier = f" ({line['service_tier']})" if line["service_tier"] else ""
    return f"{line['figure']}{above}{tier}"


def _factor(ppm: int) -> str:
    return as_text(ppm * 1000)
