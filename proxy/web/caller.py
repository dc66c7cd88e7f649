"""Who asks in the key holders' application, and what its handlers ask themselves.

Workers have verified the key and name it in a header that clients cannot set.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from proxy.store.catalog import Account, Catalog
from proxy.store.reports import Reports

KEY_HEADER = "x-headrace-key"  # the id of the verified key; relay/pages.py sets it

CATALOG = web.AppKey("CATALOG", Catalog)
REPORTS = web.AppKey("REPORTS", Reports)


async def key_and_account(request: web.Request) -> tuple[dict[str, Any], Account]:
    """Raises LookupError for a key that is gone since the worker looked."""
    catalog = request.app[CATALOG]
    key = await catalog.key(int(request.headers[KEY_HEADER]))
    return key, await catalog.account(key["account"])
