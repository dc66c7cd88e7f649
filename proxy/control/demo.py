"""The demo's account and key: the same at each start, topped up once.

Owns `demo.key` in the data folder.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from proxy.access.keyformat import SECRET_BYTES, make_key
from proxy.errors import StateError
from proxy.store.catalog import Catalog, KeySettings

ACCOUNT = "demo"
CREDIT_NANOS = 1_000 * 10**9
REFERENCE = "demo"


async def prepare(catalog: Catalog, key_path: Path) -> str:
    """The demo key, after making what is missing. Raises DatabaseUnavailable."""
    with contextlib.suppress(StateError):  # it was made by an earlier start
        await catalog.create_account(ACCOUNT, note="made by --demo")
    await catalog.top_up(ACCOUNT, CREDIT_NANOS, REFERENCE, source="demo")
    key = _kept_key(key_path)
    with contextlib.suppress(StateError):
        await catalog.create_key(ACCOUNT, KeySettings(label="demo"), key=key)
    return key


def _kept_key(path: Path) -> str:
    """Made once; readable by its owner only."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        key = make_key(os.urandom(SECRET_BYTES))
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{key}\n")
    draft.rename(path)
    return key
