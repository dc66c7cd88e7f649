"""`headrace bill` and `headrace ledger`: what was used and paid, line by line, and the proof.

Owns the arguments and the layout; the figures are store.reports' and the checks store.audit's.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import UTC, datetime

from proxy.cli import margin, quarantine, statement, station
from proxy.cli.explanation import money
from proxy.store.audit import Violation, audit
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.journal_audit import audit_journals
from proxy.store.reports import Month, Reports
from proxy.store.statements import Cursor, Page, Span


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    if command == "ledger":
        actions = parser.add_subparsers(required=True, metavar="ACTION")
        check = actions.add_parser("audit", help="hold every row against the rules of accounting")
        check.set_defaults(run=run_audit)
        station.add_arguments(check)
        statement.configure(actions.add_parser("export", help="every line of a span, as CSV or JSON"))
        margin.configure(actions.add_parser("margin", help="sale and cost, by upstream and model"))
        quarantine.configure(actions.add_parser("quarantine", help="entries that no table took"))
        return
    parser.add_argument("account", metavar="ACCOUNT")
    parser.add_argument("--month", type=statement.month, help="2026-11 (default: this month)")
    parser.add_argument("--calls", action="store_true", help="call by call, the newest first")
    parser.add_argument("--limit", type=int, default=100, help="lines of a page (100)")
    parser.add_argument("--cursor", help="the page behind another one")
    parser.set_defaults(run=run_bill)
    station.add_arguments(parser)


def run_bill(args: argparse.Namespace) -> int:
    """1 if the calls of a month do not add up to what its ledger took."""
    return _run_calls(args) if args.calls or args.cursor else _run_month(args)


def _run_month(args: argparse.Namespace) -> int:
    async def work(database: Database) -> tuple[Month, str]:
        catalog = Catalog(database)
        account = await catalog.account(args.account)
        first = args.month or (await catalog.today()).replace(day=1)
        return await Reports(database).month(account.id, first), await catalog.currency()

    month, currency = station.ask(args, work)
    station.show(
        args,
        {**asdict(month), "used_nanos": month.used_nanos, "charged_nanos": month.charged_nanos},
        _month_lines(month, currency),
    )
    return 0 if month.used_nanos == month.charged_nanos else 1


def _month_lines(month: Month, currency: str) -> list[str]:
    rows = [
        [line.model, line.calls, line.input_tokens, line.output_tokens, money(line.cost_nanos, currency)]
        for line in month.lines
    ]
    figures = [("corrections", month.corrections_nanos)] if month.corrections_nanos else []
    figures += [("used", month.used_nanos), ("opening balance", month.opening_nanos)]
    figures += [(f"posted as {kind}", amount) for kind, amount in month.postings.items()]
    figures += [("closing balance", month.closing_nanos)]
    lines = station.table(["model", "calls", "input tokens", "output tokens", "cost"], rows)
    lines += ["", *station.table(["", ""], [[name, money(amount, currency)] for name, amount in figures])[1:]]
    if month.used_nanos != month.charged_nanos:
        lines.append(f"the ledger took {money(month.charged_nanos, currency)}: run 'headrace ledger audit'")
    return lines


def _run_calls(args: argparse.Namespace) -> int:
    async def work(database: Database) -> tuple[Page, str]:
        catalog = Catalog(database)
        account = await catalog.account(args.account)
        span = Span.month(args.month) if args.month else Span()
        cursor = Cursor.parse(args.cursor) if args.cursor else None
        async with Reports(database).books() as books:
            page = await books.page(account.id, span, cursor, limit=args.limit)
        return page, await catalog.currency()

    page, currency = station.ask(args, work)
    rows = [
        [
            row["id"], f"{datetime.fromtimestamp(row['ended_ms'] / 1000, UTC):%Y-%m-%d %H:%M:%S}",
            row["kind"], row.get("model", "-"), row.get("outcome", "-"), row.get("provenance", "-"),
            " ".join(f"{bucket}={count}" for bucket, count in row.get("usage", {}).items()) or "-",
            money(row["amount_nanos"], currency),
        ]
        for row in page.rows
    ]  # fmt: skip
    head = ["id", "at (UTC)", "kind", "model", "outcome", "source", "usage", "amount"]
    lines = station.table(head, rows)
    if page.next:
        lines += ["", f"more: --cursor {page.next}"]
    station.show(args, asdict(page), lines)
    return 0


def run_audit(args: argparse.Namespace) -> int:
    """1 if anything is wrong; each line names the invariant and the row."""

    async def work(database: Database) -> list[Violation]:
        return [*await audit(database), *await audit_journals(database, args.data / "journal")]

    violations = station.ask(args, work)
    lines = [station.printable(str(violation)) for violation in violations] or ["clean"]
    station.show(args, {"clean": not violations, "violations": [asdict(v) for v in violations]}, lines)
    return 1 if violations else 0
