"""The first process of a node: holds sockets and the data folder's lock, starts, restarts and stops.

Owns the listening sockets, the lock, the node's identity, embedded Postgres and every child process,
and the order in which they start and stop. Has no event loop and no web framework, serves nothing and
opens no database, so that there is little in it that could fail. Times are seconds of the monotonic
clock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from proxy import listeners
from proxy.node import NodeFolder, StartRefused
from proxy.relay.ids import IdSource
from proxy.settings import Address, Orders, Settings

log = logging.getLogger("headrace.supervisor")

LIVED_S = 1.0  # a child that lived this long did not die of its start
BACKOFF_FIRST_S, BACKOFF_LAST_S = 0.25, 10.0
FREE_RESTARTS = 5  # quick deaths in a row that are restarted at once
SPARE_AFTER_S = 1.0  # a worker that has just taken over needs the processor more than its successor
LINGER_S = 3.0  # for a child to exit after what it was given has passed
CONTROL_DRAIN_S = 30.0  # to bring the journals into Postgres; what is left then waits for the next start
SPARE = -1  # slot of a worker that has none yet
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
DEMO_KEY = "headrace-demo-upstream"  # guards canned answers on loopback: no secret
SECRET_VARIABLES = ("DATABASE_URL", "HEADRACE_ADMIN_TOKEN")  # in the orders of those who need them

Announce = Callable[[dict[str, Any]], None]


class Postgres(Protocol):
    """What the supervisor needs of the embedded server."""

    process: subprocess.Popen[bytes] | None

    def start(self) -> str: ...
    def stop(self) -> None: ...


@dataclass(slots=True)
class Child:
    """One place in the node and the process that fills it at the moment."""

    kind: str
    slot: int = 0
    process: subprocess.Popen[bytes] | None = None
    began_s: float = 0.0
    quick_deaths: int = 0
    due_s: float = 0.0  # when to start it again

    @property
    def name(self) -> str:
        if self.slot == SPARE:
            return "spare"
        return f"w{self.slot}" if self.kind == "worker" else self.kind

    def died(self, now_s: float) -> float:
        """Decides when the next life begins; seconds from now."""
        self.process = None
        self.quick_deaths = 0 if now_s - self.began_s >= LIVED_S else self.quick_deaths + 1
        extra = self.quick_deaths - FREE_RESTARTS
        delay_s = 0.0 if extra <= 0 else min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** (extra - 1))
        self.due_s = now_s + delay_s
        return delay_s


def child_command(kind: str) -> list[str]:
    return [sys.executable, "-m", "proxy.child", kind]


@dataclass(slots=True)
class _Sockets:
    workers: list[socket.socket] = field(default_factory=list)
    admin: socket.socket | None = None
    channel: socket.socket | None = None
    web: socket.socket | None = None

    def all(self) -> list[socket.socket]:
        return [*self.workers, *(s for s in (self.admin, self.channel, self.web) if s is not None)]


class Supervisor:
    """`run()` from the main thread; it returns the exit status when the node has stopped.

    `announce` is called with what control says when the node serves for the first time.
    """

    def __init__(
        self,
        settings: Settings,
        postgres: Postgres | None,
        announce: Announce,
        *,
        command: Callable[[str], list[str]] = child_command,
    ) -> None:
        self._settings = settings
        self._postgres = postgres
        self._announce = announce
        self._command = command
        self._ids = IdSource()
        self._sockets = _Sockets()
        self._children = [Child("worker", slot) for slot in range(settings.workers)]
        self._control = Child("control")
        self._extra = [Child("demo")] if settings.demo else []
        # A worker that has imported everything and waits for its orders: the next one that dies is replaced
        # in milliseconds, also on a busy machine.
        self._spare = Child("worker", SPARE, due_s=math.inf)
        self._ready_in, self._ready_out = os.pipe()
        self._wake_in, self._wake_out = os.pipe()
        self._postgres_due_s = 0.0
        self._is_announced = False
        self._refusal: str | None = None

    def run(self) -> int:
        """Raises StartRefused, AddressInUse, OSError when the node cannot start at all."""
        with NodeFolder(self._settings.data) as folder:
            self._settings = replace(
                self._settings, run=folder.run, node=folder.node, node_incarnation=self._new_id()
            )
            try:
                self._bind()
                self._catch_signals()
                self._start()
                self._watch()
                self._drain()
            finally:
                self._abandon()
        if self._refusal is not None:
            raise StartRefused(self._refusal)
        return 0

    # -- start ----------------------------------------------------------------------------------

    def _bind(self) -> None:
        settings, sockets = self._settings, self._sockets
        sockets.workers = listeners.public(settings.listen, settings.workers)
        sockets.admin = listeners.single(settings.admin)
        sockets.channel = listeners.unix(Path(settings.channel_path))
        sockets.web = listeners.unix(Path(settings.web_path))
        # Port 0 asks for any: from here on the real ones.
        self._settings = replace(
            settings,
            listen=Address(settings.listen.host, sockets.workers[0].getsockname()[1]),
            admin=Address(settings.admin.host, sockets.admin.getsockname()[1]),
            demo_listen=listeners.free(settings.demo_listen) if settings.demo else settings.demo_listen,
        )
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:  # every open stream takes two descriptors
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def _catch_signals(self) -> None:
        for end in (self._wake_in, self._wake_out, self._ready_in):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake_out, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)  # the wake-up pipe tells which

    def _start(self) -> None:
        for child in [*self._extra, *self._children]:
            self._launch(child)
        # Control imports while Postgres starts; its orders wait for the address.
        self._launch(self._control, hold_orders=self._postgres is not None)
        if self._postgres is not None:
            self._settings = replace(self._settings, database_url=self._postgres.start())
            self._order(self._control)

    def _launch(self, child: Child, *, hold_orders: bool = False) -> None:
        child.began_s = time.monotonic()
        child.process = self._waiting_worker(child) or self._spawn(child)
        if child is self._spare:
            return
        log.info("started", extra={"child": child.name, "pid": child.process.pid})
        if not hold_orders:
            self._order(child)

    def _waiting_worker(self, child: Child) -> subprocess.Popen[bytes] | None:
        """The spare worker, if it lives and may take this place."""
        spare, process = self._spare, self._spare.process
        if child.kind != "worker" or child is spare or process is None or process.poll() is not None:
            return None
        spare.process, spare.due_s = None, child.began_s + SPARE_AFTER_S
        return process

    def _spawn(self, child: Child) -> subprocess.Popen[bytes]:
        environ = {k: v for k, v in os.environ.items() if k not in SECRET_VARIABLES}
        if self._settings.demo:
            environ["HEADRACE_DEMO_URL"] = f"http://{self._settings.demo_listen}"
            environ["HEADRACE_DEMO_KEY"] = DEMO_KEY
        return subprocess.Popen(  # noqa: S603
            self._command(child.kind),
            stdin=subprocess.PIPE,
            env=environ,
            pass_fds=self._inherited(child),
            process_group=0,  # ^C in a terminal is for the supervisor, which then drains
        )

    def _inherited(self, child: Child) -> list[int]:
        if child.kind == "worker":  # all of them: which one it will serve may be known later
            return [sock.fileno() for sock in self._sockets.workers]
        if child.kind == "control":
            s = self._sockets
            return [*(x.fileno() for x in (s.channel, s.web, s.admin) if x is not None), self._ready_out]
        return []

    def _order(self, child: Child) -> None:
        """Tell a child what it is; its stdin stays open as the lifeline."""
        s, fds = self._sockets, {}
        others: tuple[int, ...] = ()
        settings = self._settings if child.kind == "control" else self._settings.for_worker()
        if child.kind == "worker":
            mine = s.workers[child.slot].fileno()
            others = tuple(sock.fileno() for sock in s.workers if sock.fileno() != mine)
            fds = {"listen_fd": mine}
        elif child.kind == "control":
            assert s.channel and s.web and s.admin
            fds = {
                "channel_fd": s.channel.fileno(),
                "web_fd": s.web.fileno(),
                "admin_fd": s.admin.fileno(),
                "ready_fd": self._ready_out,
            }
        prefix = "c" if child.kind == "control" else child.name
        orders = Orders(
            settings, child.kind, f"{prefix}-{self._new_id()}", child.slot, **fds, other_fds=others
        )
        assert child.process is not None and child.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead already; SIGCHLD is on its way
            child.process.stdin.write(orders.to_line())
            child.process.stdin.flush()

    def _new_id(self) -> str:
        return self._ids.next(time.time_ns() // 1_000_000)

    # -- while it runs --------------------------------------------------------------------------

    def _watch(self) -> None:
        """Until somebody wants the node to stop, or it cannot start."""
        while self._refusal is None:
            signals = self._wait(self._next_due_s())
            if signal.SIGHUP in signals and _terminal_is_gone():
                return
            if signal.SIGTERM in signals or signal.SIGINT in signals:
                return
            if signal.SIGHUP in signals and self._control.process is not None:
                self._control.process.send_signal(signal.SIGHUP)
            self._hear_control()
            self._revive()

    def _wait(self, timeout_s: float | None) -> set[int]:
        """The signals that came, at the latest after `timeout_s`."""
        readable = [self._wake_in] if self._ready_in < 0 else [self._wake_in, self._ready_in]
        select.select(readable, [], [], timeout_s)
        try:
            return set(os.read(self._wake_in, 4096))
        except BlockingIOError:
            return set()

    def _all(self) -> list[Child]:
        return [self._control, *self._children, *self._extra, self._spare]

    def _next_due_s(self) -> float | None:
        waiting = [c.due_s for c in self._all() if c.process is None and c.due_s < math.inf]
        if self._postgres is not None and self._postgres_due_s:
            waiting.append(self._postgres_due_s)
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _revive(self) -> None:
        """Put a new process wherever one died."""
        self._revive_postgres()
        now_s = time.monotonic()
        for child in self._all():
            if child.process is not None and child.process.poll() is not None:
                status = child.process.returncode
                _close_pipe(child.process)
                again_s = child.died(now_s)
                log.warning("died", extra={"child": child.name, "status": status, "again_s": again_s})
            if child.process is None and child.due_s <= now_s:
                self._launch(child)  # the spare comes last: others may need it in the same round

    def _revive_postgres(self) -> None:
        if self._postgres is None or self._postgres_due_s > time.monotonic():
            return
        process = self._postgres.process
        if process is not None and process.poll() is None:
            return
        log.error("postgres ended", extra={"status": process.returncode if process else None})
        try:
            address = self._postgres.start()
        except OSError:
            # The workers go on with what they hold (money.md, "Postgres away").
            self._postgres_due_s = time.monotonic() + BACKOFF_LAST_S
            log.exception("postgres does not start")
            return
        self._postgres_due_s = 0.0
        if address != self._settings.database_url:
            self._settings = replace(self._settings, database_url=address)
            if self._control.process is not None:
                self._control.process.terminate()  # the next one is told the new address

    def _hear_control(self) -> None:
        """Control writes one line: the node serves, or why it never will."""
        try:
            said = os.read(self._ready_in, 1 << 16)
        except BlockingIOError:
            return
        for line in said.splitlines():
            message = json.loads(line)
            if "refused" in message and not self._is_announced:
                self._refusal = message["refused"]
            elif "refused" not in message and not self._is_announced:
                self._is_announced = True
                self._spare.due_s = time.monotonic()  # not before: a start needs all of the machine
                where = {"listen": self._settings.listen, "admin": self._settings.admin}
                self._announce({**message, **where, "tls": bool(self._settings.tls_cert)})

    # -- stop -----------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Workers finish their calls, control empties the journals, Postgres stops: in this order."""
        log.info("stopping")
        _kill([self._spare])
        for sock in self._sockets.workers:
            sock.close()  # with the workers' copies gone, new connections are refused at once
        self._end(self._children, self._settings.drain_grace_s + LINGER_S)
        self._end([self._control], CONTROL_DRAIN_S)
        self._end(self._extra, LINGER_S)
        if self._postgres is not None:
            self._postgres.stop()
        log.info("stopped")

    def _end(self, children: list[Child], within_s: float) -> None:
        """Ask them to stop, wait, and kill what is left. A second signal means: now."""
        deadline_s = time.monotonic() + within_s
        for child in children:
            if child.process is not None:
                child.process.send_signal(signal.SIGTERM)
        while alive := [c for c in children if c.process is not None and c.process.poll() is None]:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or self._wait(left_s) & {signal.SIGTERM, signal.SIGINT}:
                break
        for child in alive:
            log.error("killed: it did not stop in time", extra={"child": child.name})
        _kill(children)

    def _abandon(self) -> None:
        """Whatever went wrong: leave nothing behind."""
        _kill(self._all())
        if self._postgres is not None:
            self._postgres.stop()
        for sock in self._sockets.all():
            sock.close()


def _kill(children: Iterable[Child]) -> None:
    for child in children:
        if child.process is not None:
            child.process.kill()
            child.process.wait()
            _close_pipe(child.process)
            child.process = None


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _terminal_is_gone() -> bool:
    """SIGHUP reloads, except when it says that the terminal we were started in was closed."""
    try:
        termios.tcgetattr(0)
    except termios.error as e:
        return bool(e.args[0] == errno.EIO)
    return False
