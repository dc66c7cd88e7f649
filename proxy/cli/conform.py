"""`headrace conform`: do bytes pass unchanged, and are they metered as their vendors meant it?"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

import orjson

from proxy import resources
from proxy.conform import live, recordings, replay, report
from proxy.conform.verdict import Result

Job = Coroutine[Any, Any, list[Result]]


def configure(command: str, parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Starts a relay of its own, on an embedded Postgres in a scratch folder, and replays recorded "
        "exchanges through it, or calls a live upstream directly and through it. Exit status 1 where a "
        "single one differs, or could not be replayed and is not named by --skip."
    )
    parser.add_argument(
        "--recordings",
        metavar="DIR",
        type=Path,
        help="folder of recorded exchanges, one JSON file each (default: our own golden answers)",
    )
    parser.add_argument(
        "--skip",
        metavar="NAME",
        action="append",
        default=[],
        help="a recording that may have nothing here to be replayed through; may be given again",
    )
    parser.add_argument("--upstream", metavar="URL", help="call a live upstream instead: a few short calls")
    parser.add_argument("--key", help="its key (default: the variable HEADRACE_CONFORM_KEY)")
    parser.add_argument("--model", help="its model")
    parser.add_argument("--dialect", choices=live.CALLS, default="openai", help="what it speaks")
    parser.add_argument("--seed", type=int, metavar="N", help="of the places where answers are cut")
    parser.add_argument("--json", action="store_true", help="every replay, for machines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    seed = int(time.time()) if args.seed is None else args.seed
    job = calling(args, seed) if args.upstream else replaying(args, seed)
    signal.signal(signal.SIGTERM, stop)
    results = asyncio.run(job)
    say(f"cut with --seed {seed}")
    shown = report.document(results, args.skip)
    print(orjson.dumps(shown).decode() if args.json else report.table(results))
    return 0 if shown["clean"] else 1


def replaying(args: argparse.Namespace, seed: int) -> Job:
    """Raises what recordings.read raises."""
    return replay.run(recordings.read(args.recordings or resources.golden()), seed, say)


def calling(args: argparse.Namespace, seed: int) -> Job:
    """Raises ValueError where it was not said what to call."""
    key = args.key or os.environ.get("HEADRACE_CONFORM_KEY", "")
    if not key or not args.model:
        raise ValueError("--upstream needs --model, and --key or HEADRACE_CONFORM_KEY")
    upstream = live.Upstream(args.upstream.rstrip("/"), key, args.model, args.dialect)
    return live.run(upstream, seed, say)


def say(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


def stop(signum: int, frame: FrameType | None) -> None:
    """Unwind like Ctrl-C does, so that everything that was started is stopped."""
    raise KeyboardInterrupt
