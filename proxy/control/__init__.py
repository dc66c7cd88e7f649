"""Control: the node's one process that talks to Postgres, reloads routes.yaml and serves the operators.

A composition root; the decisions are in `proxy/broker`, `proxy/ledger` and `proxy/store`.
"""

from __future__ import annotations

from proxy.settings import Orders


def main(orders: Orders, lifeline_fd: int) -> int:
    """Run control until it is told to stop; the exit status."""
    from proxy.control.process import run

    return run(orders, lifeline_fd)
