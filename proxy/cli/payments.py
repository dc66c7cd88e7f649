"""`headrace code` and `headrace refund`: credit that is handed out, and money that goes back.

Owns the arguments; what they do is the store's. Codes are printed once and stored nowhere.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from proxy.cli import station
from proxy.cli.options import moment, nanos, told
from proxy.ledger.amounts import as_text
from proxy.store.codes import Codes
from proxy.store.database import Database
from proxy.store.payments import Movement, Payments, Posting


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    if command == "refund":
        _configure_refund(parser)
        station.add_arguments(parser)
        return
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="new redeem codes, told once")
    create.add_argument("--amount", required=True, type=told(nanos), help="that each of them brings")
    create.add_argument("--count", type=int, default=1)
    create.add_argument("--csv", type=Path, metavar="FILE", help="write them there; it must not exist yet")
    create.add_argument("--expires-at", type=told(moment), help="2026-12-31; default: never")
    create.add_argument("--note", default="", help="for operators: what they were made for")
    create.set_defaults(run=run_create)
    show = actions.add_parser("list", help="which codes there are and who used them")
    show.add_argument("--note", help="only those that were made with it")
    show.add_argument("--limit", type=int, default=100)
    show.set_defaults(run=run_list)
    for action in (create, show):
        station.add_arguments(action)


def _configure_refund(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("receipt", nargs="?", metavar="RECEIPT", help="a call's id: what it cost is given back")
    what.add_argument("--payment", metavar="SOURCE/REFERENCE", help="a top-up that was paid back: cli/R1")
    parser.add_argument(
        "--amount", type=told(nanos), default=0, help="of a payment; default: all that is left"
    )
    parser.add_argument("--chargeback", action="store_true", help="the payer's bank took it")
    parser.add_argument("--ref", help="of what went back; needed for a payment")
    parser.add_argument("--reason", default="")
    parser.set_defaults(run=run_refund)


def run_create(args: argparse.Namespace) -> int:
    file = args.csv.open("x", newline="") if args.csv else None  # before anything is made
    codes = station.ask(
        args,
        lambda database: Codes(database).create(
            args.amount, args.count, expires_at=args.expires_at, note=args.note
        ),
    )
    if file is None:
        station.show(args, {"amount_nanos": args.amount, "codes": codes}, codes)
        return 0
    with file:
        rows = csv.writer(file)
        rows.writerow(["code", "amount", "expires_at", "note"])
        until = args.expires_at.isoformat() if args.expires_at else ""
        rows.writerows([code, as_text(args.amount), until, args.note] for code in codes)
    said = f"{len(codes)} codes of {as_text(args.amount)} are in {args.csv}"
    station.show(args, {"amount_nanos": args.amount, "count": len(codes), "csv": str(args.csv)}, [said])
    return 0


def run_list(args: argparse.Namespace) -> int:
    codes = station.ask(args, lambda database: Codes(database).all(args.note, args.limit))
    rows = [
        [c["id"], c["masked"], as_text(c["amount_nanos"]), c["note"] or "-", c["redeemed_by"] or "-"]
        for c in codes
    ]
    station.show(args, codes, station.table(["id", "code", "amount", "note", "redeemed by"], rows))
    return 0


def run_refund(args: argparse.Namespace) -> int:
    """0 also when it was refunded before: the account has the money once."""
    source, _, reference = (args.payment or "").partition("/")
    if args.payment and (not reference or not args.ref):
        raise ValueError("a payment is named as SOURCE/REFERENCE, and --ref names what went back")

    async def work(database: Database) -> Posting:
        payments = Payments(database)
        if not args.payment:
            return await payments.refund_call(args.receipt, args.reason)
        kind = "chargeback" if args.chargeback else "refund"
        movement = Movement(kind, args.amount, "cli", args.ref, note=args.reason)
        return await payments.take_back((source, reference), movement)

    posting = station.ask(args, work)
    document: dict[str, Any] = asdict(posting)
    said = "posted" if posting.is_new else "was posted before"
    station.show(args, document, [f"{as_text(posting.amount_nanos)} {said}, ledger row {posting.id}"])
    return 0
