"""`headrace ledger margin`: what calls were sold for and what they cost, by upstream and model.

Owns the arguments and the layout; the figures are store.margins'.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from proxy.cli import statement, station
from proxy.ledger import receipt as paper
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.margins import COLUMNS, GROUPS, Margin, Margins, document, margins


def configure(parser: argparse.ArgumentParser) -> None:
    statement.add_span(parser)
    parser.add_argument("--by", choices=GROUPS, help="default: by both")
    parser.add_argument("--format", choices=("text", "csv", "json"), help="default: text, with --json json")
    parser.set_defaults(run=run)
    station.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """1 if what the calls were sold for is not what the ledger posted."""
    by = (args.by,) if args.by else GROUPS

    async def work(database: Database) -> tuple[Margins, str]:
        catalog = Catalog(database)
        found = await margins(database, statement.span_of(args, await catalog.today()), by)
        return found, await catalog.currency()

    found, currency = station.ask(args, work)
    columns = [name for name in COLUMNS if name in by or name not in GROUPS]
    form = args.format or ("json" if args.json else "text")
    if form == "csv":
        print("".join(_csv(columns, found.lines)), end="")
    else:
        args.json = form == "json"
        told = {
            "currency": currency,
            "data": [_cells(columns, line) for line in found.lines],
            "total": _cells([name for name in columns if name not in GROUPS], found.total),
            "equals_ledger": found.is_equal,
        }
        station.show(args, told, _text(columns, found, currency))
    return 0 if found.is_equal else 1


def _cells(columns: Iterable[str], line: Margin) -> dict[str, object]:
    told = document(line)
    return {name: told[name] for name in columns}


def _csv(columns: list[str], lines: Iterable[Margin]) -> Iterable[str]:
    yield paper.csv_line(columns)
    for line in lines:
        yield paper.csv_line(map(str, _cells(columns, line).values()))


def _text(columns: list[str], found: Margins, currency: str) -> list[str]:
    rows = [list(_cells(columns, line).values()) for line in found.lines]
    total = ["in all" if name in GROUPS else value for name, value in _cells(columns, found.total).items()]
    lines = [*station.table(columns, [*rows, total]), f"amounts in {currency}"]
    if found.total.uncosted:
        lines.append(f"{found.total.uncosted} calls went where no costs are declared: theirs is not known")
    if not found.is_equal:
        lines.append("this is not what the ledger posted: run 'headrace ledger audit'")
    return lines
