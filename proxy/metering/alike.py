"""Read the events of a stream that differ in nothing but their text without parsing each.

Owns the comparison. A stream of generated text is thousands of events that repeat all but a word: what
stands around the word in one of them is known, and the words of those that follow are what stands between.
Exact or nothing: a read that may be anything else is not read here. Which events may be compared is the
meter's to decide (dialects/answer.py).
"""

from __future__ import annotations

import string
from collections.abc import Callable
from operator import itemgetter, methodcaller

from orjson import loads

from proxy.metering.events import Splitter, SseSplitter

EVENTS_MAX = 1024  # of one read: with six line ends each they are fewer than what nobody has time for
EVENT_BYTES_MAX = 4 << 10  # of what is kept to compare with, twice

Unpad = Callable[[bytes], bytes]


def _of_member(name: str) -> Unpad:
    """Of letters and digits at random, in a member of their own."""
    mark = b'"%b":"' % name.encode()
    strip = methodcaller("lstrip", (string.ascii_letters + string.digits).encode())

    def unpad(content: bytes) -> bytes:
        first, *behind = content.split(mark)
        return mark.join([first, *map(strip, behind)])

    return unpad


def _of_blanks(content: bytes) -> bytes:
    """Of blanks in front of the last bracket: up to 63."""
    for count in (32, 16, 8, 4, 2, 1):
        content = content.replace(b" " * count + b"}\n\n", b"}\n\n")
    return content


# What vendors make events different with, so that nobody guesses words by their length: OpenAI, Mistral,
# Anthropic. Top-level members whose words nobody may look at, and how to leave the padding out.
PADDED = frozenset({"obfuscation", "p"})
_UNPAD: dict[str, Unpad] = {**{name: _of_member(name) for name in sorted(PADDED)}, "": _of_blanks}


class Alike:
    """Events that are like one that was read: `begin`, a text, `end`, each with the event's framing."""

    __slots__ = ("_begin", "_between", "_cut", "_end", "_lines", "_splitter", "_unpad")

    def __init__(self, splitter: SseSplitter, begin: bytes, end: bytes, unpad: Unpad | None) -> None:
        self._splitter = splitter
        self._unpad = unpad
        self._begin = begin  # its last byte is the quote in front of the text
        self._end = end
        self._between = end + begin
        # Which lines have the texts, and where: to find line ends is quicker than to find what is between.
        self._lines = slice(begin.count(b"\n"), -1, self._between.count(b"\n"))
        self._cut = itemgetter(slice(len(begin) - begin.rfind(b"\n") - 1, -end.index(b"\n")))

    def texts(self, content: bytes) -> list[str] | None:
        """Those of a read that is nothing but such events, none of them empty."""
        begin, end = self._begin, self._end
        if self._unpad is not None:
            content = self._unpad(content)
        if not (content.startswith(begin) and content.endswith(end) and self._splitter.is_between):
            return None
        told = [*map(self._cut, content.split(b"\n")[self._lines])]
        if len(told) > EVENTS_MAX or content != b"%b%b%b" % (begin, self._between.join(told), end):
            return None
        try:
            # A text with a quote in it would be several strings, one that ends in a backslash would hold a
            # bare line end, which is an error: so many strings are just these.
            texts: list[str] = loads(b'["%b"]' % b'",\n"'.join(told))
        except ValueError:
            return None
        return texts if len(texts) == len(told) and "" not in texts else None


def like(splitter: Splitter, content: bytes, data: bytes, text: str) -> Alike | None:
    """What is like the last event of a read, whose data is known and has one `text` to tell.

    None where the text is not the one string of the event that could be meant, as it stands there.
    """
    if b"\\" in data or not isinstance(splitter, SseSplitter):
        return None
    blank = b"\r\n\r\n" if content.endswith(b"\r\n\r\n") else b"\n\n"
    before = content.rfind(blank, 0, -len(blank))
    event = content if before < 0 else content[before + len(blank) :]
    alone = splitter.one(event)
    if alone is None or alone.rstrip(b"\r\n") != data.rstrip(b"\r\n") or len(event) > EVENT_BYTES_MAX:
        return None
    if event.count(b"\r") != event.count(b"\r\n"):
        return None
    unpad = _padding(content, event, data)
    if unpad is not None:
        event = unpad(event)
    told = b'"%b"' % text.encode("utf-8", "replace")
    at = event.find(told)
    # Without escapes in the event each of its strings stands there as it is: found once, it is this one.
    if at < 0 or event.find(told, at + 1) >= 0:
        return None
    return Alike(splitter, event[: at + 1], event[at + len(told) - 1 :], unpad)


def _padding(content: bytes, event: bytes, data: bytes) -> Unpad | None:
    """How to take away what the events of a read are padded with, if they are."""
    for name, unpad in _UNPAD.items():
        if unpad(content) != content:
            is_there = not name or (event.count(b'"%b":"' % name.encode()) == 1 and name in loads(data))
            return unpad if is_there else None
    return None
