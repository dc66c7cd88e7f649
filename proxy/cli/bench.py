"""`headrace bench`: how much of a core the relay takes, beside nginx and a textbook proxy."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import replace
from types import FrameType

import orjson

from proxy.bench import report, runner
from proxy.bench.machine import BenchError


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="one short round instead of three")
    parser.add_argument("--json", action="store_true", help="every sample, for machines")
    parser.add_argument(
        "--only",
        metavar="NAME[,NAME]",
        type=names,
        default=runner.USUAL,
        help=f"measure only these: {', '.join(runner.NAMES)}; {runner.TASKS} alone",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="how often everything is measured")
    parser.set_defaults(run=run)


def names(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    for name in chosen:
        if name not in runner.NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(runner.NAMES)}")
    if runner.TASKS in chosen and len(chosen) > 1:
        raise argparse.ArgumentTypeError(f"{runner.TASKS} is measured alone")
    return chosen


def run(args: argparse.Namespace) -> int:
    plan = replace(runner.QUICK if args.quick else runner.FULL, names=args.only)
    if args.rounds:
        plan = replace(plan, rounds=args.rounds)
    signal.signal(signal.SIGTERM, stop)
    try:
        results = runner.run(plan, say)
    except BenchError as error:
        print(f"headrace bench: {error}", file=sys.stderr)
        return 1
    print(orjson.dumps(report.document(results)).decode() if args.json else report.table(results))
    return 0


def say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


def stop(signum: int, frame: FrameType | None) -> None:
    """Unwind like Ctrl-C does, so that everything that was started is stopped."""
    raise KeyboardInterrupt
