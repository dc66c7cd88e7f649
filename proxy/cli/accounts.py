"""`headrace account`: who pays, what they have, which tier and which prices.

Owns the arguments; what they do is the store's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from proxy.access import passwords
from proxy.access.limits import KINDS
from proxy.access.overrides import Override
from proxy.cli import station
from proxy.cli.config import config_path
from proxy.cli.explanation import money
from proxy.cli.options import add_limits, listed, mirror, moment, nanos, told
from proxy.compiler import compile_file
from proxy.ledger.amounts import as_text
from proxy.metering.pricing import price_from_content
from proxy.routing import units
from proxy.snapshot import Snapshot
from proxy.store.catalog import Account, Catalog
from proxy.store.database import Database
from proxy.store.holders import Holders
from proxy.store.overrides import Overrides
from proxy.store.payments import Movement, Payments


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for action in (*_basic_actions(actions), *_business_actions(actions)):
        station.add_arguments(action)


def _basic_actions(actions: Any) -> list[argparse.ArgumentParser]:
    create = actions.add_parser("create", help="a new account, with nothing on it")
    create.add_argument("name", metavar="NAME")
    create.add_argument("--tier", help="instead of the station's default tier")
    create.add_argument("--note", default="", help="for operators")
    create.add_argument("--contact", default="", help="of its holder")
    create.set_defaults(run=run_create)
    topup = actions.add_parser("topup", help="add to a balance, once per reference")
    topup.add_argument("name", metavar="NAME")
    topup.add_argument(
        "--amount", required=True, type=told(units.amount), help="in the station's currency: 10 or '10 CNY'"
    )
    topup.add_argument("--ref", required=True, help="the payment's own id; the same again adds nothing")
    topup.add_argument("--paid", type=told(units.amount), help="what was really paid: '1.40 USD'")
    topup.set_defaults(run=run_topup)
    set_ = actions.add_parser(
        "set", help="freeze an account, close it or open it again; tier, mirrors, password"
    )
    set_.add_argument("name", metavar="NAME")
    set_.add_argument("--status", choices=("active", "frozen", "closed"))
    set_.add_argument("--tier", help="its own; '' for the station's default one")
    set_.add_argument("--note", help="for operators")
    set_.add_argument("--contact", help="of its holder")
    set_.add_argument("--password", action="store_true", help="for the portal; read from stdin")
    set_.add_argument("--mirror", type=told(mirror), help="of its keys that say only auto: cdn,auto")
    add_limits(set_)
    set_.set_defaults(run=run_set)
    show = actions.add_parser("show", help="one account or all")
    show.add_argument("name", metavar="NAME", nargs="?")
    show.set_defaults(run=run_show)
    return [create, topup, set_, show]


def _business_actions(actions: Any) -> list[argparse.ArgumentParser]:
    adjust = actions.add_parser("adjust", help="add to a balance or take from it, with a reason")
    adjust.add_argument("name", metavar="NAME")
    adjust.add_argument("--amount", required=True, type=told(nanos), help="10 or --amount=-2.5")
    adjust.add_argument("--reason", required=True)
    adjust.add_argument("--ref", required=True, help="its own id; the same again moves nothing")
    adjust.set_defaults(run=run_adjust)
    grant = actions.add_parser("grant", help="give a tier for a time")
    grant.add_argument("name", metavar="NAME")
    grant.add_argument("--tier", required=True)
    grant.add_argument("--until", required=True, type=told(moment), help="2026-12-31, or never: for good")
    grant.add_argument("--ref", help="the same again changes only its end; default: the tier")
    grant.add_argument("--config", metavar="FILE", help="default: routes.yaml in this folder")
    grant.set_defaults(run=run_grant)
    price = actions.add_parser("price", help="its own prices: list, set or end one")
    price.add_argument("name", metavar="NAME")
    price.add_argument("--model", metavar="GLOB", help="a model's name, or a glob")
    what = price.add_mutually_exclusive_group()
    what.add_argument(
        "--multiplier", type=told(units.multiplier_ppm), help="instead of those of model and tier"
    )
    what.add_argument("--figures", type=told(figures), help="input=2,output=8: as it is, per million tokens")
    what.add_argument("--end", action="store_true", help="what routes.yaml says counts again")
    price.set_defaults(run=run_price)
    return [adjust, grant, price]


# -- accounts ----------------------------------------------------------------------------------------


def run_create(args: argparse.Namespace) -> int:
    async def change(catalog: Catalog) -> list[Account]:
        return [await catalog.create_account(args.name, tier=args.tier, note=args.note, contact=args.contact)]

    return _show_accounts(args, change)


def run_set(args: argparse.Namespace) -> int:
    password = None
    if args.password:
        password = passwords.kept(sys.stdin.readline().rstrip("\n"), os.urandom(passwords.SALT_BYTES))

    async def work(database: Database) -> None:
        catalog = Catalog(database)
        changes = {"status": args.status, "tier": args.tier, "note": args.note, "contact": args.contact}
        await catalog.set_account(args.name, **changes)
        if args.mirror is not None:
            await catalog.set_account_mirror(args.name, args.mirror)
        limits = {kind: amount for kind, amount in vars(args).items() if kind in KINDS}
        if limits:
            await catalog.set_account_limits(args.name, limits)
        if password is not None:
            await Holders(database).set_password(args.name, password)

    station.ask(args, work)
    return run_show(args)


def run_show(args: argparse.Namespace) -> int:
    async def find(catalog: Catalog) -> list[Account]:
        return [await catalog.account(args.name)] if args.name else await catalog.accounts()

    return _show_accounts(args, find)


def _show_accounts(
    args: argparse.Namespace, accounts_of: Callable[[Catalog], Awaitable[list[Account]]]
) -> int:
    async def work(database: Database) -> tuple[list[Account], str]:
        catalog = Catalog(database)
        return await accounts_of(catalog), await catalog.currency()

    accounts, currency = station.ask(args, work)
    rows = [
        [
            a.id,
            a.name,
            a.status,
            a.tier or "-",
            listed(a.mirror),
            *(money(n, currency) for n in (a.balance_nanos, a.free_nanos, a.available_nanos)),
        ]
        for a in accounts
    ]
    lines = station.table(["id", "name", "status", "tier", "mirror", "balance", "free", "available"], rows)
    station.show(args, [asdict(a) for a in accounts], lines)
    return 0


def run_topup(args: argparse.Namespace) -> int:
    """0 also when this reference was posted before: the account has the money once."""

    async def work(database: Database) -> tuple[dict[str, Any], str]:
        catalog = Catalog(database)
        currency = await catalog.currency()
        amount = args.amount
        if amount.currency not in (None, currency):
            raise ValueError(
                f"--amount is in {currency or 'the currency of the station'}; use --paid beside it"
            )
        nanos = units.nanos(amount.value, Decimal(1))
        if Decimal(nanos) != amount.value * units.NANOS:
            raise ValueError("--amount: at most nine digits behind the point")
        paid = (args.paid.value, args.paid.currency or currency) if args.paid else None
        posting = await catalog.top_up(args.name, nanos, args.ref, paid=paid)
        account = await catalog.account(args.name)
        return {**asdict(posting), "balance_nanos": account.balance_nanos}, currency

    posting, currency = station.ask(args, work)
    said = "topped up" if posting["is_new"] else "was topped up before"
    line = f"{args.name} {said} by {money(posting['amount_nanos'], currency)}, balance "
    station.show(args, posting, [line + money(posting["balance_nanos"], currency)])
    return 0


def run_adjust(args: argparse.Namespace) -> int:
    movement = Movement("adjustment", args.amount, "cli", args.ref, note=args.reason)

    async def work(database: Database) -> dict[str, Any]:
        posting = await Payments(database).move(args.name, movement)
        account = await Catalog(database).account(args.name)
        return {**asdict(posting), "balance_nanos": account.balance_nanos}

    posting = station.ask(args, work)
    said = "adjusted" if posting["is_new"] else "was adjusted before"
    line = f"{args.name} {said} by {as_text(posting['amount_nanos'])}, balance "
    station.show(args, posting, [line + as_text(posting["balance_nanos"])])
    return 0


def run_grant(args: argparse.Namespace) -> int:
    """The rank is that of routes.yaml as it is now."""
    table = Snapshot.from_document(compile_file(config_path(args.config), os.environ).document).table
    if args.tier not in table.tiers:
        raise LookupError(f"routes.yaml has no tier {args.tier!r}")
    rank, reference = table.tiers[args.tier].rank, args.ref or f"{args.name}/{args.tier}"

    async def work(database: Database) -> None:
        await Catalog(database).grant_tier(args.name, args.tier, rank, args.until, reference)

    station.ask(args, work)
    until = args.until and args.until.isoformat()
    document = {"account": args.name, "tier": args.tier, "until": until}
    station.show(
        args, document, [f"{args.name} has {args.tier} " + (f"until {until}" if until else "for good")]
    )
    return 0


def run_price(args: argparse.Namespace) -> int:
    is_change = args.end or args.multiplier is not None or args.figures is not None
    if is_change and not args.model:
        raise ValueError("--model says whose price that is; '*' stands for every model's")

    async def work(database: Database) -> list[Override]:
        overrides = Overrides(database)
        if args.end:
            await overrides.end(args.name, args.model)
        elif is_change:
            await overrides.put(args.name, args.model, ppm=args.multiplier, content=args.figures)
        await Catalog(database).account(args.name)
        return await overrides.of(args.name)

    found = station.ask(args, work)
    rows = [[o.id, o.model, _terms(o)] for o in found]
    station.show(args, [asdict(o) for o in found], station.table(["id", "model", "price"], rows))
    return 0


def _terms(override: Override) -> str:
    if override.ppm is not None:
        return f"times {as_text(override.ppm * 1000)}"
    return ", ".join(
        f"{name} {as_text(figure) if type(figure) is int else figure}"
        for name, figure in (override.content or {}).items()
    )


def figures(text: str) -> dict[str, int]:
    """`input=2,output=8` as metering.pricing keeps a price."""
    content = {}
    for part in text.split(","):
        name, _, amount = part.partition("=")
        content[name.strip()] = nanos(amount.strip())
    price_from_content(content)
    return content
