"""The request body: read it within its bounds, find what routing needs, change single members.

Owns the budget of body bytes that one worker holds in memory. What is not changed goes upstream byte for
byte as it came (design.md, "Same bytes"): a body that came with a Content-Encoding is understood from a
decoded copy and goes on as it was sent, unless a member of it must change; then it goes decoded.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from io import BytesIO
from time import monotonic
from typing import Any
from urllib.parse import parse_qsl

import orjson

from proxy.dialects.base import OperationSpec
from proxy.errors import (
    BodyNotJson,
    BodyTooLarge,
    ContextExceeded,
    ModelMissing,
    Overloaded,
    ParameterRefused,
    UnknownModel,
    UnsupportedCoding,
)
from proxy.http1.multipart import is_form
from proxy.metering.bounds import output_asked
from proxy.metering.decode import CODINGS, TooLong, Undecodable, decode
from proxy.metering.members import (
    Members,
    Span,
    check_values,
    insert_member,
    locate,
    read_document,
    read_members,
    remove_member,
)
from proxy.relay import prompts
from proxy.relay.exchange import Exchange
from proxy.relay.heads import HeadFacts
from proxy.relay.spool import Spool
from proxy.relay.uploads import Upload
from proxy.routing.table import Parameters

BODIES_BYTES_MAX = 512 << 20  # request bodies in memory, per worker
PARSE_IN_THREAD_BYTES = 256 << 10  # parsing more would hold up streams for a millisecond and longer
MODEL_CHARS_MAX = 256  # tables of models and prices remember the names that they were asked for

NOTHING: Mapping[str, str] = {}

_PASSING = frozenset({"form", "opaque"})  # requests that may be uploads
# What these consume does not depend on the other fields of a form: they go on as soon as the model is known.
_PRICED_BY_MODEL = frozenset({"transcription"})


class Bodies:
    """Reads request bodies, within a budget for all calls of this worker."""

    def __init__(self, spool: Spool, budget: int = BODIES_BYTES_MAX) -> None:
        self._spool = spool
        self._left = budget

    def read(self, x: Exchange, facts: HeadFacts) -> Awaitable[None] | None:
        """`receive` and `parse` a body: here and now where it is plain JSON that came along with its head.

        Returns what must be waited for, None: nothing. Raises what the two do.
        """
        content = x.body.content
        if content is None or len(content) > facts.plain_bytes:
            return self._read(x, facts)
        operation = facts.operation
        assert operation is not None
        x.content, x.uploaded = content, monotonic()
        x.doc = doc = read_document(content, operation.guarded)
        asked = doc.get("stream")
        x.is_stream = operation.streams and (operation.streams_unasked if asked is None else asked is True)
        named = doc.get("model") if facts.is_model_in_body else None
        x.model = named if type(named) is str and 0 < len(named) <= MODEL_CHARS_MAX else _model_of(x)
        return None

    async def _read(self, x: Exchange, facts: HeadFacts) -> None:
        await self.receive(x)
        x.uploaded = monotonic()
        await parse(x, facts)

    async def receive(self, x: Exchange) -> None:
        """Fill in `x.content`, or `x.upload` of what is not held in memory.

        Raises BodyTooLarge, Overloaded, MalformedRequest, BodyTimeout; and what a form may be refused for.
        """
        assert x.route is not None and x.operation is not None
        limit = x.route.body_limit
        if x.body.announced > limit:
            raise BodyTooLarge
        if x.operation.request in _PASSING and await self._receive(x, limit):
            return
        content = x.body.arrived()
        if content is None:
            content = await self._collect(x, limit)
        if len(content) > limit:
            raise BodyTooLarge
        x.content = content

    async def _collect(self, x: Exchange, limit: int) -> bytes:
        # Memory for 30 MB at once takes 10 ms; this grows, and what it has in the end is not copied.
        pieces = BytesIO()
        size = 0
        try:
            while piece := await x.body.more():
                size += len(piece)
                self._left -= len(piece)
                if size > limit:
                    raise BodyTooLarge
                if self._left < 0:
                    raise Overloaded(retry_after_s=1.0)
                pieces.write(piece)
        finally:
            # The budget bounds what is being collected: from here on the call's other limits hold.
            self._left += size
        return pieces.getvalue()

    async def _receive(self, x: Exchange, limit: int) -> bool:
        """Begin an upload; False: it is none."""
        assert x.route is not None and x.operation is not None and x.facts is not None
        content_type = x.headers.get("Content-Type", "")
        is_opaque = x.operation.request == "opaque"
        if x.body.is_complete if is_opaque else not is_form(content_type):
            return False
        x.upload = Upload(x.body, x.body.announced or None, limit, self._spool)
        if is_opaque:
            await x.upload.receive()
            return True
        if x.facts.body_coding:
            raise UnsupportedCoding
        guarded, early = x.operation.guarded, None
        if x.route.parameters is not None:
            guarded += x.route.parameters.drop + x.route.parameters.guarded
        elif x.operation.kind in _PRICED_BY_MODEL:
            early = () if x.captures.get("model") or x.operation.model_at != "body" else ("model",)
        await x.upload.receive_form(content_type, guarded, early)
        return True


def plain_bytes(facts: HeadFacts) -> int:
    """How long a body may be for `Bodies.read` to do all that `parse` would do; -1: each is looked at."""
    route, operation = facts.route, facts.operation
    assert route is not None and operation is not None
    is_plain = (
        operation.request == "json"
        and operation.model_at != "none"
        and operation.naming is None
        and not operation.stream_header
        and route.parameters is None
        and not facts.body_coding
    )
    return min(route.body_limit, PARSE_IN_THREAD_BYTES) if is_plain else -1


async def parse(x: Exchange, facts: HeadFacts) -> None:
    """Fill in document, spans, model and stream flag of a request.

    Raises BodyNotJson, DuplicateMember, UnsupportedCoding, ParameterRefused, ModelMissing, UnknownModel,
    BodyTooLarge, ContextExceeded.
    """
    assert x.route is not None and x.operation is not None
    policy = x.route.parameters
    if x.upload is not None:
        x.doc = x.upload.doc
        if policy is not None:
            _check(policy, _as_numbers(x.doc, policy))
            x.upload.dropped = policy.drop
        x.is_stream = x.operation.streams and str(x.doc.get("stream")).lower() == "true"
    elif not x.content and x.operation.model_at == "none":
        pass  # where nothing has to be known of it, a body may be missing
    elif x.operation.request in ("json", "form"):
        if facts.body_coding:
            x.coded, x.content = x.content, await _decoded(x.content, facts.body_coding, x.route.body_limit)
        if len(x.content) > PARSE_IN_THREAD_BYTES:
            content, members = await asyncio.to_thread(
                _understand_long, x.content, x.operation.guarded, policy
            )
        else:
            content, members = _understand(x.content, x.operation.guarded, policy)
        if content is not x.content:
            x.content, x.coded = content, b""
        x.doc, x.spans = members.doc, members.spans
        x.is_stream = x.operation.streams and _asks_for_stream(x, x.operation)
    elif facts.body_coding:
        x.coded = x.content  # unread: it goes on as it came
    x.model = _model_of(x)
    if policy is not None and policy.within_context:
        await _check_context(x)


def _asks_for_stream(x: Exchange, operation: OperationSpec) -> bool:
    asked = x.doc.get("stream")
    if operation.stream_header:
        return x.headers.get(operation.stream_header, "disable").lower() != "disable"
    return operation.streams_unasked if asked is None else asked is True


async def _decoded(content: bytes, coding: str, limit: int) -> bytes:
    if coding not in CODINGS and coding != "x-gzip":
        raise UnsupportedCoding
    try:
        return await asyncio.to_thread(decode, content, coding, limit)
    except TooLong as e:
        raise BodyTooLarge from e
    except Undecodable as e:
        raise BodyNotJson("The request body is not what its Content-Encoding says.") from e


def _understand_long(
    content: bytes, guarded: tuple[str, ...], policy: Parameters | None
) -> tuple[bytes, Members]:
    check_values(content)
    return _understand(content, guarded, policy)


def _understand(content: bytes, guarded: tuple[str, ...], policy: Parameters | None) -> tuple[bytes, Members]:
    """The body without what the route drops, and what is in it."""
    if policy is None:
        return content, read_members(content, guarded)
    members = read_members(content, guarded + policy.guarded)
    _check(policy, members.doc)
    dropped = [name for name in policy.drop if name in members.doc]
    if not dropped:
        return content, members
    for name in dropped:
        content = remove_member(content, read_members(content, (name,)).members[name])
    return content, read_members(content, guarded)


def _model_of(x: Exchange) -> str:
    """Path before body before the route's default (Azure's deployment wins over a `model` member)."""
    assert x.route is not None and x.operation is not None
    naming = x.operation.naming
    if naming is not None:
        query = dict(parse_qsl(x.query)) if x.query else NOTHING
        return _within_bounds(naming.model(x.doc, x.captures, query, x.route.bill))
    named = x.captures.get("model")
    if named is None and x.operation.model_at == "body":
        named = x.doc.get("model")
    if named is None or named == "":
        named = x.route.default_model
    if named is None and x.operation.model_at != "none":
        raise ModelMissing(param="model")
    if not isinstance(named, str | None):
        raise BodyNotJson("The member 'model' must be a string.", param="model")
    return _within_bounds(named or "")


def _within_bounds(named: str) -> str:
    if len(named) > MODEL_CHARS_MAX:
        raise UnknownModel(param="model")
    return named


def _check(policy: Parameters, doc: Mapping[str, Any]) -> None:
    refusal = policy.refusal(doc)
    if refusal is not None:
        raise ParameterRefused(refusal.text, param=refusal.param)


async def _check_context(x: Exchange) -> None:
    """Input and the output that is asked for must fit into the model's context, where the file knows it.

    Only what may be too long is counted: a token is a byte of the body at least; and only until it is too
    long. What the vendor puts around messages is not counted, nor are pictures: it refuses them itself.
    """
    assert x.snapshot is not None
    model = x.snapshot.model_for(x.model)
    if model is None or model.context is None:
        return
    asked = output_asked(x.doc)
    room = model.context - asked
    if len(x.content) <= room:
        return
    tokens = await asyncio.to_thread(prompts.count_until, x.content, x.model, room)
    if tokens > room:
        more = f", and 'max_tokens' asks for {asked} more" if asked else ""
        raise ContextExceeded(
            f"This model's context is {model.context} tokens: the input has at least {tokens}{more}.",
            param="max_tokens" if asked else None,
        )


def _as_numbers(doc: Mapping[str, Any], policy: Parameters) -> dict[str, Any]:
    """The fields of a form as a JSON body would have them."""
    found = dict(doc)
    for name in policy.numbers & doc.keys():
        with suppress(ValueError):
            number = float(doc[name])
            found[name] = number if math.isfinite(number) else doc[name]
    return found


def outgoing(x: Exchange, model: str | None, *, include_usage: bool = False) -> bytes:
    """The body for one upstream: `model` is the model's name there; None: it is not told in the body.

    Only the value of `model` and, where asked for, `stream_options` change; they are spliced, or
    put in front where they were missing. A body whose members stay goes as it came, coded or not.
    """
    if model is not None and x.doc.get("model") == model:
        model = None  # it stays
    if model is None and not include_usage:
        return x.coded or x.content
    body = x.content
    edits: list[tuple[int, int, bytes]] = []
    inserts: list[tuple[str, bytes]] = []
    if model is not None:
        value = orjson.dumps(model)
        if span := span_of(x, "model"):
            edits.append((*span, value))
        else:
            inserts.append(("model", value))
    if include_usage:
        options = x.doc.get("stream_options")
        if span := span_of(x, "stream_options"):
            wanted = (
                {**options, "include_usage": True} if isinstance(options, dict) else {"include_usage": True}
            )
            edits.append((*span, orjson.dumps(wanted)))
        else:
            inserts.append(("stream_options", b'{"include_usage":true}'))
    for start, end, new in sorted(edits, reverse=True):  # from the end, so that earlier spans stay true
        body = body[:start] + new + body[end:]
    for name, value in inserts:
        body = insert_member(body, name, value)
    return body


def span_of(x: Exchange, name: str) -> Span | None:
    """Where the value of a guarded member is in the body; None: it is not there.

    Of a long body it was found along with parsing, in a thread.
    """
    assert x.operation is not None
    if x.spans is not None:
        return x.spans.get(name)
    if name not in x.doc or name not in x.operation.guarded:
        return None
    return locate(x.content, (name,), x.doc).spans[name]


def asks_for_usage(x: Exchange) -> bool:
    """Did the client itself ask for the usage event of a stream?"""
    options = x.doc.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
