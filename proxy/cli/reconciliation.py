"""`headrace reconcile FILE --upstream U`: an upstream's bill, held against our own calls.

Owns the arguments, reading the file and the layout; what its columns mean is ledger.vendor_bills', the
matching ledger.reconciliation's.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson

from proxy.cli import station
from proxy.cli.explanation import money
from proxy.ledger.reconciliation import DOUBLED, PATIENCE_MS, Billed, Calls, Finding, Totals
from proxy.ledger.vendor_bills import Bill, BillLine, Row, UnreadableBillError, each_row, read_bill
from proxy.routing.units import NANOS, positive_decimal
from proxy.store.catalog import Catalog
from proxy.store.database import Database
from proxy.store.reconciliation import attempts_at

FILE_BYTES_MAX = 512 << 20  # it is held in memory whole, at about three times its size


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="CSV, TSV or JSON, as the upstream exports it"
    )
    parser.add_argument("--upstream", required=True, metavar="NAME", help="as routes.yaml names it")
    parser.add_argument(
        "--rate", type=positive_decimal, metavar="R", help="one unit of the bill's currency in the station's"
    )
    parser.add_argument("--currency", help="the bill's, where it does not say")
    parser.add_argument(
        "--timezone",
        type=ZoneInfo,
        default=UTC,
        metavar="ZONE",
        help="of times that do not tell theirs (UTC)",
    )
    parser.set_defaults(run=run)
    station.add_arguments(parser)


@dataclass(frozen=True, slots=True)
class Result:
    """What holding the bill against our calls gave."""

    kind: str
    currency: str  # the station's
    lines: int
    attempts: int  # of ours that were looked at
    by_id: int
    by_time: int
    findings: list[Finding]


def run(args: argparse.Namespace) -> int:
    """1 if the bill and our calls differ anywhere."""
    bill = read_bill(_rows(args.file), args.timezone)

    async def work(database: Database) -> Result:
        currency = await Catalog(database).currency()
        return await _reconcile(database, args.upstream, bill, currency, _rate(args, bill, currency))

    result = station.ask(args, work)
    station.show(args, _document(result), _lines(result))
    return 1 if result.findings else 0


def _rows(path: Path) -> Iterable[Row]:
    """Raises UnreadableBillError, OSError."""
    if path.stat().st_size > FILE_BYTES_MAX:
        raise UnreadableBillError(f"{path} is larger than {FILE_BYTES_MAX >> 20} MiB: give it month by month")
    text = path.read_text("utf-8-sig")
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return list(each_row(orjson.loads(text)))
        except orjson.JSONDecodeError as e:
            raise UnreadableBillError(f"{path} is not JSON: {e}") from e
    head = text.partition("\n")[0]
    delimiter = max(",\t;", key=head.count)
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)


def _rate(args: argparse.Namespace, bill: Bill, currency: str) -> Decimal:
    """Raises ValueError where a rate is needed and was not given."""
    billed_in = (args.currency or bill.currency or currency).upper()
    if args.rate is None and billed_in != currency:
        raise ValueError(f"the bill is in {billed_in}, the station in {currency}: give --rate")
    return args.rate or Decimal(1)


async def _reconcile(database: Database, upstream: str, bill: Bill, currency: str, rate: Decimal) -> Result:
    def nanos(amount: Decimal) -> int:
        return int((amount * rate * NANOS).to_integral_value(ROUND_HALF_EVEN))

    def billed(line: BillLine) -> Billed:
        return Billed(line, None if line.cost is None else nanos(line.cost))

    tolerance = nanos(bill.rounding) + 1
    calls = Calls((billed(line) for line in bill.lines if not line.is_total), tolerance)
    totals = Totals((billed(line) for line in bill.lines if line.is_total), bill.idle, tolerance)
    edges = [ms for line in bill.lines for ms in (line.at_ms, line.until_ms)]
    edges += [ms for period in bill.idle for ms in period]
    sides = [side for side in (calls, totals) if side.has_lines]
    attempts = 0
    if edges:
        around = (min(edges) - PATIENCE_MS, max(edges) + PATIENCE_MS)
        async for attempt in attempts_at(database, upstream, *around):
            attempts += 1
            for side in sides:
                side.add(attempt)
    doubled = [
        Finding(
            DOUBLED, "the same line again", line.at_ms, line.model, line.number, None, billed(line).cost_nanos
        )
        for line in bill.doubled
    ]
    return Result(
        bill.kind, currency, len(bill.lines) + len(bill.doubled), attempts, calls.by_id, calls.by_time,
        [*doubled, *calls.findings(), *totals.findings()],
    )  # fmt: skip


def _document(result: Result) -> dict[str, object]:
    return {**asdict(result), "stakes_nanos": _stakes(result)}


def _stakes(result: Result) -> dict[str, int]:
    """By kind: how much more the bill takes than was expected; less is below 0."""
    stakes: Counter[str] = Counter()
    for finding in result.findings:
        stakes[finding.kind] += finding.stake_nanos or 0
    return dict(sorted(stakes.items()))


def _lines(result: Result) -> list[str]:
    rows = [
        [
            finding.kind, finding.line or "-", finding.call or "-",
            f"{datetime.fromtimestamp(finding.at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}", finding.model or "-",
            "-" if finding.stake_nanos is None else money(finding.stake_nanos, result.currency), finding.what,
        ]
        for finding in result.findings
    ]  # fmt: skip
    head = ["difference", "line", "call", "at (UTC)", "model", "at stake", "what"]
    lines = [*station.table(head, rows), ""] if rows else []
    lines.append(f"{result.kind}: {result.lines} lines, {result.attempts} attempts of ours")
    if result.by_id or result.by_time:
        lines.append(f"matched {result.by_id} by id, {result.by_time} by time")
    if not result.attempts:
        lines.append("no call of ours went to an upstream of that name at that time")
    counts = Counter(finding.kind for finding in result.findings)
    lines += [
        f"{counts[kind]} {kind}: {money(stake, result.currency)} at stake"
        for kind, stake in _stakes(result).items()
    ]
    return lines if rows else [*lines, "no difference"]
