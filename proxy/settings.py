"""What one start of headrace was told: command line and environment, as one frozen `Settings`.

Owns names, defaults and bounds of the process-wide settings and the layout of the data folder. Reads
no file and opens nothing: the supervisor makes a Settings once, its children get it as text.
Routes, prices and tiers are not here; they are routes.yaml's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

WORKERS_MAX = 256  # a slot is one socket and one core; more is a typing mistake
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
SOCKET_PATH_BYTES_MAX = 100  # sun_path holds 108; some room for the longest file name


class SettingsError(ValueError):
    """A setting cannot be used; the message is one line that names it."""


class Address(NamedTuple):
    """Where a listener binds. An IPv6 host is kept without its brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """`HOST:PORT`, `[V6]:PORT`, `:PORT` or `PORT`. Raises SettingsError."""
        host, _, port = text.rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise SettingsError(f"not an address (HOST:PORT): {text!r}")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


PUBLIC = Address("127.0.0.1", 8080)
OPERATORS = Address("127.0.0.1", 8081)
DEMO = Address("127.0.0.1", 8082)


@dataclass(frozen=True, slots=True)
class Settings:
    """Times end in `_s` (seconds), sizes in `_bytes`. Secrets never show in the repr."""

    data: Path = Path(".headrace")
    config: Path = Path("routes.yaml")
    listen: Address = PUBLIC
    admin: Address = OPERATORS
    workers: int = 1
    demo: bool = False
    demo_listen: Address = DEMO  # the demo upstream
    tls_cert: str = ""
    tls_key: str = ""
    log_level: str = "INFO"
    drain_grace_s: float = 60.0  # how long running calls may go on after SIGTERM
    journal_fsync_interval_s: float = 0.03  # what a power loss may cost (money.md 9: 20 to 50 ms)
    journal_segment_bytes: int = 64 << 20
    journal_reserve_bytes: int = 32 << 20  # kept free so that ENOSPC stops admission before settlement
    key_stale_s: float = 900.0  # how long a known key works while Postgres is away
    node: str = ""  # this node's id, for life (node.json)
    node_incarnation: str = ""  # this life of the supervisor
    run: Path = Path(".headrace/run")  # unix sockets; elsewhere when the data path is too long
    database_url: str = field(default="", repr=False)  # "" until the embedded Postgres is up
    admin_token: str = field(default="", repr=False)

    @property
    def journal_dir(self) -> Path:
        """Holds one directory per incarnation."""
        return self.data / "journal"

    @property
    def spool_dir(self) -> Path:
        return self.data / "spool"

    @property
    def demo_key_path(self) -> Path:
        return self.data / "demo.key"

    @property
    def channel_path(self) -> str:
        return str(self.run / "channel.sock")

    @property
    def web_path(self) -> str:
        """Where control serves portal, status and key holders' figures to the workers."""
        return str(self.run / "web.sock")

    def for_worker(self) -> Settings:
        """Without what only control may know."""
        return replace(self, database_url="", admin_token="")

    def to_text(self) -> str:
        """For a child's environment; `from_text` is its inverse."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_text(cls, text: str) -> Settings:
        values = json.loads(text)
        for name in ("listen", "admin", "demo_listen"):
            values[name] = Address(*values[name])
        for name in ("data", "config", "run"):
            values[name] = Path(values[name])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Orders:
    """What a child is told by the supervisor: one line on its stdin, which then stays open as lifeline
    (end of file: the supervisor is gone). Descriptors are inherited; -1 where a kind has none.
    """

    settings: Settings
    kind: str  # worker | control | demo
    incarnation: str
    slot: int = 0
    listen_fd: int = -1  # worker: its public socket
    other_fds: tuple[int, ...] = ()  # worker: to be closed, the public sockets of the others
    channel_fd: int = -1  # control: the listener of the channel
    web_fd: int = -1  # control: the listener for portal and key holders' figures
    admin_fd: int = -1  # control: the operators' listener
    ready_fd: int = -1  # control: one line is written when the node serves

    def to_line(self) -> bytes:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return json.dumps({**values, "settings": self.settings.to_text()}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Orders:
        values = json.loads(line)
        values["other_fds"] = tuple(values["other_fds"])
        return cls(**{**values, "settings": Settings.from_text(values["settings"])})


_FROM_ENVIRON = {
    "DATABASE_URL": "database_url",
    "HEADRACE_ADMIN_TOKEN": "admin_token",
    "HEADRACE_CONFIG": "config",
    "HEADRACE_DATA": "data",
    "HEADRACE_LISTEN": "listen",
    "HEADRACE_ADMIN": "admin",
    "HEADRACE_DEMO_LISTEN": "demo_listen",
    "HEADRACE_WORKERS": "workers",
    "HEADRACE_LOG_LEVEL": "log_level",
    "HEADRACE_DRAIN_GRACE_S": "drain_grace_s",
    "HEADRACE_JOURNAL_SEGMENT_BYTES": "journal_segment_bytes",
    "HEADRACE_JOURNAL_RESERVE_BYTES": "journal_reserve_bytes",
    "HEADRACE_KEY_STALE_S": "key_stale_s",
}


def load(environ: Mapping[str, str], given: Mapping[str, object | None]) -> Settings:
    """Command line (`given`; None means not given) over environment over defaults.

    Raises SettingsError.
    """
    defaults = Settings()
    values: dict[str, object] = {"workers": len(os.sched_getaffinity(0))}
    for variable, name in _FROM_ENVIRON.items():
        if environ.get(variable):
            values[name] = _typed(variable, environ[variable], getattr(defaults, name))
    known = {f.name for f in fields(Settings)}
    for name, value in given.items():
        if value is not None and name in known:
            values[name] = _typed(name, value, getattr(defaults, name))
    settings = Settings(**values)  # type: ignore[arg-type]
    settings = replace(settings, data=settings.data.absolute(), config=settings.config.absolute())
    _check(settings)
    return replace(settings, run=settings.data / "run")


def _typed(name: str, value: object, like: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        match like:
            case Address():
                return Address.parse(value)
            case Path():
                return Path(value)
            case int():
                return int(value)
            case float():
                return float(value)
        return value
    except ValueError as e:
        raise SettingsError(f"{name}: not a number: {value!r}") from e


def _check(settings: Settings) -> None:
    if not 1 <= settings.workers <= WORKERS_MAX:
        raise SettingsError(f"workers: {settings.workers} is not within 1 and {WORKERS_MAX}")
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise SettingsError("--tls-cert and --tls-key belong together")
    if settings.drain_grace_s < 0:
        raise SettingsError("HEADRACE_DRAIN_GRACE_S: must not be negative")
    if settings.log_level.upper() not in LOG_LEVELS:
        raise SettingsError(f"HEADRACE_LOG_LEVEL: {settings.log_level!r} is none of {', '.join(LOG_LEVELS)}")
