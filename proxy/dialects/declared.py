"""Dialects that a file declares: families of task APIs, built from the rows of a compiled table.

Owns what the grammar of routing.family means for requests and answers; knows no vendor. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from functools import partial
from typing import Any

import orjson

from proxy.dialects import headers
from proxy.dialects.answer import COUNT_MAX, known_int
from proxy.dialects.base import ANY, Dialect, Once, OperationSpec, Pointer, Rules, UsagePointers
from proxy.dialects.naming import Naming
from proxy.dialects.owned import Callback, Condition, IdIn, IdOut, Listing, Many, Task, first, text_of
from proxy.dialects.rules import meter_of
from proxy.errors import ParameterRefused
from proxy.metering.usage import Usage

Row = Mapping[str, Any]

# What a file may say that a request asks for, or an answer tells -> bucket and how many of it are one.
_BUCKETS = {
    "seconds": ("seconds_ms", 1000),
    "images": ("images", 1),
    "characters": ("characters", 1),
    "input": ("input", 1),
    "output": ("output", 1),
    "cache_read": ("cache_read", 1),
}
MEASURES = frozenset(_BUCKETS)
_ERROR = {"error": {"message": "{message}", "type": "{kind}", "param": "{param}", "code": "{code}"}}


def dialect(row: Row) -> Dialect:
    """One family. Raises KeyError, TypeError or ValueError on a row of another build."""
    tasks = {task["kind"]: _task(task) for task in row["tasks"]}
    operations = {one["name"]: _operation(row["name"], one, tasks) for one in row["operations"]}
    header, prefix = row["auth"]
    errors = row["errors"] or {}
    body = _refusals(orjson.loads(errors["body"]) if errors else _ERROR, errors.get("codes", {}))
    return Dialect(
        name=row["name"],
        operations=operations,
        paths={},  # the table has them
        auth=(header.encode("latin-1"), prefix.encode("latin-1")),
        request_pass=headers.REQUEST | {name.encode() for name in row["request_pass"]},
        response_pass=headers.RESPONSE | {name.encode() for name in row["response_pass"]},
        query_pass={name: frozenset() for name in row["query_pass"]},
        error_body=body,
        stream_error=body,
        meter_of=meter_of,
    )


def filled(template: Any, values: Mapping[str, Any]) -> Any:
    """A JSON value with its braces filled in: a text that is but one becomes the value itself."""
    if type(template) is dict:
        return {name: filled(value, values) for name, value in template.items()}
    if type(template) is list:
        return [filled(value, values) for value in template]
    if type(template) is not str or "{" not in template:
        return template
    for name, value in values.items():
        brace = f"{{{name}}}"
        if template == brace:
            return value
        if brace in template:
            template = template.replace(brace, "" if value is None else str(value))
    return template


def _refusals(template: Any, codes: Mapping[str, str]) -> Callable[..., bytes]:
    """What our own refusals look like; see base.Dialect.error_body."""

    def error_body(
        kind: str, code: str, message: str, param: str | None, status: int, request_id: str
    ) -> bytes:
        values = {
            "message": message,
            "code": codes.get(code, codes.get("*", code)),
            "kind": kind,
            "param": param,
            "status": status,
            "request_id": request_id,
        }
        return orjson.dumps(filled(template, values))

    return error_body


# -- operations ------------------------------------------------------------------------------------


def _operation(family: str, row: Row, tasks: Mapping[str, Task]) -> OperationSpec:
    task = tasks.get(row["task"] or "")
    submits, lists = row["submits"], row["lists"]
    out = tuple(
        IdOut(kind, _pointers(places), holder=task.object if task and not submits else ())
        for kind, places in row["ids_out"]
    )
    accepted = _condition(row["accepted"])
    if submits:
        accepted += ((out[0].at, frozenset()),)  # what has no id, nobody can ever be told of
    return OperationSpec(
        row["name"],
        row["path"],
        tuple(row["methods"]),
        api=family,
        kind="text" if row["by"] == "tokens" else row["by"],
        request=row["request"],
        model_at="none",
        billed=row["bill"] is not None,
        replayable=row["bill"] is None,
        guarded=tuple(row["guarded"]),
        rules=Rules(accepted=accepted, vendor_id=out[0].at if submits else (("id",),)),
        foretold=_foretold(row["amounts"]) if row["amounts"] else None,
        amounts=_asked(row["amounts"]) if row["amounts"] else None,
        naming=_naming(row["bill"]) if row["bill"] is not None else None,
        ids_in=tuple(
            IdIn(_pointer(place["at"]), before=place["before"], is_strict=True) for place in row["ids_in"]
        ),
        ids_out=out,
        task=task,
        lists=_listing(lists) if lists else None,
        once=_once(row["once"]) if row["once"] else None,
        exists=_condition(row["exists"]),
        hurries=row["hurries"],
        links=_pointers(row["links"]),
    )


def _naming(row: Row) -> Naming:
    return Naming(_pointer(row["at"]), tuple((glob, name) for glob, name in row["cases"]), row["otherwise"])


def _once(row: Row) -> Once:
    return Once(_pointers(row["members"]), row["within_s"])


def _listing(row: Row) -> Listing:
    return Listing(
        row["kind"],
        shape=orjson.loads(row["shape"]),
        blank=orjson.loads(row["blank"]),
        only_open=row["only_open"],
        ids=_pointer(row["ids"]),
        page=row["page"],
        size=row["size"],
    )


def _asked(rows: list[list[Any]]) -> Callable[[Mapping[str, Any]], Usage]:
    """What a request asks for; what it does not say counts as the file says."""
    amounts = [(_BUCKETS[name], _pointer(at)[1:], Decimal(otherwise)) for name, at, otherwise in rows]

    def asked(doc: Mapping[str, Any]) -> Usage:
        usage = Usage(calls=1)
        for (bucket, unit), at, otherwise in amounts:
            said = first(doc, (at,))
            amount = otherwise if said is None else _number(said)
            if amount is None:
                raise ParameterRefused(param=str(at[-1]))
            setattr(usage, bucket, int((amount * unit).to_integral_value(ROUND_CEILING)))
        return usage

    return asked


def _number(value: Any) -> Decimal | None:
    """8, 8.5, "8" or "8s"."""
    try:
        number = Decimal((text_of(value) or "").strip().removesuffix("s"))
    except InvalidOperation:
        return None
    return number if number.is_finite() and 0 <= number <= COUNT_MAX else None


def _foretold(rows: list[list[Any]]) -> Callable[..., Usage]:
    asked = _asked(rows)
    return lambda doc, content, header: asked(doc)


# -- tasks -----------------------------------------------------------------------------------------


def _task(row: Row) -> Task:
    many, callback = row["batch"], row["callback"]
    return Task(
        row["kind"],
        row["poll"],
        _pointers(row["state"]),
        row["states"],
        usage=UsagePointers(((),), partial(_usage, _measured(row["usage"]))) if row["usage"] else None,
        many=many
        and Many(
            many["operation"], many["ids"], _pointer(many["items"]), _pointer(many["id_at"]), many["at_once"]
        ),
        object=_pointer(row["object"]),
        poll_query=row["poll_query"],
        poll_body=orjson.loads(row["poll_body"]) if row["poll_body"] else None,
        charged=frozenset(row["charged"]),
        headers=tuple((name.encode(), value.encode("latin-1")) for name, value in row["headers"]),
        shortest_s=row["shortest_s"],
        longest_s=row["longest_s"],
        requests=row["requests"],
        deadline_s=row["deadline_s"],
        dispute_s=row["dispute_s"],
        callback=callback and Callback(tuple(callback["fields"]), _pointer(callback["body"])),
        files=_pointers(row["files"]),
        progress=_pointers(row["progress"]),
    )


def _measured(rows: Mapping[str, list[str]]) -> list[tuple[str, int, Pointer]]:
    return [(*_BUCKETS[name], _pointer(at)) for name, at in rows.items()]


def _usage(measured: list[tuple[str, int, Pointer]], told: Mapping[str, Any]) -> Usage | None:
    """The figures of an answer; None: it has none of them."""
    usage = Usage()
    for bucket, unit, at in measured:
        value = first(told, (at,))
        if value is not None:
            usage.calls = 1
            setattr(usage, bucket, known_int(value) * unit)
    return usage if usage.calls else None


# -- places ----------------------------------------------------------------------------------------


def _pointer(steps: list[str]) -> Pointer:
    return tuple(ANY if step == "*" else step for step in steps)


def _pointers(places: list[list[str]]) -> tuple[Pointer, ...]:
    return tuple(_pointer(place) for place in places)


def _condition(rows: list[list[Any]]) -> Condition:
    return tuple(((_pointer(place),), frozenset(texts)) for place, texts in rows)
