"""`headrace conform`: do bytes pass unchanged, and are they metered as their vendors meant it?"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import orjson

from proxy import resources
from proxy.conform import recordings, replay, report


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Starts a relay of its own, on an embedded Postgres in a scratch folder, and replays recorded "
        "exchanges through it. Exit status 1 where a single one differs."
    )
    parser.add_argument(
        "--recordings",
        metavar="DIR",
        type=Path,
        help="folder of recorded exchanges, one JSON file each (default: our own golden answers)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the places where answers are cut")
    parser.add_argument("--json", action="store_true", help="every replay, for machines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, stop)
    seed = int(time.time()) if args.seed is None else args.seed
    folder = args.recordings or resources.golden()
    results = asyncio.run(replay.run(recordings.read(folder), seed, say))
    say(f"cut with --seed {seed}")
    print(orjson.dumps(report.document(results)).decode() if args.json else report.table(results))
    return 0 if report.is_clean(results) else 1


def say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


def stop(signum: int, frame: FrameType | None) -> None:
    """Unwind like Ctrl-C does, so that everything that was started is stopped."""
    raise KeyboardInterrupt
