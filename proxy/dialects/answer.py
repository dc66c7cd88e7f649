"""Read one answer as a spectator: sniff what it is, cut it into documents, keep the last usage.

Owns what all meters share. A family of wire formats says in a subclass what a document means.
State is bounded at 64 KiB; nothing raises.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from orjson import loads

from proxy.dialects.base import UsagePointers
from proxy.metering.events import SseSplitter
from proxy.metering.scanner import ANY, Pointer, PointerScanner
from proxy.metering.usage import Usage

WHOLE_BYTES_MAX = 32 << 10  # a longer answer that is one JSON text goes through the scanner
TEXT_CHARS_MAX = 32 << 10  # generated text between two takes
NAME_CHARS_MAX = 256
COUNT_MAX = 10**12  # of anything in one call; costs stay within 64 bits

_BLANK = b" \t\r\n\xef\xbb\xbf"
_JSON_FIRST = b'{["-0123456789tfn'
_EVENT_FIRST = b"deir:"  # data, event, id, retry, comment


class AnswerMeter:
    """A `Meter` (base.py) for answers that are server-sent events or one JSON text.

    The content type is only a hint: completion streams were recorded as application/json, and
    errors come as JSON under text/event-stream. The first byte that is not blank decides.
    """

    KEEP: ClassVar[tuple[Pointer, ...]] = ()  # besides the usage: what a pruned document needs

    def __init__(self, pointers: UsagePointers | None, is_event_stream: bool) -> None:
        self.complete = False
        self.finished = False
        self.degraded = False
        self.events = 0
        self.error = False
        self.model = ""
        self.vendor_id = ""
        self.service_tier = ""
        self.unread_chars = 0
        self.reported: dict[str, Any] | None = None  # the vendor's usage object as it came
        self._pointers = pointers
        self._places = pointers.places if pointers else ()
        self._keep = (*self._places, *self.KEEP)
        self._hint_events = is_event_stream
        self._splitter: SseSplitter | None = None  # of an event stream
        self._whole: bytearray | None = None  # of one JSON text
        self._scanner: PointerScanner | None = None  # of one that became long
        self._ended = False
        self._texts: list[str] = []
        self._chars = 0
        self._is_output_known = False  # no text needs to be kept any more

    # -- what the relay calls ----------------------------------------------------------------------

    def feed(self, content: bytes) -> None:
        try:
            if self._splitter is None:
                if content:
                    self._feed_whole(content)
                return
            data = self._splitter.one(content)
            if data is not None:
                self._read_event(data)
            else:
                for found in self._splitter.feed(content):
                    self._read_event(found)
        except Exception:  # noqa: BLE001 - a spectator: no answer, however odd, may disturb its stream
            self.degraded = True

    def finish(self) -> None:
        try:
            self._finish()
        except Exception:  # noqa: BLE001 - see feed
            self.degraded = True
        self._ended = True

    def usage(self) -> Usage | None:
        if self.reported is None or self._pointers is None:
            return None
        try:
            return self._pointers.read(self.reported)
        except Exception:  # noqa: BLE001 - see feed
            self.degraded = True
            return None

    def usage_is_final(self) -> bool:
        return self.reported is not None and (self.complete or self.finished or self._ended)

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

    # -- what it says it with ----------------------------------------------------------------------

    def _find_usage(self, doc: dict[str, Any]) -> None:
        """Take the usage object, if one of the places has one. Fixed paths, never a search."""
        for place in self._places:
            value = look_up(doc, place)
            if value and type(value) is dict:
                self._take_usage(value)

    def _take_usage(self, value: dict[str, Any]) -> None:
        if self._pointers is not None and self._pointers.overlay and self.reported is not None:
            self.reported |= {name: new for name, new in value.items() if new is not None}
        else:
            self.reported = value

    def _identify(self, doc: dict[str, Any]) -> None:
        self.model = _name(doc.get("model")) or self.model
        self.vendor_id = _name(doc.get("id")) or self.vendor_id

    def _take_tier(self, value: object) -> None:
        self.service_tier = _name(value) or self.service_tier

    def _keep_text(self, text: object) -> None:
        if type(text) is not str or not text:
            return
        self._chars += len(text)
        if self._chars > TEXT_CHARS_MAX:
            self._chars -= len(text)
            self.unread_chars += len(text)
        else:
            self._texts.append(text)

    def _drop_text(self) -> None:
        """The vendor has told the output: nothing needs to be counted."""
        self._is_output_known = True
        self._texts = []
        self._chars = 0
        self.unread_chars = 0

    # -- how documents are found -------------------------------------------------------------------

    def _read_event(self, data: bytes | PointerScanner) -> None:
        self.events += 1
        if type(data) is bytes:
            try:
                doc = loads(data)
            except ValueError:
                if data.startswith(b"[DONE]"):  # as the SDKs test it
                    self.complete = True
                elif data.strip():
                    self.degraded = True
                return
        else:
            assert isinstance(data, PointerScanner)
            doc = self._pruned(data)
        if type(doc) is dict:
            self._on_event(doc)

    def _pruned(self, scanner: PointerScanner) -> Any:
        self.degraded |= scanner.failed
        self.unread_chars += scanner.size
        return scanner.document

    def _feed_whole(self, content: bytes) -> None:
        if self._scanner is not None:
            self._scanner.feed(content)
        elif self._whole is not None:
            self._whole += content
            if len(self._whole) > WHOLE_BYTES_MAX:
                self._scanner = PointerScanner(self._keep)
                self._scanner.feed(bytes(self._whole))
                self._whole = bytearray()
        else:
            self._sniff(content)

    def _sniff(self, content: bytes) -> None:
        begin = content.lstrip(_BLANK)
        if not begin:
            return
        first = begin[:1]
        if first in _EVENT_FIRST or (self._hint_events and first not in _JSON_FIRST):
            self._splitter = SseSplitter(self._keep)
            self.feed(begin)
        else:
            self._whole = bytearray()
            self._feed_whole(begin)

    def _finish(self) -> None:
        if self._splitter is not None:
            for found in self._splitter.finish():
                self._read_event(found)
            return
        if self._scanner is not None:
            self._scanner.finish()
            doc = self._pruned(self._scanner)
        elif self._whole:
            try:
                doc = loads(self._whole)
            except ValueError:
                self.degraded = True
                return
            self._whole = None
        else:
            return
        self.events += 1
        if type(doc) is dict:
            self._on_whole(doc)
            self.complete = not self.degraded


def look_up(value: Any, pointer: Pointer) -> Any:
    """The last non-null value at `pointer` below `value`, None without one."""
    if not pointer:
        return value
    step, rest = pointer[0], pointer[1:]
    if step == ANY:
        found = None
        if type(value) is list:
            for element in value:
                found = look_up(element, rest) or found
        return found
    return look_up(value.get(step), rest) if type(value) is dict else None


def _name(value: object) -> str:
    return value[:NAME_CHARS_MAX] if type(value) is str else ""


def known_int(value: object) -> int:
    """A count as vendors send it: 12, 12.0, null or absent (0). What no count can be is 0 too."""
    if type(value) is float and 0 <= value <= COUNT_MAX:
        value = math.ceil(value)
    return value if type(value) is int and 0 <= value <= COUNT_MAX else 0
