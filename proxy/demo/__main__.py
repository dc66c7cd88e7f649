"""`python -m proxy.demo --listen 127.0.0.1:PORT`: run the demo upstream until it is told to stop."""

from __future__ import annotations

import argparse
import os
import sys

from aiohttp import web

from proxy.demo.app import PIECES_PER_SECOND, STEP_S, make_app

LOOPBACK = "127.0.0.1"  # it takes any prompt and, without a key, any caller: never beyond this machine
STOP_S = 2.0  # how long running answers may still take when it stops


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m proxy.demo", description="The demo upstream.")
    parser.add_argument("--listen", default=f"{LOOPBACK}:8082", metavar="HOST:PORT")
    parser.add_argument("--pace", type=float, default=PIECES_PER_SECOND, help="pieces a second; 0: no pause")
    parser.add_argument(
        "--step", type=float, default=STEP_S, help="seconds between two steps of a task; 0: only when told"
    )
    ns = parser.parse_args(arguments)
    host, _, port = ns.listen.rpartition(":")
    if host not in (LOOPBACK, "localhost") or not port.isdigit():
        parser.error(f"--listen must be {LOOPBACK}:PORT, not {ns.listen}")
    app = make_app(os.environ.get("HEADRACE_DEMO_KEY", ""), ns.pace, ns.step)
    try:
        web.run_app(
            app,
            host=LOOPBACK,
            port=int(port),
            shutdown_timeout=STOP_S,
            handler_cancellation=True,
            access_log=None,
            print=None,
        )
    except OSError as error:
        sys.stderr.write(f"proxy.demo: cannot listen on {ns.listen}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
