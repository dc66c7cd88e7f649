"""Declared families -> the rows that dialects.declared and routing.table build them from.

Owns the plain JSON form of families and their routes. Durations become seconds where a task table has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from proxy.routing import family, spec
from proxy.routing.loader import parameters
from proxy.routing.loader.families import Family, Operation
from proxy.routing.section import Candidate, Parameters
from proxy.routing.texts import steps

Row = dict[str, Any]


def families(declared: list[Family]) -> list[Row]:
    return [_family(one) for one in declared]


def _family(one: Family) -> Row:
    said = one.said
    operations = list(one.operations.values())
    words = {operation.kind: operation.word for operation in operations if _has_task(said, operation)}
    return {
        "name": one.name,
        "auth": [part.decode("latin-1") for part in one.auth],
        "request_pass": [name.lower() for name in said.headers.request],
        "response_pass": [name.lower() for name in said.headers.response],
        "query_pass": [*said.query, *([said.task.poll.query] if said.task.poll.query else [])],
        "errors": said.errors and {"body": said.errors.body, "codes": said.errors.codes},
        "tasks": [_task(one, kind, word) for kind, word in words.items()],
        "operations": [_operation(one, operation) for operation in operations],
    }


def _has_task(said: family.Family, operation: Operation) -> bool:
    return operation.said.submits or operation.said.shows


def _task(one: Family, kind: str, word: str) -> Row:
    task = one.said.task
    poll, batch, callback = task.poll, task.batch, task.callback
    return {
        "kind": kind,
        "poll": one.local(poll.operation, word),
        "poll_query": poll.query or "",
        "poll_body": poll.body,
        "headers": [[name.lower(), value] for name, value in poll.headers.items()],
        "shortest_s": poll.every / 1000,
        "longest_s": max(poll.at_most, poll.every) / 1000,
        "requests": poll.requests,
        "batch": batch
        and {
            "operation": one.local(batch.operation, word),
            "ids": batch.ids,
            "items": steps(batch.items),
            "id_at": steps(batch.id),
            "at_once": batch.at_once,
        },
        "object": steps(task.object),
        "state": _places(task.state),
        "states": dict(task.states),
        "progress": _places(task.progress),
        "files": _places(task.files),
        "usage": {bucket: steps(place) for bucket, place in task.usage.items()},
        "callback": callback and {"fields": callback.fields, "body": steps(callback.body)},
        "deadline_s": task.deadline / 1000,
        "dispute_s": task.disputed_for / 1000,
        "charged": list(task.charged),
    }


def _operation(one: Family, operation: Operation) -> Row:
    said, task = operation.said, one.said.task
    accepted = said.accepted if said.accepted is not None else (task.accepted if said.submits else {})
    makes = {**(task.makes if said.shows else {}), **said.makes}
    out = [[f"{one.name}.{kind}", _places(places)] for kind, places in makes.items()]
    if said.submits:
        out = [[operation.kind, _places(task.id)], *out]
    return {
        "name": operation.name,
        "path": operation.path,
        "methods": list(operation.methods),
        "request": operation.request,
        "guarded": list(operation.guarded),
        "bill": _bill(said.bill),
        "by": "tokens" if said.by == "tokens" else "amounts" if said.amounts else "calls",
        "amounts": [[name, steps(a.at), str(a.otherwise)] for name, a in said.amounts.items()],
        "accepted": _condition(accepted),
        "exists": _condition(task.exists if said.submits else {}),
        "ids_in": [_id_in(place) for place in said.names],
        "ids_out": out,
        "task": operation.kind if _has_task(one.said, operation) else None,
        "submits": said.submits,
        "hurries": said.hurries,
        "links": _places(one.said.links) if said.submits or said.shows else [],
        "lists": said.lists and _listing(operation.kind, said.lists, task.blank),
        "once": said.once
        and {"members": [steps(place) for place in said.once.members], "within_s": said.once.within / 1000},
    }


def _places(places: str | list[str]) -> list[list[str]]:
    return [steps(place) for place in ([places] if isinstance(places, str) else places)]


def _condition(condition: family.Condition) -> list[Any]:
    return [[steps(place), texts] for place, texts in condition.items()]


def _id_in(place: str | family.Cut) -> Row:
    if isinstance(place, family.Cut):
        return {"at": steps(place.at), "before": place.before}
    return {"at": steps(place), "before": ""}


def _bill(bill: str | family.BilledBy | None) -> Row | None:
    if bill is None:
        return None
    if isinstance(bill, str):
        return {"at": [], "cases": [], "otherwise": bill}
    return {"at": steps(bill.at), "cases": list(bill.is_.items()), "otherwise": bill.otherwise}


def _listing(kind: str, said: family.Listing, blank: str) -> Row:
    return {
        "kind": kind,
        "shape": said.shape,
        "blank": blank,
        "only_open": said.open,
        "ids": steps(said.ids or ""),
        "page": said.page or "",
        "size": said.size or "",
    }


# -- routes --------------------------------------------------------------------------------------


def routes(one: Family, line: int) -> Iterator[Row]:
    """A route for each path of each operation, in each mode."""
    for served in one.served():
        operation, mode = served.operation, served.mode
        yield {
            "id": served.path,
            "path": served.path,
            "methods": list(operation.methods),
            "operation": operation.name,
            "dialect": one.name,
            "default_model": None,
            "candidates": [candidate_row(candidate) for candidate in one.candidates(mode)],
            "parameters": parameters.compiled(_parameters(one, operation)),
            "request_pass": [],
            "body_limit": spec.BODY_LIMIT,
            "on_break": "bill",
            "line": line,
            "at": served.at if served.at != operation.at else "",
            "bill": mode.bill if mode is not None and mode.bill != family.SAME else "",
        }


def _parameters(one: Family, operation: Operation) -> Parameters | None:
    said, drop = operation.said.parameters, one.said.drop
    if not drop or operation.request not in ("json", "form"):
        return said
    said = said or Parameters()
    return said.model_copy(update={"drop": [*said.drop, *drop]})


def candidate_row(c: Candidate) -> Row:
    return {"upstream": c.upstream, "as_model": c.as_, "weight": c.weight, "priority": c.priority}
