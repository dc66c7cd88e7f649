"""`headrace ledger export`: every line of a span, and what it adds up to.

Owns the arguments, the files and the proof at their end: what the lines add up to is what the ledger says,
to the nano, or the command fails. One page is in memory at a time; all figures are of one moment.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from typing import Any, TextIO

import orjson

from proxy.cli import station
from proxy.cli.explanation import money
from proxy.ledger import receipt as paper
from proxy.store.catalog import Account, Catalog
from proxy.store.database import Database
from proxy.store.reports import Reports
from proxy.store.statements import Books, Span

COLUMNS = (*paper.COLUMNS, *paper.OPERATOR_COLUMNS)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("account", metavar="ACCOUNT", nargs="?", help="default: every account")
    add_span(parser)
    parser.add_argument("--format", choices=("csv", "json"), help="default: csv, with --json json")
    parser.add_argument("--out", metavar="FILE", help="default: standard output")
    parser.set_defaults(run=run)
    station.add_arguments(parser)


def add_span(parser: argparse.ArgumentParser) -> None:
    """Options of a command that looks at some days."""
    parser.add_argument("--month", type=month, help="2026-11 (default: this month)")
    for name, to, what in (("--from", "first", "instead: from this day"), ("--to", "last", "up to this day")):
        parser.add_argument(name, dest=to, type=date.fromisoformat, metavar="YYYY-MM-DD", help=what)


def month(text: str) -> date:
    return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()


def run(args: argparse.Namespace) -> int:
    """1 if the lines do not add up to what the ledger posted."""
    form = args.format or ("json" if args.json else "csv")

    async def work(database: Database) -> tuple[dict[str, int], dict[str, int], str]:
        catalog = Catalog(database)
        accounts = [await catalog.account(args.account)] if args.account else await catalog.accounts()
        currency = await catalog.currency()
        span = span_of(args, await catalog.today())
        async with Reports(database).books() as books:
            lines = await _write(out, form, _documents(books, accounts, span, currency))
            posted = [await books.posted(account.id, span) for account in accounts]
        return lines, _sums(posted), currency

    with nullcontext(sys.stdout) if args.out is None else open(args.out, "w", newline="") as out:
        lines, posted, currency = station.ask(args, work)
    _tell(args, lines, posted, currency)
    return 0 if lines == posted else 1


def span_of(args: argparse.Namespace, today: date) -> Span:
    """The days that were named. Raises ValueError: named twice."""
    if args.first is None and args.last is None:
        return Span.month(args.month or today.replace(day=1))
    if args.month:
        raise ValueError("either --month, or --from and --to")
    return Span(args.first, args.last and args.last + timedelta(days=1))


async def _documents(
    books: Books, accounts: Iterable[Account], span: Span, currency: str
) -> AsyncIterator[tuple[dict[str, Any], paper.Document]]:
    """Each line as it is stored, and as it is written."""
    for account in accounts:
        async for page in books.pages(account.id, span):
            prices = await books.prices(page.rows)
            for row in page.rows:
                yield row, paper.document(row, currency, prices) | paper.for_operator(row, account.name)


async def _write(
    out: TextIO, form: str, lines: AsyncIterator[tuple[dict[str, Any], paper.Document]]
) -> dict[str, int]:
    """A table, or an array with a line for each member; what they add up to, by the ledger's kinds."""
    sums: Counter[str] = Counter()
    out.write(paper.csv_line(COLUMNS) if form == "csv" else "[")
    separator = "\n"
    async for row, document in lines:
        sums["usage" if row["kind"] == "call" else row["kind"]] += row["amount_nanos"]
        if form == "csv":
            out.write(paper.csv_line(paper.cells(document, COLUMNS)))
        else:
            out.write(separator + orjson.dumps(document).decode())
            separator = ",\n"
    if form == "json":
        out.write("\n]\n")
    return _told(sums)


def _sums(postings: Iterable[dict[str, int]]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for posted in postings:
        sums.update(posted)
    return _told(sums)


def _told(sums: Counter[str]) -> dict[str, int]:
    return {kind: amount for kind, amount in sorted(sums.items()) if amount}


def _tell(args: argparse.Namespace, lines: dict[str, int], posted: dict[str, int], currency: str) -> None:
    """Beside the lines: on standard output only when they went to a file."""
    is_equal = lines == posted
    if args.json:
        said = orjson.dumps({"lines": lines, "ledger": posted, "equal": is_equal}).decode()
    else:
        shown = [[kind, money(amount, currency)] for kind, amount in posted.items()]
        told = [*station.table(["posted", ""], shown)[1:], "equal to the ledger" if is_equal else ""]
        if not is_equal:
            told[-1] = f"the lines add up to {lines}: run 'headrace ledger audit'"
        said = "\n".join(told)
    print(said, file=sys.stderr if args.out is None else sys.stdout)
