"""A line of a statement as its payer reads it: a call, a correction of one, or a payment.

Owns the members of these documents and the columns of their table; upstreams and credentials are only in
what an operator adds. Amounts are decimal texts of the station's currency, exact. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

from proxy.ledger.amounts import as_text, plain
from proxy.ledger.settlement import CAPPED, WAIVED
from proxy.metering.items import Item, items
from proxy.metering.pricing import PPM, Price
from proxy.metering.usage import FIELDS, Usage

Document = dict[str, Any]

TOLD_FLAGS = (CAPPED, WAIVED)  # why a call costs less than its items
BUCKETS = tuple(f.name for f in FIELDS)

# The columns of a table of statement lines; what a line does not have is left empty.
COLUMNS = (
    "object", "posted_day", "id", "corrects", "began_ms", "ended_ms", "key", "model", "operation", "stream",
    "status", "outcome", "cut", "provenance", "prompt_tokens", "completion_tokens", *BUCKETS, "items",
    "model_multiplier", "tier_multiplier", "tier", "own_price", "price_id", "currency", "cost", "corrected",
    "free", "free_amount", "refunded", "amount", "endpoint", "mirror", "retries", "rurt_ms", "ttft_ms",
    "took_ms", "source", "reference", "paid", "note",
)  # fmt: skip
# What an operator sees besides; another station's bill is reconciled by the same columns.
OPERATOR_COLUMNS = (
    "account", "upstream", "upstream_model", "credential", "upstream_id", "upstream_cost",
)  # fmt: skip


def document(line: Mapping[str, Any], currency: str, prices: Mapping[str, Price]) -> Document:
    """A line of a statement. `amount` is what it did to the balance: those of a month add up to the ledger's
    to the nano."""
    match line["kind"]:
        case "call":
            return receipt(line, currency, prices.get(line["price"]))
        case "correction":
            return _correction(line, currency)
        case _:
            return _payment(line, currency)


def receipt(line: Mapping[str, Any], currency: str, price: Price | None) -> Document:
    """One call. `cost` is with all corrections so far; `amount` is what the call itself took from the
    balance. Durations are in ms; `ttft_ms` -1: no answer came."""
    usage = Usage.from_dict(line["usage"])
    parts = [] if price is None else [_item(item) for item in items(price, usage)]
    is_multiplied = line["multiplied"] and (price is None or price.multiplied)
    return {
        "object": "receipt",
        "id": str(UUID(line["id"])),
        "posted_day": line["posted_day"],
        "began_ms": line["began_ms"],
        "ended_ms": line["ended_ms"],
        "key": line["key"],
        "model": line["model"],
        "operation": line["operation"],
        "stream": line["stream"],
        "status": line["status"],
        "outcome": line["outcome"],
        "cut": line["cut"],
        "provenance": line["provenance"],
        "prompt_tokens": usage.input_tokens_all(),
        "completion_tokens": usage.output_tokens_all(),
        "usage": line["usage"],
        "items": parts,
        "model_multiplier": multiplier(line["model_ppm"] if is_multiplied else PPM),
        "tier_multiplier": multiplier(line["tier_ppm"] if is_multiplied else PPM),
        "tier": line["tier"],
        "own_price": line["override"] != "",  # agreed with this account, instead of price or multipliers
        "price_id": line["price"],
        "price": None if price is None else price.content,
        "notes": [flag for flag in TOLD_FLAGS if flag in line["flags"]],
        "currency": currency,
        "cost": as_text(line["cost_nanos"] + line["corrected_nanos"]),
        "corrected": as_text(line["corrected_nanos"]),
        "free": line["free_nanos"] > 0,
        "free_amount": as_text(line["free_nanos"]),
        "refunded": as_text(line["refunded_nanos"]),
        "amount": as_text(line["amount_nanos"]),
        "endpoint": line["endpoint"],
        "mirror": line["mirror"],
        "retries": line["retries"],
        "rurt_ms": line["rurt_ms"],
        "ttft_ms": line["ttft_ms"],
        "took_ms": line["took_ms"],
    }


def _correction(line: Mapping[str, Any], currency: str) -> Document:
    """What became known about a call afterwards; `cost` is what it costs from then on."""
    usage = Usage.from_dict(line["usage"])
    return {
        "object": "correction",
        "id": str(UUID(line["id"])),
        "corrects": str(UUID(line["corrects"])),
        "posted_day": line["posted_day"],
        "ended_ms": line["ended_ms"],
        "provenance": line["provenance"],
        "prompt_tokens": usage.input_tokens_all(),
        "completion_tokens": usage.output_tokens_all(),
        "usage": line["usage"],
        "currency": currency,
        "cost": as_text(line["cost_nanos"]),
        "amount": as_text(line["amount_nanos"]),
    }


def _payment(line: Mapping[str, Any], currency: str) -> Document:
    """A top-up, a code, a refund, an adjustment."""
    paid = line["paid_amount"]
    return {
        "object": line["kind"],
        "id": line["id"],
        "posted_day": line["posted_day"],
        "ended_ms": line["ended_ms"],
        "currency": currency,
        "amount": as_text(line["amount_nanos"]),
        "source": line["source"],
        "reference": line["reference"],
        "paid": None if paid is None else f"{paid:f} {line['paid_currency']}",
        "note": line["note"],
    }


def for_operator(line: Mapping[str, Any], account: str) -> Document:
    """What only an operator may see of a line: whose it is, where it went, what it cost there."""
    told: Document = {"account": account}
    if line["kind"] == "call":
        told |= {
            "upstream": line["upstream"],
            "upstream_model": line["upstream_model"],
            "credential": line["credential"],
            "upstream_id": line["upstream_id"],
            "upstream_cost": None if (cost := line["upstream_nanos"]) is None else as_text(cost),
        }
    return told


def _item(item: Item) -> Document:
    zeros = len(str(item.per)) - 1
    return {
        "bucket": item.bucket,
        "count": item.count,
        "price": as_text(item.price_nanos),
        "per": item.per,
        "amount": plain(Decimal(item.count * item.price_nanos).scaleb(-9 - zeros)),
    }


def multiplier(ppm: int) -> str:
    return as_text(ppm * 1000)


# -- as a table --------------------------------------------------------------------------------------


def cells(line: Document, columns: Iterable[str]) -> list[str]:
    """A document as the texts of one row."""
    flat = dict(line)
    if (usage := line.get("usage")) is not None:
        flat |= {bucket: usage.get(bucket, 0) for bucket in BUCKETS}
    if parts := line.get("items"):
        flat["items"] = "; ".join("{count} {bucket} at {price} / {per}".format_map(part) for part in parts)
    return [_cell(flat.get(column)) for column in columns]


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case list() | dict():
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode() if value else ""
    return str(value)


def csv_line(row: Iterable[str]) -> str:
    """RFC 4180. What a spreadsheet would run as a formula gets a quote in front: model names are whatever a
    client sent."""
    return ",".join(map(_quoted, row)) + "\r\n"


def _quoted(text: str) -> str:
    if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(text):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


def _is_number(text: str) -> bool:
    return text[1:].replace(".", "", 1).isascii() and text[1:].replace(".", "", 1).isdigit()
