"""Read one answer for what of it is the caller's from now on: ids, the state of a task, its usage.

A spectator beside the meter, only of operations whose table names such places. State is bounded at
WHOLE_BYTES_MAX; nothing raises. What is done about it is ownership.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import orjson

from proxy.dialects.base import ANY, OperationSpec, Pointer
from proxy.dialects.owned import (
    IDS_MAX,
    IdOut,
    Many,
    Task,
    first,
    found,
    ids_told,
    meets,
    starts,
    state_told,
    text_of,
)
from proxy.metering.events import SseSplitter
from proxy.metering.scanner import PointerScanner
from proxy.metering.usage import Usage

WHOLE_BYTES_MAX = 64 << 10  # a longer answer goes through the scanner, and is not kept for lists
CONTENT_BYTES_MAX = 8 << 10  # of an object that lists show

_BLANK = b" \t\r\n\xef\xbb\xbf"


class Seen(NamedTuple):
    """A task as an answer shows it."""

    state: str | None  # None: the answer says nothing of it
    usage: Usage | None
    told: Any  # the vendor's object, or as much of a long one as is looked at
    is_whole: bool
    content: dict[str, Any]  # the object, where it is small enough for lists


class Sighting:
    """What one answer has told so far. `on_id(kind, id)` is called at the first sight of each in a stream:
    its client may use it before the stream ends."""

    __slots__ = (
        "_buffer", "_exists", "_holder", "_kinds", "_many", "_object", "_on_id", "_out", "_pointers",
        "_scanner", "_splitter", "content", "exists", "ids", "many", "state", "task", "usage", "whole",
    )  # fmt: skip

    def __init__(
        self, operation: OperationSpec, out: tuple[IdOut, ...], task: Task | None,
        on_id: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self.ids: dict[str, str] = {}  # id -> kind
        self.state: str | None = None
        self.usage: Usage | None = None
        self.content: dict[str, Any] = {}
        self.whole: Any = None  # an answer that was short enough
        self.exists = False  # the task that it names was there before
        self.many: dict[str, Seen] = {}  # by id, of an answer about several
        self._exists = operation.exists
        self._out = out
        self.task = task
        self._on_id = on_id
        self._many = task.many if task is not None and task.is_about_many(operation.name) else None
        self._object = task.object if task is not None and not operation.billed else ()
        self._pointers = _pointers(out, task, (*self._many.items, ANY) if self._many else self._object)
        self._kinds = frozenset(place.kind for place in out)
        self._holder = self._object or next((place.holder for place in out if place.holder), ())
        self._buffer: bytearray | None = bytearray()
        self._splitter: SseSplitter | None = None
        self._scanner: PointerScanner | None = None

    @property
    def is_over(self) -> bool:
        """Nothing more is wanted of a stream: its ids are known, and no task is awaited."""
        return self.task is None and self._kinds.issubset(self.ids.values())

    @property
    def is_urgent(self) -> bool:
        """A stream has not told its id yet: its client may use it as soon as it comes."""
        return not self.ids and (self._splitter is not None or not self._buffer) and self._scanner is None

    def feed(self, content: bytes) -> None:
        """The next decoded content bytes, cut anywhere."""
        try:
            self._feed(content)
        except Exception:  # noqa: BLE001 - a spectator: no answer, however odd, may disturb its stream
            self.task = None

    def finish(self) -> None:
        """The framing ended."""
        try:
            self._finish()
        except Exception:  # noqa: BLE001 - see feed
            self.task = None

    def _feed(self, content: bytes) -> None:
        if self._splitter is not None:
            if not self.is_over:
                for data in self._splitter.feed(content):
                    self._event(data)
        elif self._scanner is not None:
            self._scanner.feed(content)
        elif self._buffer is not None:
            self._begin(content)

    def _finish(self) -> None:
        if self._splitter is not None:
            for data in self._splitter.finish():
                self._event(data)
            return
        if self._scanner is not None:
            self._scanner.finish()
            self._document(self._scanner.document)
        elif self._buffer:
            document = _loads(bytes(self._buffer))
            shown = first(document, (self._holder,))
            if type(shown) is dict and len(self._buffer) <= CONTENT_BYTES_MAX:
                self.content = shown
            self.whole = document
            self._document(document)
        self._buffer = self._scanner = None

    def _begin(self, content: bytes) -> None:
        assert self._buffer is not None
        self._buffer += content
        begin = self._buffer.lstrip(_BLANK)
        if not begin:
            return
        if not begin.startswith((b"{", b"[")):
            self._splitter = SseSplitter(partial(PointerScanner, self._pointers))
            self._buffer, content = None, bytes(begin)
            self.feed(content)
        elif len(self._buffer) > WHOLE_BYTES_MAX:
            self._scanner = PointerScanner(self._pointers)
            self._scanner.feed(bytes(begin))
            self._buffer = None

    def _event(self, data: bytes | PointerScanner) -> None:
        if isinstance(data, bytes) and not self._may_tell(data):
            return
        before = len(self.ids)
        self._document(_loads(data) if isinstance(data, bytes) else data.document)
        for id_ in list(self.ids)[before:]:
            self._on_id(self.ids[id_], id_)

    def _may_tell(self, data: bytes) -> bool:
        """Most events of a stream say nothing new: a search is cheaper than to parse them twice."""
        known = self.ids.values()
        return self.task is not None or any(
            leaf in data for place in self._out if place.kind not in known for leaf in _leaves(place)
        )

    def _document(self, document: Any) -> None:
        if self._many is not None:
            self._several(self._many, document)
            return
        if self._exists:
            self.exists = meets(self._exists, document)
        if self._object:
            document = first(document, (self._object,))
        self._made(document)
        if self.task is None:
            return
        self.state = state_told(self.task, document) or self.state
        self.usage = _usage_told(self.task, document) or self.usage

    def _several(self, many: Many, document: Any) -> None:
        assert self.task is not None
        is_whole = self.whole is not None
        for item in found(document, (*many.items, ANY)):
            id_ = text_of(first(item, (many.id_at,)))
            if id_ is None or type(item) is not dict or len(self.many) == IDS_MAX:
                continue
            self._made(item)
            content = item if is_whole and len(orjson.dumps(item)) <= CONTENT_BYTES_MAX else {}
            state, usage = state_told(self.task, item), _usage_told(self.task, item)
            self.many[id_] = Seen(state, usage, item, is_whole, content)

    @property
    def one(self) -> Seen:
        """The task of an answer about one."""
        told = first(self.whole, (self._object,))
        return Seen(self.state, self.usage, told, self.whole is not None, self.content)

    def _made(self, document: Any) -> None:
        for kind, id_ in ids_told(self._out, document, {}):
            if len(self.ids) < IDS_MAX:
                self.ids.setdefault(id_, kind)


def _usage_told(task: Task, document: Any) -> Usage | None:
    if task.usage is None:
        return None
    told = first(document, task.usage.places)
    return task.usage.read(told) if type(told) is dict else None


def sighting_of(
    operation: OperationSpec, request: dict[str, Any], on_id: Callable[[str, str], None]
) -> Sighting | None:
    """For the answer to one request; None: there is nothing to look for."""
    task = operation.task
    if task is not None and operation.billed and not starts(task, request):
        task = None  # it is over with its answer
    out = tuple(
        replace(place, asked="")  # decided here: the request is not kept
        for place in operation.ids_out
        if not place.asked or request.get(place.asked, place.by_default)
    )
    return Sighting(operation, out, task, on_id) if out or task is not None else None


@cache
def _leaves(place: IdOut) -> frozenset[bytes]:
    """The names that its values have."""
    names = (next((step for step in reversed(at) if type(step) is str), "") for at in place.at)
    return frozenset(f'"{name}"'.encode() for name in names)


def _pointers(out: tuple[IdOut, ...], task: Task | None, at: Pointer) -> tuple[Pointer, ...]:
    """What is looked for in a long answer; `at`: what all of it is within."""
    pointers = [pointer for place in out for pointer in place.at]
    if task is not None:
        pointers += task.state
        pointers += task.usage.places if task.usage is not None else ()
        pointers += [task.many.id_at] if task.many is not None else []
    return tuple((*at, *pointer) for pointer in pointers if pointer)


def _loads(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except ValueError:
        return None  # [DONE], or what the meter complains of
