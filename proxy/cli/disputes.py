"""`headrace dispute`: tasks whose end the vendor never told, with the holds that wait for a decision.

Owns the arguments and the layout; what a decision does is store.disputes'.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from datetime import UTC, datetime

from proxy.cli import station
from proxy.cli.explanation import money
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.disputes import Disputes
from proxy.store.due import Dispute

CHARGED, RELEASED, ASKED = "charged", "released", "asked about"


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("list", help="every open dispute, and when time decides it")
    show.set_defaults(run=run_list)
    for name, done, what in (
        ("charge", CHARGED, "the task was done: take its hold"),
        ("release", RELEASED, "the task was not done: give its hold back, as a loss of the station's"),
        ("ask", ASKED, "ask the vendor once more: an end that it tells now counts"),
    ):
        decide = actions.add_parser(name, help=what)
        decide.add_argument(
            "call", metavar="CALL", help="of the call that submitted it, as the list shows it"
        )
        decide.set_defaults(run=run_decide, done=done)
        station.add_arguments(decide)
    station.add_arguments(show)


def run_list(args: argparse.Namespace) -> int:
    async def work(database: Database) -> tuple[list[Dispute], str]:
        return await Disputes(database).all(), await Catalog(database).currency()

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
        disputes, now_ms = Disputes(database), time.time_ns() // 1_000_000
        if args.done == ASKED:
            dispute = await disputes.ask(args.call, now_ms)
        else:
            dispute = await disputes.decide(args.call, args.done == CHARGED, now_ms)
        return dispute, await Catalog(database).currency()

    dispute, currency = station.ask(args, work)
    line = f"{args.done}: {money(dispute.hold_nanos, currency)} of {dispute.account}"
    station.show(args, {**asdict(dispute), "decided": args.done}, [line])
    return 0


def _time(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}" if at_ms else "-"
