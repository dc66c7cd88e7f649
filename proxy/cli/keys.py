"""`headrace key`: who may call, and what.

Owns the arguments; what they do is store.catalog's. A new key is printed once and stored nowhere.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from proxy.access.keyformat import is_well_formed
from proxy.access.limits import KINDS, SPEND
from proxy.cli import station
from proxy.cli.options import ALL, add_limits, listed, mirror, moment, names, networks, told, yes_or_no
from proxy.ledger.amounts import as_text
from proxy.store.catalog import Catalog, KeySettings
from proxy.store.database import Database

IMPORTED_KEY = re.compile("[!-~]{16,512}")  # shorter ones are guessed, longer ones no worker looks at


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for action in _actions(actions):
        station.add_arguments(action)


def _actions(actions: Any) -> list[argparse.ArgumentParser]:
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
    rotate = actions.add_parser("rotate", help="a new secret for the same key, printed once")
    rotate.add_argument("id", type=int, metavar="ID")
    rotate.add_argument("--old-until", type=told(moment), help="when the old secret ends; default: now")
    rotate.set_defaults(run=run_key_rotate)
    show = actions.add_parser("list", help="the keys of an account or of the station")
    show.add_argument("--account", metavar="NAME")
    show.set_defaults(run=run_key_list)
    return [create, change, revoke, rotate, show]


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option per field of KeySettings; what is not given is not in the namespace."""

    def option(name: str, kind: Callable[[str], Any], explanation: str) -> None:
        parser.add_argument(name, type=told(kind), default=argparse.SUPPRESS, help=explanation)

    option("--label", str, "for people")
    option("--note", str, "for operators")
    option("--mirror", mirror, "auto, or the only ones to try, in order: cdn,hk; cdn,auto: others too")
    option("--models", names, f"globs of models: 'gpt-*,o3'; {ALL}: whatever the tier allows")
    option("--routes", names, f"routes: '/v1/embeddings'; {ALL}")
    option("--endpoints", names, f"endpoints by name; {ALL}")
    add_limits(parser)
    option("--own-receipts", yes_or_no, "yes: it reads receipts of its own calls only, not its account's")
    option("--ip-allow", networks, f"networks: 10.0.0.0/8,2001:db8::/32; {ALL}")
    option("--expires-at", moment, "2026-12-31 or 2026-12-31T12:00 (UTC); never")


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


def run_key_rotate(args: argparse.Namespace) -> int:
    key = station.ask(args, lambda database: Catalog(database).rotate_key(args.id, args.old_until))
    station.show(args, {"id": args.id, "key": key}, [key])
    if not args.json:
        print(f"key {args.id} has this secret now; it is not shown again", file=sys.stderr)
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
            listed(key["mirror"]), listed(key["models"]),
            listed([f"{name}={_amount(name, value)}" for name, value in key["limits"].items()]),
            _expiry(key["expires_ms"]),
        ]
        for key in keys
    ]  # fmt: skip
    head = ["id", "account", "key", "status", "label", "mirror", "models", "limits", "expires"]
    document = [{name: value for name, value in key.items() if name != "digest"} for key in keys]
    station.show(args, document, station.table(head, rows))
    return 0


def _amount(kind: str, value: int) -> str:
    return as_text(value) if KINDS[kind].unit == SPEND else str(value)


def _expiry(expires_ms: int | None) -> str:
    return "-" if expires_ms is None else f"{datetime.fromtimestamp(expires_ms / 1000, UTC):%Y-%m-%d %H:%M}"
