"""Named places where a test lets the process die as `kill -9` would, at exactly that step.

Owns the list of names. `HEADRACE_CRASH_AT=NAME` dies at the first passing, `NAME:3` at the third; `@FILE`
reads it from the first line of a file when the process starts, and the death takes that line out, so that
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
_script = Path(_asked[1:]) if _asked.startswith("@") else None
if _script is not None:
    _asked = next(iter(_script.read_text().split()), "")
_name, _, _nth = _asked.partition(":")
if _name and _name not in POINTS:
    raise ValueError(f"HEADRACE_CRASH_AT names no crash point: {_name}")
_left = {_name: int(_nth or 1)} if _name else {}


def crash_point(name: str) -> None:
    """Die here when the environment says so: no cleanup, no flush, no exit handler."""
    if _left and name in _left:
        _left[name] -= 1
        if not _left[name]:
            if _script is not None:
                _script.write_text("\n".join(_script.read_text().split()[1:]))
            os._exit(EXIT_STATUS)
