"""What gateways and holders say of payments: signed notices, orders, redeem codes.

Owns the paths of webhooks, which nobody logs in to: the signature is the proof. Every notice that is
refused is logged for the operator, with the reason and without the message.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from urllib.parse import parse_qsl

from aiohttp import web

from proxy.errors import ClientFault, InvalidNotice, ProxyError, StateError, UnknownPath
from proxy.ledger import notices
from proxy.ledger.notices import Notice
from proxy.routing.tiers import Gateway
from proxy.store.orders import Orders
from proxy.web.shop import SHOP

log = logging.getLogger("headrace.payments")

HOOKS = "/portal/hooks"


def add_routes(app: web.Application) -> None:
    app.router.add_route("*", HOOKS + "/{gateway}", notified)


async def notified(request: web.Request) -> web.Response:
    """A gateway tells of a payment. epay asks by GET or form and wants the word `success`."""
    shop = request.app[SHOP]
    gateway = shop.gateways().get(request.match_info["gateway"])
    if gateway is None:
        raise UnknownPath
    body = await request.read()
    try:
        notice = _proven(gateway, request, body)
        posting = await Orders(shop.database).accept(gateway, notice)
    except (ProxyError, StateError) as e:
        why = e.detail or e.code if isinstance(e, ProxyError) else str(e)
        log.warning("a payment notice was refused", extra={"gateway": gateway.name, "why": why})
        raise
    if posting is not None and posting.is_new:
        about = {"gateway": gateway.name, "account": posting.account, "nanos": posting.amount_nanos}
        log.info("a payment moved a balance", extra=about)
    return web.Response(text="success" if gateway.kind == "epay" else "ok")


def _proven(gateway: Gateway, request: web.Request, body: bytes) -> Notice:
    """Raises InvalidNotice."""
    if gateway.kind == "epay":
        return notices.epay_notice(gateway, _parameters(request, body))
    header = request.headers.get(notices.SIGNATURE_HEADERS[gateway.kind], "")
    if request.method != "POST":
        raise InvalidNotice
    notices.check_signature(gateway, header, body, time.time_ns() // 1_000_000)
    return notices.stripe_notice(body) if gateway.kind == "stripe" else notices.plain_notice(body)


def _parameters(request: web.Request, body: bytes) -> Mapping[str, str]:
    """Of the query, or of a form; each once. Raises InvalidNotice."""
    pairs = list(request.query.items())
    if request.method == "POST":
        try:
            pairs += parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=50)
        except ValueError as e:
            raise InvalidNotice from e
    elif request.method != "GET":
        raise ClientFault(status=405)
    if len(dict(pairs)) != len(pairs):
        raise InvalidNotice
    return dict(pairs)
