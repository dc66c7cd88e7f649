"""Operators' JSON for money: adjustments, refunds, codes, and the prices of single accounts.

Owns the members that bodies may have. What moves money needs an Idempotency-Key: asked twice, it is one.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aiohttp import web

from proxy.errors import ClientFault
from proxy.routing import texts, units
from proxy.store.codes import Codes
from proxy.store.database import Database
from proxy.store.overrides import Overrides
from proxy.store.payments import Movement, Payments, Posting
from proxy.web.answers import json_answer, read_object, text_member
from proxy.web.members import count_of, nanos_member, reference_of, time_of

DATABASE = web.AppKey("DATABASE", Database)
SOURCE = "admin"  # of ledger rows made here
CODES_SHOWN_MAX = 1000
KINDS = ("refund", "chargeback")


def add_routes(app: web.Application, database: Database) -> None:
    app[DATABASE] = database
    app.router.add_post("/admin/accounts/{name}/adjustments", adjust)
    app.router.add_get("/admin/accounts/{name}/prices", list_prices)
    app.router.add_put("/admin/accounts/{name}/prices", put_price)
    app.router.add_delete("/admin/accounts/{name}/prices", end_price)
    app.router.add_post("/admin/calls/{id}/refund", refund_call)
    app.router.add_post("/admin/payments/{source}/{reference}/refund", take_back)
    app.router.add_get("/admin/codes", list_codes)
    app.router.add_post("/admin/codes", create_codes)


def _posted(posting: Posting) -> web.Response:
    """201 for a new posting, 200 when it was made before."""
    return json_answer(asdict(posting), 201 if posting.is_new else 200)


async def adjust(request: web.Request) -> web.Response:
    """`{"amount": "-2.5", "reason"}`: more than nothing adds, less takes away."""
    reference = reference_of(request)
    document = await read_object(request, frozenset({"amount", "reason"}))
    amount = text_member(document, "amount")
    sign = -1 if amount.startswith("-") else 1
    nanos = sign * nanos_member({"amount": amount.removeprefix("-")}, "amount")
    movement = Movement("adjustment", nanos, SOURCE, reference, note=text_member(document, "reason"))
    return _posted(await Payments(request.app[DATABASE]).move(request.match_info["name"], movement))


async def refund_call(request: web.Request) -> web.Response:
    """What a call cost its account is given back; once, however often it is asked for."""
    document = await read_object(request, frozenset({"reason"}))
    payments = Payments(request.app[DATABASE])
    return _posted(await payments.refund_call(request.match_info["id"], text_member(document, "reason", "")))


async def take_back(request: web.Request) -> web.Response:
    """`{"kind": "refund" | "chargeback", "amount"}` of a payment; without an amount all that is left."""
    reference = reference_of(request)
    document = await read_object(request, frozenset({"kind", "amount", "reason"}))
    kind = text_member(document, "kind", "refund")
    if kind not in KINDS:
        raise ClientFault(f"'kind' must be one of {', '.join(KINDS)}.", param="kind")
    nanos = nanos_member(document, "amount") if "amount" in document else 0
    movement = Movement(kind, nanos, SOURCE, reference, note=text_member(document, "reason", ""))
    place = (request.match_info["source"], request.match_info["reference"])
    return _posted(await Payments(request.app[DATABASE]).take_back(place, movement))


# -- codes -------------------------------------------------------------------------------------------


async def list_codes(request: web.Request) -> web.Response:
    return json_answer(
        {"data": await Codes(request.app[DATABASE]).all(request.query.get("note"), CODES_SHOWN_MAX)}
    )


async def create_codes(request: web.Request) -> web.Response:
    """The only answer that ever holds the codes themselves."""
    document = await read_object(request, frozenset({"amount", "count", "expires_at", "note"}))
    until = document.get("expires_at")
    codes = await Codes(request.app[DATABASE]).create(
        nanos_member(document, "amount"),
        count_of("count", document.get("count", 1)),
        expires_at=None if until is None else time_of("expires_at", until),
        note=text_member(document, "note", ""),
    )
    return json_answer({"codes": codes}, 201)


# -- prices of single accounts -----------------------------------------------------------------------


async def list_prices(request: web.Request) -> web.Response:
    overrides = await Overrides(request.app[DATABASE]).of(request.match_info["name"])
    return json_answer({"data": [asdict(override) for override in overrides]})


async def put_price(request: web.Request) -> web.Response:
    """`{"model", "multiplier": "0.9"}`, or `{"model", "price": {...}}` as the ledger keeps prices."""
    document = await read_object(request, frozenset({"model", "multiplier", "price"}))
    try:
        model = texts.model_name(text_member(document, "model"))
        ppm = units.multiplier_ppm(text_member(document, "multiplier")) if "multiplier" in document else None
        override = await Overrides(request.app[DATABASE]).put(
            request.match_info["name"], model, ppm=ppm, content=_price(document)
        )
    except ValueError as e:
        raise ClientFault(f"This is no price: {e}.") from e
    return json_answer(asdict(override))


async def end_price(request: web.Request) -> web.Response:
    """`?model=`: what routes.yaml says counts again."""
    model = request.query.get("model", "")
    ended = await Overrides(request.app[DATABASE]).end(request.match_info["name"], model)
    return json_answer({"ended": ended})


def _price(document: dict[str, Any]) -> dict[str, Any] | None:
    price = document.get("price")
    if price is not None and not isinstance(price, dict):
        raise ClientFault("'price' must be an object.", param="price")
    return price
