"""Read answers by the rules of a table (`base.Rules`): a new API is a row, not a class.

Owns the one meter of all operations whose formats are not worth code of their own. Bounded and silent as
`AnswerMeter` is: it cuts the documents, this says what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial, reduce
from typing import Any

from msgspec.structs import replace
from orjson import dumps

from proxy.dialects.answer import COUNT_MAX, AnswerMeter, known_int, look_up
from proxy.dialects.base import ANY, MakeMeter, OperationSpec, Pointer, Rules, Tools, UsagePointers
from proxy.dialects.owned import meets
from proxy.metering.alike import PADDED
from proxy.metering.events import JsonSplitter
from proxy.metering.scanner import PointerScanner
from proxy.metering.usage import Usage

Take = Callable[["RuledMeter", dict[str, Any], Pointer], None]

UNREAD = Rules(is_text=False)  # of operations whose answers tell nothing about the bill
NOTHING = Rules()
NOT_YET = (None, "", "null")  # as vendors write a reason that there is not


class RuledMeter(AnswerMeter):
    """A `Meter` (base.py) for any operation with rules."""

    def __init__(self, operation: OperationSpec, is_event_stream: bool) -> None:
        super().__init__(operation, is_event_stream)
        self.deferred = False  # the answer is a promise: its bill will be told under `vendor_id`
        rules = self._rules = operation.rules or NOTHING
        self.error = bool(rules.accepted)  # until the answer says otherwise
        self._facts = _by_first_step(rules)
        self._usage_at = frozenset(place[0] for place in self._pointers.places)
        self._adds_up = operation.meter is not None and operation.meter.adds_up
        self._is_spread = operation.meter is not None and operation.meter.spread
        self._is_unread = not rules.is_text and not (is_event_stream and rules.terminal)
        self._counts: dict[str, int] = {}
        self._tools: dict[str, int] = {}
        self._seconds_ms = 0
        self._foretold = Usage(calls=1) if operation.billed and operation.kind == "calls" else None

    # -- what the relay calls --

    def foretell(self, usage: Usage | None) -> None:
        self._foretold = usage or self._foretold

    def feed(self, content: bytes) -> None:
        if not self._is_unread:
            super().feed(content)

    def finish(self) -> None:
        if self._is_unread:
            self.complete = True
        else:
            super().finish()

    def read_all(self, content: bytes) -> None:
        if self._is_unread or self._rules.values:
            self.feed(content)
            self.finish()
        else:
            super().read_all(content)

    def usage(self) -> Usage | None:
        if not self._counts and not self._tools and not self._seconds_ms:
            return self._usage or self._foretold
        usage = replace(self._usage or Usage(calls=1), **self._counts)
        usage.seconds_ms = usage.seconds_ms or self._seconds_ms
        usage.tools = usage.tools or dict(self._tools)
        return usage

    def usage_is_final(self) -> bool:
        return (self.complete or self.finished) and self.usage() is not None

    # -- what a document says --

    def _only_text(self) -> tuple[Pointer, ...]:
        # A meter of its own may make more of a text.
        return _only_text(self._rules, self._pointers) if type(self) is RuledMeter else ()

    def _on_event(self, doc: dict[str, Any]) -> None:
        rules = self._rules
        if rules.accepted:
            self.error = not meets(rules.accepted, doc)
        told = not self._usage_at.isdisjoint(doc) and self._find_usage(doc)
        if told and self._usage is not None and self._usage.output_tokens_all():
            self._drop_text()
        for name in doc:
            for take, pointer in self._facts.get(name, ()):
                take(self, doc, pointer)
        kind = look_up(doc, rules.kind)
        if type(kind) is str:
            if kind in rules.each:
                self._counts[rules.each[kind]] = self._counts.get(rules.each[kind], 0) + 1
                self.finished = True  # of one: another may follow
            if kind in rules.failing:
                self.error = True
            if kind in rules.terminal:
                self.complete = self.finished = True

    _on_whole = _on_event

    def _find_usage(self, doc: dict[str, Any]) -> bool:
        if not self._adds_up and not self._is_spread:
            return super()._find_usage(doc)
        objects = [doc] if self._is_spread else []
        for place in self._pointers.last_first:
            objects = objects or [value for value in every(doc, place) if type(value) is dict]
        told = [usage for value in objects if (usage := self._pointers.read(value)) is not None]
        if not told:
            return False
        told[0].calls = 1  # however many parts it has
        before = [self._usage] if self._usage and self._adds_up else []
        self._usage = reduce(Usage.plus, (*before, *told))
        return True

    def _sniff(self, content: bytes) -> bytes:
        content = super()._sniff(content)
        if content and content[0] in self._rules.values:
            self._whole = None
            self._splitter = JsonSplitter(self._scanners())
        return content

    def _scanners(self) -> Callable[[], PointerScanner]:
        return partial(PointerScanner, (*self._pointers.places, *_kept(self._rules)), self._rules.text)

    # -- one fact each --

    def _take_model(self, doc: dict[str, Any], pointer: Pointer) -> None:
        self._identify({"model": look_up(doc, pointer)})

    def _take_id(self, doc: dict[str, Any], pointer: Pointer) -> None:
        self._identify({"id": look_up(doc, pointer)})

    def _take_service_tier(self, doc: dict[str, Any], pointer: Pointer) -> None:
        self._take_tier(look_up(doc, pointer))

    def _take_status(self, doc: dict[str, Any], pointer: Pointer) -> None:
        status = look_up(doc, pointer)
        if type(status) is str:
            self.deferred = status in self._rules.waiting

    def _take_finished(self, doc: dict[str, Any], pointer: Pointer) -> None:
        self.finished |= look_up(doc, pointer) not in NOT_YET

    def _take_error(self, doc: dict[str, Any], pointer: Pointer) -> None:
        self.error |= bool(look_up(doc, pointer))

    def _take_text(self, doc: dict[str, Any], pointer: Pointer) -> None:
        if self._keeps_text:
            for text in every(doc, pointer):
                self._keep_text(dumps(text).decode() if type(text) is dict else text)

    def _take_duration(self, doc: dict[str, Any], pointer: Pointer) -> None:
        self._seconds_ms = milliseconds(look_up(doc, pointer)) or self._seconds_ms

    def _take_tools(self, doc: dict[str, Any], pointer: Pointer) -> None:
        tools = self._rules.tools
        items = look_up(doc, pointer)
        if tools is None or type(items) is not list:
            return
        found: dict[str, int] = {}
        for item in items:
            said = [look_up(item, at) for at in tools.named] if type(item) is dict else []
            name = tools.kinds.get("/".join(word for word in said if type(word) is str))
            if name is not None:
                found[name] = found.get(name, 0) + 1
        self._tools = found or self._tools

    def _count_elements(self, doc: dict[str, Any], pointer: Pointer) -> None:
        bucket = next(bucket for bucket, array in self._rules.counted if array == pointer)
        if ANY in pointer:
            count = sum(value is not None for value in every(doc, pointer))
        elif type(elements := look_up(doc, pointer)) is list:
            count = len(elements)
        else:
            return
        name, _, kind = bucket.partition(".")
        if not kind:
            self._counts[name] = count
        elif count:  # later events need not tell it again
            self._tools[kind] = count


def meter_of(operation: OperationSpec) -> MakeMeter:
    """Of a family whose operations all have rules."""
    return operation.own_meter or RuledMeter


@cache
def _by_first_step(rules: Rules) -> dict[str | int, list[tuple[Take, Pointer]]]:
    """What a document's members are looked at for: most have none, or one."""
    table: tuple[tuple[Take, tuple[Pointer, ...]], ...] = (
        (RuledMeter._take_model, rules.model),
        (RuledMeter._take_id, rules.vendor_id),
        (RuledMeter._take_service_tier, rules.tier),
        (RuledMeter._take_status, rules.status),
        (RuledMeter._take_finished, rules.finished),
        (RuledMeter._take_error, rules.error),
        (RuledMeter._take_text, rules.text),
        (RuledMeter._take_duration, rules.lasting),
        (RuledMeter._take_tools, rules.tools.places if rules.tools else ()),
        (RuledMeter._count_elements, tuple(array for _, array in rules.counted)),
    )
    found: dict[str | int, list[tuple[Take, Pointer]]] = {}
    for take, pointers in table:
        for pointer in pointers:
            found.setdefault(pointer[0], []).append((take, pointer))
    return found


@cache
def _kept(rules: Rules) -> tuple[Pointer, ...]:
    """What is wanted of a long document besides its usage and its text."""
    tools = rules.tools or Tools((), (), {})
    return (
        rules.kind, *rules.model, *rules.vendor_id, *rules.tier, *rules.status, *rules.finished, *rules.error,
        *rules.lasting, *(at for places, _ in rules.accepted for at in places),
        # Of an array the elements are only counted.
        *(array if ANY in array else (*array, ANY, "_") for _, array in rules.counted),
        *((*place, ANY, *at) for place in tools.places for at in tools.named),
    )  # fmt: skip


@cache
def _only_text(rules: Rules, usage: UsagePointers) -> tuple[Pointer, ...]:
    """Texts of streams that nothing is counted in, at places that no other fact is at, above or below."""
    others = (*usage.places, *_kept(rules))
    is_padding_read = any(place[0] in PADDED for place in (*others, *rules.text) if place)
    if rules.each or rules.counted or rules.tools or usage.spread or is_padding_read:
        return ()
    return tuple(
        text
        for text in rules.text
        if not any(a == b[: len(a)] for o in others for a, b in ((o, text), (text, o)))
    )


def every(value: Any, pointer: Pointer) -> Iterator[Any]:
    """All values at `pointer` below `value`."""
    for at, step in enumerate(pointer):
        if step == ANY:
            for element in value if type(value) is list else ():
                yield from every(element, pointer[at + 1 :])
            return
        value = value.get(step) if type(value) is dict else None
    yield value


def milliseconds(seconds: object) -> int:
    """A duration as vendors send it: 3, 3.7 or "3.7"."""
    if type(seconds) is str:
        try:
            seconds = float(seconds)
        except ValueError:
            return 0
    if type(seconds) is float and 0 <= seconds <= COUNT_MAX:
        return round(seconds * 1000)
    return known_int(seconds) * 1000


def reading(read: Callable[[dict[str, Any]], Usage | None], *places: Pointer) -> UsagePointers:
    """The usage at these places; at the top level without any."""
    return UsagePointers(places=places or (("usage",),), read=read)
