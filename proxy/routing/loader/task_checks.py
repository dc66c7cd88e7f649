"""What is wrong with declared task families, beyond their shape.

Owns these mistakes and warnings: names within a family, paths, what is needed to follow a task, prices.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.routing import family, texts
from proxy.routing.globs import Globs, is_glob
from proxy.routing.loader.builtin import OWN_PATHS, OWN_PREFIXES
from proxy.routing.loader.draft import Draft
from proxy.routing.loader.families import SECTION, Family, Operation
from proxy.routing.loader.mistakes import Path, did_you_mean
from proxy.routing.paths import capture_name, shape, spellings

MEASURES = ("seconds", "images", "characters", "input", "output", "cache_read")  # as dialects.declared reads


def check(draft: Draft) -> None:
    """Adds every mistake and warning about `tasks:` to the draft."""
    families = {one.name for one in draft.families}
    for name in draft.file.tasks:
        if name not in families:
            draft.wrong((SECTION, name), f"{name} is the name of a dialect: call it otherwise", of_key=True)
    for one in draft.families:
        path: Path = (SECTION, one.name)
        if not one.said.operations:
            known = did_you_mean(one.name, draft.vendors.families)
            draft.wrong(path, f"is no built-in family, and has no operations{known}", of_key=True)
            continue
        _check_upstreams(draft, path, one)
        if len(one.said.each) > 1:
            draft.wrong((*path, "each"), "only one word can stand for others")
        for local, said in one.said.operations.items():
            _check_operation(draft, (*path, "operations", local), one, said)
        if any(said.submits for said in one.said.operations.values()):
            _check_task(draft, (*path, "task"), one)
        _check_paths(draft, path, one)
        _warn_of_prices(draft, path, one)


def _check_upstreams(draft: Draft, path: Path, one: Family) -> None:
    said = one.said
    if not said.upstream and not said.candidates:
        # Then the model that is billed has them, as for calls; somebody must serve it.
        offering = any(one.operations.keys() & draft.offered(name) for name in draft.upstreams)
        if draft.shaped.is_whole(path) and not offering:
            draft.wrong(path, "upstream is missing", of_key=True)
        return
    places: list[tuple[Path, str | None]] = [((*path, "upstream"), said.upstream)]
    places += [((*path, "candidates", i, "upstream"), c.upstream) for i, c in enumerate(said.candidates)]
    for name, mode in said.modes.items():
        at = (*path, "modes", name)
        places.append(((*at, "upstream"), mode.upstream))
        places += [((*at, "candidates", i, "upstream"), c.upstream) for i, c in enumerate(mode.candidates)]
    for place, upstream in places:
        if upstream is not None and not draft.shaped.knows("upstreams", upstream):
            draft.unknown(place, "upstream", draft.file.upstreams)


def _check_operation(draft: Draft, path: Path, one: Family, said: family.Operation) -> None:
    if not said.path:
        draft.wrong(path, "path is missing", of_key=True)
        return
    paths = [said.path] if isinstance(said.path, str) else said.path
    captures = [{name for s in each.split("/") if (name := capture_name(s))} for each in paths]
    words = {name for name in one.said.each if any(name in names for names in captures)}
    common = set.intersection(*captures) - words
    for i, named in enumerate(said.names):
        at = named.at if isinstance(named, family.Cut) else named
        source, name, *_ = texts.steps(at)
        if source == "path" and name not in common:
            draft.wrong((*path, "names", i), f"the path has no {{{name}}}" + did_you_mean(name, common))
    unused = common - {texts.steps(n)[1] for n in said.names if isinstance(n, str) and n.startswith("path.")}
    if "id" in unused and not said.lists:
        draft.wrong(path, "whose {id} is in the path must be known: names lacks path.id", of_key=True)
    if said.submits and said.bill is None:
        draft.wrong(path, "bill is missing: what does a submit cost?", of_key=True)
    if said.submits and said.shows:
        draft.wrong((*path, "shows"), "an answer starts a task, or shows one", of_key=True)
    if said.amounts and said.by == "tokens":
        draft.wrong((*path, "amounts"), "tokens are told by the task's usage", of_key=True)
    if said.lists is not None and said.lists.ids and len(texts.steps(said.lists.ids)) != 2:
        draft.wrong((*path, "lists", "ids"), "must be a member of the body such as body.ids")
    if said.lists is not None and said.bill is not None:
        draft.wrong((*path, "bill"), "lists are free", of_key=True)


def _check_task(draft: Draft, path: Path, one: Family) -> None:
    """What is needed to learn how a task ends."""
    task = one.said.task
    for member in ("id", "state", "states"):
        if not getattr(task, member) and draft.shaped.is_whole((*path, member)):
            draft.wrong(path, f"{member} is missing", of_key=True)
    if not task.blank.lstrip().startswith("{"):
        draft.wrong((*path, "blank"), "must be a JSON object")
    poll = _named(draft, (*path, "poll", "operation"), one, task.poll.operation)
    told = any("{id}" in each.at for each in poll or ()) or "{id}" in (task.poll.body or "")
    if poll is not None and task.poll.query is None and not told:
        draft.wrong((*path, "poll"), "asks for no {id}: neither path, `query` nor `body` has it", of_key=True)
    if task.batch is not None:
        _named(draft, (*path, "batch", "operation"), one, task.batch.operation)
    for measure in task.usage:
        if measure not in MEASURES:
            draft.wrong(
                (*path, "usage", measure), "is no measure" + did_you_mean(measure, MEASURES), of_key=True
            )


def _named(draft: Draft, path: Path, one: Family, local: str) -> list[Operation] | None:
    """The operations that a name within the family stands for."""
    said = one.said.operations.get(local)
    if said is None:
        what = f"operation '{local}' is not known" if local else "is missing"
        draft.wrong(path, what + did_you_mean(local, one.said.operations))
        return None
    if not said.shows:
        draft.wrong(path, f"'{local}' shows no task")
    return [operation for operation in one.operations.values() if operation.local == local]


def _check_paths(draft: Draft, path: Path, one: Family) -> None:
    taken: dict[tuple[str, str], str] = {}
    theirs: dict[str, list[str]] = {}  # family -> what it has of this one's
    for served in one.served():
        operation = served.operation
        at = (*path, "operations", operation.local, "path")
        if any(p in OWN_PATHS or p.startswith(OWN_PREFIXES) for p in spellings(served.path)):
            draft.wrong(at, f"{served.path} is answered by the relay itself")
        key = (shape(served.path), operation.said.method)
        first = taken.setdefault(key, operation.name)
        owner = draft.family_shapes[key]
        if first != operation.name:
            draft.wrong(at, f"{first} has {key[1]} of {served.path} already")
        elif owner != one.name:
            theirs.setdefault(owner, []).append(f"{key[1]} of {served.path}")
    for owner, places in theirs.items():
        more = f" and {len(places) - 1} more of its paths: say `under`" if len(places) > 1 else ""
        draft.wrong(path, f"tasks.{owner} has {places[0]} already{more}", of_key=True)


# -- what is billed ------------------------------------------------------------------------------


def billed(one: Family) -> Iterator[str]:
    """The names, or globs of them, that calls of a family are billed as."""
    for operation in one.operations.values():
        bill = operation.said.bill
        if bill is None:
            continue
        named = [bill] if isinstance(bill, str) else [*bill.is_.values(), bill.otherwise]
        for name in named:
            if name is not None:
                glob = texts.name_glob(name)
                yield glob
                for mode in one.said.modes.values():
                    if mode.bill != family.SAME:
                        yield texts.name_glob(mode.bill.replace(family.SAME, glob))


def _warn_of_prices(draft: Draft, path: Path, one: Family) -> None:
    own, theirs = Globs(draft.file.prices), Globs(one.said.prices)
    bare = [
        name
        for name in dict.fromkeys(billed(one))
        if not is_glob(name) and own.find(name) is None and theirs.find(name) is None
    ]
    if bare:
        draft.warn(path, f"no price for {', '.join(bare)}: such calls are refused")
