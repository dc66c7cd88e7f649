"""`python -m proxy.child KIND`: how the supervisor's children begin.

Owns reading the orders from stdin; the rest of stdin is the lifeline. The imports come first, so that
they overlap with whatever the supervisor still does (control's orders come when Postgres is up).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from importlib import import_module

from proxy.logs import configure_logging
from proxy.settings import Orders

MODULES = {"worker": "proxy.worker", "control": "proxy.control", "demo": "proxy.demo.__main__"}
LIFELINE_FD = 0
ORDERS_BYTES_MAX = 64 << 10


def read_orders() -> Orders | None:
    """None: the supervisor went away before it said anything."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(LIFELINE_FD, ORDERS_BYTES_MAX)
        if not piece:
            return None
        line += piece
    return Orders.from_line(line)


def end_with_supervisor() -> None:
    """For a child that knows of no lifeline: ask it to stop when the supervisor is gone."""

    def watch() -> None:
        os.read(LIFELINE_FD, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def main(kind: str) -> int:
    module = import_module(MODULES[kind])
    orders = read_orders()
    if orders is None:
        return 1
    settings = orders.settings
    configure_logging(f"w{orders.slot}" if kind == "worker" else kind, settings.log_level)
    if kind == "demo":
        end_with_supervisor()
        return int(module.main(["--listen", str(settings.demo_listen)]))
    if kind == "control":
        return int(module.main(orders, LIFELINE_FD))
    for fd in orders.other_fds:
        os.close(fd)
    module.main(
        settings, orders.slot, orders.listen_fd, settings.channel_path, LIFELINE_FD, orders.incarnation
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
