"""`parameters:` of a route: the rules that its words stand for, and what is wrong with them.

Owns how each word becomes a rule of routing.parameters.
"""

from __future__ import annotations

from typing import Any

from proxy.routing import spec
from proxy.routing.loader.draft import Draft
from proxy.routing.loader.mistakes import Path
from proxy.routing.parameters import EACH
from proxy.routing.section import ANY, Parameters

Row = dict[str, Any]
_Bounds = tuple[Path, Any]


def compiled(parameters: Parameters | None) -> Row | None:
    """The document that routing.parameters.Parameters is made from."""
    if parameters is None:
        return None
    rules = [[["there", at, []]] for at in parameters.refuse]
    rules += [[["outside", at, _texts(bounds)]] for at, bounds in parameters.range.items()]
    rules += [[["other", at, words]] for at, words in parameters.one_of.items()]
    rules += [[["empty", at, []]] for at in parameters.not_empty]
    rules += [[_of_several(*member) for member in rule.items()] for rule in parameters.not_together]
    return {"drop": parameters.drop, "rules": rules, "within_context": parameters.within_context}


def _of_several(at: str, bounds: Any) -> list[Any]:
    return ["there", at, []] if bounds == ANY else ["inside", at, _texts(bounds)]


def _texts(bounds: Any) -> list[str]:
    return [str(bound) for bound in bounds]


def check(draft: Draft, path: Path, route: spec.Route) -> None:
    """Adds the mistakes of one route, whose operation is known."""
    if route.parameters is None:
        return
    path = (*path, "parameters")
    operation = draft.operations[draft.operation_of(route)]
    given = route.parameters
    if operation.request not in ("json", "form"):
        draft.wrong(path, f"{operation.name} has no parameters that could be read", of_key=True)
        return
    for i, name in enumerate(given.drop):
        if name in operation.guarded or name == "model":
            draft.wrong((*path, "drop", i), f"{name} decides about the bill: it cannot be dropped")
    for at, bounds in _all_bounds(path, given):
        if bounds != ANY and bounds[0] > bounds[1]:
            draft.wrong(at, "begins above its end")
    for i, rule in enumerate(given.not_together):
        if len(rule) < 2:
            draft.wrong((*path, "not_together", i), "must name two parameters or more")
    if given.within_context and (operation.request != "json" or operation.model_at == "none"):
        draft.wrong((*path, "within_context"), f"{operation.name} has no text that fills a context")
    _check_paths(draft, path, given, is_form=operation.request == "form")


def _all_bounds(path: Path, given: Parameters) -> list[_Bounds]:
    found: list[_Bounds] = [((*path, "range", at), bounds) for at, bounds in given.range.items()]
    for i, rule in enumerate(given.not_together):
        found += [((*path, "not_together", i, at), bounds) for at, bounds in rule.items()]
    return found


def _check_paths(draft: Draft, path: Path, given: Parameters, *, is_form: bool) -> None:
    """A rule must be able to meet what it is about."""
    places = [((*path, "refuse", i), at, False) for i, at in enumerate(given.refuse)]
    places += [((*path, "range", at), at, True) for at in given.range]
    places += [((*path, "one_of", at), at, True) for at in given.one_of]
    places += [((*path, "not_empty", i), at, False) for i, at in enumerate(given.not_empty)]
    for i, rule in enumerate(given.not_together):
        places += [((*path, "not_together", i, at), at, True) for at in rule]
    for place, at, is_key in places:
        if is_form and (EACH in at or "." in at):
            draft.wrong(place, "a form has no parameters inside of others", of_key=is_key)
        elif at in given.drop:
            draft.wrong(place, f"{at} is dropped: nothing is left to be checked", of_key=is_key)
