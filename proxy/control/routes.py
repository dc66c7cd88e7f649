"""The routes in force: load, number, keep when the next ones are broken, hand out in pieces.

Owns the generation of the compiled table and the watch over its files. The old table stays until a
new one is whole and valid.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from proxy import telemetry
from proxy.control.compilation import compile_routes
from proxy.errors import ConfigError
from proxy.snapshot import pieces
from proxy.telemetry import Stats

log = logging.getLogger("headrace.routes")

SETTLE_MS = 100  # an editor writes a file in several steps
LOOK_MS = 1_000
KEPT_HERE = ("gateways",)  # workers take no payments and need none of their secrets


class Routes:
    """One station's routes.yaml on this node. `on_install` is called with each new table."""

    def __init__(
        self, path: Path, memory: Path, stats: Stats, on_install: Callable[[dict[str, Any]], None]
    ) -> None:
        self._path = path
        self._memory = memory
        self._stats = stats
        self._on_install = on_install
        self._lock = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._files: tuple[Path, ...] = ()
        self._seen: list[tuple[int, ...]] = []
        self.loaded = asyncio.Event()
        self.document: dict[str, Any] = {}
        self.generation = 0
        self.warnings: list[str] = []
        self.mistakes: list[str] = []  # of the newest file, when it cannot be used

    async def load(self) -> bool:
        """Compile and install; False: nothing changed. Raises ConfigError, and the old table stays."""
        async with self._lock:
            self._seen = self._signature()
            try:
                compiled = await compile_routes(self._path)
                self._check_currency(compiled.document)
            except ConfigError as e:
                self._failed(e)
                raise
            if compiled.files != self._files:
                self._files = compiled.files
                self._seen = self._signature()
            self.mistakes = []
            self.warnings = compiled.warnings
            self._stats.set("config_reload_failed", 0)
            self._watch()
            for warning in compiled.warnings:
                log.warning("routes: %s", warning)
            content_hash = compiled.document["content_hash"]
            if content_hash == self.document.get("content_hash"):
                self._stats.inc("reloads_total", "unchanged")
                return False
            self.generation = self._number(content_hash)
            self.document = {**compiled.document, "generation": self.generation}
            self._stats.inc("reloads_total", "installed")
            log.info("routes installed", extra={"generation": self.generation, "content": content_hash})
            self._on_install(self.document)
            self.loaded.set()
            return True

    def _check_currency(self, document: dict[str, Any]) -> None:
        """All balances are in it. Raises ConfigError."""
        new, old = document["station"]["currency"], self.document.get("station", {}).get("currency")
        if old not in (None, new):
            raise ConfigError([f"{self._path.name}:1:1: station.currency: {old} cannot become {new}"])

    def _failed(self, error: ConfigError) -> None:
        self.mistakes = error.mistakes
        self._stats.inc("reloads_total", "failed")
        self._stats.set("config_reload_failed", 1)
        self._watch()
        for mistake in error.mistakes:
            log.error("routes: %s", mistake)

    def _number(self, content_hash: str) -> int:
        """The same content keeps its generation over restarts; other content gets the next one."""
        try:
            last = json.loads(self._memory.read_text())
        except (FileNotFoundError, ValueError):
            last = {"generation": 0, "content_hash": ""}
        if last["content_hash"] == content_hash:
            return int(last["generation"])
        generation = int(last["generation"]) + 1
        draft = self._memory.with_suffix(".new")
        draft.write_text(json.dumps({"generation": generation, "content_hash": content_hash}))
        draft.rename(self._memory)
        return generation

    def messages(self) -> Iterator[dict[str, Any]]:
        """Arguments of op `table`, in order."""
        parts = list(pieces({name: rows for name, rows in self.document.items() if name not in KEPT_HERE}))
        for part, data in enumerate(parts):
            yield {
                "generation": self.generation,
                "part": part,
                "parts": len(parts),
                "data": data.decode(),
            }

    # -- watch ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Over the directories: a watched file is lost with the second atomic replace, and a Kubernetes
        ConfigMap changes by a symlink beside it."""
        folders = {path.resolve().parent for path in (self._path, *self._files)} | {self._path.parent}
        if self._watcher is not None:
            if self._watcher.get_name() == _name(folders):
                return
            self._watcher.cancel()
        self._watcher = telemetry.spawn(_name(folders), self._watch_folders(folders))

    def reload_soon(self) -> None:
        """SIGHUP."""
        telemetry.spawn("reload", self._reload_quietly(force=True))

    async def _watch_folders(self, folders: set[Path]) -> None:
        from watchfiles import awatch

        changes = awatch(
            *folders,
            recursive=False,
            step=50,
            debounce=SETTLE_MS,
            watch_filter=None,
            # A look now and then as well: for what changed before the watch began, and for file systems
            # that notify nobody.
            rust_timeout=LOOK_MS,
            yield_on_timeout=True,
        )
        async for _ in changes:
            await self._reload_quietly()

    async def _reload_quietly(self, *, force: bool = False) -> None:
        if not force and self._signature() == self._seen:
            return  # something else in the folder
        with contextlib.suppress(ConfigError):  # said already; the old table stays
            await self.load()

    def _signature(self) -> list[tuple[int, ...]]:
        """Changes whenever one of the files does. Follows symlinks: a ConfigMap is swapped by one."""
        found: list[tuple[int, ...]] = []
        for path in (self._path, *self._files):
            try:
                about = path.stat()
            except OSError as e:
                found.append((e.errno or 0,))
            else:
                found.append((about.st_mtime_ns, about.st_size, about.st_ino))
        return found


def _name(folders: set[Path]) -> str:
    return f"watch {' '.join(sorted(map(str, folders)))}"
