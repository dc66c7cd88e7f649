"""`headrace callback`: what customers were told of their tasks, what waits, what was given up.

Owns the arguments and the layout; what is sent when is the outbox's.
"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from typing import Any

from proxy.cli import station
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.outbox import FAILED, STATES, Outbox, Secrets

RESEND_MAX = 10_000  # by one command


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("list", help="the newest events, and what became of them")
    show.add_argument("--account", metavar="NAME")
    show.add_argument("--state", choices=STATES)
    show.add_argument("--call", default="", help="that submitted the task")
    show.add_argument("--limit", type=int, default=50)
    show.set_defaults(run=run_list)
    one = actions.add_parser("show", help="one event with its body")
    one.add_argument("event", metavar="EVENT")
    one.set_defaults(run=run_show)
    again = actions.add_parser("resend", help="send events once more, under the same ids")
    again.add_argument("events", metavar="EVENT", nargs="*")
    again.add_argument("--account", metavar="NAME", help="all of its events that were given up")
    again.set_defaults(run=run_resend)
    secret = actions.add_parser("secret", help="what signs the events of an account")
    secret.add_argument("--account", metavar="NAME", required=True)
    change = secret.add_mutually_exclusive_group()
    change.add_argument("--rotate", action="store_true", help="a new one; the old one signs, too, for a day")
    change.add_argument(
        "--revoke", action="store_true", help="a new one; the old one leaked, and signs no more"
    )
    secret.set_defaults(run=run_secret)
    for action in (show, one, again, secret):
        station.add_arguments(action)


async def _account(database: Database, name: str | None) -> int | None:
    return (await Catalog(database).account(name)).id if name else None


def run_list(args: argparse.Namespace) -> int:
    async def work(database: Database) -> list[dict[str, Any]]:
        account = await _account(database, args.account)
        return await Outbox(database).events(
            args.limit, account=account, state=args.state or "", call=args.call
        )

    events = station.ask(args, work)
    rows = [
        [e["id"], e["account"], e["call"], e["sequence"], e["state"], e["tries"],
         e["note"] or e["status"] or "-", _time(e["at_ms"]), _time(e["next_try_ms"]), e["url"]]
        for e in events
    ]  # fmt: skip
    head = ["event", "account", "call", "nth", "state", "tries", "answer", "at (UTC)", "next try", "to"]
    station.show(args, events, station.table(head, rows))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Raises LookupError."""
    event = station.ask(args, lambda database: Outbox(database).event(args.event))
    lines = [f"{name:12} {station.printable(str(value))}" for name, value in event.items()]
    station.show(args, event, lines)
    return 0


def run_resend(args: argparse.Namespace) -> int:
    """Raises LookupError: there is no such event."""
    if not args.events and not args.account:
        raise ValueError("name events, or an --account whose given-up events are meant")

    async def work(database: Database) -> int:
        outbox, account = Outbox(database), await _account(database, args.account)
        ids = args.events
        if not ids:
            failed = await outbox.events(RESEND_MAX, account=account, state=FAILED)
            ids = [event["id"] for event in failed]
        return await outbox.resend(ids, time.time_ns() // 1_000_000, account)

    count = station.ask(args, work)
    if args.events and not count:
        raise LookupError("no such event")
    station.show(args, {"resent": count}, [f"{count} to be sent again"])
    return 0


def run_secret(args: argparse.Namespace) -> int:
    """Raises StateError: it was changed within a day."""

    async def work(database: Database) -> Secrets:
        outbox = Outbox(database)
        account = (await Catalog(database).account(args.account)).id
        if args.rotate or args.revoke:
            return await outbox.rotate(account, time.time_ns() // 1_000_000, revoke=args.revoke)
        return await outbox.secrets(account)

    secrets = station.ask(args, work)
    station.show(args, {"secret": secrets.text}, [secrets.text])
    return 0


def _time(at_ms: int | None) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}" if at_ms else "-"
