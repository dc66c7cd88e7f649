"""`headrace node`: the machines of a station.

Owns the arguments. Retiring frees what a lost node had leased; its unread journal is lost with it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from uuid import UUID

from proxy.cli import station
from proxy.cli.explanation import money
from proxy.store import leases
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.leases import Node


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("list", help="every node, what it has leased, what waits for adoption")
    show.set_defaults(run=run_list)
    retire = actions.add_parser("retire", help="close the leases of a node that will not come back")
    retire.add_argument("node", metavar="NODE", type=UUID)
    retire.add_argument("--force", action="store_true", help="also one that says it lives: a stolen machine")
    retire.set_defaults(run=run_retire)
    for action in (show, retire):
        station.add_arguments(action)


def run_list(args: argparse.Namespace) -> int:
    async def work(database: Database) -> tuple[list[Node], str]:
        return await leases.nodes(database), await Catalog(database).currency()

    nodes, currency = station.ask(args, work)
    rows = [
        [n.id, n.last_seen_at[:19], "yes" if n.is_alive else "no",
         n.retired_at[:19] if n.retired_at else "-", n.open_leases,
         money(n.set_aside_nanos, currency), n.open_lives]
        for n in nodes
    ]  # fmt: skip
    head = ["node", "last seen (UTC)", "alive", "retired", "leases", "set aside", "open lives"]
    station.show(args, [asdict(node) for node in nodes], station.table(head, rows))
    return 0


def run_retire(args: argparse.Namespace) -> int:
    async def work(database: Database) -> int:
        return await leases.retire(database, str(args.node), even_alive=args.force)

    closed = station.ask(args, work)
    station.show(
        args, {"node": str(args.node), "closed_leases": closed}, [f"retired; {closed} leases were closed"]
    )
    return 0
