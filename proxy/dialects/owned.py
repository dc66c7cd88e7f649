"""What lives at a vendor: where requests and answers name it, what goes on after an answer, what is listed.

Owns the shapes of these tables (fields of `base.OperationSpec`) and the pure readers of them; knows no
vendor. Ids are what the vendor calls a thing. Seconds where a name says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxy.errors import ParameterRefused
from proxy.metering import sliced
from proxy.metering.scanner import ANY, Pointer
from proxy.metering.sliced import BACKSLASH, ESCAPE

if TYPE_CHECKING:
    from proxy.dialects.base import OperationSpec, UsagePointers

DEEP = -2  # in a pointer into a request's body: what follows counts at any depth
# Members whose objects are in the caller's own words: arguments of tools, their schemas, notes. What is
# called file_id there is not the vendor's.
THEIRS = frozenset({
    "arguments", "attributes", "input", "input_schema", "json_schema", "metadata", "parameters", "properties",
    "schema",
})  # fmt: skip
_ESCAPED = re.compile(re.escape(ESCAPE))  # finds it in half the time
IDS_MAX = 200  # named by one request; more is no honest request
ID_CHARS_MAX = 512

# What has become of a task. A word of the vendor's that its table does not know means that it goes on.
QUEUED = "queued"  # not begun; what goes on all the same
RUNNING = "running"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"  # void, as a failure is
ENDED = frozenset({SUCCEEDED, FAILED, CANCELLED})


@dataclass(frozen=True, slots=True)
class IdIn:
    """A place where a request may name something that lives at the vendor.

    Each string there must be bound to the caller's account; the call then sticks to its credential.
    """

    at: Pointer  # ("path", capture) | ("query", name) | ("body", *pointer)
    prefix: str = ""  # what the vendor writes in front of it where the request does not: "files/"
    only: tuple[str, ...] = ()  # in lower case: strings that begin otherwise are something else, links
    since: str = ""  # where the id begins in a longer name of it: "files/" in a link
    before: str = ""  # what ends it where more is behind it: " " in "1712204995849323 U2"
    is_strict: bool = False  # a text or a whole number, or the request is refused


Condition = tuple[tuple[tuple[Pointer, ...], frozenset[str]], ...]
"""Of each pair: what is at the first of the places that has something is one of the texts; none: anything."""


@dataclass(frozen=True, slots=True)
class IdOut:
    """A place where an answer names something that is the caller's from then on."""

    kind: str  # file, batch, response, ...: what lists ask for
    at: tuple[Pointer, ...]  # within an answer or an event of it; ANY names several things
    asked: str = ""  # the member of the request that decides whether the vendor keeps it
    by_default: bool = True  # ... and what it means that it is absent
    days: int = 0  # after which the vendor has forgotten it; 0: it never does
    since: str = ""  # as in IdIn
    holder: Pointer = ()  # where in an answer the object is that lists show


@dataclass(frozen=True, slots=True)
class Results:
    """JSON lines in which a finished task tells what each of its calls consumed."""

    operation: str  # that fetches them; its path has {id}
    id_at: Pointer  # in the poll's answer; (): the task's own id
    usage: UsagePointers
    model: Pointer


@dataclass(frozen=True, slots=True)
class Many:
    """How one request asks about several tasks."""

    operation: str
    ids: str  # the member of the request that lists them
    items: Pointer  # in the answer; (): it is the list itself
    id_at: Pointer  # in an item
    at_once: int = 100


@dataclass(frozen=True, slots=True)
class Callback:
    """How a customer asks to be told of each change of a task, and what is told."""

    fields: tuple[str, ...]  # top-level members of a submit that hold the customer's URL
    body: Pointer = ()  # what of a poll's answer is sent there; (): all of it


@dataclass(frozen=True, eq=False)
class Task:
    """What an answer starts and does not finish: its hold stays pending until the vendor tells the end.

    The same table stands at the operation that submits it and at those whose answers show it.
    """

    kind: str  # the IdOut's that names it
    poll: str  # the operation that asks about one; its path has {id}
    state: tuple[Pointer, ...]  # this and the other places of a poll's answer are within its `object`
    states: Mapping[str, str]  # the vendor's word -> one of the states above; any other: RUNNING
    asked: str = ""  # the member of the request that must be true for there to be a task; "": always
    usage: UsagePointers | None = None  # in an answer that shows it; None: one call
    model: Pointer = ()  # in such an answer: its price counts, not the submit's
    results: Results | None = None  # where the usage is instead
    service_tier: str = ""  # by which the price is narrowed: "batch"
    many: Many | None = None
    object: Pointer = ()  # the task in a poll's answer
    poll_query: str = ""  # the query parameter of a poll that is the id, where its path has none
    poll_body: Any = None  # of a poll that is a POST: a JSON value with "{id}" in it
    charged: frozenset[str] = frozenset({SUCCEEDED})  # states whose call is charged where no usage is told
    headers: tuple[tuple[bytes, bytes], ...] = ()  # that a poll needs besides our credential
    shortest_s: float = 2.0  # between two polls; it grows with the age of the task
    longest_s: float = 300.0
    requests: int = 8  # at once, of one node to one upstream
    deadline_s: float = 48 * 3600.0  # nobody knows what became of it: disputed
    dispute_s: float = 7 * 86400.0  # then the hold is void, as a loss of the station's
    callback: Callback | None = None  # None: nobody is told of its changes
    files: tuple[Pointer, ...] = ()  # URLs of its results, in a poll's answer
    progress: tuple[Pointer, ...] = ()  # what besides its state is a change worth telling

    def is_about_many(self, operation: str) -> bool:
        """Does the answer of an operation show several?"""
        return self.many is not None and self.many.operation == operation


@dataclass(frozen=True, eq=False)
class Listing:
    """A list that is answered from bindings: the vendor's own would show what is others'."""

    kind: str
    member: str = "data"
    limit: str = "limit"  # names of query parameters
    after: str = "after"
    before: str = "before"
    token: str = ""  # the member that tells where the next page begins; "": first_id, last_id and has_more
    named: str = "id"  # the member of an object that is its id
    fixed: Mapping[str, Any] = field(default_factory=lambda: {"object": "list"})
    shape: Any = None  # of a declared family: a value in which "{items}" stands for the list
    blank: Any = None  # ... an item that nobody has been told of yet, with "{id}" in it
    only_open: bool = False  # those that are not over
    ids: Pointer = ()  # in the request: those that it names, and of these the account's own
    page: str = ""  # query parameters of lists with numbered pages
    size: str = ""


# -- reading -----------------------------------------------------------------------------------------


def found(value: Any, pointer: Pointer) -> Iterator[Any]:
    """Everything at a pointer; ANY is each of a list, or of an object's members. DEEP is `ids_named`'s."""
    for at, step in enumerate(pointer):
        if step == ANY:
            inner = value if type(value) is list else value.values() if type(value) is dict else ()
            for element in inner:
                yield from found(element, pointer[at + 1 :])
            return
        value = value.get(step) if type(value) is dict else None
    if value is not None:
        yield value


def first(value: Any, pointers: tuple[Pointer, ...]) -> Any:
    """The first thing that one of the pointers leads to, or None."""
    return next((thing for pointer in pointers for thing in found(value, pointer)), None)


def text_of(value: Any) -> str | None:
    """What a text, a number or a truth value says, as tables write it; None: it is none of these."""
    if type(value) is str:
        return value
    if type(value) is bool:
        return "true" if value else "false"
    return str(value) if type(value) in (int, float) else None


def meets(condition: Condition, doc: Any) -> bool:
    """Does an answer say what it must?"""
    for pointers, texts in condition:
        value = first(doc, pointers)
        if value is None or (texts and text_of(value) not in texts):
            return False
    return True


class Places:
    """Where the requests of one operation may name something, in the form that is quick to look at."""

    __slots__ = ("_deep", "_fixed", "_has_more", "_hint", "_marked", "_names", "_sign", "_texts")

    def __init__(self, places: tuple[IdIn, ...]) -> None:
        self._fixed = [place for place in places if DEEP not in place.at]
        self._deep: dict[str, list[tuple[IdIn, Pointer]]] = {}
        for place in places:
            if DEEP in place.at:
                name, *rest = place.at[place.at.index(DEEP) + 1 :]
                self._deep.setdefault(str(name), []).append((place, tuple(rest)))
        self._names = frozenset(self._deep)
        self._texts = tuple(
            (str(place.at[1]), place.only)
            for place in self._fixed
            if place.at[0] == "body" and len(place.at) == 2 and place.only and not place.is_strict
        )
        self._has_more = len(self._texts) < len(self._fixed)
        words = [re.escape(name).encode() for name in self._deep]
        # What all the names have in common is looked for first: it takes a third of the time; and before it
        # the one sign of it that is rare.
        shared = _shared([*self._deep])
        self._sign = ord("_" if "_" in shared else '"')
        self._hint = re.compile(re.escape(shared).encode())
        self._marked = re.compile(b'"(?:%b)' % b"|".join(words))

    def are_free_of(self, content: bytes, doc: dict[str, Any]) -> bool:
        """Nothing that stands at a place is in a JSON text, however it is spelled: no need to look for it."""
        if self._has_more:
            return False
        for member, begins in self._texts:
            value = doc.get(member)
            if type(value) is str and value.lower().startswith(begins):
                return False
        if not self._names:
            return True
        if len(content) > sliced.FOUND_BYTES:
            marks = [f'"{name}'.encode() for name in self._deep]
            return all(sliced.find(content, mark) < 0 for mark in (ESCAPE, *marks))
        if BACKSLASH in content and _ESCAPED.search(content):
            return False
        if self._sign not in content or self._hint.search(content) is None:
            return True
        return self._marked.search(content) is None

    def ids_named(
        self, doc: dict[str, Any], captures: Mapping[str, str], query: Mapping[str, str]
    ) -> dict[str, str]:
        """id -> name of the place, of everything that a request names. At most IDS_MAX + 1."""
        named: dict[str, str] = {}
        for place in self._fixed:
            where, *pointer = place.at
            source = doc if where == "body" else captures if where == "path" else query
            _take(named, place, found(source, tuple(pointer)))
        if self._names and doc:
            self._search(named, doc)
        return named

    def _search(self, named: dict[str, str], doc: dict[str, Any]) -> None:
        """One walk for all names, without recursion: strings, the bulk of a request, are not looked at."""
        names = self._names
        stack: list[Any] = [doc]
        while stack and len(named) <= IDS_MAX:
            value = stack.pop()
            if type(value) is dict:
                if not names.isdisjoint(value):
                    for name in names.intersection(value):
                        for place, rest in self._deep[name]:
                            _take(named, place, found(value[name], rest))
                stack += [
                    inner
                    for name, inner in value.items()
                    if type(inner) is list or (type(inner) is dict and name not in THEIRS)
                ]
            else:
                stack += [inner for inner in value if type(inner) is dict or type(inner) is list]


def _shared(words: list[str]) -> str:
    """The longest text that all of them hold; "" where there are none."""
    if not words:
        return ""
    first = words[0]
    parts = {first[at:end] for at in range(len(first)) for end in range(at + 1, len(first) + 1)}
    return max((part for part in sorted(parts) if all(part in word for word in words)), key=len, default="")


def _take(named: dict[str, str], place: IdIn, values: Iterator[Any]) -> None:
    for value in values:
        if place.is_strict:
            if type(value) is int:
                value = str(value)
            elif type(value) is not str:
                raise ParameterRefused(param=str(place.at[-1]))
        if type(value) is str and value and (not place.only or value.lower().startswith(place.only)):
            if place.before:
                value = value.partition(place.before)[0]
            id_ = _since(place.since, value)
            if not id_.startswith(place.prefix):
                id_ = place.prefix + id_
            named[id_] = next(step for step in reversed(place.at) if type(step) is str)
        if len(named) > IDS_MAX:
            return


def _since(mark: str, name: str) -> str:
    return name[name.find(mark) :] if mark and mark in name else name


def ids_told(places: tuple[IdOut, ...], doc: Any, request: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind, id) of everything that an answer, or an event of it, makes the caller's."""
    for place in places:
        if place.asked and not request.get(place.asked, place.by_default):
            continue
        for pointer in place.at:
            for value in found(doc, pointer):
                if type(value) is str and 0 < len(value) <= ID_CHARS_MAX and "\0" not in value:
                    yield place.kind, _since(place.since, value)
                elif type(value) is int:  # Midjourney's, in some of its documents
                    yield place.kind, str(value)


def state_told(task: Task, doc: Any) -> str | None:
    """RUNNING, SUCCEEDED or FAILED; None: the answer says nothing of it."""
    word = text_of(first(doc, task.state))
    return task.states.get(word, RUNNING) if word is not None else None


def starts(task: Task | None, request: Mapping[str, Any]) -> bool:
    """Does a request ask for something that goes on after its answer?"""
    return task is not None and (not task.asked or request.get(task.asked) is True)


def tasks_of(operations: Mapping[str, OperationSpec]) -> dict[str, Task]:
    """kind -> what is known of such tasks."""
    return {spec.task.kind: spec.task for spec in operations.values() if spec.task is not None}
