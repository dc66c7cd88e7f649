"""Find and change single members of a JSON request body without rebuilding it.

Owns the top-level member scan that the model splice stands on. Knows no vendor; never re-serialises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from proxy.errors import BodyNotJson, BodyTooLarge, DuplicateMember
from proxy.metering import sliced
from proxy.metering.sliced import BACKSLASH, ESCAPE

Span = tuple[int, int]

# Values in one body, each array and object as five: the time in which nothing else of the process runs while
# a parser makes objects of them (60 ns and 350 ns). A request for embeddings has 300,000 token ids at most.
VALUES_MAX = 1_000_000
_PER_CONTAINER = 5

_SPACE = re.compile(rb"[ \t\r\n]*")
# A short string, or the beginning of another one: in a long one, a quote is found ten times as fast as it is
# matched, and no other thread runs while something is matched.
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]{0,256}"|["\[\]{}]')
_SCALAR = re.compile(rb"[^,\]} \t\r\n]+")
# What follows a key whose value is a string without escapes, a number or a word.
_SCALAR_MEMBER = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*("[^"\\]*"|[^][{}" ,\t\r\n]+)')


class Members(NamedTuple):
    """A request body as parsed, and where its guarded members are.

    `spans` are the byte ranges of the values, `members` of the whole `"name": value`.
    """

    doc: dict[str, Any]
    spans: dict[str, Span]
    members: dict[str, Span]


def check_values(body: bytes) -> None:
    """Refuse a long body that is all structure: 30 MB of empty arrays take a parser three seconds.

    What is not JSON may pass: a parser refuses it. Raises BodyTooLarge.
    """
    if _values(body, 0, len(body)) <= VALUES_MAX:
        return
    found = at = 0  # those signs may be text: count them between the strings only
    while found <= VALUES_MAX:
        quote = body.find(b'"', at)
        if quote < 0:
            found += _values(body, at, len(body))
            break
        found += 1 + _values(body, at, quote)
        at = _string_end(body, quote)
    if found > VALUES_MAX:
        raise BodyTooLarge("The request body holds too many values.")


def _values(body: bytes, start: int, end: int) -> int:
    found = 0
    for at in range(start, end, sliced.FOUND_BYTES):
        to = min(at + sliced.FOUND_BYTES, end)
        containers = body.count(b"[", at, to) + body.count(b"{", at, to)
        found += body.count(b",", at, to) + containers * _PER_CONTAINER
    return found


def read_document(body: bytes, guarded: tuple[str, ...]) -> dict[str, Any]:
    """Parse a body that is not long, in which each guarded top-level member may stand but once.

    Raises BodyNotJson when it is not a JSON object (UTF-8, no NaN, nesting as orjson allows), and
    DuplicateMember when a guarded member appears twice, in any spelling: parsers differ about which
    of the two counts, so that one could be billed and another executed.
    """
    try:
        doc: dict[str, Any] = orjson.loads(body)
        if orjson.dumps(doc) == body and type(doc) is dict:
            return doc  # all that stands there is in the document: nothing was there twice
    except ValueError as e:
        raise BodyNotJson(detail=str(e)) from e
    except TypeError:
        pass  # nested more deeply than it writes
    _check_object(doc)
    if BACKSLASH in body and body.find(ESCAPE) >= 0:
        locate(body, guarded, doc)
        return doc
    quoted = _quoted(guarded)
    for name in quoted.keys() & doc.keys():
        if body.count(quoted[name]) != 1:  # else it proves the same as `_locate_unique`
            locate(body, guarded, doc)
            break
    return doc


def read_members(body: bytes, guarded: tuple[str, ...]) -> Members:
    """The same for a body of any length, with where its guarded members are."""
    return locate(body, guarded, _parse(body))


def _parse(body: bytes) -> dict[str, Any]:
    try:
        doc: dict[str, Any] = sliced.loads(body)
    except ValueError as e:
        raise BodyNotJson(detail=str(e)) from e
    _check_object(doc)
    return doc


def _check_object(doc: object) -> None:
    if type(doc) is not dict:
        raise BodyNotJson(detail=f"top level is {type(doc).__name__}")


def locate(body: bytes, guarded: tuple[str, ...], doc: dict[str, Any]) -> Members:
    """Where the guarded members of a body are that was parsed. Raises DuplicateMember."""
    found = _locate_unique(body, guarded, doc)
    if found is not None:
        return found
    found = Members(doc, {}, {})
    for name, key_start, start, end in top_level(body):
        if name not in guarded:
            continue
        if name in found.spans:
            raise DuplicateMember(param=name)
        found.spans[name] = (start, end)
        found.members[name] = (key_start, end)
    return found


def _locate_unique(body: bytes, guarded: tuple[str, ...], doc: dict[str, Any]) -> Members | None:
    """Find the members without a scan if the text proves that no guarded name occurs twice.

    A key is a quoted name. Without `\\u` no other spelling of these names exists, so a quoted name
    that occurs once in the whole body is the key that the parser saw. None: scan.
    """
    find = bytes.find if len(body) <= sliced.FOUND_BYTES else sliced.find
    if BACKSLASH in body and find(body, ESCAPE) >= 0:
        return None
    spans: dict[str, Span] = {}
    members: dict[str, Span] = {}
    for name, quoted in _quoted(guarded).items():
        if name not in doc:
            continue
        at = find(body, quoted)
        after = at + len(quoted)
        if at < 0 or find(body, quoted, after) >= 0:
            return None
        scalar = _SCALAR_MEMBER.match(body, after)
        if scalar is not None:
            span = scalar.span(1)
        else:
            start = _after_colon(body, after)
            span = start, _value_end(body, start)
        spans[name] = span
        members[name] = at, span[1]
    return Members(doc, spans, members)


@lru_cache(maxsize=256)
def _quoted(names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: orjson.dumps(name) for name in names}


def top_level(body: bytes) -> Iterator[tuple[str, int, int, int]]:
    """(name, key start, value start, value end) of each member of an object that a parser has accepted."""
    at = _space_end(body, 0) + 1
    while True:
        at = _space_end(body, at)
        if body[at : at + 1] != b'"':  # "}" of an empty object
            return
        key_end = _string_end(body, at)
        start = _after_colon(body, key_end)
        end = _value_end(body, start)
        yield orjson.loads(body[at:key_end]), at, start, end
        at = _space_end(body, end)
        if body[at : at + 1] != b",":
            return
        at += 1


def splice(body: bytes, span: Span, new: bytes) -> bytes:
    """The body with the bytes of `span` exchanged; nothing else moves."""
    return b"%b%b%b" % (body[: span[0]], new, body[span[1] :])


def insert_member(body: bytes, name: str, value_json: bytes) -> bytes:
    """The body with one more member, at the front. `value_json` is JSON text."""
    at = body.index(b"{") + 1
    comma = b"" if body[_space_end(body, at) :].startswith(b"}") else b","
    return b"%b%b:%b%b%b" % (body[:at], orjson.dumps(name), value_json, comma, body[at:])


def remove_member(body: bytes, member: Span) -> bytes:
    """The body without one member (a span of `Members.members`) and one comma beside it."""
    start, end = member
    after = _space_end(body, end)
    if body[after : after + 1] == b",":
        return body[:start] + body[_space_end(body, after + 1) :]
    before = body[:start].rstrip(b" \t\r\n")
    return before.removesuffix(b",") + body[end:]


def _space_end(body: bytes, at: int) -> int:
    found = _SPACE.match(body, at)
    return found.end() if found else at


def _after_colon(body: bytes, at: int) -> int:
    return _space_end(body, _space_end(body, at) + 1)


def _value_end(body: bytes, start: int) -> int:
    """Where the value ends that begins at `start`, in text that a parser has accepted."""
    first = body[start : start + 1]
    if first == b'"':
        return _string_end(body, start)
    if first not in (b"{", b"["):
        found = _SCALAR.match(body, start)
        return found.end() if found else start
    depth = 0
    at = start
    while token := _STRING_OR_BRACKET.search(body, at):
        text = token.group()
        at = token.end()
        if text in b"{[":
            depth += 1
        elif text in b"}]":
            depth -= 1
            if depth == 0:
                return at
        elif len(text) == 1:
            at = _string_end(body, token.start())
    return len(body)


def _string_end(body: bytes, start: int) -> int:
    """Where the string ends whose quote is at `start`, in text that a parser has accepted."""
    at = start
    while (at := body.find(b'"', at + 1)) >= 0:
        before = at - 1
        while body[before] == 0x5C:
            before -= 1
        if (at - before) % 2:  # each backslash in front of it belongs to another one
            return at + 1
    return len(body)
