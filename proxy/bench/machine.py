"""What the benchmark knows of the machine: cores, processes, their CPU time and memory (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
FILES_WANTED = 65536  # 10,000 streams are 20,000 sockets in a proxy
FIRST = -20  # niceness
STOP_S = 30.0  # a relay drains its journal before it goes
LAST_WORDS_MAX = 800  # characters of a log that a note repeats
QUIET_SHARE = 0.05  # of one core, by everything the runner started
QUIET_SAMPLE_S = 0.3

_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Cores:
    """Where things run: the proxy under test alone on one core, everything else on the other."""

    proxy: int
    rest: int

    @property
    def are_apart(self) -> bool:
        return self.proxy != self.rest


def claim_cores() -> Cores:
    """Pick the two cores, move this process off the proxy's, allow many open files."""
    allowed = sorted(os.sched_getaffinity(0))
    cores = Cores(allowed[0], allowed[1] if len(allowed) > 1 else allowed[0])
    os.sched_setaffinity(0, {cores.rest})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(hard, FILES_WANTED), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (ValueError, PermissionError):
            continue  # only root may raise the hard limit
        break
    return cores


def open_files_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class BenchError(Exception):
    """Something that the benchmark needs does not work; the text says what, for the operator."""


class Process:
    """A child on one core that ends with the runner, whatever ends the runner."""

    def __init__(
        self,
        command: Sequence[str],
        core: int,
        log: Path | None,
        environment: dict[str, str] | None = None,
        *,
        is_first: bool = False,
    ) -> None:
        """`log`: where its output goes; None: a pipe that the caller reads. `is_first`: before all others on
        its core, where that is allowed."""

        def child() -> None:
            os.sched_setaffinity(0, {core})
            if is_first:
                with contextlib.suppress(PermissionError):
                    os.setpriority(os.PRIO_PROCESS, 0, FIRST)
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        self.log = log
        with contextlib.ExitStack() as files:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=files.enter_context(log.open("wb")) if log else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | (environment or {}),
                preexec_fn=child,  # noqa: PLW1509 - the runner has one thread
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def wait_for_port(self, port: int, timeout_s: float) -> None:
        """Return once `port` takes connections. Raises BenchError."""
        deadline = time.monotonic() + timeout_s
        while not is_listening(port):
            if self.popen.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{self.popen.args!r} does not listen:\n{self.last_words()}")
            time.sleep(0.02)

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-LAST_WORDS_MAX:] if self.log else ""

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                pipe.close()


def pin(pid: int, core: int) -> None:
    """Move a process with all its threads."""
    for task in _tasks(pid):
        os.sched_setaffinity(task, {core})


def _tasks(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def cpu_ns(pid: int) -> int:
    """CPU time of a process, kernel time and all living threads included; 0 when it is gone."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it or a thread may end meanwhile
        for task in _tasks(pid):
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return total


def waited_ns(pid: int) -> int:
    """How long the main thread was ready to run while something else had its core."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])


@dataclass(frozen=True, slots=True)
class Memory:
    rss: int  # bytes
    pss: int  # bytes; shared pages by their share


def memory(pid: int) -> Memory:
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":", 1)
        fields[name] = int(value.split()[0]) * 1024
    return Memory(fields["Rss"], fields["Pss"])


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent = int(stat.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry))
    found = list(children.get(pid, []))
    for child in found:  # grows while it is walked
        found += children.get(child, [])
    return found


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


def wait_until_quiet(timeout_s: float) -> bool:
    """Wait until nothing that the runner started is busy any more; False: it still was at the end.

    A relay goes on draining its journal after a load, and must not disturb the next measurement.
    """
    deadline = time.monotonic() + timeout_s
    before = _cpu_of_all()
    while time.monotonic() < deadline:
        time.sleep(QUIET_SAMPLE_S)
        after = _cpu_of_all()
        if sum(after[pid] - before.get(pid, 0) for pid in after) < QUIET_SHARE * QUIET_SAMPLE_S * 1e9:
            return True
        before = after
    return False


def _cpu_of_all() -> dict[int, int]:
    return {pid: cpu_ns(pid) for pid in descendants(os.getpid())}
