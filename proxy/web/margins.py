"""What is earned, as JSON for operators: the report of `store.margins`.

Owns the questions that its path takes.
"""

from __future__ import annotations

from aiohttp import web

from proxy.errors import ClientFault
from proxy.store.catalog import Catalog
from proxy.store.margins import GROUPS, document, margins
from proxy.store.statements import Span
from proxy.web.answers import json_answer
from proxy.web.receipts import month_of, span_of

CATALOG = web.AppKey("MARGINS_CATALOG", Catalog)


def add_routes(app: web.Application, catalog: Catalog) -> None:
    app[CATALOG] = catalog
    app.router.add_get("/admin/margin", margin)


async def margin(request: web.Request) -> web.Response:
    """`?month=2026-01`, or the days `from` to `to`, both included; `by=upstream` or `by=model`."""
    catalog, by = request.app[CATALOG], request.query.get("by", "")
    if by and by not in GROUPS:
        raise ClientFault(f"'by' must be one of {', '.join(GROUPS)}.", param="by")
    span = Span.month(month_of(request)) if "month" in request.query else span_of(request)
    found = await margins(catalog.database, span, (by,) if by else GROUPS)
    return json_answer(
        {
            "currency": await catalog.currency(),
            "data": [document(line) for line in found.lines],
            "total": document(found.total),
            "equals_ledger": found.is_equal,
        }
    )
