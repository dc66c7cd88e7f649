"""Drive the C load client: start it against a port, read its marks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import orjson

from proxy.bench.machine import BenchError, Process
from proxy.bench.rig import Rig

POLL_S = 0.05
LOAD_S_MAX = 300  # the client's own limit: it stops by itself whatever becomes of the runner


@dataclass(frozen=True, slots=True)
class Mark:
    """The client's counters at one moment; first-byte times are those since the mark before."""

    ns: int
    responses: int
    events: int  # SSE events
    errors: int
    reconnects: int
    open: int  # answers that have begun and not ended
    first_byte_us: dict[str, float]  # n, p50, p99, max
    first_error: str

    @property
    def complaint(self) -> str:
        return f"{self.errors} errors, the first: {self.first_error}" if self.errors else "no errors"


class Load:
    """`connections` clients at `port`, each asking again as soon as it was answered, or `rate`
    requests a second over all of them. `requests`: files, in turn.
    """

    def __init__(self, rig: Rig, port: int, connections: int, requests: list[Path], rate: float = 0) -> None:
        limits = [str(port), str(connections), str(rate), str(LOAD_S_MAX)]
        command = [str(rig.folder / "load"), *limits, *map(str, requests)]
        # What else the subject has on this core (control, Postgres) must not be taken for its answer.
        self._process = Process(command, rig.cores.rest, log=None, is_first=True)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stop()

    def mark(self) -> Mark:
        """Read the counters now. Raises BenchError where the client is gone."""
        pipes = self._process.popen
        assert pipes.stdin and pipes.stdout
        line = b""
        try:
            pipes.stdin.write(b"\n")
            pipes.stdin.flush()
            line = pipes.stdout.readline()
            return Mark(**orjson.loads(line))
        except (BrokenPipeError, orjson.JSONDecodeError, TypeError) as error:
            raise BenchError(f"the load client ended early: {line!r}") from error

    def wait_until_open(self, streams: int, timeout_s: float) -> Mark:
        """Return once that many answers are open. Raises BenchError."""
        deadline = time.monotonic() + timeout_s
        while (mark := self.mark()).open < streams:
            if time.monotonic() > deadline or mark.errors:
                raise BenchError(f"only {mark.open} of {streams} streams opened; {mark.complaint}")
            time.sleep(POLL_S)
        return mark
