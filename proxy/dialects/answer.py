"""Read one answer as a spectator: sniff what it is, cut it into documents, keep the last usage.

Owns what all meters share. A family of wire formats says in a subclass what a document means.
State is bounded at 64 KiB; nothing raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from orjson import dumps, loads

from proxy.dialects.base import OperationSpec, UsagePointers
from proxy.metering.alike import Alike, like
from proxy.metering.events import Splitter, SseSplitter, UnreadSplitter
from proxy.metering.scanner import ANY, Pointer, PointerScanner
from proxy.metering.usage import Usage

WHOLE_BYTES_MAX = 32 << 10  # a longer answer that is one JSON text goes through the scanner
TEXT_CHARS_MAX = 12 << 10  # generated text between two takes
USAGE_BYTES_MAX = 16 << 10
PIECE_OVERHEAD = 48  # bytes that a piece costs besides its own
PIECE_BYTES_MAX = WHOLE_BYTES_MAX - PIECE_OVERHEAD  # of an answer in one piece
NAME_CHARS_MAX = 128  # of what the answer calls its model, its tier and itself
COUNT_MAX = 10**12  # of anything in one call; costs stay within 64 bits
# Documents in one read: no vendor sends a tenth of it, and to look at so many takes 15 ms.
DOCUMENTS_MAX = 8192
LOOK_BYTES = 16 << 10  # how much is cut into documents before they are counted

NO_USAGE = UsagePointers((), lambda _: None)  # of operations whose answers have none

_BLANK = b" \t\r\n\xef\xbb\xbf"
_WHOLE_FIRST = b'{["-0123456789tfn<'  # JSON, or a page of something in between
_EVENT_FIRST = b"deir:"  # data, event, id, retry, comment


class AnswerMeter:
    """A `Meter` (base.py) for answers that are server-sent events or one JSON text.

    The content type is only a hint: completion streams were recorded as application/json, and
    errors come as JSON under text/event-stream. The first byte that is not blank decides.
    """

    KEEP: ClassVar[tuple[Pointer, ...]] = ()  # what is wanted of a long document besides its usage
    TEXT: ClassVar[tuple[Pointer, ...]] = ()  # where the generated text of a long document is

    # What is so until the answer says otherwise stands at the class: a meter is made for each call.
    complete = False
    finished = False
    degraded = False
    events = 0
    error = False
    model = ""
    vendor_id = ""
    service_tier = ""
    unread_bytes = 0
    _reported = b""  # overlaid so far, as JSON: what an object is in memory has no bound
    _usage: Usage | None = None
    _splitter: Splitter | None = None  # of an event stream
    _whole: list[bytes] | None = None  # of one JSON text
    _whole_bytes = 0
    _scanner: PointerScanner | None = None  # of one that became long
    _chars = 0
    _alike: Alike | None = None  # what the next events are probably like

    def __init__(self, operation: OperationSpec, is_event_stream: bool) -> None:
        self._pointers = operation.meter or NO_USAGE
        self._hint_events = is_event_stream
        self._texts: list[str] = []
        self._keeps_text = operation.generates_text  # until the vendor tells the output

    # -- what the relay calls ----------------------------------------------------------------------

    def foretell(self, usage: Usage | None) -> None:
        self._usage = usage

    def feed(self, content: bytes) -> None:
        try:
            splitter = self._splitter
            if splitter is None:
                if self._whole is None:
                    content = self._sniff(content)
                    splitter = self._splitter
                if splitter is None:
                    if content:
                        self._feed_whole(content)
                    return
            if self._alike is not None and self._read_alike(self._alike, content):
                return
            data = splitter.one(content)
            if data is not None:
                self._read_last(splitter, data, content)
            elif len(content) <= LOOK_BYTES or splitter.most(content) <= DOCUMENTS_MAX:
                *found, last = splitter.feed(content) or (None,)
                for each in found:
                    self._read_event(each)
                if last is not None:
                    self._read_last(splitter, last, content)
            else:
                self._feed_long(splitter, content)
        except Exception:  # noqa: BLE001 - a spectator: no answer, however odd, may disturb its stream
            self.degraded = True

    def _read_alike(self, alike: Alike, content: bytes) -> bool:
        """A read of nothing but events like the last one: each has the effect that it had."""
        texts = alike.texts(content)
        if texts is None:
            return False
        chars = self._chars + sum(map(len, texts))
        if chars > TEXT_CHARS_MAX:
            return False
        self._chars = chars
        self._texts += texts
        self.events += len(texts)
        return True

    def _read_last(self, splitter: Splitter, data: bytes | PointerScanner, content: bytes) -> None:
        """The last event of a read. Where all it did was to have one text kept, those like it do no more."""
        self._alike = None
        only_text = self._only_text() if self._keeps_text and type(data) is bytes else ()
        if not only_text:
            self._read_event(data)
            return
        assert type(data) is bytes
        before, texts = vars(self).copy(), len(self._texts)
        self._read_event(data)
        before["events"], before["_chars"] = self.events, self._chars
        if len(self._texts) == texts + 1 and vars(self) == before:
            text = self._texts[-1]
            if any(look_up(loads(data), place) == text for place in only_text):
                self._alike = like(splitter, content, data, text)

    def _feed_long(self, splitter: Splitter, content: bytes) -> None:
        """A read that may hold more documents than anybody has time for: those behind are not looked at."""
        self._alike = None
        left = DOCUMENTS_MAX
        for start in range(0, len(content), LOOK_BYTES):
            if left <= 0:
                self.degraded = True
                splitter = self._splitter = UnreadSplitter(self._pass_by)
            documents = splitter.feed(content[start : start + LOOK_BYTES])
            left -= len(documents)
            for found in documents:
                self._read_event(found)

    def _pass_by(self, size: int) -> None:
        self.unread_bytes += size

    def finish(self) -> None:
        try:
            if self._splitter is not None:
                for found in self._splitter.finish():
                    self._read_event(found)
            else:
                self._finish_whole()
        except Exception:  # noqa: BLE001 - see feed
            self.degraded = True

    def read_all(self, content: bytes) -> None:
        # What most are, one JSON object, needs none of the steps of an answer that comes in pieces.
        if content.startswith(b"{") and len(content) <= PIECE_BYTES_MAX:
            try:
                doc = loads(content)
            except ValueError:
                doc = None  # lax, or cut short
            if doc is not None:
                self.events += 1
                try:
                    self._on_whole(doc)
                    self.complete = not self.degraded
                except Exception:  # noqa: BLE001 - see feed
                    self.degraded = True
                return
        self.feed(content)
        self.finish()

    def usage(self) -> Usage | None:
        return self._usage

    def usage_is_final(self) -> bool:
        return self._usage is not None and (self.complete or self.finished)

    def take_text(self) -> list[str]:
        texts = self._texts
        if texts:
            self._texts = []
            self._chars = 0
        return texts

    # -- what a family of wire formats says --------------------------------------------------------

    def _on_event(self, doc: dict[str, Any]) -> None:
        """One event of a stream."""
        raise NotImplementedError

    def _on_whole(self, doc: dict[str, Any]) -> None:
        """The one document of an answer that is not a stream."""
        raise NotImplementedError

    def _only_text(self) -> tuple[Pointer, ...]:
        """Where in an event texts are of which nothing depends but that they are kept, as long as they are
        not empty. Of PADDED members nothing may depend either."""
        return ()

    # -- what it says it with ----------------------------------------------------------------------

    def _find_usage(self, doc: dict[Any, Any]) -> bool:
        """Read the usage object, if one of the places has one. Fixed paths, never a search."""
        told = False
        pointers = self._pointers
        # The last place that tells wins: the others are looked at only where it overlays what they tell.
        for place in pointers.places if pointers.overlay else pointers.last_first:
            value = doc.get(place[0]) if len(place) == 1 else look_up(doc, place)
            if type(value) is not dict:
                continue
            usage = pointers.read(self._overlaid(value) if pointers.overlay else value)
            if usage is not None:
                usage.calls = 1
                self._usage = usage
                told = True
                if not pointers.overlay:
                    break
        return told

    def _overlaid(self, value: dict[str, Any]) -> dict[str, Any]:
        known = loads(self._reported) if self._reported else {}
        known |= {name: new for name, new in value.items() if new is not None}
        reported = dumps(known)
        if len(reported) <= USAGE_BYTES_MAX:
            self._reported = reported
        else:
            self.degraded = True
        return known

    def _identify(self, doc: dict[str, Any]) -> None:
        model, id_ = doc.get("model"), doc.get("id")
        if type(model) is str and model:
            self.model = model[:NAME_CHARS_MAX]
        if type(id_) is str and id_:
            self.vendor_id = id_[:NAME_CHARS_MAX]

    def _take_tier(self, value: object) -> None:
        if type(value) is str and value:
            self.service_tier = value[:NAME_CHARS_MAX]

    def _keep_text(self, text: object) -> None:
        if type(text) is not str or not text:
            return
        self._chars += len(text)
        if self._chars > TEXT_CHARS_MAX:
            self._chars -= len(text)
            self.unread_bytes += len(text.encode("utf-8", "replace"))
        else:
            self._texts.append(text)

    def _drop_text(self) -> None:
        """The vendor has told the output: nothing needs to be counted."""
        self._keeps_text = False
        self._texts = []
        self._chars = 0
        self.unread_bytes = 0

    # -- how documents are found -------------------------------------------------------------------

    def _scanners(self) -> Callable[[], PointerScanner]:
        """What makes scanners. It knows no meter: with its splitter that would be garbage in a cycle."""
        return partial(PointerScanner, (*self._pointers.places, *self.KEEP), self.TEXT)

    def _read_event(self, data: bytes | PointerScanner) -> None:
        self.events += 1
        try:
            if type(data) is bytes:
                try:
                    doc = loads(data)
                except ValueError:
                    doc = self._no_json(data)
            else:
                assert isinstance(data, PointerScanner)
                doc = self._pruned(data)
            if type(doc) is dict:
                self._on_event(doc)
        except Exception:  # noqa: BLE001 - a spectator: one odd event must not hide the next
            self.degraded = True

    def _no_json(self, data: bytes) -> Any:
        if data.startswith(b"[DONE]"):  # as the SDKs test it
            self.complete = True
        return None if self.complete or not data.strip() else parse_leniently(data)

    def _pruned(self, scanner: PointerScanner) -> Any:
        self.degraded |= scanner.failed
        if self._keeps_text:
            self.unread_bytes += scanner.measured
        return scanner.document

    def _sniff(self, content: bytes) -> bytes:
        """Decide by the first byte what the answer is; the content without what is blank in front."""
        begin = content.lstrip(_BLANK)
        if begin:
            first = begin[:1]
            if first in _EVENT_FIRST or (self._hint_events and first not in _WHOLE_FIRST):
                self._splitter = SseSplitter(self._scanners())
            else:
                self._whole = []
        return begin

    def _feed_whole(self, content: bytes) -> None:
        if self._scanner is not None:
            self._scanner.feed(content)
            return
        assert self._whole is not None
        self._whole.append(content)
        self._whole_bytes += len(content) + PIECE_OVERHEAD
        if self._whole_bytes > WHOLE_BYTES_MAX:
            self._scanner = self._scanners()()
            for piece in self._whole:
                self._scanner.feed(piece)
            self._whole.clear()

    def _finish_whole(self) -> None:
        if self._scanner is None:
            if not self._whole:
                return
            body = self._whole[0] if len(self._whole) == 1 else b"".join(self._whole)
            try:
                self._on_document(parse_leniently(body))
                return
            except ValueError:  # cut short: what is there may still tell something
                self.degraded = True
                self._scanner = self._scanners()()
                self._scanner.feed(body)
        self._scanner.finish()
        self._on_document(self._pruned(self._scanner))

    def _on_document(self, doc: Any) -> None:
        self.events += 1
        self._whole = None
        if type(doc) is dict:
            self._on_whole(doc)
            self.complete = not self.degraded


def parse_leniently(data: bytes) -> Any:
    """JSON as lax vendors write it: NaN, or half of a surrogate pair. Raises ValueError."""
    try:
        return loads(data)
    except ValueError:
        return json.loads(data)


def look_up(value: Any, pointer: Pointer) -> Any:
    """The last non-null value at `pointer` below `value`, None without one."""
    for at, step in enumerate(pointer):
        if step == ANY:
            found = None
            for element in value if type(value) is list else ():
                below = look_up(element, pointer[at + 1 :])
                found = found if below is None else below
            return found
        value = value.get(step) if type(value) is dict else None
    return value


def known_int(value: object) -> int:
    """A count as vendors send it: 12, 12.0, null or absent (0). What no count can be is 0 too."""
    if type(value) is float and 0 <= value <= COUNT_MAX:
        value = math.ceil(value)
    return value if type(value) is int and 0 <= value <= COUNT_MAX else 0
