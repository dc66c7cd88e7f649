"""Stands in for a worker or control under a real supervisor: answers with what it is.

Each life leaves a file `NAME.PID` in the folder `births` of the data folder.
"""

import os
import select
import signal
import socket
import sys

from proxy.child import LIFELINE_FD, read_orders


def main(kind: str) -> None:
    orders = read_orders()
    assert orders is not None and orders.kind == kind
    settings = orders.settings
    name = f"w{orders.slot}" if kind == "worker" else kind
    births = settings.data / "births"
    births.mkdir(exist_ok=True)
    life = births / f"{name}.{os.getpid()}"
    wake_in, wake_out = os.pipe()
    os.set_blocking(wake_out, False)
    signal.set_wakeup_fd(wake_out)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    life.write_text(
        f"{orders.incarnation} {settings.database_url or '-'} {os.environ.get('DATABASE_URL', '-')}"
    )
    fds = [LIFELINE_FD, wake_in]
    listener = None
    if kind == "worker":
        listener = socket.socket(fileno=orders.listen_fd)
        fds.append(orders.listen_fd)
    if kind == "control":
        if os.environ.get("FAKE_REFUSES"):
            os.write(orders.ready_fd, b'{"refused": "routes.yaml:1:1: no"}\n')
            sys.exit(78)
        os.write(orders.ready_fd, b'{"generation": 1}\n')
    if os.environ.get("FAKE_CRASHES") == name:
        sys.exit(3)
    while True:
        ready, _, _ = select.select(fds, [], [])
        if LIFELINE_FD in ready:
            life.with_suffix(f".{os.getpid()}.orphan").touch()
            return
        if wake_in in ready:
            signals = os.read(wake_in, 100)
            if signal.SIGHUP in signals:
                life.with_suffix(f".{os.getpid()}.hup").touch()
            if signal.SIGTERM in signals:
                life.with_suffix(f".{os.getpid()}.stopped").touch()
                return
        elif listener is not None:
            connection, _ = listener.accept()
            connection.sendall(str(os.getpid()).encode())
            connection.close()


main(sys.argv[1])
