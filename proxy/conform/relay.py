"""The relay that is put to the proof: a real `headrace serve` in a scratch folder, with an account and keys.

Owns its process and its database. A station of the operator's is never touched: DATABASE_URL and settings
of the environment do not reach it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from proxy import listeners
from proxy.embedded import dsn_for
from proxy.errors import StateError
from proxy.ledger.entry import Bind
from proxy.settings import Address
from proxy.store import bindings
from proxy.store.catalog import Catalog, KeySettings
from proxy.store.database import Database

READY_S = 90.0  # Postgres is made first
STOP_S = 40.0  # it drains its journal
ROWS_S = 30.0
ACCOUNT = "conform"
CREDIT_NANOS = 10**15

Row = dict[str, Any]


class Relay:
    """`headrace serve --workers 1`; `dsn` "": on an embedded Postgres. An async context manager."""

    def __init__(self, folder: Path, document: dict[str, Any], environ: dict[str, str], dsn: str) -> None:
        self._folder, self._dsn, self._environ = folder, dsn, environ
        (folder / "routes.yaml").write_bytes(orjson.dumps(document))
        self._process: subprocess.Popen[bytes] | None = None
        self._database: Database | None = None

    @property
    def database(self) -> Database:
        assert self._database, "the relay runs not"
        return self._database

    async def __aenter__(self) -> Relay:
        """Raises StateError where it does not become ready."""
        listen, admin = (listeners.free(Address("127.0.0.1", 0)) for _ in range(2))
        self.url = f"http://{listen}"
        data, config = self._folder / "station", self._folder / "routes.yaml"
        command = [sys.executable, "-m", "proxy", "serve", "--workers", "1", "--data", str(data)]
        command += ["--config", str(config), "--listen", str(listen), "--admin", str(admin)]
        ours = ("HEADRACE_", "DATABASE_URL")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environ |= self._environ | ({"DATABASE_URL": self._dsn} if self._dsn else {})
        with (self._folder / "relay.log").open("wb") as log:
            self._process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)  # noqa: ASYNC220, S603
        try:
            await self._until_ready()
            self._database = await Database.connect(self._dsn or dsn_for(data))
            catalog = Catalog(self._database)
            self._account = (await catalog.create_account(ACCOUNT)).id
            await catalog.top_up(ACCOUNT, CREDIT_NANOS, "conform")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._database:
            await self._database.close()
        assert self._process
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        return (self._folder / "relay.log").read_text(errors="replace")

    async def _until_ready(self) -> None:
        assert self._process
        deadline = time.monotonic() + READY_S
        async with aiohttp.ClientSession() as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                try:
                    async with client.get(f"{self.url}/readyz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)
        raise StateError(f"the relay does not become ready:\n{self.log()[-2000:]}")

    # -- what an operator does -------------------------------------------------------------------------

    async def make_key(self) -> tuple[int, str]:
        return await Catalog(self.database).create_key(ACCOUNT, KeySettings())

    async def bind(self, key_id: int, owned: Iterable[tuple[str, str]]) -> None:
        """Give the account what lives at upstreams: (upstream, the vendor's id)."""
        async with self.database.transaction() as connection:
            for upstream, vendor_id in owned:
                made = Bind(
                    uuid.uuid4().hex, int(time.time() * 1000), self._account, key_id, "recorded", vendor_id,
                    upstream, "direct", "main",
                )  # fmt: skip
                await bindings.bind(connection, made, "conform")

    async def rows(self, key_id: int, is_enough: Callable[[list[Row]], bool]) -> list[Row]:
        """The usage rows of a key, once they are enough or ROWS_S have passed."""
        deadline = time.monotonic() + ROWS_S
        while True:
            found = await self.database.fetch("SELECT * FROM usage WHERE key = $1 ORDER BY id", key_id)
            rows = [dict(row) for row in found]
            if is_enough(rows) or time.monotonic() > deadline:
                return rows
            await asyncio.sleep(0.05)
