"""Log lines: JSON to stderr, without secrets.

Owns the format and redaction. Imports no event loop, so that the supervisor logs the same way.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

import orjson

SECRETS_MAX = 10_000  # exact secrets hidden by value; the oldest are dropped above
_SECRET_BYTES_MIN = 8  # shorter ones would blank ordinary words

_PATTERNS = (
    # Our keys and most vendors'. The first six and the last four characters may be shown.
    (re.compile(r"\b((?:sk|pk|rk|key)-[A-Za-z0-9_\-]{3})[A-Za-z0-9_\-]{5,}([A-Za-z0-9_\-]{4})"), r"\1…\2"),
    (re.compile(r"\b(AIza)[A-Za-z0-9_\-]{20,}"), r"\1…"),
    (re.compile(r"(?i)\b(bearer|basic)\s+(?!sk-)[A-Za-z0-9._~+/=\-]{6,}"), r"\1 …"),
    (
        re.compile(
            r"(?i)((?:api[-_]?key|x-goog-api-key|mj-api-secret|authorization|secret|password|token|[?&]key)"
            r"""["']?\s*[:=]\s*b?["']?)(?!bearer\b|basic\b|sk-|\d+\b)[^\s"',;&}]{6,}"""
        ),
        r"\1…",
    ),
    (re.compile(r"(\w+://[^\s:/@]+:)[^\s@/]+@"), r"\1…@"),  # a URL's password
)


class Redactor:
    """Takes secrets out of text: known shapes, and known values (upstream credentials)."""

    def __init__(self) -> None:
        self._secrets: dict[str, None] = {}
        self._exact: re.Pattern[str] | None = None

    def conceal(self, secrets: Iterable[str]) -> None:
        """From now on these values never appear in a log line."""
        for secret in secrets:
            if len(secret) >= _SECRET_BYTES_MIN:
                self._secrets[secret] = None
        while len(self._secrets) > SECRETS_MAX:
            del self._secrets[next(iter(self._secrets))]
        longest_first = sorted(self._secrets, key=len, reverse=True)
        self._exact = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def redact(self, text: str) -> str:
        if self._exact is not None:
            text = self._exact.sub("…", text)
        for pattern, shown in _PATTERNS:
            text = pattern.sub(shown, text)
        return text


redactor = Redactor()  # one per process: logging has one tree as well

_PLAIN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One line of JSON per record: ts, level, logger, process, msg, the `extra` fields, error."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "ts": f"{second}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "msg": redactor.redact(record.getMessage()),
        }
        for name, value in record.__dict__.items():
            if name not in _PLAIN_FIELDS:
                line[name] = redactor.redact(value) if isinstance(value, str) else value
        if record.exc_info:
            line["error"] = redactor.redact(self.formatException(record.exc_info))
        # What orjson cannot write is shown by its type: a repr may hold headers (faults.md F2).
        return orjson.dumps(line, default=lambda o: f"<{type(o).__name__}>").decode()


class _Stderr(logging.StreamHandler[Any]):
    """Whatever sys.stderr is at that moment; a closed pipe must not bring a process down."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


def configure_logging(process: str, level: str = "INFO") -> None:
    """Everything to stderr as JSON lines. `process`: 'supervisor', 'control', 'w0', ..."""
    handler = _Stderr()
    handler.setFormatter(JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # aiohttp logs tracebacks with the client's header bytes (faults.md F3).
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
