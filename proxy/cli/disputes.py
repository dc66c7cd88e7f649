"""`headrace dispute`: tasks whose end the vendor never told, with the holds that wait for a decision.

Owns the arguments and the layout; that a decision counts once is store.due's.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from datetime import UTC, datetime

from proxy.cli import station
from proxy.cli.explanation import money
from proxy.relay.ids import IdSource
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.drainer import days_of
from proxy.store.due import Dispute, DueTasks, decided

WHO = "operator"  # stands for the life of a process in what is posted


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("list", help="every open dispute, and when time decides it")
    show.set_defaults(run=run_list)
    for name, is_charged, what in (
        ("charge", True, "the task was done: take its hold"),
        ("release", False, "the task was not done: give its hold back, as a loss of the station's"),
    ):
        decide = actions.add_parser(name, help=what)
        decide.add_argument(
            "call", metavar="CALL", help="of the call that submitted it, as the list shows it"
        )
        decide.set_defaults(run=run_decide, is_charged=is_charged)
        station.add_arguments(decide)
    station.add_arguments(show)


def run_list(args: argparse.Namespace) -> int:
    async def work(database: Database) -> tuple[list[Dispute], str]:
        return await DueTasks(database, WHO).disputes(), await Catalog(database).currency()

    disputes, currency = station.ask(args, work)
    rows = [
        [d.id, d.account, d.kind, d.vendor_id, f"{d.upstream}/{d.credential}", _time(d.at_ms),
         money(d.hold_nanos, currency), _time(d.deadline_ms), d.note]
        for d in disputes
    ]  # fmt: skip
    head = ["call", "account", "kind", "vendor's id", "at", "submitted (UTC)", "hold", "void at (UTC)", "why"]
    station.show(args, [asdict(d) for d in disputes], station.table(head, rows))
    return 0


def run_decide(args: argparse.Namespace) -> int:
    """Raises LookupError: there is no such dispute (any more)."""

    async def work(database: Database) -> tuple[Dispute, str]:
        due, catalog = DueTasks(database, WHO), Catalog(database)
        call = args.call.replace("-", "")
        dispute = next((d for d in await due.disputes() if d.id == call), None)
        if dispute is None:
            raise LookupError(f"no open dispute about {args.call}")
        now_ms = time.time_ns() // 1_000_000
        seen = decided(dispute, IdSource().next(now_ms), args.is_charged, now_ms)
        if not await due.settle([seen], days_of(await catalog.timezone(), now_ms)):
            raise LookupError(f"the dispute about {args.call} was decided meanwhile")
        return dispute, await catalog.currency()

    dispute, currency = station.ask(args, work)
    what = "charged" if args.is_charged else "released"
    line = f"{what}: {money(dispute.hold_nanos, currency)} of {dispute.account}"
    station.show(args, {**asdict(dispute), "decided": what}, [line])
    return 0


def _time(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}" if at_ms else "-"
