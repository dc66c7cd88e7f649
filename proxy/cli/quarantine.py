"""`headrace ledger quarantine`: journal entries that could not be applied.

Owns the arguments and the layout. An entry waits until its reason is gone (an account that was missing, a
newer build) and is tried again, or until an operator dismisses it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from proxy.cli import station
from proxy.store.database import Database
from proxy.store.drainer import days_of
from proxy.store.quarantine import Quarantine, Waiting


def configure(parser: argparse.ArgumentParser) -> None:
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--apply", nargs="*", type=int, metavar="ID", help="try again: these, or all")
    action.add_argument("--dismiss", nargs="+", type=int, metavar="ID", help="nothing is to be made of these")
    parser.set_defaults(run=run)
    station.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """1 if anything that was to be applied still waits."""

    async def work(database: Database) -> tuple[list[Waiting], dict[int, str], int]:
        timezone = await database.fetchval("SELECT timezone FROM station_state")
        quarantine = Quarantine(database, days_of(timezone, time.time_ns() // 1_000_000))
        told: dict[int, str] = {}
        dismissed = 0
        if args.apply is not None:
            told = await quarantine.apply(args.apply or None)
        elif args.dismiss:
            dismissed = await quarantine.dismiss(args.dismiss)
        return await quarantine.waiting(), told, dismissed

    waiting, told, dismissed = station.ask(args, work)
    document = {"waiting": [asdict(found) for found in waiting], "applied": told, "dismissed": dismissed}
    station.show(args, document, _lines(waiting, told, dismissed))
    return 1 if any(told.values()) else 0


def _lines(waiting: list[Waiting], told: dict[int, str], dismissed: int) -> list[str]:
    lines = [f"{id_}: {station.printable(why) if why else 'applied'}" for id_, why in told.items()]
    if dismissed:
        lines.append(f"{dismissed} dismissed")
    head = ["id", "where", "since (UTC)", "entry", "call", "bytes", "why"]
    rows = [[w.id, w.place, w.at[:19], w.kind or "-", w.call or "-", w.size_bytes, w.reason] for w in waiting]
    return [*lines, *(station.table(head, rows) if rows else ["nothing waits"])]
