"""What a key holder reads of calls and money: receipts, months, and the two paths that chat clients ask.

Owns the questions that these paths take, and their answers as JSON and CSV. What a receipt holds is
ledger.receipt's.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from aiohttp import web

from proxy.access.keyformat import masked
from proxy.errors import ClientFault
from proxy.ledger import receipt as paper
from proxy.ledger.amounts import as_text
from proxy.store.reports import ModelLine, Month
from proxy.store.statements import PAGE_MAX, Cursor, Page, Span
from proxy.web.answers import json_answer
from proxy.web.caller import CATALOG, REPORTS, key_and_account

SELF = "self"  # the key that asks
PAGE_LINES = 100  # unless the caller asks for another number
FORMATS = {"application/json": "json", "text/csv": "csv"}

_MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")


def add_routes(app: web.Application) -> None:
    app.router.add_get("/receipts", receipts)
    app.router.add_get("/receipts/{id}", receipt)
    app.router.add_get("/dashboard/billing/subscription", subscription)
    app.router.add_get("/dashboard/billing/usage", usage)


async def receipts(request: web.Request) -> web.Response:
    """Calls and corrections of the days `from` to `to`, both included and both optional, the newest first.

    `key` asks for those of one key: `self`, or a key of the account by number, masked form or label.
    `next` (CSV: the Link header) is the `cursor` of the page behind this one. `format=csv`, or the Accept
    header, gives a table.
    """
    key, account = await key_and_account(request)
    return await listed(request, account.id, await _key_asked(request, key))


async def listed(request: web.Request, account: int, only: int | None) -> web.Response:
    """The page that is asked for, of one key or of all of the account."""
    span, cursor, limit = span_of(request), cursor_of(request), limit_of(request)
    async with request.app[REPORTS].books() as books:
        page = await books.page(account, span, cursor, limit=limit, key=only)
        prices = await books.prices(page.rows)
    currency = await request.app[CATALOG].currency()
    lines = [paper.document(row, currency, prices) for row in page.rows]
    if format_of(request) == "csv":
        return _table(request, lines, page)
    return json_answer({"object": "list", "data": lines, "next": page.next})


def _table(request: web.Request, lines: list[paper.Document], page: Page) -> web.Response:
    """The columns are named on every page: each is a file of its own."""
    rows = [paper.COLUMNS, *(paper.cells(line, paper.COLUMNS) for line in lines)]
    headers = {"cache-control": "no-store", "content-disposition": 'attachment; filename="receipts.csv"'}
    if page.next is not None:
        query = request.rel_url.update_query(cursor=page.next).raw_query_string
        headers["link"] = f'<?{query}>; rel="next"'  # RFC 8288: relative to what was asked
    return web.Response(
        text="".join(map(paper.csv_line, rows)), content_type="text/csv", charset="utf-8", headers=headers
    )


async def receipt(request: web.Request) -> web.Response:
    """Of a call: 404 until it is settled, and for everybody else's. Of a month such as 2026-11: its sums."""
    key, account = await key_and_account(request)
    named, only = request.match_info["id"], await _key_asked(request, key)
    currency = await request.app[CATALOG].currency()
    if _MONTH.fullmatch(named):
        first = date.fromisoformat(f"{named}-01")
        head = {"object": "month", "month": named, "currency": currency}
        if only is not None:
            lines, corrections = await request.app[REPORTS].used(account.id, Span.month(first), only)
            return json_answer({**head, "key": only, **_used(lines, corrections)})
        return json_answer({**head, **_month(await request.app[REPORTS].month(account.id, first))})
    try:
        call = UUID(named).hex
    except ValueError as e:
        raise LookupError("There is no receipt of this id.") from e
    async with request.app[REPORTS].books() as books:
        line = await books.receipt(account.id, call, only)
        if line is None:
            raise LookupError("There is no receipt of this id, or the call is not settled yet.")
        prices = await books.prices([line])
    return json_answer(paper.document(line, currency, prices))


async def _key_asked(request: web.Request, key: dict[str, Any]) -> int | None:
    """The one key that the answer is about; None: all of the account. Raises LookupError."""
    asked = request.query.get("key", "")
    if masked(asked) == key["masked"]:
        asked = ""  # it is how the caller has told who it is
    if asked == SELF or (key["own_receipts"] and not asked):
        return int(key["key_id"])
    if not asked:
        return None
    for other in await request.app[CATALOG].keys(key["account"]):
        is_seen = other["key_id"] == key["key_id"] or not key["own_receipts"]
        if is_seen and asked in (str(other["key_id"]), other["masked"], other["label"]):
            return int(other["key_id"])
    raise LookupError("This account has no such key, or this key does not see its receipts.")


def _used(lines: list[ModelLine], corrections_nanos: int) -> dict[str, Any]:
    """`used` is by the calls and their corrections."""
    return {
        "models": [
            {
                "model": line.model,
                "calls": line.calls,
                "prompt_tokens": line.input_tokens,
                "completion_tokens": line.output_tokens,
                "cost": as_text(line.cost_nanos),
            }
            for line in lines
        ],
        "corrections": as_text(corrections_nanos),
        "used": as_text(sum(line.cost_nanos for line in lines) + corrections_nanos),
    }


def _month(month: Month) -> dict[str, Any]:
    """`charged` is by the ledger: what was used, to the nano."""
    return {
        **_used(month.lines, month.corrections_nanos),
        "charged": as_text(month.charged_nanos),
        "posted": {kind: as_text(amount) for kind, amount in month.postings.items()},
        "opening": as_text(month.opening_nanos),
        "closing": as_text(month.closing_nanos),
    }


# -- what may be asked -------------------------------------------------------------------------------


def day_of(request: web.Request, name: str) -> date | None:
    """A day of the station's calendar in the query; None: it is not there."""
    text = request.query.get(name, "")
    try:
        return date.fromisoformat(text) if text else None
    except ValueError as e:
        raise ClientFault(f"{name!r} must be a date such as 2026-01-31.", param=name) from e


def month_of(request: web.Request) -> date:
    """The first day of the month in the query."""
    text = request.query.get("month", "")
    if not _MONTH.fullmatch(text):
        raise ClientFault("'month' must be a month such as 2026-01.", param="month")
    return date.fromisoformat(f"{text}-01")


def span_of(request: web.Request) -> Span:
    return Span(day_of(request, "from"), _day_after(day_of(request, "to")))


def _day_after(day: date | None) -> date | None:
    return None if day in (None, date.max) else day + timedelta(days=1)


def cursor_of(request: web.Request) -> Cursor | None:
    text = request.query.get("cursor", "")
    try:
        return Cursor.parse(text) if text else None
    except ValueError as e:
        raise ClientFault("'cursor' must be the 'next' of an earlier page.", param="cursor") from e


def limit_of(request: web.Request) -> int:
    text = request.query.get("limit", str(PAGE_LINES))
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 0 < int(text) <= PAGE_MAX):
        raise ClientFault(f"'limit' must be within 1 and {PAGE_MAX}.", param="limit")
    return int(text)


def format_of(request: web.Request) -> str:
    asked = request.query.get("format", "")
    if asked and asked not in FORMATS.values():
        raise ClientFault("'format' must be json or csv.", param="format")
    accepted = request.headers.get("Accept", "").split(",")[0].split(";")[0].strip()
    return asked or FORMATS.get(accepted, "json")


# -- what chat clients ask ---------------------------------------------------------------------------


async def subscription(request: web.Request) -> web.Response:
    """The balance as OpenAI's old dashboard told it: clients take from the limit what the month has cost.

    The figures are in the station's currency. A payment method makes clients ask for this month (one-api
    looks back 100 days without).
    """
    key, account = await key_and_account(request)
    today = await request.app[CATALOG].today()
    used = await _used_nanos(request, key, account.id, Span(today.replace(day=1)))
    limit = float(Decimal(account.balance_nanos + used).scaleb(-9))
    return json_answer(
        {
            "object": "billing_subscription",
            "has_payment_method": True,
            "soft_limit_usd": limit,
            "hard_limit_usd": limit,
            "system_hard_limit_usd": limit,
            "access_until": (key["expires_ms"] or 0) // 1000,
        }
    )


async def usage(request: web.Request) -> web.Response:
    """What the days `start_date` to `end_date` have cost, in hundredths; without them this month.

    OpenAI left the last day out; clients name today as often as the day after tomorrow, and mean all of it.
    """
    key, account = await key_and_account(request)
    first, last = day_of(request, "start_date"), day_of(request, "end_date")
    if first is None:
        first = (await request.app[CATALOG].today()).replace(day=1)
    used = await _used_nanos(request, key, account.id, Span(first, _day_after(last)))
    return json_answer({"object": "list", "total_usage": float(Decimal(used).scaleb(-7))})


async def _used_nanos(request: web.Request, key: dict[str, Any], account: int, span: Span) -> int:
    reports = request.app[REPORTS]
    if not key["own_receipts"]:
        return await reports.used_nanos(account, span)
    lines, corrections = await reports.used(account, span, key["key_id"])
    return sum(line.cost_nanos for line in lines) + corrections
