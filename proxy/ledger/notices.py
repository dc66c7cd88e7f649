"""What payment gateways say, in one form, and the proof that it was they.

Owns the signatures and fields of three ways of telling: epay's signed GET, Stripe's signed events, and a
plain signed JSON of our own for everything else. Pure: bodies, parameters and the time come in. A message
that is not proven raises InvalidNotice and tells nothing about what was wrong with its proof.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import urlencode

import orjson

from proxy.errors import InvalidNotice
from proxy.routing.tiers import Gateway
from proxy.routing.units import AMOUNT_MAX

PAID, REFUND, CHARGEBACK, WON, NOTHING = "paid", "refund", "chargeback", "won", "nothing"
SIGNATURE_HEADERS = {"stripe": "stripe-signature", "hmac": "headrace-signature"}
_UNSIGNED = ("sign", "sign_type")
# https://docs.stripe.com/currencies#zero-decimal
_WITHOUT_CENTS = frozenset(
    {
        "BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "UGX", "VND", "VUV", "XAF",
        "XOF", "XPF",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Notice:
    """One message. `transaction` is the gateway's id of the payment, `reference` that of this message."""

    kind: str  # PAID, REFUND, CHARGEBACK, WON (a chargeback that was taken back) or NOTHING
    transaction: str = ""
    reference: str = ""
    order: str = ""  # ours
    amount: Decimal = Decimal(0)
    currency: str = ""


# -- epay --------------------------------------------------------------------------------------------


def epay_signature(parameters: Mapping[str, str], secret: str) -> str:
    """MD5 over the sorted parameters that are not empty, and the key behind them."""
    signed = sorted((k, v) for k, v in parameters.items() if v != "" and k not in _UNSIGNED)
    text = "&".join(f"{name}={value}" for name, value in signed) + secret
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def epay_notice(gateway: Gateway, parameters: Mapping[str, str]) -> Notice:
    """Raises InvalidNotice."""
    given = parameters.get("sign", "").lower()
    if not _is_same(given, epay_signature(parameters, gateway.secret)):
        raise InvalidNotice
    if parameters.get("pid") != gateway.pid:
        raise InvalidNotice
    if parameters.get("trade_status") != "TRADE_SUCCESS":
        return Notice(NOTHING)
    trade = _text(parameters, "trade_no")
    return Notice(
        PAID,
        trade,
        trade,
        _text(parameters, "out_trade_no"),
        _amount(parameters.get("money")),
        gateway.currency,
    )


def epay_link(gateway: Gateway, order: str, price: Decimal, notify_url: str, return_url: str) -> str:
    """Where a holder pays an order."""
    parameters = {
        "pid": gateway.pid,
        "out_trade_no": order,
        "notify_url": notify_url,
        "return_url": return_url,
        "name": order,
        "money": f"{price:f}",
    }
    sign = epay_signature(parameters, gateway.secret)
    return f"{gateway.url}/submit.php?" + urlencode({**parameters, "sign": sign, "sign_type": "MD5"})


# -- signed bodies -----------------------------------------------------------------------------------


def signature(secret: str, at_s: int, body: bytes) -> str:
    """Of a body at a moment: what Stripe sends as `v1`."""
    return hmac.new(secret.encode(), b"%d.%s" % (at_s, body), hashlib.sha256).hexdigest()


def check_signature(gateway: Gateway, header: str, body: bytes, now_ms: int) -> None:
    """`t=1700000000,v1=hex`; several v1 while a secret is rotated. Raises InvalidNotice: it is forged, or
    older or newer than the window, so that it cannot be played again later."""
    fields = [field.partition("=") for field in header.replace(" ", "").split(",")]
    times = [value for name, _, value in fields if name == "t"]
    if not gateway.secret or len(times) != 1 or not times[0].isascii() or not times[0].isdigit():
        raise InvalidNotice
    at_s = int(times[0][:15])
    right = signature(gateway.secret, at_s, body)
    if not any(_is_same(value, right) for name, _, value in fields if name == "v1"):
        raise InvalidNotice
    if abs(now_ms - at_s * 1000) > gateway.window_ms:
        raise InvalidNotice


def stripe_notice(body: bytes) -> Notice:
    """An event whose signature was checked. Raises InvalidNotice: it is not in Stripe's form."""
    event = _object(body)
    thing = event.get("data", {}).get("object", {})
    kind = event.get("type")
    if kind in ("checkout.session.completed", "checkout.session.async_payment_succeeded"):
        if thing.get("payment_status") != "paid":
            return Notice(NOTHING)
        transaction = thing.get("payment_intent") or _text(thing, "id")
        order = str(thing.get("client_reference_id") or "")
        return Notice(PAID, transaction, transaction, order, *_minor(thing, "amount_total"))
    if kind == "refund.created":
        return Notice(
            REFUND, _text(thing, "payment_intent"), _text(thing, "id"), "", *_minor(thing, "amount")
        )
    if kind == "charge.dispute.created":
        found = _minor(thing, "amount")
        return Notice(CHARGEBACK, _text(thing, "payment_intent"), _text(thing, "id"), "", *found)
    if kind == "charge.dispute.closed" and thing.get("status") == "won":
        return Notice(WON, _text(thing, "payment_intent"), _text(thing, "id"), "", *_minor(thing, "amount"))
    return Notice(NOTHING)


def plain_notice(body: bytes) -> Notice:
    """Our own form: {"kind", "transaction", "order", "amount": "12.50", "currency"}, and `reference` for
    what is not the payment itself. Its signature was checked. Raises InvalidNotice."""
    said = _object(body)
    kind = said.get("kind")
    if kind not in (PAID, REFUND, CHARGEBACK, WON):
        raise InvalidNotice
    transaction = _text(said, "transaction")
    reference = transaction if kind == PAID else _text(said, "reference")
    order = _text(said, "order") if kind == PAID else ""
    return Notice(kind, transaction, reference, order, _amount(said.get("amount")), _text(said, "currency"))


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except ValueError as e:
        raise InvalidNotice from e
    if not isinstance(document, dict):
        raise InvalidNotice
    return document


def _minor(thing: Mapping[str, Any], name: str) -> tuple[Decimal, str]:
    """Stripe tells amounts in the smallest unit of their currency."""
    amount, currency = thing.get(name), _text(thing, "currency").upper()
    if type(amount) is not int or amount <= 0:
        raise InvalidNotice
    return Decimal(amount).scaleb(0 if currency in _WITHOUT_CENTS else -2), currency


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise InvalidNotice
    return value


def _amount(text: object) -> Decimal:
    try:
        amount = Decimal(text) if isinstance(text, str) and len(text) <= 30 else Decimal(0)
    except InvalidOperation as e:
        raise InvalidNotice from e
    if not amount.is_finite() or not 0 < amount < AMOUNT_MAX:
        raise InvalidNotice
    return amount


def _is_same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())
