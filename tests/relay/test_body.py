"""Request bodies: read within bounds, understood, sent on with single members changed and no other byte."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import brotli
import orjson
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects import DIALECTS
from proxy.errors import (
    BodyNotJson,
    BodyTimeout,
    BodyTooLarge,
    ContextExceeded,
    DuplicateMember,
    MalformedRequest,
    ModelMissing,
    Overloaded,
    ParameterRefused,
    ProxyError,
    UnknownModel,
    UnsupportedCoding,
)
from proxy.relay.body import Bodies, asks_for_usage, outgoing, parse, plain_bytes, span_of
from proxy.relay.exchange import Exchange
from proxy.relay.heads import HeadFacts
from proxy.relay.prompts import count_until
from proxy.relay.spool import Spool
from proxy.routing.table import Endpoint, Parameters, Route
from proxy.snapshot import Snapshot
from tests.fakes.calls import GivenBody, call
from tests.http1.test_multipart import file, part
from tests.routing.compiling import UPSTREAMS, rules, table

ENDPOINT = Endpoint("direct", "https://a.test", (), "", "", None, False, ())
SPOOL = Spool(Path("/nonexistent"))
FACTS = HeadFacts("/", "", ENDPOINT, None, b"identity", "", "")


def route(**changes: Any) -> Route:
    values: dict[str, Any] = {
        "id": "/v1/chat", "path": "/v1/chat", "methods": ("POST",), "operation": "chat",
        "dialect": "openai", "default_model": None, "candidates": (), "parameters": None,
        "request_pass": frozenset(), "body_limit": 100, "on_break": "bill", "line": 0,
    }  # fmt: skip
    return Route(**(values | changes))


def request(*pieces: bytes | Exception, length: int | None = None, limit: int = 100) -> Exchange:
    body = GivenBody(pieces, announced=length or 0)
    chat = DIALECTS["openai"].operations["chat"]
    return call("/", body=body, route=route(body_limit=limit), operation=chat)


def parsed_call(content: bytes, operation: str = "chat", dialect: str = "openai", **changes: Any) -> Exchange:
    of = DIALECTS[dialect]
    x = call("/", content=content, dialect=of, operation=of.operations[operation])
    x.route = route(**changes)
    return x


def place(x: Exchange, name: str) -> tuple[int, int]:
    found = span_of(x, name)
    assert found is not None
    return found


# -- reading ---------------------------------------------------------------------------------------


async def test_pieces_become_one_body() -> None:
    x = request(b'{"mod', b'el":', b'"m"}')
    await Bodies(SPOOL).receive(x)
    assert x.content == b'{"model":"m"}'


async def test_a_body_that_is_here_is_taken_as_it_is() -> None:
    x = request()
    x.body = GivenBody([b"{}"], is_here=True)
    await Bodies(SPOOL).receive(x)
    assert x.content == b"{}"


async def test_a_body_that_is_announced_too_large_is_not_read() -> None:
    x = request(b"x" * 50, length=101)
    with pytest.raises(BodyTooLarge):
        await Bodies(SPOOL).receive(x)
    assert isinstance(x.body, GivenBody) and x.body.taken == 0


async def test_a_body_that_becomes_too_large_is_not_read_on() -> None:
    x = request(*[b"x" * 50] * 10)
    with pytest.raises(BodyTooLarge):
        await Bodies(SPOOL).receive(x)
    assert isinstance(x.body, GivenBody) and x.body.taken == 3


async def test_a_body_that_is_here_and_too_large_is_refused() -> None:
    x = request()
    x.body = GivenBody([b"x" * 101], is_here=True)
    with pytest.raises(BodyTooLarge):
        await Bodies(SPOOL).receive(x)


async def test_the_bodies_of_a_worker_have_a_budget_that_is_given_back() -> None:
    bodies = Bodies(SPOOL, budget=60)
    with pytest.raises(Overloaded):
        await bodies.receive(request(b"x" * 40, b"x" * 40))
    for ending in (MalformedRequest(), BodyTimeout()):
        with pytest.raises(type(ending)):
            await bodies.receive(request(b"x" * 50, ending))
    with pytest.raises(BodyTooLarge):
        await bodies.receive(request(b"x" * 50, limit=49))
    for _ in range(3):
        await bodies.receive(request(b"x" * 60))


# -- understanding ---------------------------------------------------------------------------------


async def test_a_chat_is_understood() -> None:
    x = parsed_call(b' { "stream" : true , "model" : "m\\u0031" } ')
    await parse(x, FACTS)
    assert (x.model, x.is_stream) == ("m1", True)
    assert x.content[slice(*place(x, "model"))] == b'"m\\u0031"'


@pytest.mark.parametrize("stream", [b"false", b"null", b"1", b'"true"', b"[true]"])
async def test_only_true_makes_a_stream(stream: bytes) -> None:
    x = parsed_call(b'{"model":"m","stream":%b}' % stream)
    await parse(x, FACTS)
    assert x.is_stream is False


async def test_what_cannot_stream_does_not() -> None:
    x = parsed_call(b'{"model":"m","stream":true}', "embeddings")
    await parse(x, FACTS)
    assert x.is_stream is False


@pytest.mark.parametrize(
    ("content", "refusal", "param"),
    [
        (b"", BodyNotJson, None),
        (b"[]", BodyNotJson, None),
        (b'{"model":4}', BodyNotJson, "model"),
        (b'{"model":{}}', BodyNotJson, "model"),
        (b"{}", ModelMissing, "model"),
        (b'{"model":null}', ModelMissing, "model"),
        (b'{"model":""}', ModelMissing, "model"),
        (b'{"model":"a","model":"b"}', DuplicateMember, "model"),
        (b'{"model":"a","\\u006dodel":"a"}', DuplicateMember, "model"),
        (b'{"model":"a","max_tokens":1,"max_tokens":1}', DuplicateMember, "max_tokens"),
    ],
)
async def test_what_is_not_understood_is_refused(
    content: bytes, refusal: type[ProxyError], param: str | None
) -> None:
    with pytest.raises(refusal) as refused:
        await parse(parsed_call(content), FACTS)
    assert refused.value.param == param


async def test_a_member_that_nobody_guards_may_be_there_twice() -> None:
    await parse(parsed_call(b'{"model":"m","user":"a","user":"b"}'), FACTS)


def coded_facts(coding: str) -> HeadFacts:
    return HeadFacts("/", "", ENDPOINT, None, b"identity", coding, "")


PLAIN = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}' % (b"Hi! " * 1000)
CODED = {
    "gzip": gzip.compress(PLAIN), "x-gzip": gzip.compress(PLAIN), "deflate": zlib.compress(PLAIN),
    "br": brotli.compress(PLAIN), "zstd": zstd.compress(PLAIN),
}  # fmt: skip


@pytest.mark.parametrize("coding", CODED)
async def test_a_coded_body_is_understood_and_goes_on_as_it_was_sent(coding: str) -> None:
    x = parsed_call(CODED[coding], body_limit=len(PLAIN))
    await parse(x, coded_facts(coding))
    assert (x.model, x.content) == ("m", PLAIN)
    assert outgoing(x, "m") is x.coded
    assert x.coded == CODED[coding]


async def test_a_coded_body_of_which_something_must_change_goes_decoded() -> None:
    x = parsed_call(CODED["gzip"], body_limit=len(PLAIN))
    await parse(x, coded_facts("gzip"))
    sent = outgoing(x, "theirs")
    assert sent == PLAIN.replace(b'"m"', b'"theirs"')


async def test_a_coded_body_from_which_a_route_drops_something_goes_decoded() -> None:
    x = parsed_call(CODED["zstd"], body_limit=len(PLAIN), parameters=Parameters(drop=("messages",)))
    await parse(x, coded_facts("zstd"))
    assert outgoing(x, "m") == b'{"model":"m"}'


@pytest.mark.parametrize("coding", ["gzip, gzip", "compress", "aes128gcm", "gzip;q=1"])
async def test_a_coding_that_nobody_reads_is_refused(coding: str) -> None:
    with pytest.raises(UnsupportedCoding):
        await parse(parsed_call(CODED["gzip"]), coded_facts(coding))


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize(
    "content",
    [PLAIN, b"", b"\x1f\x8b\x08", CODED["gzip"][:-9], CODED["zstd"][:-9]],
    ids=["plain", "nothing", "a beginning", "gzip cut short", "zstd cut short"],
)
async def test_a_coding_that_lies_is_refused(coding: str, content: bytes) -> None:
    with pytest.raises(BodyNotJson):
        await parse(parsed_call(content, body_limit=1 << 20), coded_facts(coding))


@pytest.mark.parametrize("coding", CODED)
async def test_a_body_that_becomes_too_large_when_it_is_decoded_is_refused(coding: str) -> None:
    with pytest.raises(BodyTooLarge):
        await parse(parsed_call(CODED[coding], body_limit=len(PLAIN) - 1), coded_facts(coding))


async def test_a_model_whose_name_is_longer_than_any_is_unknown() -> None:
    with pytest.raises(UnknownModel):
        await parse(parsed_call(b'{"model":"%b"}' % (b"m" * (1 << 20))), FACTS)


@pytest.mark.parametrize(
    "content",
    [
        b'{"x":' + b"[" * 100_000, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x":' * 100_000, '{"model":"m"}'.encode("utf-16"), '{"model":"m"}'.encode("utf-16-le"),
        '{"model":"m"}'.encode("utf-32"), b'\xef\xbb\xbf{"model":"m"}', b'{"model":"\xff"}',
        b'{"model":"\\ud800"}',
        b'{"model":"m","n":NaN}', b'{"model":"m"}{', b"\x1f\x8b{}",
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
async def test_what_only_looks_like_json_is_refused(content: bytes) -> None:
    with pytest.raises(BodyNotJson):
        await parse(parsed_call(content), FACTS)


async def test_a_body_of_nothing_but_values_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(BodyTooLarge):
        await parse(parsed_call(b'{"model":"m","x":[' + b"[]," * 1_000_000 + b"1]}"), FACTS)


async def test_a_large_body_keeps_to_the_routes_parameters() -> None:
    policy = rules(drop=["user"], range={"n": ["1", "2"]})
    x = parsed_call(b'{"user":"u","messages":"%b","n":2}' % (b"x" * 1_000_000), parameters=policy)
    x.facts = replace(FACTS, captures={"model": "m"})
    await parse(x, FACTS)
    assert x.content.startswith(b'{"messages"')
    with pytest.raises(ParameterRefused):
        await parse(parsed_call(b'{"messages":"%b","n":3}' % (b"x" * 1_000_000), parameters=policy), FACTS)


async def test_a_large_body_is_parsed_all_the_same() -> None:
    x = parsed_call(b'{"messages":"%b","model":"m"}' % (b"x" * 1_000_000))
    await parse(x, FACTS)
    assert x.model == "m"


async def test_the_path_names_the_model_before_the_body_does() -> None:
    x = parsed_call(b'{"model":"theirs"}', dialect="azure")
    x.facts = replace(FACTS, captures={"model": "deployment"})
    await parse(x, FACTS)
    assert x.model == "deployment"


@pytest.mark.parametrize("content", [b"{}", b'{"model":null}', b'{"model":""}'])
async def test_a_route_may_have_a_model_for_those_who_name_none(content: bytes) -> None:
    x = parsed_call(content, default_model="usual")
    await parse(x, FACTS)
    assert x.model == "usual"


# -- a route's parameters --------------------------------------------------------------------------

RANGE = rules(range={"temperature": ["0", "1"], "n": ["1", "5"]})


@pytest.mark.parametrize("value", ["0", "1", "0.5", "1.0", "1e-3", "null"])
async def test_a_value_within_its_range_passes(value: str) -> None:
    await parse(parsed_call(b'{"model":"m","temperature":%b}' % value.encode(), parameters=RANGE), FACTS)


@pytest.mark.parametrize("value", ["-0.1", "1.0000001", "2", '"1"', "true", "[1]", "1e400"])
async def test_a_value_out_of_its_range_is_refused(value: str) -> None:
    x = parsed_call(b'{"model":"m","temperature":%b}' % value.encode(), parameters=RANGE)
    with pytest.raises((ParameterRefused, BodyNotJson)):
        await parse(x, FACTS)


async def test_a_value_may_not_hide_behind_a_second_one() -> None:
    with pytest.raises(DuplicateMember):
        await parse(parsed_call(b'{"model":"m","temperature":9,"temperature":0}', parameters=RANGE), FACTS)


async def test_what_is_dropped_is_cut_out_and_nothing_else_moves() -> None:
    drop = Parameters(drop=("logit_bias", "user", "absent"))
    x = parsed_call(
        b'{ "user" : "u", "model" : "m" , "logit_bias":{"1":[2,{}]} , "x":1.50 }', parameters=drop
    )
    await parse(x, FACTS)
    assert x.content == b'{ "model" : "m" , "x":1.50 }'
    assert x.content[slice(*place(x, "model"))] == b'"m"'
    assert set(x.doc) == {"model", "x"}


async def test_what_is_dropped_may_not_hide_behind_a_second_one() -> None:
    drop = Parameters(drop=("logit_bias",))
    with pytest.raises(DuplicateMember):
        await parse(parsed_call(b'{"model":"m","logit_bias":1,"logit_bias":2}', parameters=drop), FACTS)


@pytest.mark.parametrize(
    ("words", "model", "limit", "refusal"),
    [
        (5, "gpt-4o-mini", {}, None),
        (90, "gpt-4o-mini", {}, None),  # its body is longer than the context, its text is not
        (90, "gpt-4o-mini", {"max_tokens": 5}, None),
        (
            90,
            "gpt-4o-mini",
            {"max_tokens": 20},
            "the input has at least 90, and 'max_tokens' asks for 20 more",
        ),
        (90, "gpt-4o-mini", {"max_completion_tokens": 20}, "'max_tokens' asks for 20 more"),
        (200, "gpt-4o-mini", {}, "This model's context is 100 tokens: the input has at least 200."),
        (200, "unbounded", {"max_tokens": 20}, None),
        (200, "unknown", {}, None),
    ],
)
async def test_input_and_output_must_fit_into_the_context(
    words: int, model: str, limit: dict[str, int], refusal: str | None
) -> None:
    models = (
        "models:\n  gpt-4o-mini: {context: 100, candidates: [{upstream: openai}]}\n"
        "  unbounded: {candidates: [{upstream: openai}]}\nprices: {unbounded: {free: true}}\n"
    )
    asked = {"model": model, "messages": [{"role": "user", "content": "a" + " a" * (words - 1)}], **limit}
    x = parsed_call(orjson.dumps(asked), parameters=rules(within_context="true"))
    x.snapshot = cast(Snapshot, table(UPSTREAMS + models))
    if refusal is None:
        await parse(x, FACTS)
        return
    with pytest.raises(ContextExceeded) as refused:
        await parse(x, FACTS)
    assert refusal in refused.value.message
    assert refused.value.param == ("max_tokens" if limit else None)


def test_a_text_is_counted_until_it_is_too_long() -> None:
    content = orjson.dumps({"messages": [{"content": " a" * 1_000_000}]})
    assert count_until(content, "gpt-4o", 2_000_000) == 1_000_000
    assert 1_000 < count_until(content, "gpt-4o", 1_000) < 200_000


# -- sending on ------------------------------------------------------------------------------------


async def sent_on(content: bytes, model: str | None = "theirs", **how: bool) -> bytes:
    x = parsed_call(content, default_model="usual")
    await parse(x, FACTS)
    return outgoing(x, model, **how)


async def test_a_model_of_the_same_name_changes_nothing() -> None:
    content = b'{"x" : 1.50, "model":"\\u0074heirs"}'
    assert await sent_on(content) == content


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b'{"model":"m"}', b'{"model":"theirs"}'),
        (b' {\n "x":1.50,"model" : "m" ,"y":[]} ', b' {\n "x":1.50,"model" : "theirs" ,"y":[]} '),
        (b'{"x":["\\"model\\":\\"m\\""],"model":"m"}', b'{"x":["\\"model\\":\\"m\\""],"model":"theirs"}'),
        (b'{"m\\u006fdel":"m"}', b'{"m\\u006fdel":"theirs"}'),
        (b'{"model":null,"x":1}', b'{"model":"theirs","x":1}'),
        (b'{"x":1}', b'{"model":"theirs","x":1}'),
        (b"{}", b'{"model":"theirs"}'),
    ],
)  # fmt: skip
async def test_the_value_of_model_is_all_that_changes(content: bytes, sent: bytes) -> None:
    assert await sent_on(content) == sent


async def test_a_model_in_the_path_leaves_the_body_alone() -> None:
    assert await sent_on(b'{"model":"m"}', None) == b'{"model":"m"}'


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (b"", b'{"stream_options":{"include_usage":true},"model":"theirs","stream":true}'),
        (b',"stream_options":null',
         b'{"model":"theirs","stream":true,"stream_options":{"include_usage":true}}'),
        (b',"stream_options":{"include_usage":false}',
         b'{"model":"theirs","stream":true,"stream_options":{"include_usage":true}}'),
        (b',"stream_options":{"x":1}',
         b'{"model":"theirs","stream":true,"stream_options":{"x":1,"include_usage":true}}'),
    ],
)  # fmt: skip
async def test_the_usage_is_asked_for(options: bytes, sent: bytes) -> None:
    content = b'{"model":"m","stream":true%b}' % options
    assert await sent_on(content, include_usage=True) == sent


@pytest.mark.parametrize(
    ("options", "asks"),
    [(None, False), ({}, False), ({"include_usage": True}, True), ({"include_usage": 1}, False), ([], False)],
)
async def test_a_client_asks_for_usage_itself_by_true_alone(options: object, asks: bool) -> None:
    x = parsed_call(orjson.dumps({"model": "m", "stream_options": options}))
    await parse(x, FACTS)
    assert asks_for_usage(x) is asks


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
others = st.dictionaries(st.text().filter(lambda name: name != "model"), json_values, max_size=5)


@given(
    before=others, after=others, model=st.text(min_size=1), theirs=st.text(min_size=1),
    ascii_only=st.booleans(), indent=st.sampled_from([None, 1]),
)  # fmt: skip
def test_any_body_means_the_same_but_for_its_model(
    before: dict[str, Any],
    after: dict[str, Any],
    model: str,
    theirs: str,
    ascii_only: bool,
    indent: int | None,
) -> None:
    document = {**before, "model": model, **{k: v for k, v in after.items() if k not in before}}
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    try:
        content = text.encode()
        x = parsed_call(content)
        _run(x)
    except (UnicodeEncodeError, BodyNotJson):
        return  # a lone surrogate is no text
    sent = outgoing(x, theirs)
    assert json.loads(sent) == document | {"model": theirs}
    start, end = place(x, "model")
    assert sent.startswith(content[:start]) and sent.endswith(content[end:])


def _run(x: Exchange) -> None:
    """`parse` of a small body has nothing to wait for."""
    steps = parse(x, FACTS)
    with pytest.raises(StopIteration):
        steps.send(None)


# -- at once ---------------------------------------------------------------------------------------


def facts_for(x: Exchange, **changes: Any) -> HeadFacts:
    facts = replace(FACTS, route=x.route, dialect=x.dialect, operation=x.operation, **changes)
    assert x.operation is not None
    facts.is_model_in_body = x.operation.model_at == "body" and "model" not in facts.captures
    facts.plain_bytes = plain_bytes(facts)
    return facts


@pytest.mark.parametrize(
    "content",
    [
        b'{"model":"m","messages":[]}',
        b'{"model":"m","stream":true}',
        b'{"model":"m","stream":1}',
        b'{"model":"m","stream":null,"n":2}',
        b'{"mod\\u0065l":"m"}',
        b'{"model":"m","x":{"model":"b","stream":1}}',
        b'{"model":"m","x":"\\"model\\":\\u0065"}',
        b'{"model":"m","model":"m"}',
        b'{"model":"m","mod\\u0065l":"m"}',
        b'{"model":"m","x":"\\"","stream":true,"stream":false}',
        b'{"model":""}',
        b'{"model":null}',
        b'{"model":7}',
        b'{"model":["m"]}',
        b'{"model":"%b"}' % (b"m" * 257),
        b"{}",
        b"",
        b"[]",
        b'{"model":"m"',
        b'{"model":"\xff"}',
    ],
)
@pytest.mark.parametrize(
    ("dialect", "operation", "captures"),
    [
        ("openai", "chat", {}),
        ("openai", "embeddings", {}),
        ("azure", "chat", {"model": "deployment"}),
        ("azure", "chat", {"model": ""}),
        ("gemini", "generate_content", {"model": "gemini"}),
    ],
)
async def test_a_plain_body_is_understood_at_once_as_it_is_at_length(
    content: bytes, dialect: str, operation: str, captures: dict[str, str]
) -> None:
    for default in (None, "usual"):
        told = []
        for at_once in (True, False):
            x = parsed_call(content, operation, dialect, body_limit=1000, default_model=default)
            x.content, x.body = b"", GivenBody([content], is_here=True)
            x.facts = facts = facts_for(x, captures=captures)
            assert facts.plain_bytes == 1000
            if not at_once:
                facts.plain_bytes = -1
            try:
                waits = Bodies(SPOOL).read(x, facts)
                assert (waits is None) is at_once
                if waits is not None:
                    await waits
                told.append((x.content, x.doc, x.model, x.is_stream, x.uploaded > 0))
            except ProxyError as e:
                told.append((type(e), str(e), e.param))
        assert told[0] == told[1]


@pytest.mark.parametrize(
    ("operation", "changes", "facts"),
    [
        ("chat", {"parameters": rules(drop=["user"])}, {}),
        ("chat", {}, {"body_coding": "gzip"}),
        ("images.edits", {}, {}),
        ("models", {}, {}),
    ],
    ids=["rules of the route", "a coding", "may be a form", "no body"],
)
def test_what_else_there_is_to_do_is_not_done_at_once(
    operation: str, changes: dict[str, Any], facts: dict[str, Any]
) -> None:
    assert facts_for(parsed_call(b"{}", operation, **changes), **facts).plain_bytes == -1


async def test_a_body_that_is_too_long_or_still_to_come_is_not_read_at_once() -> None:
    for body in (GivenBody([b"x" * 101], is_here=True), GivenBody([b"x" * 101])):
        x = parsed_call(b"")
        x.body = body
        waits = Bodies(SPOOL).read(x, facts_for(x))
        assert waits is not None
        with pytest.raises(BodyTooLarge):
            await waits


# -- forms -----------------------------------------------------------------------------------------

FORM = [("Content-Type", "multipart/form-data; boundary=b")]


async def form_call(
    body: bytes, spool: Path, operation: str = "transcriptions", *fields: tuple[str, str], **changes: Any
) -> Exchange:
    """A form that was read as far as its call needs."""
    openai = DIALECTS["openai"]
    pieces = [body[at : at + 5000] for at in range(0, len(body), 5000)]
    x = call("/", *(fields or FORM), body=GivenBody(pieces), operation=openai.operations[operation])
    x.route = route(body_limit=1 << 20, **changes)
    x.facts = FACTS
    await Bodies(Spool(spool, spare=0)).receive(x)
    await parse(x, FACTS)
    return x


def fields_of(**values: str) -> bytes:
    return b"".join(part(name, value.encode()) for name, value in values.items())


async def test_a_recording_goes_on_when_its_model_is_known(tmp_path: Path) -> None:
    x = await form_call(
        fields_of(model="m", stream="true") + file("file", b"x" * 50_000) + b"--b--", tmp_path
    )
    assert (x.model, x.is_stream) == ("m", True)
    assert x.upload is not None and not x.upload.is_whole


async def test_a_picture_is_read_whole_for_what_its_price_needs(tmp_path: Path) -> None:
    body = fields_of(model="m") + file("image", b"x" * 50_000) + fields_of(n="2", size="1x1") + b"--b--"
    x = await form_call(body, tmp_path, "images.edits")
    assert x.upload is not None and x.upload.is_whole
    assert (x.model, x.doc["n"], x.doc["size"]) == ("m", "2", "1x1")


async def test_a_recording_whose_route_has_rules_is_read_whole(tmp_path: Path) -> None:
    policy = rules(drop=["language"], range={"temperature": ["0", "1"]})
    begin = fields_of(model="m") + file("file", b"x" * 50_000)
    x = await form_call(
        begin + fields_of(language="de", temperature="0.5") + b"--b--", tmp_path, parameters=policy
    )
    assert x.upload is not None and x.upload.dropped == ("language",)
    for value in ("2", "-1", "x", "", "nan", "inf"):
        with pytest.raises(ParameterRefused):
            await form_call(begin + fields_of(temperature=value) + b"--b--", tmp_path, parameters=policy)


async def test_what_takes_a_form_takes_json_as_well(tmp_path: Path) -> None:
    x = await form_call(
        b'{"model":"m","n":2}', tmp_path, "images.edits", ("Content-Type", "application/json")
    )
    assert x.upload is None
    assert (x.model, x.doc["n"]) == ("m", 2)


async def test_a_form_may_leave_its_model_to_the_route_or_the_path(tmp_path: Path) -> None:
    body = file("file", b"x" * 50_000) + b"--b--"
    assert (await form_call(body, tmp_path, default_model="usual")).model == "usual"
    with pytest.raises(ModelMissing):
        await form_call(body, tmp_path)


async def test_a_compressed_form_is_refused(tmp_path: Path) -> None:
    x = call("/", *FORM, body=GivenBody([b"x"]), operation=DIALECTS["openai"].operations["transcriptions"])
    x.route, x.facts = route(), coded_facts("gzip")
    with pytest.raises(UnsupportedCoding):
        await Bodies(SPOOL).receive(x)
