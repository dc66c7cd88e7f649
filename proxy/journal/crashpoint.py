"""Named places where a test lets the process die as `kill -9` would, at exactly that step.

Owns the list of names. `HEADRACE_CRASH_AT=NAME` dies at the first passing, `NAME:3` at the third; `@FILE`
reads it from the first line of a file at the first passing, and the death takes that line out, so that
the next life dies at the next one. Without it a passing is one call that does nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

POINTS = (
    # one call in the relay, in the order of its life
    "begin-appended",
    "begin-written",
    "request-sent",
    "first-content",
    "terminal-held",
    "end-appended",
    "end-written",
    "last-bytes-sent",
    # the journal itself
    "segment-opened",
    "frames-written",
    "before-fsync",
    "after-fsync",
    "watermark-written",
    # control: from the journal into Postgres
    "drain-before-copy",
    "drain-after-copy",
    "drain-before-commit",
    "drain-after-commit",
    "segment-deleted",
    # control: adoption of a dead life
    "adopt-claimed",
    "adopt-before-commit",
    "adopt-after-commit",
    "adopt-drained",
    # control: leases
    "lease-before-commit",
    "lease-after-commit",
    # control: callbacks
    "callback-claimed",
    "callback-sent",
)
EXIT_STATUS = 137  # what a shell shows for SIGKILL

_asked = os.environ.get("HEADRACE_CRASH_AT", "")
ARMED = bool(_asked)  # the hot path asks this first: `ARMED and crash_point(...)` costs it no call
_script = Path(_asked[1:]) if _asked.startswith("@") else None
_left: dict[str, int] = {}  # passings until death


def crash_point(name: str) -> bool:
    """Die here when the environment says so: no cleanup, no flush, no exit handler. Else False."""
    if ARMED:
        _pass(name)
    return False


def _pass(name: str) -> None:
    if not _left:  # a script is read now, not before: a process may wait for its life to begin
        _left.update(_orders())
    if name in _left:
        _left[name] -= 1
        if not _left[name]:
            if _script is not None:
                _script.write_text("\n".join(_script.read_text().split()[1:]))
            os._exit(EXIT_STATUS)


def _orders() -> dict[str, int]:
    """Raises ValueError: there is no point of that name."""
    asked = _asked if _script is None else next(iter(_script.read_text().split()), "")
    name, _, nth = asked.partition(":")
    if name and name not in POINTS:
        raise ValueError(f"HEADRACE_CRASH_AT names no crash point: {name}")
    return {name: int(nth or 1)}


if _asked and _script is None:
    _left.update(_orders())
