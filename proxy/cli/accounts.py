"""`headrace account` and `headrace key`: who pays and who may call.

Owns the arguments; what they do is store.catalog's. A new key is printed once and stored nowhere.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from proxy.access.keyformat import is_well_formed
from proxy.cli import station
from proxy.cli.explanation import money
from proxy.routing import units
from proxy.routing.selection import AUTO, Preference, preference
from proxy.store.catalog import Account, Catalog, KeySettings
from proxy.store.database import Database

ALL = "all"  # takes a restriction of a key away again
IMPORTED_KEY = re.compile("[!-~]{16,512}")  # shorter ones are guessed, longer ones no worker looks at


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add = _account_actions if command == "account" else _key_actions
    for action in add(actions):
        station.add_arguments(action)


def _account_actions(actions: Any) -> list[argparse.ArgumentParser]:
    create = actions.add_parser("create", help="a new account, with nothing on it")
    create.add_argument("name", metavar="NAME")
    create.add_argument("--tier", help="instead of the station's default tier")
    create.add_argument("--note", default="", help="for operators")
    create.set_defaults(run=run_create)
    topup = actions.add_parser("topup", help="add to a balance, once per reference")
    topup.add_argument("name", metavar="NAME")
    topup.add_argument(
        "--amount", required=True, type=_told(units.amount), help="in the station's currency: 10 or '10 CNY'"
    )
    topup.add_argument("--ref", required=True, help="the payment's own id; the same again adds nothing")
    topup.add_argument("--paid", type=_told(units.amount), help="what was really paid: '1.40 USD'")
    topup.set_defaults(run=run_topup)
    set_ = actions.add_parser("set", help="freeze an account, close it or open it again; its mirrors")
    set_.add_argument("name", metavar="NAME")
    set_.add_argument("--status", choices=("active", "frozen", "closed"))
    set_.add_argument("--mirror", type=_told(_mirror), help="of its keys that say only auto: cdn,auto")
    set_.set_defaults(run=run_set)
    show = actions.add_parser("show", help="one account or all")
    show.add_argument("name", metavar="NAME", nargs="?")
    show.set_defaults(run=run_show)
    return [create, topup, set_, show]


def _key_actions(actions: Any) -> list[argparse.ArgumentParser]:
    create = actions.add_parser("create", help="a new key, printed once")
    create.add_argument("--account", required=True, metavar="NAME")
    create.add_argument("--import", dest="imported", action="store_true", help="read the key from stdin")
    create.set_defaults(run=run_key_create)
    change = actions.add_parser("set", help="change a key; what is not named stays")
    change.add_argument("id", type=int, metavar="ID")
    change.set_defaults(run=run_key_set)
    for parser in (create, change):
        _add_settings(parser)
    revoke = actions.add_parser("revoke", help="end a key for good")
    revoke.add_argument("id", type=int, metavar="ID")
    revoke.set_defaults(run=run_key_revoke)
    show = actions.add_parser("list", help="the keys of an account or of the station")
    show.add_argument("--account", metavar="NAME")
    show.set_defaults(run=run_key_list)
    return [create, change, revoke, show]


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option per field of KeySettings; what is not given is not in the namespace."""

    def option(name: str, kind: Callable[[str], Any], explanation: str) -> None:
        parser.add_argument(name, type=_told(kind), default=argparse.SUPPRESS, help=explanation)

    option("--label", str, "for people")
    option("--mirror", _mirror, "auto, or the only ones to try, in order: cdn,hk; cdn,auto: others too")
    option("--models", _names, f"globs of models: 'gpt-*,o3'; {ALL}: whatever the tier allows")
    option("--routes", _names, f"routes: '/v1/embeddings'; {ALL}")
    option("--endpoints", _names, f"endpoints by name; {ALL}")
    option("--requests-per-minute", _limit, f"a number, or {ALL}: the tier's alone")
    option("--concurrency", _limit, f"a number, or {ALL}: the tier's alone")
    option("--ip-allow", _names, f"networks: 10.0.0.0/8,2001:db8::/32; {ALL}")
    option("--expires-at", _moment, "2026-12-31 or 2026-12-31T12:00 (UTC); never")


def _told(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse shows the words of an ArgumentTypeError only."""

    def parse(text: str) -> Any:
        try:
            return read(text)
        except ValueError as e:
            raise argparse.ArgumentTypeError(f"{text!r}: {e}") from e

    return parse


def _names(text: str) -> tuple[str, ...] | None:
    return None if text == ALL else tuple(name.strip() for name in text.split(",") if name.strip())


def _mirror(text: str) -> Preference:
    return preference(_names(text) or (AUTO,))


def _limit(text: str) -> int | None:
    return None if text == ALL else units.whole(text)


def _moment(text: str) -> datetime | None:
    if text == "never":
        return None
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# -- accounts ----------------------------------------------------------------------------------------


def run_create(args: argparse.Namespace) -> int:
    async def change(catalog: Catalog) -> list[Account]:
        return [await catalog.create_account(args.name, tier=args.tier, note=args.note)]

    return _show_accounts(args, change)


def run_set(args: argparse.Namespace) -> int:
    async def change(catalog: Catalog) -> list[Account]:
        if args.mirror is not None:
            await catalog.set_account_mirror(args.name, args.mirror)
        if args.status is not None:
            await catalog.set_account_status(args.name, args.status)
        return [await catalog.account(args.name)]

    return _show_accounts(args, change)


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
            _list(a.mirror),
            *(money(n, currency) for n in (a.balance_nanos, a.available_nanos)),
        ]
        for a in accounts
    ]
    lines = station.table(["id", "name", "status", "tier", "mirror", "balance", "available"], rows)
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


# -- keys --------------------------------------------------------------------------------------------


def _settings(args: argparse.Namespace, base: KeySettings) -> KeySettings:
    """What was given on the command line over what was there."""
    given = vars(args)
    return replace(base, **{name: given[name] for name in asdict(base) if name in given})


def run_key_create(args: argparse.Namespace) -> int:
    imported = sys.stdin.readline().strip() if args.imported else None
    if imported is not None and not (IMPORTED_KEY.fullmatch(imported) and is_well_formed(imported)):
        raise ValueError("what came from stdin is no key: 16 to 512 visible ASCII characters")

    async def work(database: Database) -> tuple[int, str]:
        return await Catalog(database).create_key(args.account, _settings(args, KeySettings()), key=imported)

    key_id, key = station.ask(args, work)
    station.show(args, {"id": key_id, "key": key}, [key])
    if not args.json:
        print(f"key {key_id} of {args.account}; it is not shown again", file=sys.stderr)
    return 0


def run_key_set(args: argparse.Namespace) -> int:
    async def work(database: Database) -> dict[str, Any]:
        catalog = Catalog(database)
        await catalog.set_key(args.id, _settings(args, await catalog.key_settings(args.id)))
        return next(key for key in await catalog.keys() if key["key_id"] == args.id)

    return _show_keys(args, [station.ask(args, work)])


def run_key_revoke(args: argparse.Namespace) -> int:
    async def work(database: Database) -> bool:
        return await Catalog(database).revoke_key(args.id)

    is_new = station.ask(args, work)
    said = "revoked" if is_new else "was revoked before"
    station.show(args, {"id": args.id, "is_new": is_new}, [f"key {args.id} {said}"])
    return 0


def run_key_list(args: argparse.Namespace) -> int:
    async def work(database: Database) -> list[dict[str, Any]]:
        catalog = Catalog(database)
        if args.account:
            await catalog.account(args.account)
        return await catalog.keys(args.account)

    return _show_keys(args, station.ask(args, work))


def _show_keys(args: argparse.Namespace, keys: list[dict[str, Any]]) -> int:
    rows = [
        [
            key["key_id"], key["account"], key["masked"], key["status"], key["label"] or "-",
            _list(key["mirror"]), _list(key["models"]), _list(key["limits"] and
            [f"{name}={value}" for name, value in key["limits"].items()]), _expiry(key["expires_ms"]),
        ]
        for key in keys
    ]  # fmt: skip
    head = ["id", "account", "key", "status", "label", "mirror", "models", "limits", "expires"]
    document = [{name: value for name, value in key.items() if name != "digest"} for key in keys]
    station.show(args, document, station.table(head, rows))
    return 0


def _list(names: str | list[str] | None) -> str:
    return names if isinstance(names, str) else ",".join(names or ("-",))


def _expiry(expires_ms: int | None) -> str:
    return "-" if expires_ms is None else f"{datetime.fromtimestamp(expires_ms / 1000, UTC):%Y-%m-%d %H:%M}"
