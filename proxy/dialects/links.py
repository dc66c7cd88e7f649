"""Links of ours to what tasks have made: their ids, and answers in which they stand for the vendor's URLs.

Owns the form of a result's id and the splicing of answers. An id is made from what names the file at the
vendor, so that everybody who sees a task end gives it the same one without asking; it cannot be guessed
without the station's secret, and a made-up one is known for what it is. Pure; knows no vendor.
"""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator
from json.decoder import JSONDecoder
from typing import Any, NamedTuple

from proxy.dialects.owned import SUCCEEDED, Task, first, state_told
from proxy.metering.scanner import ANY, Pointer

PREFIX = "/results/"
FILES_MAX = 64  # of one task
URL_CHARS_MAX = 2048
WHOLE_BYTES_MAX = 1 << 20  # of an answer that is held until its links are in it
NONCE_BYTES, PROOF_BYTES = 18, 6  # 144 bits to guess; 24 bytes are 32 characters
ID_CHARS = 32

_BLANK = " \t\r\n"


class Home(NamedTuple):
    """Where a task lives: what makes the ids of its files."""

    upstream: str
    credential: str
    vendor_id: str


class Linker:
    """Makes ids of results. `secret` is the station's, the same at every node."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def id_of(self, home: Home, place: str) -> str:
        """Of the file that a task names at a place (see `files_told`)."""
        named = json.dumps([*home, place]).encode()
        nonce = self._mac(b"result id", named)[:NONCE_BYTES]
        return urlsafe_b64encode(nonce + self._proof(nonce)).decode()

    def is_ours(self, id_: str) -> bool:
        """Has this station made the id?"""
        if len(id_) != ID_CHARS or not id_.isascii():
            return False
        try:
            raw = urlsafe_b64decode(id_)
        except ValueError:
            return False
        is_one = urlsafe_b64encode(raw).decode() == id_  # no second spelling
        return is_one and hmac.compare_digest(raw[NONCE_BYTES:], self._proof(raw[:NONCE_BYTES]))

    def _proof(self, nonce: bytes) -> bytes:
        return self._mac(b"result proof", nonce)[:PROOF_BYTES]

    def _mac(self, purpose: bytes, data: bytes) -> bytes:
        return hmac.digest(self._secret, purpose + b"\0" + data, "sha256")


def files_told(task: Task, told: Any) -> dict[str, str]:
    """place -> URL, of the vendor's object of a task.

    A place is the number of its pointer, and where in lists on the way it stands: what is there keeps its
    place when a vendor signs the same file's URL anew.
    """
    found: dict[str, str] = {}
    for number, pointer in enumerate(task.files):
        for place, value in _placed(told, pointer, str(number)):
            if is_link(value) and len(found) < FILES_MAX:
                found[place] = value
    return found


def is_link(value: Any) -> bool:
    """Something that can be fetched."""
    if type(value) is not str or len(value) > URL_CHARS_MAX or not value.isprintable() or " " in value:
        return False
    return value.startswith(("https://", "http://"))


def _placed(value: Any, pointer: Pointer, place: str) -> Iterator[tuple[str, Any]]:
    for at, step in enumerate(pointer):
        if step == ANY:
            for name, element in _named(value):
                yield from _placed(element, pointer[at + 1 :], f"{place}.{name}")
            return
        value = value.get(step) if type(value) is dict else None
    yield place, value


def _named(value: Any) -> Iterable[tuple[int | str, Any]]:
    """What ANY stands for: each of a list, or of an object's members."""
    if type(value) is dict:
        return value.items()
    return enumerate(value) if type(value) is list else ()


# -- answers -----------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """How an answer shows tasks."""

    task: Task
    at: Pointer = ()  # where its object is; with `id_at`: the list of them
    id_at: Pointer = ()  # in an item of the list; (): the answer is about one


Link = Callable[[str, str], str]  # (vendor's id, place) -> the URL of ours


def relinked(content: bytes, shown: Shown, vendor_id: str, link: Link) -> bytes:
    """An answer with our links for the files of the finished tasks that it shows; every other byte stays.

    What is no JSON, or too deep for us, is returned as it is. `vendor_id` is that of an answer about one.
    """
    return _spliced(content, lambda text: _changes(text, shown, vendor_id, link))


def readdressed(content: bytes, places: tuple[Pointer, ...], here: Callable[[str], str | None]) -> bytes:
    """The same for URLs of the vendor's API: `here` tells the one that leads back to it through us."""

    def changes(text: str) -> Iterator[Change]:
        for pointer in places:
            for _, start in _spans(text, _value_at(text, 0), pointer, ""):
                value, end = _DECODER.raw_decode(text, start)
                if is_link(value) and (ours := here(value)) is not None:
                    yield start, end, ours

    return _spliced(content, changes)


def _spliced(content: bytes, find: Callable[[str], Iterable[Change]]) -> bytes:
    try:
        text = content.decode()
        json.loads(text)  # so that the walks need not doubt it
        changes = sorted(find(text))
    except (ValueError, RecursionError):
        return content
    pieces, done = [], 0
    for start, end, new in changes:
        if start < done:
            continue  # two pointers lead there
        pieces += [text[done:start], json.dumps(new)]
        done = end
    return "".join((*pieces, text[done:])).encode() if pieces else content


class Hosting(NamedTuple):
    """What the station does with the files of a family of tasks."""

    linker: Linker
    url: str  # in front of a link; "": answers keep their vendors' URLs

    @property
    def rewrites(self) -> bool:
        """Do answers show our links?"""
        return bool(self.url)

    def files(self, task: Task, home: Home, told: Any) -> dict[str, str]:
        """id -> the vendor's URL of every file that a task names; `told` is the vendor's object of it."""
        return {self.linker.id_of(home, place): url for place, url in files_told(task, told).items()}

    def link(self, upstream: str, credential: str) -> Link:
        def link(vendor_id: str, place: str) -> str:
            return f"{self.url}{PREFIX}{self.linker.id_of(Home(upstream, credential, vendor_id), place)}"

        return link

    def document(self, document: Any, shown: Shown, home: Home) -> Any:
        """What `relinked` makes of an answer, of one that is not kept as text."""
        if not self.rewrites or document is None:
            return document
        link = self.link(home.upstream, home.credential)
        return json.loads(relinked(json.dumps(document).encode(), shown, home.vendor_id, link))


Change = tuple[int, int, str]


def _changes(text: str, shown: Shown, vendor_id: str, link: Link) -> Iterator[Change]:
    """Where a URL stands in the text, and the one that replaces it."""
    start = _value_at(text, 0)
    if not shown.id_at:
        for _, at in _spans(text, start, shown.at, ""):
            item, _ = _DECODER.raw_decode(text, at)
            yield from _of_one(text, at, item, shown.task, _partly(link, vendor_id))
        return
    for _, at in _spans(text, start, (*shown.at, ANY), ""):
        item, _ = _DECODER.raw_decode(text, at)
        named = first(item, (shown.id_at,))
        if type(named) is str or type(named) is int:
            yield from _of_one(text, at, item, shown.task, _partly(link, str(named)))


def _partly(link: Link, vendor_id: str) -> Callable[[str], str]:
    return lambda place: link(vendor_id, place)


def _of_one(text: str, at: int, item: Any, task: Task, link: Callable[[str], str]) -> Iterator[Change]:
    if state_told(task, item) != SUCCEEDED:
        return
    left = FILES_MAX
    for number, pointer in enumerate(task.files):
        for place, start in _spans(text, at, pointer, str(number)):
            if left and text[start] == '"':
                value, end = _DECODER.raw_decode(text, start)
                if is_link(value):
                    left -= 1
                    yield start, end, link(place)


_DECODER = JSONDecoder()


def _spans(text: str, at: int, pointer: Pointer, place: str) -> Iterator[tuple[str, int]]:
    """(place, where it begins) of every value at a pointer; what is beside the way is skipped in C."""
    if not pointer:
        yield place, at
        return
    step, rest = pointer[0], pointer[1:]
    if step == ANY:
        named: Iterable[tuple[int | str, int]] = ()
        if text[at] == "[":
            named = enumerate(_elements(text, at))
        elif text[at] == "{":
            named = dict(_members(text, at)).items()  # of a name that is there twice, the last one counts
        for name, start in named:
            yield from _spans(text, start, rest, f"{place}.{name}")
    elif text[at] == "{":
        found = dict(_members(text, at)).get(str(step))
        if found is not None:
            yield from _spans(text, found, rest, place)


def _elements(text: str, at: int) -> Iterable[int]:
    at = _value_at(text, at + 1)
    while text[at] != "]":
        yield at
        at = _value_at(text, _DECODER.raw_decode(text, at)[1])
        if text[at] == ",":
            at = _value_at(text, at + 1)


def _members(text: str, at: int) -> Iterator[tuple[str, int]]:
    at = _value_at(text, at + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        at = _value_at(text, _value_at(text, at) + 1)  # behind the colon
        yield name, at
        at = _value_at(text, _DECODER.raw_decode(text, at)[1])
        if text[at] == ",":
            at = _value_at(text, at + 1)


def _value_at(text: str, at: int) -> int:
    """Behind blanks."""
    while text[at] in _BLANK:
        at += 1
    return at
