"""The listening sockets of a node, made by the supervisor and inherited by its children.

Owns how they are bound. A socket per worker slot with SO_REUSEPORT, never closed while the node lives:
connections that wait in the queue of a worker that died are served by its successor (faults.md F7).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from proxy.errors import StateError
from proxy.settings import Address

BACKLOG = 4096  # the kernel cuts it down to net.core.somaxconn
# Children of a supervisor that was killed just now need a moment to notice and to let go.
PATIENCE_S = 5.0
RETRY_S = 0.02


class AddressInUse(StateError):
    """Somebody else listens there."""


def public(address: Address, slots: int) -> list[socket.socket]:
    """One listening socket per worker slot, all on one address. Port 0: any free one.

    Raises AddressInUse. The probe binds without SO_REUSEPORT: two stations that share a port would each
    silently get a part of the traffic.
    """
    probe = _patiently(lambda: _bound(address, share=False))
    address = Address(address.host, probe.getsockname()[1])
    probe.close()
    sockets = [_bound(address, share=True) for _ in range(slots)]
    for sock in sockets:
        sock.listen(BACKLOG)
    return sockets


def single(address: Address) -> socket.socket:
    """The only listening socket on an address. Raises AddressInUse."""
    sock = _patiently(lambda: _bound(address, share=False))
    sock.listen(BACKLOG)
    return sock


def free(address: Address) -> Address:
    """The address if nobody listens there, else one on the same host that is free."""
    for port in (address.port, 0):
        try:
            probe = _bound(Address(address.host, port), share=False)
        except AddressInUse:
            continue
        with probe:
            return Address(address.host, probe.getsockname()[1])
    raise AddressInUse(f"{address.host} has no free port")


def unix(path: Path) -> socket.socket:
    """A listening unix socket; one that an earlier life left behind is replaced."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(os.fspath(path))
    path.chmod(0o600)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def _bound(address: Address, *, share: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setblocking(False)
    try:
        sock.bind(tuple(address))
    except OSError as e:
        sock.close()
        raise AddressInUse(f"cannot listen on {address}: {os.strerror(e.errno or 0)}") from e
    return sock


def _patiently(bind: Callable[[], socket.socket]) -> socket.socket:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return bind()
        except AddressInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)
