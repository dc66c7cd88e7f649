"""The data folder as this node's: its lock, its identity, the place of its unix sockets.

Owns `lock`, `node.json` and `run/`. What else lies in the folder has other owners.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import uuid
from pathlib import Path

from proxy.errors import StateError
from proxy.settings import SOCKET_PATH_BYTES_MAX


class StartRefused(StateError):
    """The node cannot start; the message is what the operator has to know."""


class NodeFolder:
    """Held by one supervisor at a time; the kernel frees the lock however that one ends.

    `node` is the node's id for life, `run` the folder of the unix sockets.
    """

    def __init__(self, data: Path) -> None:
        self._data = data

    def __enter__(self) -> NodeFolder:
        """Raises StartRefused while another headrace has the folder."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            owner = os.read(self._lock, 32).decode().strip() or "?"
            os.close(self._lock)
            raise StartRefused(
                f"{self._data} is in use by another headrace (pid {owner}); "
                "give this one its own folder with --data"
            ) from e
        os.truncate(self._lock, 0)
        os.write(self._lock, f"{os.getpid()}\n".encode())
        self.node = _node_id(self._data / "node.json")
        self.run = _run_dir(self._data / "run")
        return self

    def __exit__(self, *_: object) -> None:
        if self.run.parent != self._data:
            shutil.rmtree(self.run, ignore_errors=True)
        os.close(self._lock)


def _node_id(path: Path) -> str:
    """The node's name in Postgres: made once, kept with the journals that it owns."""
    try:
        return str(json.loads(path.read_text())["node"])
    except FileNotFoundError:
        node = str(uuid.uuid4())
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({"node": node}) + "\n")
    draft.rename(path)
    return node


def _run_dir(run: Path) -> Path:
    """Under /tmp, and written down, when the data folder's path is too long for a unix socket."""
    run.mkdir(mode=0o700, exist_ok=True)
    where = run / "where"
    if len(os.fsencode(run / "channel.sock")) <= SOCKET_PATH_BYTES_MAX:
        where.unlink(missing_ok=True)
        return run
    short = Path(tempfile.mkdtemp(prefix="headrace-"))
    where.write_text(f"{short}\n")
    return short
