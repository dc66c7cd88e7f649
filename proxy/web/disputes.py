"""Operators' JSON for tasks whose end nobody told: what is in dispute, and what is decided.

Owns the members that bodies may have; what a decision does is store.disputes'.
"""

from __future__ import annotations

import time
from dataclasses import asdict

from aiohttp import web

from proxy.errors import ClientFault
from proxy.store.database import Database
from proxy.store.disputes import Disputes
from proxy.web.answers import json_answer, read_object, text_member

DISPUTES = web.AppKey("DISPUTES", Disputes)
DECISIONS = ("charge", "release", "ask")


def add_routes(app: web.Application, database: Database) -> None:
    app[DISPUTES] = Disputes(database)
    app.router.add_get("/admin/disputes", list_disputes)
    app.router.add_post("/admin/disputes/{call}", decide)


async def list_disputes(request: web.Request) -> web.Response:
    return json_answer({"data": [asdict(dispute) for dispute in await request.app[DISPUTES].all()]})


async def decide(request: web.Request) -> web.Response:
    """`{"decision": "charge" | "release" | "ask"}`; 404 once it is decided."""
    document = await read_object(request, frozenset({"decision"}))
    decision = text_member(document, "decision")
    if decision not in DECISIONS:
        raise ClientFault(f"'decision' must be one of {', '.join(DECISIONS)}.", param="decision")
    call, disputes, now_ms = request.match_info["call"], request.app[DISPUTES], time.time_ns() // 1_000_000
    if decision == "ask":
        dispute = await disputes.ask(call, now_ms)
    else:
        dispute = await disputes.decide(call, decision == "charge", now_ms)
    return json_answer({**asdict(dispute), "decision": decision})
