"""Read a multipart/form-data body (RFC 7578) as it passes: its fields, where they are, the beginnings of its
files.

Owns the one strict reading of a form. Servers differ about lines that end in LF, padding behind a boundary,
preambles and repeated names: what could be read in two ways is refused, so that no upstream sees another
model than the one that was billed. Memory is bounded whatever comes; of a file only its beginning is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from proxy.errors import ClientFault, DuplicateMember, ParameterRefused

PARTS_MAX = 256
PART_HEAD_BYTES_MAX = 8 << 10
GUARDED_BYTES_MAX = 1 << 10  # of a field that decides something: a model's name, a size
TEXT_BYTES_MAX = 256 << 10  # of all other fields together; prompts are the long ones
FILE_HEAD_BYTES = 4 << 10  # kept of each file: its format and length are told there
EPILOGUE_BYTES_MAX = 1 << 10  # behind the last boundary: line ends at most

Edit = tuple[int, int, bytes]
"""(start, end, new): bytes of the body, by offset, and what stands in their place."""

_BOUNDARY_CHARS = r"0-9A-Za-z'()+_,./:=? -"
# RFC 2046 5.1.1: at most 70 characters, the last one no space.
_BOUNDARY = re.compile(rf"[{_BOUNDARY_CHARS}]{{0,69}}[{_BOUNDARY_CHARS[:-2]}-]")
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110 5.6.2
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*({_TOKEN})=("(?:[^"\\]|\\.)*"|{_TOKEN})', re.ASCII)
_FIELD = re.compile(rf"({_TOKEN}):[ \t]*([^\r\n\0]*)", re.ASCII)
_TYPE = re.compile(rf"({_TOKEN}(?:/{_TOKEN})?)[ \t]*", re.ASCII)

_OPENING, _DELIMITED, _HEAD, _CONTENT, _CLOSED = range(5)


def is_form(content_type: str) -> bool:
    """Does a Content-Type announce a form with parts?"""
    return content_type[:19].lower() == "multipart/form-data"


def boundary_of(content_type: str) -> str:
    """Raises ClientFault unless there is exactly one boundary, as RFC 2046 wants it."""
    kind, parameters = _parameters(content_type.strip())
    boundaries = [value for name, value in parameters if name == "boundary"]
    if kind != "multipart/form-data" or len(boundaries) != 1 or not _BOUNDARY.fullmatch(boundaries[0]):
        raise _broken("The Content-Type has no valid boundary.")
    return boundaries[0]


def _broken(what: str) -> ClientFault:
    return ClientFault(f"The multipart body cannot be read. {what}")


def _parameters(text: str) -> tuple[str, list[tuple[str, str]]]:
    """(value, parameters) of `value; name=token; name="quoted"`; names in lower case."""
    kind = _TYPE.match(text)
    if kind is None:
        raise _broken("A header of a part is not valid.")
    found = []
    at = kind.end(1)
    while parameter := _PARAMETER.match(text, at):
        name, value = parameter.groups()
        if value[0] == '"':
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        found.append((name.lower(), value))
        at = parameter.end()
    if text[at:].strip(" \t"):
        raise _broken("A header of a part is not valid.")
    return kind.group(1).lower(), found


@dataclass(slots=True)
class FormFile:
    """A file in a form. `head` are its first bytes, `size` what has come of it so far."""

    field: str
    name: str
    head: bytes = b""
    size: int = 0


@dataclass(slots=True)
class _Part:
    name: str
    file: FormFile | None
    delimiter_at: int
    value_at: int
    kept: bytearray = field(default_factory=bytearray)


class FormReader:
    """Reads one form that comes in pieces of any size.

    `fields` are the values of text fields (of several with one name, the first), `spans` where they are,
    `parts` where the whole parts are, delimiter included. `guarded` fields come once, short and in UTF-8.
    """

    def __init__(self, boundary: str, guarded: Iterable[str]) -> None:
        self.fields: dict[str, str] = {}
        self.spans: dict[str, tuple[int, int]] = {}
        self.parts: dict[str, tuple[int, int]] = {}
        self.files: list[FormFile] = []
        self.is_complete = False
        self._guarded = frozenset(guarded)
        self._delimiter = b"--" + boundary.encode()
        self._state = _OPENING
        self._rest = b""
        self._at = 0  # offset of `_rest` in the body
        self._count = 0
        self._text_left = TEXT_BYTES_MAX
        self._epilogue = 0
        self._delimiter_at = 0
        self._part: _Part | None = None

    @property
    def has_file_head(self) -> bool:
        """As much of the first file as is ever kept is here."""
        if not self.files:
            return False
        first = self.files[0]
        is_open = self._part is not None and self._part.file is first
        return not is_open or len(first.head) == FILE_HEAD_BYTES

    def feed(self, data: bytes) -> None:
        """The next bytes, cut anywhere.

        Raises ClientFault for what is no form, DuplicateMember and ParameterRefused for guarded fields.
        """
        data = self._rest + data
        at = 0
        while True:
            end = self._step(data, at)
            if end == at:
                break
            at = end
        self._rest = data[at:]
        self._at += at

    def finish(self) -> None:
        """No more bytes come. Raises ClientFault unless the last boundary was seen."""
        if not self.is_complete:
            raise _broken("It ends before its last boundary.")

    def _step(self, data: bytes, at: int) -> int:
        """Read on from `at`. Returns where it stopped; the same place: more bytes are needed."""
        if self._state == _CONTENT:
            return self._content(data, at)
        if self._state == _HEAD:
            return self._head(data, at)
        if self._state == _DELIMITED:
            return self._delimited(data, at)
        if self._state == _OPENING:
            return self._opening(data, at)
        self._epilogue += len(data) - at
        if data[at:].strip(b"\r\n") or self._epilogue > EPILOGUE_BYTES_MAX:
            raise _broken("Something follows its last boundary.")
        return len(data)

    def _opening(self, data: bytes, at: int) -> int:
        there = data[: len(self._delimiter)]
        if not self._delimiter.startswith(there):
            raise _broken("It does not begin with its boundary.")
        if len(there) < len(self._delimiter):
            return at
        self._state = _DELIMITED
        return len(there)

    def _delimited(self, data: bytes, at: int) -> int:
        after = data[at : at + 2]
        if len(after) < 2 and after in (b"", b"\r", b"-"):
            return at
        self._delimiter_at = self._at + at - len(self._delimiter)
        if self._part is not None:
            self._end_part(self._part)
        if after == b"\r\n":
            self._count += 1
            if self._count > PARTS_MAX:
                raise _broken("It has too many parts.")
            self._state = _HEAD
        elif after == b"--":
            self._state = _CLOSED
            self.is_complete = True
        else:
            raise _broken("A line goes on behind a boundary.")
        return at + 2

    def _head(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n\r\n", at, at + PART_HEAD_BYTES_MAX)
        if end < 0:
            if len(data) - at >= PART_HEAD_BYTES_MAX:
                raise _broken("The head of a part is too long.")
            return at
        head = data[at:end]
        if self._delimiter in head:
            raise _broken("A part has no content.")
        self._part = self._part_of(head, self._at + end + 4)
        self._state = _CONTENT
        return end + 4

    def _part_of(self, head: bytes, value_at: int) -> _Part:
        headers: dict[str, str] = {}
        for line in head.decode("utf-8", "replace").split("\r\n"):  # names of files come in any code
            header = _FIELD.fullmatch(line)
            if header is None or header.group(1).lower() in headers:
                raise _broken("A header of a part is not valid.")
            headers[header.group(1).lower()] = header.group(2)
        kind, parameters = _parameters(headers.get("content-disposition", ""))
        named = dict(parameters)
        if kind != "form-data" or len(named) != len(parameters) or not named.get("name") or "name*" in named:
            raise _broken("A part has no name.")
        if headers.get("content-transfer-encoding", "binary").strip().lower() not in _AS_IT_IS:
            raise _broken("A part is encoded.")  # RFC 7578 4.7: not any more
        file = None
        if "filename" in named or "filename*" in named:
            file = FormFile(named["name"], named.get("filename", ""))
            self.files.append(file)
        return self._begin_part(_Part(named["name"], file, self._delimiter_at, value_at))

    def _begin_part(self, part: _Part) -> _Part:
        if part.name in self._guarded:
            if part.name in self.parts:
                raise DuplicateMember(param=part.name)
            if part.file is not None:
                raise ParameterRefused(f"The field '{part.name}' must not be a file.", param=part.name)
            self.parts[part.name] = (part.delimiter_at, -1)
        return part

    def _content(self, data: bytes, at: int) -> int:
        """Up to the next delimiter. It is looked for without the line end that must stand before it: no part
        holds its own boundary, for those who read lines differently."""
        part = self._part
        assert part is not None
        found = data.find(self._delimiter, at)
        if found < 0:
            end = max(at, len(data) - len(self._delimiter) - 1)  # the rest may be the begin of one
            self._keep(part, data, at, end)
            return end
        if data[found - 2 : found] != b"\r\n" or found - 2 < at:
            raise _broken("A boundary stands within a line.")
        self._keep(part, data, at, found - 2)
        self.spans.setdefault(part.name, (part.value_at, self._at + found - 2))
        self._state = _DELIMITED
        return found + len(self._delimiter)

    def _keep(self, part: _Part, data: bytes, at: int, end: int) -> None:
        size = end - at
        if part.file is not None:
            part.file.size += size
            if len(part.file.head) < FILE_HEAD_BYTES:
                part.file.head += data[at : min(end, at + FILE_HEAD_BYTES - len(part.file.head))]
        elif part.name in self._guarded:
            if len(part.kept) + size > GUARDED_BYTES_MAX:
                raise ParameterRefused(f"The field '{part.name}' is too long.", param=part.name)
            part.kept += data[at:end]
        else:
            part.kept += data[at : min(end, at + self._text_left)]
            self._text_left = max(0, self._text_left - size)

    def _end_part(self, part: _Part) -> None:
        self._part = None
        self.parts[part.name] = (part.delimiter_at, self._delimiter_at)
        if part.file is not None or part.name in self.fields:
            return
        try:
            value = part.kept.decode("utf-8", "strict" if part.name in self._guarded else "replace")
        except UnicodeDecodeError as e:
            raise ParameterRefused(f"The field '{part.name}' is not UTF-8.", param=part.name) from e
        if part.name in self._guarded and not value.isprintable():
            raise ParameterRefused(f"The field '{part.name}' is not valid.", param=part.name)
        self.fields[part.name] = value


_AS_IT_IS = frozenset({"7bit", "8bit", "binary"})


def text_part(boundary: str, name: str, value: str) -> bytes:
    """One more field, to be put in front of a delimiter."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
    return head.encode() + value.encode() + b"\r\n"


class Splicer:
    """Makes edits to a body that passes. They must not overlap."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = sorted(edits, reverse=True)
        self._at = 0
        self.growth = sum(len(new) - (end - start) for start, end, new in edits)

    def feed(self, data: bytes) -> list[bytes]:
        """The next bytes as they go on; what no edit touches is the data itself."""
        if not self._edits:
            return [data]
        out: list[bytes] = []
        taken = 0
        while self._edits and self._edits[-1][0] < self._at + len(data):
            start, end, new = self._edits[-1]
            out.append(data[taken : max(taken, start - self._at)])
            out.append(new)
            taken = min(len(data), end - self._at)
            if end > self._at + len(data):
                self._edits[-1] = (self._at + len(data), end, b"")  # the rest of it is in what follows
                break
            self._edits.pop()
        self._at += len(data)
        out.append(data[taken:])
        return [piece for piece in out if piece]
