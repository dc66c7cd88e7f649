"""The request body: read it within its bounds, find what routing needs, change single members.

Owns the budget of body bytes that one worker holds in memory. What is not changed goes upstream
byte for byte as it came (design.md, "Same bytes").
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson

from proxy.dialects.base import OperationSpec
from proxy.errors import (
    BodyNotJson,
    BodyTooLarge,
    ModelMissing,
    Overloaded,
    ParameterRefused,
    UnknownModel,
    UnsupportedCoding,
)
from proxy.metering.members import Members, check_values, insert_member, read_members, remove_member
from proxy.relay.exchange import Exchange
from proxy.relay.heads import HeadFacts
from proxy.routing.table import Parameters

BODIES_BYTES_MAX = 512 << 20  # request bodies in memory, per worker
PARSE_IN_THREAD_BYTES = 256 << 10  # parsing more would hold up streams for a millisecond and longer
MODEL_CHARS_MAX = 256  # tables of models and prices remember the names that they were asked for


class Bodies:
    """Reads request bodies, within a budget for all calls of this worker."""

    def __init__(self, budget: int = BODIES_BYTES_MAX) -> None:
        self._left = budget

    async def read(self, x: Exchange) -> None:
        """Fill in `x.content`. Raises BodyTooLarge, Overloaded, MalformedRequest, BodyTimeout."""
        assert x.route is not None
        limit = x.route.body_limit
        if x.body.announced > limit:
            raise BodyTooLarge
        content = x.body.arrived()
        if content is None:
            content = await self._collect(x, limit)
        if len(content) > limit:
            raise BodyTooLarge
        x.content = content

    async def _collect(self, x: Exchange, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await x.body.more():
                size += len(piece)
                self._left -= len(piece)
                if size > limit:
                    raise BodyTooLarge
                if self._left < 0:
                    raise Overloaded(retry_after_s=1.0)
                pieces.append(piece)
        finally:
            # The budget bounds what is being collected: from here on the call's other limits hold.
            self._left += size
        return b"".join(pieces)


async def parse(x: Exchange, facts: HeadFacts) -> None:
    """Fill in document, spans, model and stream flag of a JSON request.

    Raises BodyNotJson, DuplicateMember, UnsupportedCoding, ParameterRefused, ModelMissing, UnknownModel,
    BodyTooLarge.
    """
    assert x.route is not None and x.operation is not None
    if x.operation.request == "json":
        if not facts.has_plain_body:
            raise UnsupportedCoding
        guarded, policy = x.operation.guarded, x.route.parameters
        if len(x.content) > PARSE_IN_THREAD_BYTES:
            x.content, members = await asyncio.to_thread(_understand_long, x.content, guarded, policy)
        else:
            x.content, members = _understand(x.content, guarded, policy)
        x.doc, x.spans = members.doc, members.spans
        x.is_stream = x.operation.streams and _asks_for_stream(x, x.operation)
    x.model = _model_of(x)


def _asks_for_stream(x: Exchange, operation: OperationSpec) -> bool:
    asked = x.doc.get("stream")
    if operation.stream_header:
        return x.headers.get(operation.stream_header, "disable").lower() != "disable"
    return operation.streams_unasked if asked is None else asked is True


def _understand_long(
    content: bytes, guarded: tuple[str, ...], policy: Parameters | None
) -> tuple[bytes, Members]:
    check_values(content)
    return _understand(content, guarded, policy)


def _understand(content: bytes, guarded: tuple[str, ...], policy: Parameters | None) -> tuple[bytes, Members]:
    """The body without what the route drops, and what is in it."""
    if policy is None:
        return content, read_members(content, guarded)
    members = read_members(content, guarded + tuple(name for name, _, _ in policy.range))
    _check_ranges(policy, members.doc)
    dropped = [name for name in policy.drop if name in members.doc]
    if not dropped:
        return content, members
    for name in dropped:
        content = remove_member(content, read_members(content, (name,)).members[name])
    return content, read_members(content, guarded)


def _model_of(x: Exchange) -> str:
    """Path before body before the route's default (Azure's deployment wins over a `model` member)."""
    assert x.route is not None and x.operation is not None
    named = x.captures.get("model")
    if named is None and x.operation.model_at == "body":
        named = x.doc.get("model")
    if named is None or named == "":
        named = x.route.default_model
    if named is None and x.operation.model_at != "none":
        raise ModelMissing(param="model")
    if not isinstance(named, str | None):
        raise BodyNotJson("The member 'model' must be a string.", param="model")
    if named and len(named) > MODEL_CHARS_MAX:
        raise UnknownModel(param="model")
    return named or ""


def _check_ranges(policy: Parameters, doc: Mapping[str, Any]) -> None:
    for name, low, high in policy.range:
        value = doc.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ParameterRefused(f"'{name}' must be a number.", param=name)
        if not Decimal(low) <= Decimal(str(value)) <= Decimal(high):
            raise ParameterRefused(f"'{name}' must be between {low} and {high}.", param=name)


def outgoing(x: Exchange, model: str, *, model_in_body: bool, include_usage: bool) -> bytes:
    """The body for one upstream: `model` is the model's name there.

    Only the value of `model` and, where asked for, `stream_options` change; they are spliced, or
    put in front where they were missing.
    """
    body = x.content
    edits: list[tuple[int, int, bytes]] = []
    inserts: list[tuple[str, bytes]] = []
    if model_in_body and x.doc.get("model") != model:
        value = orjson.dumps(model)
        if "model" in x.spans:
            edits.append((*x.spans["model"], value))
        else:
            inserts.append(("model", value))
    if include_usage:
        options = x.doc.get("stream_options")
        if "stream_options" not in x.spans:
            inserts.append(("stream_options", b'{"include_usage":true}'))
        else:
            wanted = (
                {**options, "include_usage": True} if isinstance(options, dict) else {"include_usage": True}
            )
            edits.append((*x.spans["stream_options"], orjson.dumps(wanted)))
    for start, end, new in sorted(edits, reverse=True):  # from the end, so that earlier spans stay true
        body = body[:start] + new + body[end:]
    for name, value in inserts:
        body = insert_member(body, name, value)
    return body


def asks_for_usage(x: Exchange) -> bool:
    """Did the client itself ask for the usage event of a stream?"""
    options = x.doc.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
