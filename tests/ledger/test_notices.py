"""Payment notices: who can prove to be the gateway, and what its words mean."""

from __future__ import annotations

from decimal import Decimal
from urllib.parse import parse_qsl, urlsplit

import orjson
import pytest

from proxy.errors import InvalidNotice
from proxy.ledger.notices import (
    CHARGEBACK,
    NOTHING,
    PAID,
    REFUND,
    check_signature,
    epay_link,
    epay_notice,
    epay_signature,
    plain_notice,
    signature,
    stripe_notice,
)
from proxy.routing.tiers import Gateway

NOW_MS = 1_790_000_000_000
SECRET = "whsec_0123456789abcdef"
STRIPE = Gateway("stripe", "stripe", SECRET, "", "", "USD", "7", 300_000)
EPAY = Gateway(
    "epay", "epay", "89unJUB8HZ54Hj7x4nUj56HN4nUzUJ8i", "https://pay.example", "1001", "CNY", "1", 0
)

TOLD = {
    "pid": "1001", "trade_no": "20160806151343349021", "out_trade_no": "20160806151343349",
    "type": "alipay", "name": "VIP会员", "money": "1.00", "trade_status": "TRADE_SUCCESS", "param": "",
}  # fmt: skip


def epay(**changes: str) -> dict[str, str]:
    told = TOLD | changes
    return {**told, "sign": epay_signature(told, EPAY.secret), "sign_type": "MD5"}


def test_an_epay_signature_is_md5_over_sorted_parameters_that_are_not_empty():
    assert epay_signature({"b": "2", "a": "1", "empty": "", "sign": "x", "sign_type": "MD5"}, "k") == (
        "af97cb1e07cd9f9f1279e0bae215015d"  # md5("a=1&b=2k")
    )


def test_a_signed_epay_notice_is_a_payment():
    notice = epay_notice(EPAY, epay())
    assert (notice.kind, notice.transaction, notice.order) == (PAID, TOLD["trade_no"], TOLD["out_trade_no"])
    assert (notice.amount, notice.currency) == (Decimal(1), "CNY")


@pytest.mark.parametrize("change", [{"money": "100.00"}, {"out_trade_no": "other"}, {"sign": ""}, {"x": "1"}])
def test_a_changed_epay_notice_is_refused(change):
    with pytest.raises(InvalidNotice):
        epay_notice(EPAY, epay() | change)


def test_an_epay_notice_of_another_shop_is_refused():
    with pytest.raises(InvalidNotice):
        epay_notice(EPAY, epay(pid="1002"))


def test_an_epay_notice_of_no_success_moves_nothing():
    assert epay_notice(EPAY, epay(trade_status="WAIT_BUYER_PAY")).kind == NOTHING


@pytest.mark.parametrize("money", ["-1.00", "0", "NaN", "1e999999", "many"])
def test_an_amount_that_is_none_is_refused(money):
    with pytest.raises(InvalidNotice):
        epay_notice(EPAY, epay(money=money))


def test_a_link_to_pay_is_signed_as_notices_are():
    link = urlsplit(epay_link(EPAY, "o1", Decimal("1.50"), "https://me.example/n", "https://me.example/"))
    sent = dict(parse_qsl(link.query))
    assert (link.path, sent["money"]) == ("/submit.php", "1.50")
    assert sent["sign"] == epay_signature(sent, EPAY.secret)


# -- signed bodies ---------------------------------------------------------------------------------


def header(body: bytes, at_s: int = NOW_MS // 1000, secret: str = SECRET) -> str:
    return f"t={at_s},v1={signature(secret, at_s, body)}"


def test_a_body_is_proven_by_its_hmac():
    check_signature(STRIPE, header(b"{}"), b"{}", NOW_MS)
    check_signature(STRIPE, header(b"{}") + ",v1=" + "0" * 64, b"{}", NOW_MS)  # while a secret is rotated


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (header(b"{}"), b"{ }"),
        (header(b"{}", secret="whsec_other_secret"), b"{}"),
        (header(b"{}", secret=""), b"{}"),
        (header(b"{}", NOW_MS // 1000 - 301), b"{}"),
        (header(b"{}", NOW_MS // 1000 + 301), b"{}"),
        (header(b"{}").replace("v1=", "v0="), b"{}"),
        (f"t={NOW_MS // 1000}", b"{}"),
        ("t=x,v1=y", b"{}"),
        ("", b"{}"),
    ],
    ids=[
        "changed",
        "other secret",
        "no secret",
        "played again",
        "from the future",
        "v0",
        "bare",
        "odd",
        "none",
    ],
)
def test_a_body_without_its_proof_is_refused(sent, body):
    with pytest.raises(InvalidNotice):
        check_signature(STRIPE, sent, body, NOW_MS)


def test_an_empty_secret_proves_nothing():
    """CVE-2026-41432: top-ups were forged at stations that had not set one."""
    empty = Gateway("stripe", "stripe", "", "", "", "USD", "7", 300_000)
    with pytest.raises(InvalidNotice):
        check_signature(empty, header(b"{}", secret=""), b"{}", NOW_MS)


def stripe(kind: str, **thing) -> bytes:
    return orjson.dumps({"type": kind, "data": {"object": thing}})


def test_a_paid_checkout_is_a_payment_in_whole_units():
    body = stripe(
        "checkout.session.completed", id="cs_1", payment_intent="pi_1", client_reference_id="o1",
        amount_total=1050, currency="usd", payment_status="paid",
    )  # fmt: skip
    notice = stripe_notice(body)
    assert (notice.kind, notice.transaction, notice.order) == (PAID, "pi_1", "o1")
    assert (notice.amount, notice.currency) == (Decimal("10.50"), "USD")


def test_yen_have_no_cents():
    body = stripe("refund.created", id="re_1", payment_intent="pi_1", amount=500, currency="jpy")
    notice = stripe_notice(body)
    assert (notice.kind, notice.reference, notice.amount) == (REFUND, "re_1", Decimal(500))


def test_a_checkout_that_is_not_paid_yet_moves_nothing():
    assert stripe_notice(stripe("checkout.session.completed", payment_status="unpaid")).kind == NOTHING
    assert stripe_notice(stripe("customer.created")).kind == NOTHING


def test_a_dispute_is_a_chargeback_of_its_payment():
    body = stripe("charge.dispute.created", id="dp_1", payment_intent="pi_1", amount=1050, currency="usd")
    notice = stripe_notice(body)
    assert (notice.kind, notice.transaction, notice.reference) == (CHARGEBACK, "pi_1", "dp_1")


@pytest.mark.parametrize("amount", [True, 10.5, "1050", 0, -1, None])
def test_an_odd_amount_of_an_event_is_refused(amount):
    with pytest.raises(InvalidNotice):
        stripe_notice(stripe("refund.created", id="r", payment_intent="p", amount=amount, currency="usd"))


def test_our_own_form_says_the_same():
    said = {"kind": "paid", "transaction": "T1", "order": "o1", "amount": "9.90", "currency": "CNY"}
    assert plain_notice(orjson.dumps(said)).amount == Decimal("9.90")
    for broken in (b"[]", b"{", orjson.dumps(said | {"kind": "gift"}), orjson.dumps(said | {"amount": 9.9})):
        with pytest.raises(InvalidNotice):
            plain_notice(broken)
