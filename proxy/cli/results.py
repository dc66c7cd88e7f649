"""`headrace result`: files of tasks that are kept, are still to be fetched, or could not be.

Owns the arguments and the layout; what is removed here, the station's nodes take from their shelf within a
minute.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from datetime import UTC, datetime

from proxy.cli import station
from proxy.store.database import Database
from proxy.store.results import GONE, KEPT, LEFT, LOST, ORDERED, Result, Results

STATES = (ORDERED, KEPT, LEFT, LOST, GONE)
SHOWN = 50


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the newest files, and what has become of them")
    listing.add_argument("--account", metavar="NAME", help="of its tasks only")
    listing.add_argument("--call", metavar="CALL", help="of the task that this call submitted")
    listing.add_argument("--state", choices=STATES)
    listing.add_argument("--limit", metavar="COUNT", type=int, default=SHOWN)
    listing.set_defaults(run=run_list)
    show = actions.add_parser("show", help="all that is known of a file, its vendor's URL with it")
    show.add_argument("id", metavar="ID", help="as in its link")
    show.set_defaults(run=run_show)
    delete = actions.add_parser("delete", help="remove files; their links say that they are gone")
    delete.add_argument("ids", metavar="ID", nargs="+")
    delete.set_defaults(run=run_delete)
    for action in (listing, show, delete):
        station.add_arguments(action)


def run_list(args: argparse.Namespace) -> int:
    async def work(database: Database) -> list[Result]:
        return await Results(database, "").newest(args.account, args.state, args.call, args.limit)

    found = station.ask(args, work)
    rows = [
        [r.id, r.account, _time(r.ordered_ms), r.state, r.size, r.content_type or "-", _time(r.expires_ms),
         r.tries, r.note or "-"]
        for r in found
    ]  # fmt: skip
    head = ["id", "account", "ended (UTC)", "state", "bytes", "type", "until (UTC)", "tries", "why"]
    station.show(args, [asdict(r) for r in found], station.table(head, rows))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Raises LookupError: there is no such file."""
    found = station.ask(args, lambda database: Results(database, "").find(_id(args.id)))
    if found is None:
        raise LookupError(f"no result {args.id}")
    facts = asdict(found) | {
        name: _time(getattr(found, f"{name}_ms")) for name in ("ordered", "kept", "expires")
    }
    lines = [f"{name:13} {station.printable(str(value))}" for name, value in facts.items() if value != ""]
    station.show(args, asdict(found), [line for line in lines if "_ms " not in line])
    return 0


def run_delete(args: argparse.Namespace) -> int:
    """1 if some of them were gone before, or never there."""
    ids = [_id(text) for text in args.ids]
    now_ms = time.time_ns() // 1_000_000
    count = station.ask(args, lambda database: Results(database, "").remove(ids, now_ms))
    station.show(args, {"removed": count}, [f"removed: {count} of {len(ids)}"])
    return 0 if count == len(set(ids)) else 1


def _id(text: str) -> str:
    """A link will do as well."""
    return text.rstrip("/").rpartition("/")[2]


def _time(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}" if at_ms else "-"
