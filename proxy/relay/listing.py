"""Lists that are answered from bindings: an account sees its own, in the vendor's shape.

Owns what a list asks control for, and the pages. A list by ids that may go on to its vendor goes with the
account's own ids only; what of it lives apart is answered from what was seen last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import orjson

from proxy.dialects.declared import filled
from proxy.dialects.owned import ID_CHARS_MAX, IDS_MAX, Listing, first
from proxy.errors import MalformedRequest, ParameterRefused
from proxy.metering.members import read_members, splice
from proxy.relay.exchange import Exchange

LIST_DEFAULT, LIST_MAX = 20, 100
PAGE_MAX = 9  # with LIST_MAX items: nobody looks further back, and each page reads all before it


def asked(x: Exchange, listing: Listing) -> dict[str, Any]:
    """What control is asked for."""
    assert x.key is not None
    query = dict(parse_qsl(x.query))
    ask: dict[str, Any] = {"account": x.key.account_id, "kind": listing.kind}
    if listing.shape is None:
        ask["limit"] = _count(query.get(listing.limit), LIST_DEFAULT, LIST_MAX)
        return ask | {"after": query.get(listing.after, ""), "before": query.get(listing.before, "")}
    size, page = _numbered(listing, query)
    return ask | {
        "limit": size,
        "offset": (page - 1) * size,
        "total": bool(listing.page),
        "open": listing.only_open,
    }


def page(x: Exchange, listing: Listing, reply: Mapping[str, Any]) -> Any:
    """The answer; an object that was never seen whole is told by its id."""
    items = reply["items"]
    if listing.shape is not None:
        number, size = _numbered(listing, dict(parse_qsl(x.query)))[::-1]
        # An object that does not say its own id gets it from the form.
        forms = [filled(listing.blank, {"id": item["id"]}) for item in items]
        data = [{**form, **(item["content"] or {})} for form, item in zip(forms, items, strict=True)]
        values = {"items": data, "total": reply.get("total", len(data)), "page": number, "size": size}
        return filled(listing.shape, values)
    ids, more = [item["id"] for item in items], reply["more"]
    bare = {"object": listing.kind} if listing.named == "id" else {}
    whole = [item["content"] or {listing.named: item["id"], **bare} for item in items]
    found = {**listing.fixed, listing.member: whole}
    if listing.token:
        return {**found, listing.token: ids[-1]} if more else found
    return {
        **found,
        "has_more": more,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }


def ids_asked(x: Exchange, listing: Listing) -> dict[str, Any]:
    """id -> as it is written, of a list by ids. Raises ParameterRefused, MalformedRequest."""
    ids = first(x.doc, (listing.ids[1:],))
    name = str(listing.ids[-1])
    if ids is None:
        return {}
    if type(ids) is not list or not all(type(id_) in (str, int) for id_ in ids):
        raise ParameterRefused(param=name)
    if len(ids) > IDS_MAX:
        raise MalformedRequest("The request names more objects than one request may.")
    return {str(id_): id_ for id_ in ids if len(str(id_)) <= ID_CHARS_MAX}


def narrow(x: Exchange, listing: Listing, ids: list[Any]) -> None:
    """Only these are asked for: the other ids of the request stay here."""
    assert x.operation is not None
    name = str(listing.ids[-1])
    changed = splice(x.content, read_members(x.content, (name,)).spans[name], orjson.dumps(ids))
    x.content, x.coded = changed, b""
    x.spans = read_members(changed, x.operation.guarded).spans


def _numbered(listing: Listing, query: Mapping[str, str]) -> tuple[int, int]:
    """Size and number of the page."""
    if not listing.page:
        return LIST_MAX, 1
    return (
        _count(query.get(listing.size), LIST_DEFAULT, LIST_MAX),
        _count(query.get(listing.page), 1, PAGE_MAX),
    )


def _count(text: str | None, default: int, most: int) -> int:
    return min(max(int(text), 1), most) if text and text.isascii() and text.isdigit() else default
